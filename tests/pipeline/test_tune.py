"""Tuning of the conversion weight: two stages, the rule that recommends, and what is never read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.significance import Estimate
from pipeline.study_data import Study
from pipeline.tune import GRID, Tuning, finalists, recommendation, tune, tune_table, verdict
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated.toml"
ABOVE, BELOW = Estimate(0.1, 0.05, 0.15, 0.01), Estimate(-0.1, -0.15, -0.05, 0.01)
AROUND, UNDEFINED = Estimate(0.1, -0.05, 0.15, 0.4), Estimate(*[float("nan")] * 4)


@pytest.fixture(scope="module")
def result(small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("tune") / "cache"
    return tune(small_study, Tuning(seeds=2, stage_one_days=1, replicates=20, cache=cache))


def test_stage_one_has_the_grid_and_stage_two_its_best_two_beside_the_weight_that_is_set(
    result: dict[str, Any],
) -> None:
    one, two = result["stage_one"], result["stage_two"]
    assert (one["days"], two["days"]) == (1, 3)
    assert [row["weight"] for row in one["weights"]] == list(GRID)
    order = sorted((row["mean_normalised_entropy"], row["weight"]) for row in one["weights"] if row["weight"] != 1.0)
    assert [row["weight"] for row in two["weights"]] == [1.0, order[0][1], order[1][1]]
    assert not two["weights"][0]["differences"]
    json.dumps(result, allow_nan=False)


def test_the_answer_follows_from_the_rule_and_is_the_same_twice(result: dict[str, Any], small_study: Study) -> None:
    assert {key: result[key] for key in ("recommended", "sentence")} == recommendation(
        result["stage_two"]["weights"], 1.0
    )
    assert tune(small_study, Tuning(seeds=2, stage_one_days=1, replicates=20)) == result
    assert tune_table(result).row_count == 3


def test_a_weight_that_is_set_outside_the_grid_is_tried_too(small_study: Study) -> None:
    training = small_study.config.training.model_copy(update={"conversion_weight": 2.0})
    study = dataclasses.replace(small_study, config=small_study.config.model_copy(update={"training": training}))
    found = tune(study, Tuning(seeds=1, stage_one_days=1, replicates=20))
    assert [row["weight"] for row in found["stage_one"]["weights"]] == sorted([*GRID, 2.0])
    assert found["stage_two"]["weights"][0]["weight"] == found["set"] == 2.0


def test_a_study_of_the_test_day_is_no_place_to_tune(small_study: Study) -> None:
    with pytest.raises(AssertionError):
        tune(dataclasses.replace(small_study, on="test"), Tuning())


def test_the_finalists_are_the_set_weight_and_the_two_of_lowest_entropy() -> None:
    assert finalists({0.1: 0.8, 0.3: 0.9, 1.0: 0.7, 3.0: 0.85}, 1.0) == [1.0, 0.1, 3.0]


@pytest.mark.parametrize(
    ("log_loss", "area", "expected"),
    [
        (BELOW, AROUND, "better"),
        (AROUND, ABOVE, "better"),
        (AROUND, AROUND, "not shown to differ"),
        (BELOW, BELOW, "worse"),
        (ABOVE, ABOVE, "worse"),
        (UNDEFINED, AROUND, "not shown to differ"),
    ],
)
def test_a_task_is_better_where_a_metric_is_beyond_its_interval_and_none_is_worse(
    log_loss: Estimate, area: Estimate, expected: str
) -> None:
    assert verdict({"log_loss": log_loss, "auc": area}) == expected


def _row(weight: float, click: str, both: str, entropy: float) -> dict[str, Any]:
    verdicts = {"click": click, "click_and_conversion": both}
    return {"weight": weight, "verdicts": verdicts, "mean_normalised_entropy": entropy}


def test_a_weight_that_pays_for_one_task_with_the_other_is_not_recommended() -> None:
    rows = [_row(3.0, "worse", "better", 0.1), _row(0.3, "not shown to differ", "not shown to differ", 0.2)]
    found = recommendation([{**_row(1.0, "", "", 0.3), "verdicts": {}}, *rows], 1.0)
    assert found["recommended"] == 1.0
    assert found["sentence"].startswith("Keep training.conversion_weight = 1:")


def test_of_two_better_weights_the_one_of_lowest_entropy_is_recommended() -> None:
    rows = [_row(3.0, "not shown to differ", "better", 0.4), _row(10.0, "not shown to differ", "better", 0.3)]
    found = recommendation(rows, 1.0)
    assert found["recommended"] == 10.0
    assert found["sentence"] == (
        "Set training.conversion_weight = 10 instead of 1: click not shown to differ, click_and_conversion better."
    )


def _invoke(workspace: Workspace, *arguments: str) -> tuple[int, str]:
    texts = ("source.time_zone=Asia/Shanghai", "model.hidden=[8,4]", "training.batch_size=256")
    common = ("tune", "--config", str(EXAMPLE), "--workspace", str(workspace.root), "--replicates", "20")
    found = CliRunner().invoke(app, [*common, *arguments, *(f"--set={text}" for text in texts)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def test_the_command_prints_the_table_and_the_sentence_and_writes_both(
    study_workspace: Workspace, tmp_path: Path
) -> None:
    output = tmp_path / "tune.json"
    arguments = ("--seeds", "2", "--stage-one-days", "1", "--cache", str(tmp_path / "cache"), "--output", str(output))
    code, printed = _invoke(study_workspace, *arguments)
    assert code == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["sentence"] in printed
    assert found["on"] == "validation"
    assert "training.conversion_weight of" in printed
    # One file a weight and seed: five of stage one, and two seeds of each of three.
    assert len(list((tmp_path / "cache").iterdir())) == 5 + 6


def test_an_output_that_cannot_be_written_is_refused_before_training(
    study_workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="does not exist; make it first"):
        _invoke(study_workspace, "--output", str(tmp_path / "no" / "tune.json"))
