"""What the simulator knows of measured impressions, and metrics against it: without the luck of the labels.

Shapes: N impressions, S seeds, U users.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.study_data import Study

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
REPLICATES = 500


@dataclass(frozen=True)
class Truth:
    """True probabilities of the measured impressions, each (N)."""

    click: Floats
    conversion: Floats

    def expected(self, task: str) -> tuple[Floats, Floats]:
        """Return the expected number of positives and of negatives of each impression in a task's own space: (N)."""
        both = self.click * self.conversion
        return {
            "click": (self.click, 1 - self.click),
            "click_and_conversion": (both, 1 - both),
            "conversion": (both, self.click - both),
        }[task]


def read_truth(study: Study, source: Path) -> Truth:
    """Read the truth of the measured impressions from the simulator's folder."""
    wanted = pl.concat([day.frame.select("impression_id") for day in study.measured])
    truth = pl.scan_parquet(source / "truth.parquet").collect()
    found = wanted.join(truth, on="impression_id", how="left", maintain_order="left")
    assert found["p_click"].null_count() == 0, "the truth is of this source"
    return Truth(found["p_click"].to_numpy(), found["p_conversion"].to_numpy())


class SoftAuc:
    """The probability that a positive is predicted above a negative, both drawn by the truth; ties count half."""

    def __init__(self, predicted_N: Floats) -> None:
        self.place_N = np.unique(predicted_N, return_inverse=True)[1]

    def __call__(self, positive_N: Floats, negative_N: Floats) -> float:
        """Return it for expected numbers of positives and negatives."""
        positive = np.bincount(self.place_N, weights=positive_N)
        negative = np.bincount(self.place_N, weights=negative_N)
        below = negative.cumsum() - negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum()))


def user_draws(users_N: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Return how often each impression's user is drawn, for each replicate of a bootstrap over users: (N)."""
    generator = np.random.default_rng(seed)
    count = int(users_N.max()) + 1
    return [generator.multinomial(count, np.full(count, 1 / count))[users_N] for _ in range(REPLICATES)]


def interval(values_S: Floats, draws_RS: Floats, seed: int) -> tuple[float, float, float]:
    """Return the mean over seeds with its interval over users and seeds, as `pipeline.significance.contrast` makes it.

    Resampling two or three seeds would cover half of what it says: seeds enter by Student's t with S - 1 degrees of
    freedom instead.
    """
    replicates, seeds = draws_RS.shape
    student_R = np.random.default_rng(seed).standard_t(seeds - 1, size=replicates)
    draws_R = draws_RS.mean(axis=1) + student_R * draws_RS.std(axis=1, ddof=1) / np.sqrt(seeds)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return float(values_S.mean()), float(low), float(high)
