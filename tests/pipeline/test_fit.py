"""Fitting a ranker with every way to supervise conversions and to balance tasks, as the configuration chooses them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.losses import AUXILIARY_HEADS, LOSS_NAMES
from models.ranker import Ranker, load_ranker, predict, save_ranker
from models.task_weights import TASK_WEIGHTS
from pipeline.config import OWN_LOSSES, Config
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.fit import PREDICT_ROWS, fit_of, fit_ranker
from pipeline.ingest import ingest
from pipeline.study_data import Study
from pipeline.train import WHY_UNSTABLE, train
from pipeline.training_section import Training
from pipeline.workspace import Workspace, read_json

Curve = list[dict[str, float]]


def _with_training(study: Study, **training: object) -> Study:
    changed = Training.model_validate({**study.config.training.model_dump(), **training})
    return replace(study, config=study.config.model_copy(update={"training": changed}))


def _fitted(study: Study, body: str = "ple", **training: object) -> tuple[Ranker, Curve]:
    changed = _with_training(study, **training)
    return fit_ranker(changed.spec(body, 1), fit_of(changed.config), study.training, study.validation)


def _predicted(ranker: Ranker, study: Study) -> NDArray[np.float32]:
    return np.concatenate([predict(ranker, day.features, PREDICT_ROWS) for day in study.measured])


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
def test_each_conversion_loss_trains_the_same_twice_and_learns_conversions(loss: str, small_study: Study) -> None:
    ranker, curve = _fitted(small_study, conversion_loss=loss, epochs=3)
    again, _ = _fitted(small_study, conversion_loss=loss, epochs=3)
    first, second = _predicted(ranker, small_study), _predicted(again, small_study)
    assert first.tobytes() == second.tobytes()
    assert first.shape[1] == len(ranker.spec.outputs()) == 3
    fresh = Ranker(ranker.spec)
    assert not torch.equal(fresh.state_dict()["bias_T"][1:], ranker.state_dict()["bias_T"][1:])
    assert curve[-1]["training"] < curve[0]["training"]


@pytest.mark.parametrize("body", ["linear", "single_task", "mmoe"])
@pytest.mark.parametrize("loss", ["escm2_dr", "dcmt"])
def test_an_auxiliary_head_trains_with_any_body_and_is_saved_but_no_output(
    body: str, loss: str, small_study: Study, tmp_path: Path
) -> None:
    ranker, _ = _fitted(small_study, body, conversion_loss=loss)
    assert ranker.spec.tasks() == ["click", "conversion", *AUXILIARY_HEADS[loss]]
    save_ranker(ranker, tmp_path)
    before, after = _predicted(ranker, small_study), _predicted(load_ranker(tmp_path), small_study)
    assert before.shape[1] == 3
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(("loss", "sign"), [("escm2_dr", 1), ("dcmt", -1)])
def test_an_auxiliary_head_starts_at_the_conversion_rate_or_at_what_it_leaves(
    loss: str, sign: int, small_study: Study
) -> None:
    ranker = Ranker(_with_training(small_study, conversion_loss=loss).spec("ple", 1))
    ranker.start_at(click_rate=0.3, conversion_rate=0.2)
    assert ranker.bias_T[2].item() == pytest.approx(sign * ranker.bias_T[1].item())


@pytest.mark.parametrize(
    "change", [{"propensity_floor": 0.9}, {"self_normalised": False}, {"debiasing_weight": 3.0}], ids=str
)
def test_each_setting_of_a_correction_changes_what_is_learned(change: dict[str, Any], small_study: Study) -> None:
    usual, _ = _fitted(small_study, conversion_loss="escm2_ips")
    changed, _ = _fitted(small_study, conversion_loss="escm2_ips", **change)
    assert not np.array_equal(_predicted(usual, small_study), _predicted(changed, small_study))


def test_the_weight_of_the_counterfactual_prior_pulls_both_heads_to_a_sum_of_one(small_study: Study) -> None:
    gaps = []
    for weight in (0.0, 30.0):
        ranker, _ = _fitted(small_study, conversion_loss="dcmt", counterfactual_prior_weight=weight, epochs=3)
        with torch.inference_mode():
            probabilities_BT = ranker(small_study.measured[0].features).sigmoid()
        gaps.append(float((1 - probabilities_BT[:, 1:].sum(1)).abs().mean()))
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("way", TASK_WEIGHTS)
def test_each_way_to_balance_tasks_trains_the_same_twice_and_records_weights_that_it_learns(
    way: str, small_study: Study
) -> None:
    ranker, curve = _fitted(small_study, task_weights=way, epochs=2)
    again, curve_again = _fitted(small_study, task_weights=way, epochs=2)
    assert _predicted(ranker, small_study).tobytes() == _predicted(again, small_study).tobytes()
    assert curve == curve_again
    learned = [{name: value for name, value in point.items() if name.startswith("weight_")} for point in curve]
    if way in {"static", "pcgrad"}:
        assert learned == [{}, {}]
    else:
        assert set(learned[0]) == {"weight_click", "weight_conversion"}
        assert learned[0] != learned[1]
    if way != "static":
        static, _ = _fitted(small_study, epochs=2)
        assert _predicted(ranker, small_study).tobytes() != _predicted(static, small_study).tobytes()


@pytest.mark.parametrize(
    ("way", "change"),
    [
        ("uncertainty", {"task_weight_learning_rate": 0.1}),
        ("gradnorm", {"task_weight_learning_rate": 0.1}),
        ("gradnorm", {"gradnorm_asymmetry": 0.0}),
    ],
)
def test_each_setting_of_learned_weights_changes_them(way: str, change: dict[str, Any], small_study: Study) -> None:
    _, usual = _fitted(small_study, task_weights=way)
    _, changed = _fitted(small_study, task_weights=way, **change)
    assert usual[0]["weight_click"] != changed[0]["weight_click"]


@pytest.mark.parametrize("way", TASK_WEIGHTS)
def test_all_losses_of_conversion_are_balanced_as_one_task(way: str, small_study: Study) -> None:
    _, curve = _fitted(small_study, conversion_loss="dcmt", task_weights=way)
    assert {name for name in curve[0] if name.startswith("weight_")} <= {"weight_click", "weight_conversion"}


def _click_numbers(ranker: Ranker) -> dict[str, torch.Tensor]:
    """Return all weights of the click's network: its part of every tensor."""
    tasks, numbers = ranker.spec.heads, {}
    for name, weight in ranker.state_dict().items():
        first_is_task = weight.shape[0] == tasks and not name.endswith("table.weight")
        numbers[name] = weight[0] if first_is_task else weight[..., : weight.shape[-1] // tasks]
    return numbers


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
def test_the_click_network_of_single_task_is_bit_for_bit_that_of_training_clicks_alone(
    loss: str, small_study: Study
) -> None:
    fit = fit_of(_with_training(small_study, epochs=2).config)
    spec = replace(small_study.spec("single_task", 1), conversion_loss=loss)
    alone = replace(fit, conversion_weight=0.0, debiasing_weight=0.0)
    # Without validation days the last epoch stays: conversions do not select for clicks.
    both, _ = fit_ranker(spec, fit, small_study.training, [])
    click, _ = fit_ranker(spec, alone, small_study.training, [])
    expected, actual = _click_numbers(click), _click_numbers(both)
    for name, numbers in expected.items():
        assert torch.equal(actual[name], numbers), name
    assert any(not torch.equal(weight, click.state_dict()[name]) for name, weight in both.state_dict().items())


def test_an_unstable_loss_is_told_in_the_log_in_the_notes_and_in_training_json(
    simulated_config: Config, simulated_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = simulated_config.training.model_copy(update={"conversion_loss": "escm2_dr", "control": False})
    config = simulated_config.model_copy(update={"training": training})
    workspace = Workspace(tmp_path / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    with caplog.at_level(logging.WARNING, logger="counterpoise"):
        outcome = train(config, workspace, days)
    said = [record.getMessage() for record in caplog.records if "unstable" in record.getMessage()]
    assert said == [f"training.conversion_loss = 'escm2_dr' is unstable: {WHY_UNSTABLE}"]
    assert outcome.notes["conversion_loss"] == "escm2_dr (unstable)"
    record = read_json(run_folder(config, workspace, days) / "model" / "training.json", "train")
    assert record["conversion_loss"] == "escm2_dr (unstable)"
    assert record["task_weights"] == "static"


def test_a_conversion_loss_that_does_not_exist_and_a_task_named_like_a_loss_are_refused(small_study: Study) -> None:
    spec = small_study.spec("ple", 1)
    with pytest.raises(ValueError, match="conversion_loss is 'ipw', expected one of"):
        replace(spec, conversion_loss="ipw")
    with pytest.raises(ValueError, match=r"tasks \['imputation'\] have names of the ranker's own losses"):
        replace(spec, binary_tasks={"imputation": "click"})


@pytest.mark.parametrize("way", ["uncertainty", "gradnorm"])
def test_learned_weights_are_refused_for_a_number_whose_loss_may_be_negative(
    way: str, make_config: Callable[..., Config]
) -> None:
    tasks = {"watch": {"label": "seconds", "kind": "value"}}
    with pytest.raises(ValidationError, match=f"training.task_weights = '{way}' needs losses that are never negative"):
        make_config(labels={"tasks": tasks}, training={"task_weights": way})
    make_config(labels={"tasks": tasks}, training={"task_weights": "pcgrad"})


def test_a_configured_task_cannot_have_the_name_of_a_loss(make_config: Callable[..., Config]) -> None:
    assert OWN_LOSSES == LOSS_NAMES
    with pytest.raises(ValidationError, match=r"labels\.tasks\.counterfactual is the pipeline's own name"):
        make_config(labels={"tasks": {"counterfactual": {"label": "like"}}})


def test_a_ranker_that_diverges_is_refused_with_what_to_do(small_study: Study) -> None:
    with pytest.raises(ValueError, match=r"training of ple diverged in epoch 1: .* lower training.learning_rate"):
        _fitted(small_study, learning_rate=1e30, embedding_learning_rate=1e30)
    with pytest.raises(ValueError, match=r"linear diverged in epoch 1: .* lower training.baseline_learning_rate$"):
        fit_ranker(small_study.spec("linear", 1), fit_of(small_study.config, 1e38), small_study.training, [])


def test_learned_weights_are_refused_for_the_doubly_robust_loss(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValidationError, match=r"that of training.conversion_loss = 'escm2_dr' may be"):
        make_config(training={"conversion_loss": "escm2_dr", "task_weights": "gradnorm"})
