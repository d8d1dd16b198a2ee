"""Curves of one predicted probability: calibration, ROC, precision and recall, lift, and the users' own AUCs.

Shape suffixes: N impressions, U users, B bins, T distinct predictions from the highest down, R bootstrap replicates.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from pipeline.metrics import CONFIDENCE, Floats, sum_by, summarise, user_bootstrap
from pipeline.scored import Scored, TaskRows

DECILES = 10
POINTS = 200
HISTOGRAM_BINS = 20
DIGITS = 6


def curves(rows: TaskRows) -> dict[str, Any]:
    """Return all curves of a task, each with at most `POINTS` points; costs a few sorts of the rows.

    `average_precision` and the histogram are computed before curves are thinned.

    Raises:
        ValueError: the rows are empty or of one class only.
    """
    histogram = user_auc_histogram(rows)
    at = _Thresholds(rows)
    share_T = (at.hits_T + at.misses_T) / len(rows.labels)
    recall_T = at.hits_T / at.hits_T[-1]
    false_T = at.misses_T / at.misses_T[-1]
    precision_T = at.hits_T / (at.hits_T + at.misses_T)
    return {
        "calibration": calibration(rows),
        "roc": [[0.0, 0.0], *thinned(false_T, recall_T, along=(false_T + recall_T) / 2)],
        "precision_recall": thinned(recall_T, precision_T, along=recall_T),
        "average_precision": float(np.diff(recall_T, prepend=0.0) @ precision_T),
        "lift": thinned(share_T, precision_T / rows.labels.mean(), along=share_T),
        "gauc_distribution": histogram,
    }


class _Thresholds:
    """Positives and negatives predicted at or above each distinct prediction: hits_T and misses_T."""

    def __init__(self, rows: TaskRows) -> None:
        order_N = np.argsort(-rows.probabilities, kind="stable")
        labels_N, probabilities_N = rows.labels[order_N], rows.probabilities[order_N]
        last_T = np.append(np.flatnonzero(np.diff(probabilities_N)), len(labels_N) - 1)
        self.hits_T: Floats = np.cumsum(labels_N, dtype=np.float64)[last_T]
        self.misses_T: Floats = last_T + 1 - self.hits_T


def thinned(x_T: Floats, y_T: Floats, *, along: Floats) -> list[list[float]]:
    """Return [x, y] points, of more than `POINTS` those that first reach equal steps of `along`.

    `along` rises from above 0 to 1. The last point is kept, and no point lies before the first step: the top row or
    two of many say nothing of a rate.
    """
    if len(x_T) > POINTS:
        steps = np.arange(1, POINTS + 1) / POINTS
        kept = np.unique(np.minimum(np.searchsorted(along, steps - 1e-12), len(x_T) - 1))
        x_T, y_T = x_T[kept], y_T[kept]
    return [[round(float(x), DIGITS), round(float(y), DIGITS)] for x, y in zip(x_T, y_T, strict=True)]


def calibration(rows: TaskRows) -> list[dict[str, float]]:
    """Return mean prediction and observed rate by decile of the prediction, lowest first.

    Equal predictions share a decile, so that some may be larger and others are left out. Intervals at 95 % are
    Wilson's (1927) with an effective number of rows, the rows over the design effect of users (Kish 1965; Korn and
    Graubard 1998): rows of one user are alike, and a decile without a positive still has an upper bound, where a
    bootstrap over users would give [0, 0]. The design effect is the variance of the rate as a ratio of sums over
    users, over that of independent rows, and at least 1; a decile of a single user shows none.
    """
    edges = np.quantile(rows.probabilities, np.arange(1, DECILES) / DECILES)
    bins_N = np.searchsorted(edges, rows.probabilities, side="left")
    found = []
    for number in np.unique(bins_N):
        inside = rows.of(bins_N == number)
        count, positives = len(inside.labels), int(inside.labels.sum())
        low, high = wilson(positives / count, count / _design_effect(inside))
        found.append(
            {
                "bin": int(number) + 1,
                "rows": count,
                "positives": positives,
                "predicted": float(inside.probabilities.mean()),
                "observed": positives / count,
                "low": low,
                "high": high,
            }
        )
    return found


def wilson(rate: float, rows: float) -> tuple[float, float]:
    """Return the bounds of Wilson's score interval of a rate that was observed on some independent rows, at 95 %."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (rate + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z / (1 + z**2 / rows) * math.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2))
    # At rates of 0 and 1 a bound is the rate, but for the last bit.
    return max(min(centre - reach, rate), 0.0), min(max(centre + reach, rate), 1.0)


def _design_effect(rows: TaskRows) -> float:
    """Return how many times the variance of the rate by users is that of independent rows; 1 where there is none."""
    rate = rows.labels.mean()
    _, users_N = np.unique(rows.users, return_inverse=True)
    deviations_U = sum_by(users_N, rows.labels - rate)
    independent = len(rows.labels) * rate * (1 - rate)
    return max(float(deviations_U @ deviations_U / independent), 1.0) if independent else 1.0


def user_auc_histogram(rows: TaskRows) -> dict[str, list[float]]:
    """Count users by their own AUC, and their impressions: `edges` (21), `users` (20), `impressions` (20).

    Only users with both classes have an AUC; an AUC of 1 falls into the last bin. All counts are 0 without any.

    Raises:
        ValueError: the rows are empty or of one class only.
    """
    sums_UF = summarise(**rows.arrays).sums
    impressions_U, weighted_U = sums_UF[:, 4], sums_UF[:, 5]
    both = impressions_U > 0
    auc_U = weighted_U[both] / impressions_U[both]
    users_B, edges = np.histogram(auc_U, bins=HISTOGRAM_BINS, range=(0, 1))
    impressions_B, _ = np.histogram(auc_U, bins=HISTOGRAM_BINS, range=(0, 1), weights=impressions_U[both])
    return {
        "edges": [round(float(edge), DIGITS) for edge in edges],
        "users": [int(count) for count in users_B],
        "impressions": [int(count) for count in impressions_B],
    }


def calibration_by_day(scored: Scored, *, replicates: int, seed: int) -> dict[str, list[dict[str, str | float | None]]]:
    """Return predicted over actual positives of every task and test day, with a bootstrap interval over users.

    A day without a positive has None for all three.
    """
    found: dict[str, list[dict[str, str | float | None]]] = {}
    for name in scored.labels:
        found[name] = []
        for number, frame in enumerate(scored.frames):
            rows = scored.task(name, scored.day_numbers == number)
            found[name].append({"day": str(frame["date"][0]), **_ratio(rows, replicates, seed)})
    return found


def _ratio(rows: TaskRows, replicates: int, seed: int) -> dict[str, float | None]:
    if not rows.labels.any():
        return {"pcoc": None, "low": None, "high": None}
    _, users_N = np.unique(rows.users, return_inverse=True)
    predicted_U, positives_U = sum_by(users_N, rows.probabilities), sum_by(users_N, rows.labels)

    def statistic(counts_RU: Floats) -> Floats:
        ratio_R1: Floats = ((counts_RU @ predicted_U) / (counts_RU @ positives_U))[:, None]
        return ratio_R1

    (interval,) = user_bootstrap(statistic, positives_U[:, None], replicates=replicates, seed=seed)
    return {"pcoc": interval.value, "low": interval.low, "high": interval.high}
