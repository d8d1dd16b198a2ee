"""Verdicts on hand-made figures: what alarms, and the sentence that says so."""

from typing import Any

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.diagnose import logged, seesaw_differences
from pipeline.metrics import paired_difference
from pipeline.report import verdict_lines
from pipeline.scored import Scored
from pipeline.significance import holm
from pipeline.verdicts import (
    constant_predictions,
    dead_task,
    dead_units,
    experts_alike,
    one_expert,
    seesaw,
)

TASKS = ("click", "click_and_conversion", "conversion")


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _difference(value: float, p_holm: float) -> dict[str, float]:
    return _interval(value, 0.001) | {"p_holm": p_holm}


def _differences(**auc: float) -> dict[str, dict[str, dict[str, float]]]:
    """Return AUC differences with a half width of 0.001, all that are not 0 shown, and none of the log-loss."""
    return {
        task: {"auc": _difference(auc.get(task, 0.0), 0.01 if task in auc else 1.0), "log_loss": _difference(0.0, 1.0)}
        for task in TASKS
    }


@pytest.fixture
def scored() -> Scored:
    """Return 4000 impressions of 200 users, with the labels' own probabilities."""
    generator = np.random.default_rng(0)
    click, conversion = generator.uniform(0.1, 0.7, 4000), generator.uniform(0.1, 0.7, 4000)
    clicks = generator.random(4000) < click
    conversions = clicks & (generator.random(4000) < conversion)
    everywhere = np.ones(4000, dtype=np.bool_)
    return Scored(
        [],
        [],
        np.arange(4000) % 200,
        {"click": clicks, "click_and_conversion": conversions, "conversion": conversions},
        {"click": everywhere, "click_and_conversion": everywhere, "conversion": clicks},
        {"click": click, "click_and_conversion": click * conversion, "conversion": conversion},
    )


def _noisy(scored: Scored, *tasks: str) -> dict[str, Any]:
    """Return the predictions with half of those of some tasks at random."""
    generator = np.random.default_rng(1)
    replaced = generator.random(4000) < 0.5
    return {
        task: np.where(replaced, generator.uniform(0.1, 0.7, 4000), values) if task in tasks else values
        for task, values in scored.probabilities.items()
    }


def test_predictions_that_lose_conversion_and_gain_click_are_a_seesaw(scored: Scored, simulated_config: Config) -> None:
    joint, control = _noisy(scored, "conversion"), _noisy(scored, "click")
    found = seesaw(seesaw_differences(simulated_config, scored, joint, control), None)
    assert found.alarm
    assert found.figures["tasks"] == {
        "click": "better",
        "click_and_conversion": "no difference shown",
        "conversion": "worse",
    }
    basis = "for this seed, over users, adjusted for six looks"
    assert found.sentence.startswith(f"Seesaw: conversion pays for click ({basis}), joint - single-task: click AUC +0.")
    assert "conversion AUC -0." in found.sentence


def test_predictions_the_other_way_round_are_a_seesaw_the_other_way_round(
    scored: Scored, simulated_config: Config
) -> None:
    joint, control = _noisy(scored, "click"), _noisy(scored, "conversion")
    found = seesaw(seesaw_differences(simulated_config, scored, joint, control), None)
    assert found.sentence.startswith("Seesaw: click pays for conversion (for this seed, over users, adjusted")


def test_equal_predictions_show_no_seesaw_and_no_difference(scored: Scored, simulated_config: Config) -> None:
    same = scored.probabilities
    found = seesaw(seesaw_differences(simulated_config, scored, same, same), None)
    assert not found.alarm
    assert found.sentence.startswith(
        "No seesaw shown (for this seed, over users, adjusted for six looks), joint - single"
    )
    assert "click AUC +0.0000 [+0.0000, +0.0000], log-loss" in found.sentence
    assert set(found.figures["tasks"].values()) == {"no difference shown"}


def test_what_is_looked_at_is_adjusted_together_and_is_else_the_paired_difference(
    scored: Scored, simulated_config: Config
) -> None:
    joint, control = _noisy(scored, "conversion"), scored.probabilities
    found = seesaw_differences(simulated_config, scored, joint, control)
    figures = [found[task][metric] for task in TASKS for metric in ("auc", "log_loss")]
    assert [figure["p_holm"] for figure in figures] == holm([figure["p"] for figure in figures])
    assert "p_holm" not in found["click"]["gauc"]
    space = scored.spaces["conversion"]
    expected = paired_difference(
        labels=scored.labels["conversion"][space],
        probabilities=joint["conversion"][space],
        baseline=control["conversion"][space],
        users=scored.users[space],
        replicates=max(simulated_config.evaluation.replicates, 480),
        seed=simulated_config.seed,
    )
    for metric, interval in expected.items():
        got = found["conversion"][metric]
        assert [got[key] for key in ("value", "low", "high")] == pytest.approx(list(interval.as_dict().values()))


def test_few_resamples_in_the_configuration_still_can_raise_the_alarm(scored: Scored, simulated_config: Config) -> None:
    evaluation = simulated_config.evaluation.model_copy(update={"replicates": 20})
    config = simulated_config.model_copy(update={"evaluation": evaluation})
    assert seesaw(seesaw_differences(config, scored, _noisy(scored, "conversion"), scored.probabilities), None).alarm


def test_an_interval_beyond_0_does_not_alarm_where_the_adjusted_p_does_not() -> None:
    differences = _differences(click=-0.002)
    differences["click"]["auc"]["p_holm"] = 0.05
    found = seesaw(differences, None)
    assert not found.alarm
    assert found.figures["tasks"]["click"] == "no difference shown"


def test_a_gain_without_a_loss_is_no_seesaw() -> None:
    found = seesaw(_differences(click=0.002), None)
    assert not found.alarm
    assert "click AUC +0.0020 [+0.0010, +0.0030], log-loss +0.0000 [-0.0010, +0.0010] (better)" in found.sentence


def test_a_loss_without_a_gain_alarms_and_names_every_loser() -> None:
    found = seesaw(_differences(click=-0.002, conversion=-0.003), None)
    assert found.alarm
    assert found.sentence.startswith("Sharing costs click and conversion, and no gain is shown (for this seed,")


def test_a_log_loss_that_is_shown_to_rise_is_worse_whatever_the_auc() -> None:
    differences = _differences(click=0.002)
    differences["click"]["log_loss"] = _difference(0.002, 0.049)
    assert seesaw(differences, None).figures["tasks"]["click"] == "worse"


def test_without_a_control_the_seesaw_is_not_measured_and_says_why() -> None:
    found = seesaw({}, "training.control is false")
    assert (found.alarm, found.sentence) == (False, "Seesaw not measured: training.control is false.")


def test_predictions_that_hardly_vary_are_constant() -> None:
    found = constant_predictions({"click": 0.5, "conversion": 0.0099})
    assert found.alarm
    assert found.sentence.startswith("Constant predictions of conversion: standard deviation over rate x (1 - rate)")
    assert not constant_predictions({"click": 0.5, "conversion": 0.0101}).alarm


def _metrics(low: float, entropy: float) -> dict[str, dict[str, float]]:
    return {"auc": _interval(low + 0.02, 0.02), "normalised_entropy": _interval(entropy, 0.01)}


MANY = (100, 100)


@pytest.mark.parametrize(
    ("low", "entropy", "counts", "alarm", "said"),
    [
        (0.52, 0.98, MANY, False, "No dead task: click AUC 0.540, log-loss 0.980 of its rate's."),
        (0.499, 0.98, MANY, True, "Dead task: AUC of click is 0.519 [0.499, 0.539], which reaches 0.5."),
        (0.52, 1.01, MANY, True, "Dead task: log-loss of click is 1.010 times that of predicting its rate."),
        (0.499, 0.98, (99, 5000), False, "Too few labels to judge click (99 positives, 5000 negatives), 100 of each"),
        (0.499, 0.98, (5000, 99), False, "Too few labels to judge click (5000 positives, 99 negatives), 100 of each"),
    ],
)
def test_a_task_is_dead_where_chance_does_as_well_and_labels_are_enough_to_tell(
    low: float,
    entropy: float,
    counts: tuple[int, int],
    alarm: bool,  # noqa: FBT001
    said: str,
) -> None:
    found = dead_task({"click": _metrics(low, entropy)}, {"click": counts})
    assert found.alarm is alarm
    assert found.sentence.startswith(said)


def _level(use: list[float], entropy: float | None) -> dict[str, Any]:
    names = [f"shared {n + 1}" for n in range(len(use))]
    return {"level": 1, "gates": ["click"], "experts": names, "utilisation": [use], "normalised_entropy": [entropy]}


@pytest.mark.parametrize(
    ("use", "entropy", "alarm"),
    [
        ([0.94, 0.06], 0.3, False),
        ([0.96, 0.04], 0.3, True),
        ([0.5, 0.5], 0.04, True),
        ([1.0, 0.0], None, False),
    ],
)
def test_one_expert_takes_all_over_all_rows_or_on_each(use: list[float], entropy: float | None, alarm: bool) -> None:  # noqa: FBT001
    assert one_expert([_level(use, entropy)]).alarm is alarm


def test_the_sentence_on_gates_names_gate_expert_and_weight() -> None:
    found = one_expert([_level([0.02, 0.98], 0.14)])
    said = "One expert takes all: click of level 1 gives shared 2 98.0%, entropy 0.14 of the most even."
    assert found.sentence == said
    assert one_expert([]).sentence == "No gate chooses between experts in this body."


def _likeness(value: float | None) -> dict[str, Any]:
    return {"level": 2, "experts": ["a", "b"], "similarity": [[1.0, value], [value, 1.0]]}


def test_experts_are_alike_where_their_mean_cka_is_near_one() -> None:
    found = experts_alike([_likeness(0.995)])
    assert found.alarm
    assert found.sentence.startswith("Experts are all alike in level 2: mean CKA of their outputs is 0.995 in level 2")
    assert not experts_alike([_likeness(0.985)]).alarm
    assert experts_alike([_likeness(None)]).sentence == "No level has two experts to compare."


def test_units_are_dead_where_more_than_half_of_a_layer_is() -> None:
    rows = [{"layer": "level 1 layer 2", "expert": f"shared {n}", "share": share} for n, share in ((1, 0.5), (2, 0.6))]
    found = dead_units(rows)
    assert found.alarm
    said = "1 of 2 expert layers are mostly dead: most in level 1 layer 2 of shared 2, 60% of whose units are active"
    assert found.sentence.startswith(said)
    tower = {"layer": "tower layer 1", "expert": "click", "share": 0.9}
    assert not dead_units([*rows[:1], tower]).alarm
    assert dead_units([]).sentence == "No layer has units that can die in this body."


def test_alarms_come_first_and_are_marked() -> None:
    verdicts = [{"alarm": False, "sentence": "Experts differ."}, {"alarm": True, "sentence": "Seesaw."}]
    summary = {"evaluation": {"diagnostics": {"verdicts": verdicts}}}
    assert verdict_lines(summary) == ["ALARM: Seesaw.", "Experts differ."]


def test_mlflow_gets_a_metric_a_figure_and_a_tag_a_verdict_and_no_undefined_number() -> None:
    level = {**_level([0.25, 0.75], None), "entropy": [0.56]}
    found = {
        "gates": [level],
        "dead_units": [{"layer": "tower layer 1", "expert": "click", "share": 0.5}],
        "gradient_cosine": {"dense": {"mean": -0.1, "standard_error": None, "conflicts": 1.0, "batches": 1}},
        "seesaw": _differences(click=0.002),
        "verdicts": [seesaw({}, "no control").as_dict()],
    }
    metrics, tags = logged(found)
    assert tags == {"verdict_seesaw": "Seesaw not measured: no control."}
    assert metrics["diagnostics/gates/level_1/click/utilisation/shared_2"] == 0.75
    assert metrics["diagnostics/gates/level_1/click/entropy"] == 0.56
    assert metrics["diagnostics/dead_units/tower_layer_1/click"] == 0.5
    assert metrics["diagnostics/gradient_cosine/dense/mean"] == -0.1
    assert metrics["diagnostics/seesaw/click/auc"] == 0.002
    assert not [name for name in metrics if name.endswith(("normalised_entropy", "standard_error"))]
