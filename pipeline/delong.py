"""Areas under the ROC curve of several models on the same rows, with their covariance after DeLong.

Shape suffixes: K models, N rows (P of them positive, Q negative).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import Floats
from pipeline.significance import Estimate


@dataclass(frozen=True)
class Areas:
    """What a difference of areas needs."""

    values_K: Floats
    covariance_KK: Floats

    def contrast(self, weights_K: Floats, confidence: float = 0.95) -> Estimate:
        """Estimate a weighted sum of the areas, with a normal interval and a two-sided p-value.

        Weights that sum to 0 make it a difference. Where the variance is 0 the interval is the value, and p is 1 for
        a value of 0, else 0.
        """
        value = float(weights_K @ self.values_K)
        error = math.sqrt(max(float(weights_K @ self.covariance_KK @ weights_K), 0.0))
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
        p = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)
        return Estimate(value, value - reach, value + reach, p)


def areas(labels_N: NDArray[np.bool_], scores_KN: NDArray[Any]) -> Areas:
    """Compute each model's AUC, ties counted half, and the covariance of all of them.

    The covariance takes rows as independent draws and the models as given: it knows neither that rows of one user are
    alike nor that another seed gives another model. Both make the true uncertainty larger; the bootstrap over users
    and seeds has them (`pipeline.significance`).
    Source: DeLong, DeLong and Clarke-Pearson 1988; in O(K N log N) by midranks, Sun and Xu 2014, algorithm 2.

    Raises:
        ValueError: fewer than two positives or two negatives, which have no variance.
    """
    positives, negatives = int(labels_N.sum()), int((~labels_N).sum())
    if min(positives, negatives) < 2:  # noqa: PLR2004  # a sample variance needs two
        raise ValueError(
            f"DeLong's variance needs two rows of each class, got {positives} positives and {negatives} negatives: "
            "measure on more days"
        )
    of_positives, of_negatives = [], []
    for scores_N in scores_KN:
        ranks_N = _midranks(scores_N)
        of_positives.append((ranks_N[labels_N] - _midranks(scores_N[labels_N])) / negatives)
        of_negatives.append(1 - (ranks_N[~labels_N] - _midranks(scores_N[~labels_N])) / positives)
    wins_KP, wins_KQ = np.stack(of_positives), np.stack(of_negatives)
    covariance_KK = np.atleast_2d(np.cov(wins_KP)) / positives + np.atleast_2d(np.cov(wins_KQ)) / negatives
    return Areas(wins_KP.mean(axis=1), covariance_KK)


def _midranks(scores_N: NDArray[Any]) -> Floats:
    """Return each row's rank from 1, the mean of their ranks where rows tie."""
    _, group_N, counts_G = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts_G) - (counts_G - 1) / 2)[group_N]
    return ranks
