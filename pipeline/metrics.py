"""Metrics of one predicted probability, each with a confidence interval from a bootstrap over users.

Shape suffixes: N impressions (P of them positive, Q negative), U users, R bootstrap replicates, F sums kept
per user, C conditions, M metrics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]

METRICS = ("auc", "gauc", "log_loss", "normalised_entropy", "pcoc", "ece")
BINS = 15
CONFIDENCE = 0.95
CHUNK_CELLS = 1 << 22  # 32 MiB of counts at a time, whatever the number of users


@dataclass(frozen=True)
class Interval:
    """A metric on the whole sample and the bounds of its percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers under their names, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """All that a resample of users needs, so that no replicate sorts again."""

    sums: Floats
    """Shape (U, F): impressions, positives, predicted, loss, grouped, grouped times AUC, one gap per bin."""
    positive_users: Integers
    """Shape (P,): the user of each positive impression."""
    negative_users: Integers
    """Shape (Q,): the user of each negative impression, in ascending order of the prediction."""
    below: Integers
    """Shape (P,): how many negative impressions are predicted lower than this positive one."""
    through: Integers
    """Shape (P,): how many are predicted lower or equal."""

    @property
    def required(self) -> Floats:
        """Shape (U, C): positives, negatives and, where any user has both, impressions in the GAUC."""
        impressions_U, positives_U, _, _, grouped_U = self.sums[:, :5].T
        conditions = [positives_U, impressions_U - positives_U, grouped_U]
        return np.stack([condition_U for condition_U in conditions if condition_U.any()], axis=1)


def evaluate_task(
    *,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    users: NDArray[Any],
    replicates: int = 200,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Measure one task's predictions, with intervals over users.

    All three arrays have shape (N,): labels are boolean or 0 and 1, users are any integers. The keys are
    `METRICS`, defined in `metric_values`. Rows of one user are dependent, so users are what the bootstrap
    draws. A percentile interval is not centred, and the ECE is a sum of absolute values that resampling
    makes noisier: the interval of a well calibrated model's ECE can lie wholly above the value. When no user
    has both classes the GAUC and its bounds are NaN; nothing else ever is.

    Raises ValueError for arrays that are empty, differ in shape or hold one class only, for labels other
    than 0 and 1, for probabilities that are NaN or outside [0, 1], and for impossible bootstrap settings.
    """
    summary = summarise(labels=labels, probabilities=probabilities, users=users)
    intervals = user_bootstrap(
        lambda counts_RU: metric_values(summary, counts_RU),
        summary.required,
        replicates=replicates,
        seed=seed,
        confidence=confidence,
    )
    return dict(zip(METRICS, intervals, strict=True))


def paired_difference(
    *,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    baseline: NDArray[Any],
    users: NDArray[Any],
    replicates: int = 200,
    seed: int = 0,
) -> dict[str, Interval]:
    """Measure how far a model's metrics are above its baseline's on the same impressions and resamples.

    Arrays, keys, NaN and errors as in `evaluate_task`; baseline holds the other model's probabilities. The
    sign is model minus baseline: above 0 is better for AUC and GAUC, below 0 for the log-loss, the
    normalised entropy and the ECE; the PCOC is best near 1, so its difference has no better side. The
    intervals are at 95 %, and narrower than two separate ones suggest because both models share the luck of
    the draw.
    """
    model = summarise(labels=labels, probabilities=probabilities, users=users)
    other = summarise(labels=labels, probabilities=baseline, users=users)
    intervals = user_bootstrap(
        lambda counts_RU: metric_values(model, counts_RU) - metric_values(other, counts_RU),
        model.required,
        replicates=replicates,
        seed=seed,
    )
    return dict(zip(METRICS, intervals, strict=True))


def auc(labels: NDArray[np.bool_], scores: Floats) -> float:
    """Return the area under the ROC curve over all rows, ties counted half; NaN where a class is missing."""
    _, group_N, counts_G = np.unique(scores, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts_G) - (counts_G - 1) / 2)[group_N]
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not (positives and negatives):
        return float("nan")
    return float((ranks_N[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def metric_values(summary: Summary, counts_RU: Floats) -> Floats:
    """Compute every metric of every resample, shape (R, M) in the order of `METRICS`.

    counts_RU says how often each user was drawn; a row of ones is the sample itself.

    - auc: chance that a positive is predicted above a negative, ties one half (Hanley and McNeil 1982).
    - gauc: mean of the users' own AUCs weighted by their impressions, over the users with both classes, NaN
      without one (Zhu et al. 2017, Optimized Cost per Click; Zhou et al. 2018, Deep Interest Network).
    - log_loss: mean in nats, of probabilities clipped to one float64 epsilon from 0 and 1: at most 36.04.
    - normalised_entropy: log_loss over the entropy of the resample's own base rate; 1 is a constant
      prediction of that rate (He et al. 2014, equation 1).
    - pcoc: predicted clicks over clicks, sum of probabilities over sum of labels; above 1 predicts too much.
    - ece: mean absolute gap between mean prediction and mean label over 15 bins of equal mass, weighted by
      impressions (Naeini et al. 2015). Bins are cut once, on the whole sample; equal predictions share a
      bin.
    """
    totals_RF = counts_RU @ summary.sums
    impressions_R, positives_R, predicted_R, loss_R, grouped_R, grouped_auc_R = totals_RF[:, :6].T
    rate_R = positives_R / impressions_R
    entropy_R = -rate_R * np.log(rate_R) - (1 - rate_R) * np.log1p(-rate_R)
    undefined_R = np.full(len(counts_RU), np.nan)
    values = {
        "auc": np.array([_auc(summary, counts_U) for counts_U in counts_RU]),
        "gauc": np.divide(grouped_auc_R, grouped_R, out=undefined_R, where=grouped_R > 0),
        "log_loss": loss_R / impressions_R,
        "normalised_entropy": loss_R / impressions_R / entropy_R,
        "pcoc": predicted_R / positives_R,
        "ece": np.abs(totals_RF[:, 6:]).sum(axis=1) / impressions_R,
    }
    return np.stack([values[name] for name in METRICS], axis=1)


def summarise(*, labels: NDArray[Any], probabilities: NDArray[Any], users: NDArray[Any]) -> Summary:
    """Reduce impressions to sums per user and to the order of their predictions.

    Shapes and errors as in `evaluate_task`. Users are numbered by ascending value of those that occur.
    """
    _check(labels, probabilities, users)
    positive_N = labels.astype(bool)
    probabilities_N = probabilities.astype(np.float64)
    _, users_N = np.unique(users, return_inverse=True)
    positives_P, negatives_Q = probabilities_N[positive_N], probabilities_N[~positive_N]
    # Positives are sorted too, so that each replicate reads its look-ups forward through memory.
    order_P, order_Q = np.argsort(positives_P), np.argsort(negatives_Q)
    positives_P, negatives_Q = positives_P[order_P], negatives_Q[order_Q]
    return Summary(
        sums=_user_sums(positive_N, probabilities_N, users_N),
        positive_users=users_N[positive_N][order_P],
        negative_users=users_N[~positive_N][order_Q],
        below=np.searchsorted(negatives_Q, positives_P, side="left"),
        through=np.searchsorted(negatives_Q, positives_P, side="right"),
    )


def user_bootstrap(
    statistic: Callable[[Floats], Floats],
    required_UC: Floats,
    *,
    replicates: int,
    seed: int,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Compute percentile bootstrap intervals of statistics that depend on how often each user was drawn.

    statistic maps counts of shape (R, U) to values of shape (R, M); the answer has one interval per column.
    A resample in which a column of required_UC sums to 0 (one class only, say) is drawn again, so intervals
    are conditional on the metrics being defined; that matters only where a handful of users carry a class.
    The same seed gives the same resamples to every statistic with the same requirement (Efron and Tibshirani
    1993, chapter 13).

    Raises ValueError for less than one replicate or a confidence outside (0, 1).
    """
    if replicates < 1:
        raise ValueError(f"bootstrap replicates is {replicates}, expected 1 or more: 200 is usual")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap confidence is {confidence}, expected between 0 and 1: 0.95 is usual")
    value_M = statistic(np.ones((1, len(required_UC))))[0]
    draws_RM = np.concatenate([statistic(counts) for counts in resamples(required_UC, replicates, seed)])
    low_M, high_M = np.quantile(draws_RM, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(value_M, low_M, high_M, strict=True)]


def resamples(required_UC: Floats, replicates: int, seed: int) -> Iterator[Floats]:
    """Draw resamples of users in pieces of shape (r, U) that sum to the replicates; see `user_bootstrap`."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK_CELLS // len(required_UC))
    for start in range(0, replicates, step):
        yield np.stack([_draw(generator, required_UC) for _ in range(min(step, replicates - start))])


def sum_by(group_N: Integers, values_N: NDArray[Any], *, groups: int = 0) -> Floats:
    """Sum values of shape (N,) by group number, over at least the given number of groups."""
    return np.bincount(group_N, weights=values_N, minlength=groups).astype(np.float64, copy=False)


def _draw(generator: np.random.Generator, required_UC: Floats) -> Floats:
    """Draw one admissible resample: at least every second draw is one where the sample itself is."""
    users = len(required_UC)
    while True:
        # Counting drawn users is the multinomial distribution without its sampler's binomial per user.
        counts_U = np.bincount(generator.integers(users, size=users), minlength=users).astype(np.float64)
        if (counts_U @ required_UC > 0).all():
            return counts_U


def _auc(summary: Summary, counts_U: Floats) -> float:
    positives_P = counts_U[summary.positive_users]
    negatives_before = np.concatenate(([0.0], np.cumsum(counts_U[summary.negative_users])))
    twice_below_P = negatives_before[summary.below] + negatives_before[summary.through]
    return float(positives_P @ twice_below_P / 2 / (positives_P.sum() * negatives_before[-1]))


def _user_sums(positive_N: NDArray[np.bool_], probabilities_N: Floats, users_N: Integers) -> Floats:
    epsilon = np.finfo(np.float64).eps
    clipped_N = np.clip(probabilities_N, epsilon, 1 - epsilon)
    loss_N = -np.where(positive_N, np.log(clipped_N), np.log1p(-clipped_N))
    impressions_U = np.bincount(users_N).astype(np.float64)
    positives_U = sum_by(users_N, positive_N)
    predicted_U = sum_by(users_N, probabilities_N)
    loss_U = sum_by(users_N, loss_N)
    grouped_U = np.where((positives_U > 0) & (positives_U < impressions_U), impressions_U, 0.0)
    grouped_auc_U = grouped_U * _user_auc(positive_N, probabilities_N, users_N)
    sums = [impressions_U, positives_U, predicted_U, loss_U, grouped_U, grouped_auc_U]
    return np.column_stack([*sums, _bin_gaps(positive_N, probabilities_N, users_N)])


def _user_auc(positive_N: NDArray[np.bool_], probabilities_N: Floats, users_N: Integers) -> Floats:
    """Compute each user's AUC from the rank sum of its positives, 0 where a class is missing."""
    order_N = np.lexsort((probabilities_N, users_N))
    positive_N, probabilities_N, users_N = positive_N[order_N], probabilities_N[order_N], users_N[order_N]
    opens_tie_N = np.append(True, (np.diff(users_N) != 0) | (np.diff(probabilities_N) != 0))
    first = np.flatnonzero(opens_tie_N)
    last = np.append(first[1:], users_N.size) - 1
    middle_N = ((first + last) / 2)[np.cumsum(opens_tie_N) - 1]
    impressions_U, positives_U = np.bincount(users_N), sum_by(users_N, positive_N)
    rank_N = middle_N - (np.cumsum(impressions_U) - impressions_U)[users_N]
    wins_U = sum_by(users_N, rank_N * positive_N) - positives_U * (positives_U - 1) / 2
    pairs_U = positives_U * (impressions_U - positives_U)
    return np.divide(wins_U, pairs_U, out=np.zeros_like(wins_U), where=pairs_U > 0)


def _bin_gaps(positive_N: NDArray[np.bool_], probabilities_N: Floats, users_N: Integers) -> Floats:
    """Sum prediction minus label per user and bin, shape (U, BINS)."""
    edges = np.quantile(probabilities_N, np.arange(1, BINS) / BINS)
    cells_N = users_N * BINS + np.searchsorted(edges, probabilities_N, side="left")
    users = int(users_N.max()) + 1
    return sum_by(cells_N, probabilities_N - positive_N, groups=users * BINS).reshape(users, BINS)


def _check(labels: NDArray[Any], probabilities: NDArray[Any], users: NDArray[Any]) -> None:
    shapes = {"labels": labels.shape, "probabilities": probabilities.shape, "users": users.shape}
    if labels.ndim != 1 or len(set(shapes.values())) > 1:
        raise ValueError(f"metrics need three one-dimensional arrays of one length, got shapes {shapes}")
    if labels.size == 0:
        raise ValueError("metrics need at least one impression, got none: check the evaluated days")
    if not np.issubdtype(users.dtype, np.integer):
        raise ValueError(f"users have dtype {users.dtype}, expected integer codes: encode them first")
    _reject(labels, (labels == 0) | (labels == 1), "labels", "0 or 1")
    _reject(probabilities, (probabilities >= 0) & (probabilities <= 1), "probabilities", "within [0, 1]")
    for name, label in {"positive": 1, "negative": 0}.items():
        if not (labels == label).any():
            raise ValueError(
                f"the sample of {labels.size} impressions holds no {name} label; AUC is undefined: "
                "evaluate more days, and check that their labels are mature"
            )


def _reject(values_N: NDArray[Any], valid_N: NDArray[np.bool_], name: str, expected: str) -> None:
    if not valid_N.all():
        first = int(np.argmin(valid_N))
        raise ValueError(
            f"{np.count_nonzero(~valid_N)} of {values_N.size} {name} are not {expected}: "
            f"the first is {values_N[first]} at index {first}"
        )
