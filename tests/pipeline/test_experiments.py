"""The three experiments on what multi-task learning promises, on tiny data: cells, verdicts, what is refused."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from models.ranker import Ranker
from pipeline.experiment_efficiency import efficiency, fit_watched, log_ratio
from pipeline.experiment_robustness import loses_less, robustness, slope_weights
from pipeline.experiment_sharing import conclusion, sharing
from pipeline.experiments import Cell, Experiment, at_capacity, capacity_fault, fit_with_seed, weights_outside_tables
from pipeline.fit import fit_ranker, validation_losses
from pipeline.significance import Estimate
from pipeline.study_data import Study
from pipeline.study_training import Material, sizes

TASKS = ("click", "click_and_conversion", "conversion")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(body="ple", seeds=2, replicates=30, cache=tmp_path_factory.mktemp("experiments") / "cache")


@pytest.fixture(scope="module")
def shared(small_study: Study, experiment: Experiment) -> dict[str, Any]:
    return sharing(small_study, experiment, sizes=(0.1, 1.0), max_epochs=2)


def test_sharing_has_a_cell_for_every_size_task_and_control(shared: dict[str, Any]) -> None:
    names = [cell["name"] for cell in shared["cells"]]
    expected = [
        name
        for size in ("10 %", "100 %")
        for name in (
            *(f"{task}, {size}" for task in TASKS),
            f"click_and_conversion, {size}, shuffled",
        )
    ]
    assert names == expected
    roles = {cell["name"]: cell["role"] for cell in shared["cells"]}
    assert roles["click_and_conversion, 10 %"] == "gain expected"
    assert roles["click_and_conversion, 100 %"] == "not worse"
    json.dumps(shared, allow_nan=False)


def test_sharing_passes_only_where_every_part_of_its_rule_does(shared: dict[str, Any]) -> None:
    for cell in shared["cells"]:
        expected = {
            "gain expected": cell["low"] > 0,
            "not worse": cell["high"] >= 0,
            "no gain expected": cell["low"] <= 0,
        }[cell["role"]]
        assert cell["passed"] == expected
    judged = [cell["passed"] for cell in shared["cells"] if cell["role"] != "not worse"]
    assert shared["passed"] == all(judged)
    failed = [cell["name"] for cell in shared["cells"] if not cell["passed"]]
    assert [text.split(":")[0] for text in shared["failures"]] == failed


def test_both_sides_have_the_same_weights_outside_the_embeddings(shared: dict[str, Any], small_study: Study) -> None:
    joint, single = shared["capacity"]["joint"], shared["capacity"]["single"]
    assert single["weights"] == pytest.approx(joint["weights"], rel=0.05)
    assert capacity_fault(shared["capacity"]) == []
    spec = small_study.spec("single_task", 1)
    assert weights_outside_tables(spec) == sizes(Ranker(spec))["parameters_outside_tables"]
    wide = at_capacity(spec, 3 * weights_outside_tables(spec))
    assert weights_outside_tables(wide) == pytest.approx(3 * weights_outside_tables(spec), rel=0.05)
    assert wide.hidden[0] == pytest.approx(2 * wide.hidden[1], abs=1)


def test_capacities_that_cannot_be_matched_are_a_failure() -> None:
    sides = {"joint": {"weights": 100}, "single": {"weights": 150}}
    assert capacity_fault(sides) == [
        "capacity: single-task networks have 1.50 times the joint body's weights outside embeddings"
    ]


def test_an_experiment_that_goes_on_gives_the_same_result(
    small_study: Study, experiment: Experiment, shared: dict[str, Any]
) -> None:
    assert experiment.cache is not None
    before = sorted(path.name for path in experiment.cache.iterdir())
    again = sharing(small_study, experiment, sizes=(0.1, 1.0), max_epochs=2)
    assert json.dumps(again) == json.dumps(shared)
    assert sorted(path.name for path in experiment.cache.iterdir()) == before


def test_robustness_has_a_slope_for_every_task_and_kind_of_noise(small_study: Study, experiment: Experiment) -> None:
    found = robustness(small_study, experiment, levels=(0.0, 0.4))
    kinds = ("conversion noise", "click noise", "both noise", "missing features")
    assert [cell["name"] for cell in found["cells"]] == [f"{task} under {kind}" for task in TASKS for kind in kinds]
    for cell in found["cells"]:
        levels = found["auc_by_level"][cell["name"].replace(" under ", ", ").removesuffix(" noise")]
        slopes = {side: (values[1] - values[0]) / 0.4 for side, values in levels.items()}
        assert cell["value"] == pytest.approx(slopes["joint"] - slopes["single"])
        assert cell["passed"] == (cell["high"] >= 0)
    assert found["passed"] == (not found["failures"])
    nothing = "click_and_conversion: under no kind of noise does the joint body lose less, Holm's p below 0.05"
    assert nothing in found["failures"], "two seeds and thirty resamples show nothing"
    missing = found["auc_by_level"]["click, missing features"]
    clean = found["auc_by_level"]["click, both"]
    assert [missing[side][0] for side in ("joint", "single")] == [clean[side][0] for side in ("joint", "single")]
    json.dumps(found, allow_nan=False)


def _cell(name: str, role: str, low: float, high: float, p: float = 0.5, *, passed: bool = True) -> Cell:
    return Cell(name, role, Estimate((low + high) / 2, low, high, p), passed)


def test_sharing_is_concluded_from_every_small_size_and_every_control() -> None:
    gain, none = _cell("a", "gain expected", 0.01, 0.02), _cell("b", "gain expected", -0.01, 0.02, passed=False)
    control, leak = _cell("c", "no gain expected", -1, 1), _cell("d", "no gain expected", 0.1, 0.2, passed=False)
    worse = _cell("e", "not worse", -0.2, -0.1, passed=False)
    assert conclusion([gain, gain, control, worse])[0]
    assert "The joint body is worse on e." in conclusion([gain, control, worse])[1]
    assert not conclusion([gain, none, control])[0]
    assert not conclusion([gain, control, leak])[0]
    assert not conclusion([control])[0], "without a small size nothing is shown"
    assert (
        "at 1 of 2 small sizes; with shuffled clicks no gain is left at 1 of 1" in conclusion([gain, none, control])[1]
    )


def test_losing_less_must_hold_for_as_many_slopes_as_are_looked_at() -> None:
    cells = [
        _cell("sure", "", 0.1, 0.3, 0.001),
        _cell("lucky", "", 0.01, 0.3, 0.03),
        _cell("more", "", -0.3, -0.1, 0.001),
    ]
    assert loses_less(cells) == ["sure", "lucky"]
    assert loses_less([*cells, *(_cell(str(n), "", -0.1, 0.1, 0.9) for n in range(4))]) == ["sure"]


def test_sharing_without_a_small_size_fails_and_says_so(small_study: Study, experiment: Experiment) -> None:
    found = sharing(small_study, experiment, sizes=(1.0,), max_epochs=1)
    assert not found["passed"]
    assert "sizes: none is at most 0.1, where the rule expects a gain" in found["failures"]


def test_a_slope_is_that_of_least_squares() -> None:
    levels, values = [0.0, 0.05, 0.1, 0.4], np.array([0.8, 0.79, 0.75, 0.6])
    assert slope_weights(levels) @ values == pytest.approx(np.polyfit(levels, values, 1)[0])


def test_efficiency_counts_what_each_side_needs_for_the_same_loss(small_study: Study, experiment: Experiment) -> None:
    found = efficiency(small_study, experiment, epochs=2, checks=3)
    assert [cell["name"] for cell in found["cells"]] == [
        "CPU seconds to equal quality",
        "steps to equal quality",
        "CPU seconds of scoring",
        "bytes of weights",
    ]
    weights = next(cell for cell in found["cells"] if cell["name"].startswith("bytes"))
    first = found["runs"][0]
    alone = first["click"]["parameters"] + first["click_and_conversion"]["parameters"]
    assert weights["value"] == pytest.approx(np.log(first["joint"]["parameters"] / alone))
    assert weights["passed"] == (weights["value"] < 0)
    for run in found["runs"]:
        assert [check["steps"] for check in run["joint"]["checks"]] == [4, 8, 12, 16, 20, 24]
        seconds = [check["cpu_seconds"] for check in run["joint"]["checks"]]
        assert seconds == sorted(seconds)
    json.dumps(found, allow_nan=False)


def test_watching_a_training_changes_none_of_its_weights(small_study: Study) -> None:
    spec, fit = small_study.spec("mmoe", 3), fit_with_seed(small_study, 3)
    plain, _ = fit_ranker(spec, fit, small_study.training, small_study.validation)
    material = Material(small_study.training, small_study.validation, {})
    watched, record = fit_watched(spec, fit, material, every=2)
    for (name, one), other in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [check["steps"] for check in record["checks"]] == [2, 4, 6, 8, 10, 12]
    last = validation_losses(watched, small_study.validation)
    assert {task: record["checks"][-1][task] for task in last} == last


def test_a_ratio_has_students_interval_over_seeds_and_none_where_quality_is_not_reached() -> None:
    found = log_ratio([(1.0, 2.0), (1.0, 4.0)])
    assert found.value == pytest.approx(np.log(8**-0.5))
    # Student's 97.5 % quantile with one degree of freedom is 12.7062; the standard error is log(2) / 2.
    assert [found.low, found.high] == pytest.approx(found.value + np.array([-1, 1]) * 12.7062 * np.log(2) / 2, rel=1e-4)
    assert np.isinf(log_ratio([(np.inf, 1.0), (1.0, 1.0)]).high)
    same = log_ratio([(1.0, 2.0), (2.0, 4.0)])
    assert (same.low, same.high) == (same.value, same.value)


def test_what_cannot_answer_the_question_is_refused(small_study: Study, experiment: Experiment) -> None:
    control = dataclasses.replace(experiment, body="single_task")
    with pytest.raises(ValueError, match="--body single_task is what the joint body is held against"):
        sharing(small_study, control)
    with pytest.raises(ValueError, match=r"--sizes \[0, 1.5\]: expected shares of the training rows"):
        sharing(small_study, experiment, sizes=(0, 0.5, 1.5))
    for levels in ((0.0,), (0.1, 0.4), (0.0, 2.0)):
        with pytest.raises(ValueError, match="expected 0 and at least one share up to 1"):
            robustness(small_study, experiment, levels=levels)
    with pytest.raises(ValueError, match="--seeds 1: an interval over seeds needs at least 2"):
        efficiency(small_study, dataclasses.replace(experiment, seeds=1))


def test_efficiency_needs_a_mature_validation_row_of_each_task(small_study: Study) -> None:
    (day,) = small_study.validation
    targets = dataclasses.replace(
        day.supervision.targets, conversion_mask_B=torch.zeros_like(day.supervision.targets.conversion_mask_B)
    )
    blind = dataclasses.replace(day, supervision=dataclasses.replace(day.supervision, targets=targets))
    with pytest.raises(ValueError, match="no mature row of click_and_conversion"):
        efficiency(
            dataclasses.replace(small_study, validation=[blind]), Experiment(seeds=2, replicates=5), epochs=1, checks=2
        )
