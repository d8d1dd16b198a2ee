"""The commands compare and experiment: their files, what they print, and what they refuse before any training."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.compare_page import estimate_text
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated.toml"
SMALL = (
    "source.time_zone=Asia/Shanghai",
    "model.hidden=[8,4]",
    "model.embedding_width=4",
    "training.batch_size=256",
    "training.learning_rate=0.01",
)


def _run(workspace: Workspace, *arguments: str) -> str:
    common = ["--config", str(EXAMPLE), "--workspace", str(workspace.root), "--replicates", "20"]
    found = CliRunner().invoke(app, [*arguments, *common, *(f"--set={text}" for text in SMALL)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def test_compare_writes_its_figures_and_page_and_goes_on_from_its_cache(
    study_workspace: Workspace, tmp_path: Path
) -> None:
    output, page, cache = tmp_path / "compare.json", tmp_path / "compare.html", tmp_path / "cache"
    arguments = ("compare", "--bodies", "ple, single_task", "--seeds", "2", "--cache", str(cache))
    printed = _run(study_workspace, *arguments, "--output", str(output), "--page", str(page))
    result = json.loads(output.read_text(encoding="utf-8"))
    difference = estimate_text(result["differences"]["click"]["single_task"]["ple"]["auc"])
    assert difference in printed
    assert difference in page.read_text(encoding="utf-8")
    assert len(list(cache.iterdir())) == 4
    before = output.read_bytes()
    _run(study_workspace, *arguments, "--output", str(output))
    assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["sharing", "efficiency", "robustness"])
def test_an_experiment_states_its_rule_and_whether_it_is_met(
    study_workspace: Workspace, tmp_path: Path, name: str
) -> None:
    output, page = tmp_path / "experiment.json", tmp_path / "experiment.html"
    arguments = ("--seeds", "2", "--max-epochs", "1", "--sizes", "0.1,1", "--levels", "0,0.4", "--cache", str(tmp_path))
    printed = _run(study_workspace, "experiment", name, *arguments, "--output", str(output), "--page", str(page))
    result = json.loads(output.read_text(encoding="utf-8"))
    word = "passed" if result["passed"] else "failed"
    assert f"{name} {word}: {result['sentence']}" in printed.replace("\n", " ") or result["sentence"] in printed
    html = page.read_text(encoding="utf-8")
    assert f"Experiment {name} on simulated: {word}" in html
    for cell in result["cells"]:
        assert cell["name"] in html
        assert estimate_text(cell) in html
    assert html.count('class="alarm"') == len(result["failures"]) + (not result["passed"])
    assert 'class="chart"' in html


def test_a_study_reads_the_examples_that_were_featurized_before_the_model_changed(
    study_workspace: Workspace, tmp_path: Path
) -> None:
    output = tmp_path / "compare.json"
    _run(study_workspace, "compare", "--bodies", "ple,linear", "--seeds", "1", "--output", str(output))
    (run,) = [folder.name for folder in (study_workspace.root / "runs").iterdir()]
    assert json.loads(output.read_text(encoding="utf-8"))["source"].startswith(run)
    assert any((study_workspace.root / "study").iterdir()), "the default cache is in the workspace"


def test_what_cannot_be_written_or_read_is_refused_before_any_training(
    study_workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"compare.json: the folder .*none does not exist; make it first"):
        _run(study_workspace, "compare", "--output", str(tmp_path / "none" / "compare.json"))
    with pytest.raises(ValueError, match="--levels 0,much: expected numbers separated by commas"):
        _run(study_workspace, "experiment", "robustness", "--levels", "0,much")
