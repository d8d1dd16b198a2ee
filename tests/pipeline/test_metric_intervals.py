"""Claims about bootstrap intervals over users, of one model and of the difference of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.metrics import METRICS, Interval, evaluate_task, paired_difference, user_bootstrap

Sample = dict[str, Any]


def correlated(*, users: int, rows_per_user: int, seed: int) -> Sample:
    """Draw one uniform probability per user for all its rows, and labels from it: calibrated, AUC 5/6."""
    generator = np.random.default_rng(seed)
    codes = np.repeat(np.arange(users), rows_per_user)
    probabilities = generator.random(users)[codes]
    labels = generator.random(codes.size) < probabilities
    return {"labels": labels, "probabilities": probabilities, "users": codes}


def independent(seed: int) -> Sample:
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(1, 20, size=3000) / 20
    labels = generator.random(3000) < probabilities
    return {"labels": labels, "probabilities": probabilities, "users": generator.integers(200, size=3000)}


def test_intervals_contain_the_value_and_have_exactly_the_metrics_as_keys() -> None:
    evaluation = evaluate_task(**independent(1))
    assert tuple(evaluation) == METRICS
    for name in METRICS[:-1]:  # not the ECE, whose percentile interval may lie above it
        assert evaluation[name].low < evaluation[name].value < evaluation[name].high


def test_an_interval_shrinks_with_the_root_of_the_users() -> None:
    few, many = (evaluate_task(**correlated(users=users, rows_per_user=3, seed=2))["auc"] for users in (200, 3200))
    # 16 times the users, a quarter of the width; the bands allow for 200 replicates' noise.
    assert 3 < (few.high - few.low) / (many.high - many.low) < 5.5


def test_rows_that_depend_on_their_user_widen_the_interval() -> None:
    rows = correlated(users=400, rows_per_user=10, seed=3)
    users = evaluate_task(**rows, replicates=1000)["log_loss"]
    alone = evaluate_task(**rows | {"users": np.arange(4000)}, replicates=1000)["log_loss"]
    # Of the loss's variance, 1/4, .035 lies between users: a correlation of .14. sqrt(1 + 9 x .14) = 1.50.
    assert 1.35 < (users.high - users.low) / (alone.high - alone.low) < 1.65


def test_an_interval_at_ninety_percent_covers_the_truth_nine_times_in_ten() -> None:
    # P(p+ > p-) for densities 2p and 2(1 - q) is the integral of 2p (2p - p^2) = 4/3 - 1/2 = 5/6; PCOC is 1.
    truth = {"auc": 5 / 6, "pcoc": 1.0}
    covered = dict.fromkeys(truth, 0)
    for seed in range(300):
        rows = correlated(users=150, rows_per_user=4, seed=seed)
        evaluation = evaluate_task(**rows, replicates=100, seed=seed, confidence=0.9)
        for name, value in truth.items():
            covered[name] += evaluation[name].low <= value <= evaluation[name].high
    # 270 expected, with a standard deviation of 5.2. Intervals over rows cover the AUC 245 times.
    assert all(250 < count < 290 for count in covered.values()), covered


def test_a_higher_confidence_is_a_wider_interval_of_the_same_resamples() -> None:
    narrow, wide = (evaluate_task(**independent(4), confidence=confidence)["auc"] for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    rows = independent(5)
    assert evaluate_task(**rows, seed=1) == evaluate_task(**rows, seed=1)
    assert evaluate_task(**rows, seed=1)["auc"].low != evaluate_task(**rows, seed=2)["auc"].low


def test_memory_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_task(**independent(6))["auc"]
    monkeypatch.setattr("pipeline.metrics.CHUNK_CELLS", 600)
    assert evaluate_task(**independent(6))["auc"] == whole


def test_without_a_user_of_both_classes_only_the_gauc_is_nan() -> None:
    rows: Sample = {
        "labels": np.array([1, 1, 0, 0]),
        "probabilities": np.array([0.9, 0.4, 0.6, 0.1]),
        "users": np.array([0, 0, 1, 2]),
    }
    evaluation = evaluate_task(**rows)
    assert np.isnan(list(evaluation["gauc"].as_dict().values())).all()
    others = [evaluation[name].as_dict().values() for name in METRICS if name != "gauc"]
    assert np.isfinite([number for numbers in others for number in numbers]).all()


def test_a_resample_without_both_classes_is_drawn_again() -> None:
    # Only user 0 clicked and 37 % of resamples miss a given user: no number is NaN or infinite all the same.
    users = np.repeat(np.arange(50), 2)
    rows: Sample = {
        "labels": np.arange(100) == 0,
        "probabilities": np.linspace(0.9, 0.1, 100),
        "users": users,
    }
    evaluation = evaluate_task(**rows)
    assert np.isfinite([list(interval.as_dict().values()) for interval in evaluation.values()]).all()


def test_a_resample_without_the_only_user_of_both_classes_is_drawn_again() -> None:
    # Ten users clicked twice, so both classes are always there; the GAUC rests on user 0 alone.
    users = np.repeat(np.arange(50), 2)
    rows: Sample = {"labels": (users > 0) & (users < 11), "probabilities": np.linspace(0.9, 0.1, 100)}
    rows["labels"][0] = True
    assert evaluate_task(**rows, users=users)["gauc"] == Interval(1.0, 1.0, 1.0)
    assert paired_difference(**rows, users=users, baseline=np.full(100, 0.5))["gauc"] == Interval(0.5, 0.5, 0.5)


def test_a_model_does_not_differ_from_itself() -> None:
    rows = independent(7)
    difference = paired_difference(**rows, baseline=rows["probabilities"])
    assert difference == dict.fromkeys(METRICS, Interval(0.0, 0.0, 0.0))


def test_a_paired_difference_is_of_the_values_and_narrower_than_either_interval() -> None:
    rows = correlated(users=500, rows_per_user=4, seed=8)
    generator = np.random.default_rng(8)
    baseline = np.clip(rows["probabilities"] + generator.normal(0, 0.05, size=2000), 0.01, 0.99)
    difference = paired_difference(**rows, baseline=baseline)
    model, other = evaluate_task(**rows), evaluate_task(**rows | {"probabilities": baseline})
    for name in ("auc", "log_loss"):
        assert difference[name].value == pytest.approx(model[name].value - other[name].value)
        assert difference[name].high - difference[name].low < 0.5 * (model[name].high - model[name].low)
    assert difference["auc"].low > 0
    assert difference["log_loss"].high < 0


def test_a_difference_of_gauc_uses_the_same_users() -> None:
    # Twelve users of one click each: the model ranks it first, the baseline last, in every resample.
    labels = np.tile([1, 0, 0], 12)
    users = np.repeat(np.arange(12), 3)
    rows: Sample = {"labels": labels, "probabilities": 0.2 + 0.6 * labels, "users": users}
    assert paired_difference(**rows, baseline=0.8 - 0.6 * labels)["gauc"] == Interval(1.0, 1.0, 1.0)


def test_an_interval_as_a_dictionary_is_fit_for_json() -> None:
    assert Interval(0.5, 0.4, 0.6).as_dict() == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert {type(number) for number in evaluate_task(**independent(1), replicates=2)["auc"].as_dict().values()} == {
        float
    }


def test_a_bootstrap_of_a_mean_has_its_textbook_width() -> None:
    values_U = np.random.default_rng(9).normal(size=400)
    [interval] = user_bootstrap(
        lambda counts_RU: (counts_RU @ values_U / 400)[:, None], np.ones((400, 1)), replicates=2000, seed=0
    )
    # Two normal quantiles of the standard error of the mean.
    width = 2 * 1.96 * values_U.std() / 20
    assert interval.high - interval.low == pytest.approx(width, rel=0.08)
