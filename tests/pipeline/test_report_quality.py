"""Claims on what the HTML report says of figures that a run does not have."""

from collections.abc import Callable
from pathlib import Path

from pipeline.page import Missing
from pipeline.report_quality import EVALUATE, importance_section
from pipeline.run_files import read_run
from pipeline.workspace import read_json, write_json


def _missing_importance(folder: Path, **settings: bool) -> list[str]:
    """Return what is said of a run without importance whose [evaluation] holds these settings."""
    path = folder / "evaluation" / "evaluation.json"
    evaluation = read_json(path, "evaluate")
    evaluation.pop("importance", None)
    write_json(path, evaluation | {"config": {"name": "shop", "evaluation": settings}})
    section = importance_section({"this run": read_run(folder)})
    return [block.text for block in section.blocks if isinstance(block, Missing)]


def test_importance_that_the_configuration_switched_off_is_not_said_to_come_by_evaluating_again(
    evaluated_run: Callable[..., Path],
) -> None:
    folder = evaluated_run()
    off = "the importance of features of this run is switched off: its evaluation.importance is false."
    assert _missing_importance(folder, importance=False) == [off]
    lacking = f"the importance of features of this run is missing: {EVALUATE}."
    assert _missing_importance(folder, importance=True) == [lacking]
    assert _missing_importance(folder) == [lacking]
