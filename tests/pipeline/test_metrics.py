"""Claims about the metrics of one predicted probability and their intervals."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.metrics import (
    METRICS,
    auc,
    evaluate_task,
    metric_values,
    paired_difference,
    summarise,
)

Sample = dict[str, Any]


def sample(labels: list[float], probabilities: list[float], users: list[int]) -> Sample:
    return {"labels": np.array(labels), "probabilities": np.array(probabilities), "users": np.array(users)}


def point(rows: Sample) -> dict[str, float]:
    summary = summarise(**rows)
    ones = np.ones((1, len(summary.sums)))
    return dict(zip(METRICS, metric_values(summary, ones)[0].tolist(), strict=True))


def tied(seed: int) -> Sample:
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(1, 20, size=3000) / 20
    labels = generator.random(3000) < probabilities
    return {"labels": labels, "probabilities": probabilities, "users": generator.integers(200, size=3000)}


# User 7 has both classes, user 3 too, user 9 only a negative.
TABLE = sample([1, 0, 1, 0, 0, 0], [0.8, 0.5, 0.5, 0.5, 0.9, 0.2], [7, 7, 3, 3, 3, 9])


def test_auc_counts_a_tie_as_one_half() -> None:
    # Negatives .5 .5 .9 .2: the positive at .8 wins 3 pairs; the one at .5 wins 1 and ties 2. 5 of 8.
    assert point(TABLE)["auc"] == 5 / 8


def test_gauc_weights_users_by_impressions_and_leaves_out_those_with_one_class() -> None:
    # User 7: 1 pair won, AUC 1, 2 impressions. User 3: a tie and a loss, AUC 1/4, 3 impressions. User 9: out.
    assert point(TABLE)["gauc"] == pytest.approx((2 * 1 + 3 * 0.25) / 5)


def test_log_loss_is_the_mean_in_nats() -> None:
    # Right with .8, .5, .5, .5, .1, .8.
    assert point(TABLE)["log_loss"] == pytest.approx(-(2 * log(0.8) + 3 * log(0.5) + log(0.1)) / 6)


def test_normalised_entropy_divides_by_the_entropy_of_the_base_rate() -> None:
    entropy = -(log(1 / 3) / 3 + log(2 / 3) * 2 / 3)
    assert point(TABLE)["normalised_entropy"] == pytest.approx(point(TABLE)["log_loss"] / entropy)


def test_pcoc_is_predicted_clicks_over_clicks() -> None:
    # .8 + .5 + .5 + .5 + .9 + .2 = 3.4 predicted, 2 seen.
    assert point(TABLE)["pcoc"] == pytest.approx(1.7)


def test_ece_keeps_equal_predictions_in_one_bin() -> None:
    # Four values, fewer than 15 bins, so one bin each: |.2 - 0| + |1.5 - 1| + |.8 - 1| + |.9 - 0| over 6.
    assert point(TABLE)["ece"] == pytest.approx((0.2 + 0.5 + 0.2 + 0.9) / 6)


def test_ece_cuts_bins_of_equal_mass() -> None:
    # 30 distinct predictions make bins of two neighbours; labels 0 1 0 1 .. give each a mean label of 1/2.
    probabilities = np.arange(1, 31) / 31
    rows = {"labels": np.arange(30) % 2, "probabilities": probabilities, "users": np.arange(30)}
    pairs = probabilities.reshape(15, 2).mean(axis=1)
    assert point(rows)["ece"] == pytest.approx(np.abs(pairs - 0.5).mean())


def test_a_constant_prediction_of_the_base_rate_is_the_zero_of_every_scale() -> None:
    rows = sample([1, 0, 0, 0], [0.25] * 4, [0, 0, 1, 1])
    expected = {"auc": 0.5, "gauc": 0.5, "normalised_entropy": 1.0, "pcoc": 1.0, "ece": 0.0}
    values = point(rows)
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_a_certain_and_wrong_prediction_costs_one_float_epsilon_and_not_infinity() -> None:
    # -ln(2^-52) = 52 ln 2 = 36.04 for the wrong one, about 0 for the right one.
    assert point(sample([1, 0], [0.0, 0.0], [0, 1]))["log_loss"] == pytest.approx(52 * log(2) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_log_loss_agree_with_scikit_learn_on_ties(seed: int) -> None:
    rows = tied(seed)
    values = point(rows)
    assert values["auc"] == pytest.approx(roc_auc_score(rows["labels"], rows["probabilities"]))
    assert values["log_loss"] == pytest.approx(log_loss(rows["labels"], rows["probabilities"]))


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_weighs_rows_like_the_sample_weights_of_scikit_learn(seed: int) -> None:
    rows = tied(seed)
    summary = summarise(**rows)
    counts_U = np.random.default_rng(seed).poisson(1.0, size=len(summary.sums)).astype(np.float64)
    values = dict(zip(METRICS, metric_values(summary, counts_U[None])[0], strict=True))
    weights = counts_U[np.unique(rows["users"], return_inverse=True)[1]]
    given = (rows["labels"], rows["probabilities"])
    assert values["auc"] == pytest.approx(roc_auc_score(*given, sample_weight=weights))
    assert values["log_loss"] == pytest.approx(log_loss(*given, sample_weight=weights))


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_equals_the_sample_with_its_users_repeated(seed: int) -> None:
    rows = tied(seed)
    counts_U = np.random.default_rng(seed).integers(4, size=200)
    # Each copy is a user of its own, or a GAUC over merged copies would be measured.
    copies = [
        (np.flatnonzero(rows["users"] == user), copy * 1000 + user)
        for user in range(200)
        for copy in range(counts_U[user])
    ]
    index = np.concatenate([where for where, _ in copies])
    repeated = {name: rows[name][index] for name in ("labels", "probabilities")}
    repeated["users"] = np.concatenate([np.full(where.size, user) for where, user in copies])
    # The sample itself beside it shows that no resample sees another.
    counts_RU = np.stack([counts_U, np.ones(200)])
    weighted = dict(zip(METRICS, metric_values(summarise(**rows), counts_RU)[0], strict=True))
    # The ECE is left out: its bins are cut on the whole sample, not on the resample.
    names = [name for name in METRICS if name != "ece"]
    expected = point(repeated)
    assert [weighted[name] for name in names] == pytest.approx([expected[name] for name in names])


def test_gauc_agrees_with_a_loop_over_users() -> None:
    rows = tied(11)
    total, weight = 0.0, 0
    for user in np.unique(rows["users"]):
        labels = rows["labels"][rows["users"] == user]
        if 0 < labels.sum() < labels.size:
            probabilities = rows["probabilities"][rows["users"] == user]
            total += labels.size * float(roc_auc_score(labels, probabilities))
            weight += labels.size
    assert point(rows)["gauc"] == pytest.approx(total / weight)


GRID = st.lists(st.tuples(st.booleans(), st.integers(1, 15), st.integers(0, 4)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _, _ in rows}) == 2
)


def on_grid(rows: list[tuple[bool, int, int]]) -> Sample:
    """Sixteenths are exact in binary, so that transforms below keep every tie."""
    labels, sixteenths, users = zip(*rows, strict=True)
    return sample(list(labels), [value / 16 for value in sixteenths], list(users))


@given(GRID)
def test_auc_and_gauc_see_only_the_order(drawn: list[tuple[bool, int, int]]) -> None:
    rows = on_grid(drawn)
    before, after = point(rows), point(rows | {"probabilities": rows["probabilities"] ** 2})
    assert (after["auc"], after["gauc"]) == pytest.approx((before["auc"], before["gauc"]), nan_ok=True)


@given(GRID)
def test_reversed_predictions_have_the_complementary_auc(drawn: list[tuple[bool, int, int]]) -> None:
    rows = on_grid(drawn)
    before, after = point(rows), point(rows | {"probabilities": 1 - rows["probabilities"]})
    assert after["auc"] == pytest.approx(1 - before["auc"])
    assert after["gauc"] == pytest.approx(1 - before["gauc"], nan_ok=True)


@given(GRID)
def test_swapping_both_classes_changes_neither_auc_nor_losses(
    drawn: list[tuple[bool, int, int]],
) -> None:
    rows = on_grid(drawn)
    before = point(rows)
    after = point(rows | {"labels": ~rows["labels"], "probabilities": 1 - rows["probabilities"]})
    names = ["auc", "gauc", "log_loss", "normalised_entropy"]
    assert [after[name] for name in names] == pytest.approx([before[name] for name in names], nan_ok=True)


@given(GRID)
def test_half_the_prediction_is_half_the_pcoc(drawn: list[tuple[bool, int, int]]) -> None:
    rows = on_grid(drawn)
    assert point(rows | {"probabilities": rows["probabilities"] / 2})["pcoc"] == pytest.approx(point(rows)["pcoc"] / 2)


@given(GRID, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_names_of_users_change_nothing(
    drawn: list[tuple[bool, int, int]], shuffler: Any
) -> None:
    shuffled = list(drawn)
    shuffler.shuffle(shuffled)
    renamed = on_grid([(label, value, 100 - 7 * user) for label, value, user in shuffled])
    assert point(renamed) == pytest.approx(point(on_grid(drawn)), nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(6)}, r"sample of 6 impressions holds no positive label; AUC is undefined"),
        ({"labels": np.ones(6, bool)}, r"sample of 6 impressions holds no negative label; AUC is undefined"),
        (
            {"labels": np.array([1, 0, 2, 3, 0, 0])},
            r"2 of 6 labels are not 0 or 1: the first is 2 at index 2",
        ),
        (
            {"probabilities": np.array([0.1, np.nan, 0.2, np.nan, np.nan, 0.3])},
            r"3 of 6 probabilities are not within \[0, 1\]: the first is nan at index 1",
        ),
        (
            {"probabilities": np.array([0.1, 0.2, 0.2, 0.2, 0.2, 1.5])},
            r"1 of 6 probabilities are not within \[0, 1\]: the first is 1.5 at index 5",
        ),
        ({"users": np.array([1.0, 2, 3, 4, 5, 6])}, r"users have dtype float64, expected integer codes"),
        ({"users": np.array([1, 2])}, r"three one-dimensional arrays of one length, got shapes .*\(2,\)"),
        ({"labels": np.zeros((6, 1))}, r"three one-dimensional arrays of one length, got shapes .*\(6, 1\)"),
        ({"replicates": 0}, r"bootstrap replicates is 0, expected 1 or more"),
        ({"confidence": 1.0}, r"bootstrap confidence is 1.0, expected between 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_task(**{**TABLE, **change})


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one impression, got none"):
        evaluate_task(**{name: array[:0] for name, array in TABLE.items()})


def test_the_baseline_is_checked_like_the_model() -> None:
    with pytest.raises(ValueError, match="6 of 6 probabilities are not within"):
        paired_difference(**TABLE, baseline=np.full(6, -1.0))


@given(rows=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_the_auc_of_all_rows_is_scikit_learn_s_and_nan_without_both_classes(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    if labels.all() or not labels.any():
        assert np.isnan(auc(labels, scores))
    else:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
