"""Claims about the curves of one predicted probability."""

import datetime as dt
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from models.inputs import Features
from pipeline.curves import POINTS, calibration, calibration_by_day, curves, thinned, user_auc_histogram, wilson
from pipeline.metrics import evaluate_task
from pipeline.scored import Scored, TaskRows


def task_rows(labels: list[Any], probabilities: list[float], users: list[int] | None = None) -> TaskRows:
    users = list(range(len(labels))) if users is None else users
    return TaskRows(np.array(labels, dtype=bool), np.array(probabilities), np.array(users, dtype=np.int64))


def drawn(seed: int, *, rows: int = 3000, places: int = 6) -> TaskRows:
    """Draw calibrated predictions, with ties where few decimal places are kept."""
    generator = np.random.default_rng(seed)
    probabilities = np.round(generator.beta(1, 4, size=rows), places).clip(0, 1)
    return TaskRows(generator.random(rows) < probabilities, probabilities, generator.integers(300, size=rows))


# From the top: + - (+ -) - -, where the two in brackets tie: 2 positives and 4 negatives.
TABLE = task_rows([1, 0, 1, 0, 0, 0], [0.9, 0.8, 0.5, 0.5, 0.3, 0.1])


def test_the_roc_of_six_rows_is_as_drawn_by_hand() -> None:
    # (false positives / 4, true positives / 2); a tie is one diagonal step.
    assert curves(TABLE)["roc"] == [[0, 0], [0, 0.5], [0.25, 0.5], [0.5, 1], [0.75, 1], [1, 1]]


def test_precision_and_recall_of_six_rows_are_as_counted_by_hand() -> None:
    expected = [[0.5, 1], [0.5, 1 / 2], [1, 2 / 4], [1, 2 / 5], [1, 2 / 6]]
    found = curves(TABLE)
    np.testing.assert_allclose(found["precision_recall"], expected, atol=1e-6)
    assert found["average_precision"] == 0.5 * 1 + 0.5 * (2 / 4)


def test_lift_is_the_rate_among_the_highest_over_the_base_rate() -> None:
    expected = [[1 / 6, 1 / (1 / 3)], [2 / 6, 0.5 / (1 / 3)], [4 / 6, 0.5 / (1 / 3)], [5 / 6, 0.4 / (1 / 3)], [1, 1]]
    np.testing.assert_allclose(curves(TABLE)["lift"], expected, atol=1e-6)


@given(seed=st.integers(0, 1000), places=st.integers(1, 3))
def test_average_precision_is_scikit_learns(seed: int, places: int) -> None:
    rows = drawn(seed, rows=200, places=places)
    if rows.labels.any() and not rows.labels.all():
        expected = average_precision_score(rows.labels, rows.probabilities)
        assert curves(rows)["average_precision"] == pytest.approx(expected)


def test_a_curve_of_few_thresholds_has_scikit_learns_points() -> None:
    rows = drawn(3, places=2)
    found = curves(rows)
    false, true, _ = roc_curve(rows.labels, rows.probabilities, drop_intermediate=False)
    np.testing.assert_allclose(found["roc"], np.stack([false, true], axis=1), atol=1e-6)
    precision, recall, _ = precision_recall_curve(rows.labels, rows.probabilities)
    expected = np.stack([recall, precision], axis=1)[::-1][1:]  # scikit-learn adds (0, 1)
    np.testing.assert_allclose(found["precision_recall"], expected, atol=1e-6)


def test_a_thinned_curve_keeps_its_area_and_its_ends() -> None:
    rows = drawn(5)
    found = curves(rows)
    false, true = np.array(found["roc"]).T
    assert len(found["roc"]) <= POINTS + 1
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(rows.labels, rows.probabilities), abs=1e-3)
    for name in ("roc", "precision_recall", "lift"):
        assert len(found[name]) <= POINTS + 1
        assert found[name][-1][0] == 1


def test_a_thinned_curve_begins_at_its_first_step_not_at_its_first_row() -> None:
    along = np.arange(1, 1001) / 1000
    points = thinned(along, np.arange(1000.0), along=along)
    assert len(points) == POINTS
    assert points[0] == [1 / POINTS, 4]  # the fifth of 1000 rows
    assert points[-1] == [1, 999]


@given(seed=st.integers(0, 1000), places=st.integers(1, 6), rows=st.integers(1, 60))
def test_the_deciles_hold_every_row_once(seed: int, places: int, rows: int) -> None:
    sample = drawn(seed, rows=rows, places=places)
    bins = calibration(sample)
    assert sum(row["rows"] for row in bins) == rows
    assert sum(row["positives"] for row in bins) == sample.labels.sum()
    assert sum(row["rows"] * row["predicted"] for row in bins) == pytest.approx(sample.probabilities.sum())
    numbers = [row["bin"] for row in bins]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(1, 11))
    assert all(0 <= row["low"] <= row["observed"] <= row["high"] <= 1 for row in bins)


def test_deciles_without_ties_are_tenths_in_rising_order() -> None:
    bins = calibration(drawn(7, places=12))
    assert [row["rows"] for row in bins] == [300] * 10
    predicted = [row["predicted"] for row in bins]
    assert predicted == sorted(predicted)


def test_a_constant_prediction_is_one_bin_of_all_rows() -> None:
    (only,) = calibration(task_rows([1, 0, 0, 0], [0.25] * 4))
    assert (only["rows"], only["positives"], only["predicted"], only["observed"]) == (4, 1, 0.25, 0.25)


@pytest.mark.parametrize(("positives", "rows"), [(0, 20), (3, 20), (20, 20), (150, 1000)])
def test_wilson_is_scipys_interval(positives: int, rows: int) -> None:
    expected = binomtest(positives, rows).proportion_ci(method="wilson")
    assert wilson(positives / rows, rows) == pytest.approx((expected.low, expected.high))


def test_rows_of_users_that_come_once_are_independent() -> None:
    (row,) = calibration(task_rows([1, 0, 0, 0, 1], [0.3] * 5))
    assert (row["low"], row["high"]) == pytest.approx(wilson(2 / 5, 5), rel=1e-12)


def test_rows_that_a_user_repeats_do_not_narrow_the_interval() -> None:
    once = calibration(task_rows([1, 0, 0, 0, 1], [0.3] * 5))
    often = calibration(task_rows([1, 0, 0, 0, 1] * 8, [0.3] * 40, list(range(5)) * 8))
    assert (often[0]["low"], often[0]["high"]) == pytest.approx((once[0]["low"], once[0]["high"]))


def test_a_decile_without_a_positive_still_has_an_upper_bound() -> None:
    (row,) = calibration(task_rows([0] * 30, [0.01] * 30, [0] * 30))
    assert row["low"] == 0
    assert row["high"] > 0.05


def test_the_histogram_counts_the_users_with_both_classes_by_their_own_auc() -> None:
    # User 1: AUC 1 (last bin), 2 rows. User 2: one of two pairs, AUC 0.5, 3 rows. User 3: AUC 0. User 4 has one class.
    labels = [1, 0, 1, 0, 0, 1, 0, 1]
    probabilities = [0.9, 0.1, 0.5, 0.6, 0.4, 0.1, 0.2, 0.7]
    found = user_auc_histogram(task_rows(labels, probabilities, [1, 1, 2, 2, 2, 3, 3, 4]))
    assert len(found["edges"]) == 21
    assert (found["edges"][0], found["edges"][-1]) == (0, 1)
    assert {bin_: count for bin_, count in enumerate(found["users"]) if count} == {0: 1, 10: 1, 19: 1}
    assert {bin_: count for bin_, count in enumerate(found["impressions"]) if count} == {0: 2, 10: 3, 19: 2}


def test_rows_of_one_class_have_no_curves() -> None:
    with pytest.raises(ValueError, match="holds no positive label"):
        curves(task_rows([0, 0], [0.1, 0.2]))


def scored_days(days: list[TaskRows]) -> Scored:
    """Return test days of one task, which is all rows."""
    sizes = [len(rows.labels) for rows in days]
    dates = [dt.date(2026, 1, 1 + number) for number in range(len(days))]
    frames = [pl.DataFrame({"date": [date] * size}) for date, size in zip(dates, sizes, strict=True)]
    features = [Features(torch.zeros(size, 0, dtype=torch.int64), torch.zeros(size, 0)) for size in sizes]
    labels, probabilities, users = (
        np.concatenate([getattr(rows, name) for rows in days]) for name in ("labels", "probabilities", "users")
    )
    everywhere = np.ones(len(labels), dtype=bool)
    return Scored(frames, features, users, {"click": labels}, {"click": everywhere}, {"click": probabilities})


def test_each_test_day_has_its_own_ratio_of_predicted_to_actual() -> None:
    days = [drawn(1), drawn(2)]
    found = calibration_by_day(scored_days(days), replicates=50, seed=0)["click"]
    assert [row["day"] for row in found] == ["2026-01-01", "2026-01-02"]
    for row, rows in zip(found, days, strict=True):
        measured = evaluate_task(
            labels=rows.labels, probabilities=rows.probabilities, users=rows.users, replicates=50, seed=0
        )["pcoc"]
        assert [row["pcoc"], row["low"], row["high"]] == pytest.approx([measured.value, measured.low, measured.high])


def test_a_day_without_a_positive_has_no_ratio() -> None:
    found = calibration_by_day(scored_days([task_rows([0, 0], [0.1, 0.2])]), replicates=20, seed=0)
    assert found == {"click": [{"day": "2026-01-01", "pcoc": None, "low": None, "high": None}]}
