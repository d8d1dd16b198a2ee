"""DeLong's covariance of areas under the ROC curve."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.delong import Areas, areas
from pipeline.metrics import auc


def _naive(
    labels: NDArray[np.bool_], scores_KN: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare every positive with every negative, as DeLong et al. 1988 write it (equations 4 to 6)."""
    positives, negatives = scores_KN[:, labels], scores_KN[:, ~labels]
    wins = (positives[:, :, None] > negatives[:, None]) + 0.5 * (positives[:, :, None] == negatives[:, None])
    values, of_positives, of_negatives = wins.mean((1, 2)), wins.mean(2), wins.mean(1)
    count = len(scores_KN)
    covariance = np.zeros((count, count))
    for one in range(count):
        for two in range(count):
            for parts in (of_positives, of_negatives):
                size = parts.shape[1]
                products = (parts[one] - values[one]) * (parts[two] - values[two])
                covariance[one, two] += products.sum() / (size - 1) / size
    return values, covariance


def test_it_equals_the_comparison_of_all_pairs_ties_included() -> None:
    generator = np.random.default_rng(3)
    labels = generator.random(211) < 0.3
    scores = np.round(generator.normal(size=(4, 211)) + labels * [[0.0], [0.5], [1.0], [1.0]], 1)
    found, (values, covariance) = areas(labels, scores), _naive(labels, scores)
    np.testing.assert_allclose(found.values_K, values, rtol=1e-12)
    np.testing.assert_allclose(found.covariance_KK, covariance, atol=1e-15)
    np.testing.assert_allclose(found.values_K, [auc(labels, one) for one in scores], rtol=1e-12)


def test_four_rows_by_hand() -> None:
    labels = np.array([True, True, False, False])
    found = areas(labels, np.array([[3.0, 1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]]))
    # Shares of wins: positives 1 and 1/2, negatives 1/2 and 1; each half has variance 1/8, over two rows.
    np.testing.assert_allclose(found.values_K, [0.75, 1.0])
    np.testing.assert_allclose(found.covariance_KK, [[0.125, 0.0], [0.0, 0.0]])
    difference = found.contrast(np.array([-1.0, 1.0]))
    assert difference.value == 0.25
    np.testing.assert_allclose(
        [difference.low, difference.high], 0.25 + np.array([-1, 1]) * 1.959964 * 0.125**0.5, rtol=1e-6
    )
    assert difference.p == pytest.approx(0.479500, abs=1e-6)  # 2 (1 - Phi(0.7071))


def test_equal_scores_differ_by_nothing_for_certain() -> None:
    generator = np.random.default_rng(5)
    labels, scores = generator.random(50) < 0.5, generator.random(50)
    same = areas(labels, np.stack([scores, scores**3])).contrast(np.array([1.0, -1.0]))
    assert same.value == 0
    assert same.high - same.low < 1e-7
    assert Areas(np.array([1.0, 0.5]), np.zeros((2, 2))).contrast(np.array([1.0, -1.0])).p == 0


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    # Of two normal scores with common noise, shifts of 1 and 0.5 have areas Phi(shift / sqrt(2)).
    truth, held, tries = 0.760250 - 0.638163, 0, 400
    for _ in range(tries):
        labels = np.arange(160) < 60
        common = generator.normal(size=160)
        scores = np.stack([(common + generator.normal(size=160)) / 2**0.5 + shift * labels for shift in (1.0, 0.5)])
        found = areas(labels, scores).contrast(np.array([1.0, -1.0]))
        held += found.low <= truth <= found.high
    assert 0.92 <= held / tries <= 0.98


def test_one_positive_has_no_variance() -> None:
    with pytest.raises(ValueError, match="two rows of each class, got 1 positives and 3 negatives"):
        areas(np.array([True, False, False, False]), np.zeros((1, 4)))
