"""A short version of benchmarks/kill_stages.py: each stage survives a kill -9 on either night."""

from pathlib import Path

import pytest

from benchmarks.kill_stages import EXAMPLES, FIRST, STAGES, expect, kill_stages, prepare, try_once
from pipeline import tables, threads

SOURCES = [(kind, STAGES if kind == "labelled log" else STAGES[:2]) for kind in EXAMPLES]


@pytest.fixture(autouse=True)
def _set_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in threads.SETTINGS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("kind", "stages"), SOURCES, ids=EXAMPLES)
def test_a_killed_stage_leaves_whole_tables_and_its_rerun_makes_what_an_undisturbed_run_makes(
    kind: str, stages: tuple[str, ...], tmp_path: Path
) -> None:
    trials = list(kill_stages(kind, stages, kills=2, seed=1, root=tmp_path))
    assert [complaint for trial in trials for complaint in (*trial.broken, *trial.different)] == []
    assert [trial.stage for trial in trials] == [stage for stage in stages for _ in range(2)]
    assert sum(trial.killed for trial in trials) >= len(stages)


def test_a_half_commit_and_another_output_are_told(tmp_path: Path) -> None:
    scene = prepare("labelled log", tmp_path)
    expected = expect(scene, ("ingest",))[FIRST, "ingest"]
    expected.commits["tables/items"].clear()
    expected.outputs["tables/users"] = "another digest"
    trial = try_once(scene, FIRST, "ingest", expected, moment=0.999, at_change=True)
    assert trial.killed
    assert trial.broken == ["tables/items holds part of a commit"]
    assert trial.different == ["tables/users"]
    assert tables.exists(scene.workspace.table("users"))
