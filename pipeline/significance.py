"""How sure a difference between models is that were trained with several seeds and measured on the same users.

Shape suffixes: N impressions, U users, R bootstrap replicates, S seeds, M metrics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import METRICS, Floats, metric_values, resamples, summarise

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
"""What an adjusted p-value is below where something is said to be shown."""


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its interval, and the two-sided p-value of it being 0."""

    value: float
    low: float
    high: float
    p: float

    def as_dict(self) -> dict[str, float]:
        """Return the four numbers under their names, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Replicates:
    """A model's metrics, seed by seed, on the sample and on resamples of its users."""

    values_SM: Floats
    draws_RSM: Floats
    """Row r of every model that was measured together is of the same resample."""


def replicate_metrics(
    *,
    labels: NDArray[Any],
    users: NDArray[Any],
    predictions: Mapping[str, Sequence[NDArray[Any]]],
    replicates: int,
    seed: int,
) -> dict[str, Replicates]:
    """Measure models on the same resamples of users.

    labels and users have shape (N,), and so has each model's prediction of each seed. A model without seeds (one
    prediction) can be compared with one that has them. Metrics are those of `pipeline.metrics.METRICS`, in order.

    Raises ValueError for arrays that `pipeline.metrics.evaluate_task` refuses, and for less than one replicate.
    """
    if replicates < 1:
        raise ValueError(f"bootstrap replicates is {replicates}, expected 1 or more: 1000 is usual")
    summaries = {
        name: [summarise(labels=labels, probabilities=one, users=users) for one in seeds]
        for name, seeds in predictions.items()
    }
    required_UC = next(iter(summaries.values()))[0].required
    whole_1U = np.ones((1, len(required_UC)))
    values = {name: np.concatenate([metric_values(one, whole_1U) for one in many]) for name, many in summaries.items()}
    pieces: dict[str, list[Floats]] = {name: [] for name in summaries}
    for counts_RU in resamples(required_UC, replicates, seed):
        for name, many in summaries.items():
            pieces[name].append(np.stack([metric_values(one, counts_RU) for one in many], axis=1))
    return {name: Replicates(values[name], np.concatenate(pieces[name])) for name in summaries}


def contrast(
    terms: Sequence[tuple[float, Replicates]], *, names: Sequence[str] = METRICS, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate a weighted sum of models' metrics, averaged over seeds: (1, model) and (-1, other) is a difference.

    The sum is formed seed by seed, so what a seed does to both models cancels, and resample by resample, so what a
    draw of users does to both cancels too: d(s, r) for seed s and resample r. Seeds enter the interval by the
    normal model's posterior of their mean: a draw is mean_s d(s, r) + t sd_s d(s, r) / sqrt(S), with t of Student's
    distribution with S - 1 degrees of freedom. Where only seeds vary this is their t-interval (exact for normal seeds);
    where only users vary it is the percentile bootstrap over users; where both do, the two variances add, and that of
    user and seed together counts twice, which is on the safe side. The average over seeds of the metric is what is
    estimated, not the metric of averaged probabilities: an ensemble is another model. With one seed nothing is known
    of seeds, and the interval holds for that seed alone. `names` are of the metrics, in order.

    p is twice the smaller share of draws on one side of 0, counted with one more (Davison and Hinkley 1997, section
    4.2): it is never below 2 / (R + 1). A metric that is NaN has NaN throughout.
    """
    values_SM = np.sum([weight * model.values_SM for weight, model in _aligned(terms)], axis=0)
    draws_RSM = np.sum([weight * model.draws_RSM for weight, model in _aligned(terms)], axis=0)
    replicates, seeds, _ = draws_RSM.shape
    draws_RM = draws_RSM.mean(axis=1)
    if seeds > 1:
        student_R = np.random.default_rng(seed).standard_t(seeds - 1, size=replicates)
        draws_RM = draws_RM + student_R[:, None] * draws_RSM.std(axis=1, ddof=1) / np.sqrt(seeds)
    return {
        name: _estimate(float(values_SM[:, column].mean()), draws_RM[:, column]) for column, name in enumerate(names)
    }


def _aligned(terms: Sequence[tuple[float, Replicates]]) -> list[tuple[float, Replicates]]:
    """Repeat the models that have one seed as often as the others have seeds."""
    seeds = max(model.values_SM.shape[0] for _, model in terms)
    assert all(model.values_SM.shape[0] in {1, seeds} for _, model in terms), "models are paired seed by seed"
    return [
        (
            weight,
            Replicates(
                np.broadcast_to(model.values_SM, (seeds, model.values_SM.shape[1])),
                np.broadcast_to(model.draws_RSM, (len(model.draws_RSM), seeds, model.draws_RSM.shape[2])),
            ),
        )
        for weight, model in terms
    ]


def _estimate(value: float, draws_R: Floats) -> Estimate:
    if np.isnan(draws_R).any():
        return Estimate(value, np.nan, np.nan, np.nan)
    low, high = np.quantile(draws_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    smaller = min((draws_R <= 0).sum(), (draws_R >= 0).sum())
    return Estimate(value, float(low), float(high), min(1.0, 2 * float(smaller + 1) / (len(draws_R) + 1)))


def least_replicates(looks: int) -> int:
    """Return how many resamples the smallest p-value needs to be significant after Holm's adjustment for some looks.

    With fewer nothing can be shown, whatever the data, since no p-value is below 2 / (R + 1).
    """
    return math.floor(2 * looks / SIGNIFICANCE)


def few_replicates(replicates: int, looks: int) -> list[str]:
    """Say that nothing can be shown where the resamples are too few for the number of looks, else nothing."""
    least = least_replicates(looks)
    if replicates >= least:
        return []
    said = (
        f"With {replicates} resamples no p-value adjusted for {looks} figures is below 0.05: nothing can be shown, "
        f"raise --replicates to {least} or more."
    )
    return [said]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number: below 0.05 keeps the chance of any false claim below 0.05 (Holm 1979).

    They need not be independent. The answer is in the order given; NaN stays NaN and does not count.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    adjusted = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted
