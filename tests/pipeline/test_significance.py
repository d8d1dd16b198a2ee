"""Intervals over users and seeds, and what many comparisons do to a p-value."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from pipeline.metrics import METRICS, paired_difference
from pipeline.significance import SIGNIFICANCE, Replicates, contrast, holm, least_replicates, replicate_metrics

AUC = METRICS.index("auc")
GENERATOR = np.random.default_rng(2)
USERS = GENERATOR.integers(40, size=600)
LABELS = GENERATOR.random(600) < 0.4
FIRST, SECOND = (np.clip(GENERATOR.random(600) * 0.6 + LABELS * shift, 0, 1) for shift in (0.3, 0.1))


def _replicates(values_RS: NDArray[np.float64]) -> Replicates:
    """Make replicates whose metrics are all the same number; the sample itself is the first row."""
    repeated = np.repeat(values_RS[:, :, None], len(METRICS), axis=2)
    return Replicates(repeated[0], repeated)


def test_one_seed_gives_the_paired_bootstrap_over_users() -> None:
    made = replicate_metrics(
        labels=LABELS, users=USERS, predictions={"a": [FIRST], "b": [SECOND]}, replicates=60, seed=4
    )
    found = contrast([(1, made["a"]), (-1, made["b"])])
    expected = paired_difference(
        labels=LABELS, probabilities=FIRST, baseline=SECOND, users=USERS, replicates=60, seed=4
    )
    for name in METRICS:
        assert found[name].value == pytest.approx(expected[name].value)
        assert found[name].low == pytest.approx(expected[name].low)
        assert found[name].high == pytest.approx(expected[name].high)


def test_where_only_seeds_vary_the_interval_is_students() -> None:
    seeds = np.array([0.1, 0.3, 0.2, 0.6])
    found = contrast([(1, _replicates(np.tile(seeds, (20_000, 1))))])["auc"]
    low, high = student.interval(0.95, 3, loc=seeds.mean(), scale=seeds.std(ddof=1) / 2)
    assert found.value == pytest.approx(0.3)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.01)
    assert found.p == pytest.approx(2 * student.sf(0.3 / (seeds.std(ddof=1) / 2), 3), abs=0.01)


def test_what_a_seed_does_to_both_models_cancels() -> None:
    noise = np.random.default_rng(8).normal(size=(500, 3))
    shared = np.array([0.5, -4.0, 9.0])
    model, base = _replicates(noise * 1e-3 + shared + 1), _replicates(noise * 1e-3 + shared)
    found = contrast([(1, model), (-1, base)])["auc"]
    assert [found.low, found.value, found.high] == pytest.approx([1, 1, 1])


def test_the_interval_holds_the_true_mean_over_users_and_seeds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(20)
    for of_users, of_seeds, both in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.7, 0.7, 0.0), (0.3, 0.3, 1.0)):
        held = []
        for _ in range(300):
            users = of_users * generator.normal(size=(80, 1))
            effect = users + of_seeds * generator.normal(size=(1, 5)) / 4 + both * generator.normal(size=(80, 5))
            draws = generator.multinomial(80, np.full(80, 1 / 80), size=200) / 80
            made = _replicates(np.concatenate([effect.mean(0, keepdims=True), draws @ effect]))
            found = contrast([(1, made)], seed=int(generator.integers(1 << 30)))["auc"]
            held.append(found.low <= 0 <= found.high)
        assert 0.91 <= np.mean(held) <= 1.0, (of_users, of_seeds, both)


def test_a_model_without_seeds_is_held_against_every_seed_of_another() -> None:
    seeds = [FIRST, np.clip(FIRST + 0.01 * LABELS, 0, 1)]
    made = replicate_metrics(labels=LABELS, users=USERS, predictions={"a": seeds, "b": [SECOND]}, replicates=30, seed=0)
    found = contrast([(1, made["a"]), (-1, made["b"])])["auc"]
    means = [made[name].values_SM[:, AUC].mean() for name in ("a", "b")]
    assert found.value == pytest.approx(means[0] - means[1])


def test_a_metric_that_is_undefined_has_no_interval() -> None:
    made = replicate_metrics(
        labels=LABELS, users=np.arange(600), predictions={"a": [FIRST], "b": [SECOND]}, replicates=20, seed=0
    )
    found = contrast([(1, made["a"]), (-1, made["b"])])
    assert np.isnan([found["gauc"].low, found["gauc"].high, found["gauc"].p]).all()
    assert found["auc"].low < found["auc"].value < found["auc"].high


def test_less_than_one_replicate_is_refused() -> None:
    with pytest.raises(ValueError, match="bootstrap replicates is 0, expected 1 or more"):
        replicate_metrics(labels=LABELS, users=USERS, predictions={"a": [FIRST]}, replicates=0, seed=0)


def test_holm_multiplies_the_smallest_by_all_and_never_lets_a_larger_one_pass_before_it() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    adjusted = holm([0.02, float("nan"), 0.03])
    assert [adjusted[0], adjusted[2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(adjusted[1])


def test_the_smallest_p_is_significant_with_the_least_replicates_and_not_with_one_fewer() -> None:
    for looks in range(1, 300):
        least = least_replicates(looks)
        found = [holm([2 / (replicates + 1)] * looks)[0] for replicates in (least, least - 1)]
        assert found[0] < SIGNIFICANCE
        assert found[1] == pytest.approx(min(1, 2 * looks / least))
        assert 2 * looks / least >= SIGNIFICANCE
