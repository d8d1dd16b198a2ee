"""Claims on which runs a workspace holds and which of them came before."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run_files import earlier_run, find_run, read_run
from pipeline.workspace import Workspace, read_json, write_json


def test_of_several_earlier_runs_of_a_day_that_with_the_same_configuration_comes_first(
    evaluated_run: Callable[..., Path],
) -> None:
    other = evaluated_run("2026-01-04")
    other.rename(other.with_name("2026-01-04-ffffffff"))
    run = read_run(evaluated_run("2026-01-05"))
    found = earlier_run(run)
    assert found is not None
    assert found.name == "2026-01-04-ffffffff"
    same = evaluated_run("2026-01-04")
    found = earlier_run(run)
    assert found is not None
    assert found.folder == same


def test_a_data_set_is_known_from_the_evaluation_or_else_from_later_files(evaluated_run: Callable[..., Path]) -> None:
    folder = evaluated_run(name="shop")
    path = folder / "evaluation" / "evaluation.json"
    evaluation = read_json(path, "evaluate")
    del evaluation["config"]
    write_json(path, evaluation)
    assert read_run(folder).data_set == "shop"
    (folder / "register.json").unlink()
    assert read_run(folder).data_set is None


def test_a_run_is_found_by_its_id_only(evaluated_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = evaluated_run()
    assert find_run(Workspace(tmp_path), folder.name) == folder
    with pytest.raises(ValueError, match=rf"run 'other' is not in .*: evaluated runs there are {folder.name}"):
        find_run(Workspace(tmp_path), "other")
    with pytest.raises(ValueError, match=r"run '../runs' is not in"):
        find_run(Workspace(tmp_path), "../runs")
    with pytest.raises(ValueError, match=r"evaluated runs there are none"):
        find_run(Workspace(tmp_path / "empty"), "other")
