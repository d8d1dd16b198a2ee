"""Importance of features: what the metrics lose when a feature's values are permuted between test impressions.

Shape suffixes: N impressions of the sample, U users, F features, R bootstrap replicates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features.plan import FeaturePlan
from models.inputs import Features
from models.ranker import RankerSpec
from pipeline.config import Config
from pipeline.metrics import CONFIDENCE, Floats, Interval, resamples, sum_by, summarise
from pipeline.scored import Scored, TaskRows

Predict = Callable[[Features], NDArray[np.floating[Any]]]
EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Group:
    """Columns that are permuted together, under one name."""

    name: str
    ids: list[int]
    """Columns of `Features.ids_BF`."""
    positions: list[int]
    """Columns of `Features.positions_BF`."""
    pooled: list[str]

    def permuted(self, features: Features, order_N: torch.Tensor) -> Features:
        """Return the features with these columns in another order of rows."""
        ids, positions = features.ids_BF.clone(), features.positions_BF.clone()
        ids[:, self.ids] = features.ids_BF[order_N][:, self.ids]
        positions[:, self.positions] = features.positions_BF[order_N][:, self.positions]
        moved = {name: features.pooled[name][order_N] for name in self.pooled}
        return Features(ids, positions, features.pooled | moved)

    def differs(self, features: Features, others: Features) -> torch.Tensor:
        """Return in which rows these columns differ between two sets of as many rows: (N,)."""
        pairs = [(features.ids_BF[:, self.ids], others.ids_BF[:, self.ids])]
        pairs += [(features.positions_BF[:, self.positions], others.positions_BF[:, self.positions])]
        pairs += [(features.pooled[name], others.pooled[name]) for name in self.pooled]
        return torch.stack([(first != second).any(1) for first, second in pairs]).any(0)


def feature_groups(spec: RankerSpec, plan: FeaturePlan) -> list[Group]:
    """Return what is permuted: each column by itself, but all features of a counter, or of a text, together."""
    counters = {feature: f"{counter.name} counter" for counter in plan.counters for feature in counter.features()}
    for name in plan.multi():
        counters |= {feature: f"{name} vector" for feature in spec.numeric if feature.startswith(f"{name}__text_")}
    numeric: dict[str, list[int]] = {}
    for column, name in enumerate(spec.numeric):
        numeric.setdefault(counters.get(name, name), []).append(column)
    return [
        *(Group(name, [column], [], []) for column, name in enumerate(spec.single)),
        *(Group(name, [], columns, []) for name, columns in numeric.items()),
        *(Group(name, [], [], [name]) for name in spec.pooled),
    ]


def importance(
    config: Config, scored: Scored, groups: list[Group], outputs: Mapping[str, int], predict: Predict
) -> dict[str, list[dict[str, Any]]]:
    """Measure what permuting each feature costs every task, the costliest by log-loss first.

    Rows are permuted within their test day, in a sample of at most evaluation.importance_rows impressions, with the
    same orders for every feature; values are means over evaluation.importance_repeats orders. The permutation is
    among all impressions for every task, and then measured in the task's space. It breaks the link of a feature with
    the user or the item as well as with the label, and makes rows that cannot be, such as a user with another's
    activity: it tells what this model relies on, not what another could do without. Two features that say the same
    share their importance (Breiman 2001; Fisher, Rudin and Dominici 2019).

    Intervals are over users, paired, see `TaskSample.intervals`. Costs features x repeats predictions of the sample,
    less the rows that a permutation leaves as they are, and as many sorts a task; no resample predicts or sorts again.

    Args:
        config: the sample's size, repeats, replicates and seed.
        scored: the test impressions.
        groups: the features.
        outputs: column of each task in what `predict` gives.
        predict: gives (n, O) of n rows; a row's outputs depend on that row alone, so that a feature that it ignores
            costs nothing, but for the rounding of other batches.

    Returns:
        By task: feature, log_loss_increase and auc_decrease as intervals. A task whose sample holds one class only
        has no rows.
    """
    generator = np.random.default_rng(config.seed)
    features, rows_N = _sample(scored, config.evaluation.importance_rows, generator)
    day_N = scored.day_numbers[rows_N]
    orders = [_within(day_N, generator) for _ in range(config.evaluation.importance_repeats)]
    before_NO = predict(features)
    samples = {
        task: TaskSample.of(scored, task, rows_N, before_NO[:, outputs[task]].astype(np.float64))
        for task in scored.labels
    }
    changes: dict[str, list[RowValues]] = {task: [] for task in samples}
    for group in groups:
        after = [_predict_permuted(predict, group, features, order_N, before_NO) for order_N in orders]
        for task, sample in samples.items():
            if sample.is_measurable:
                columns = [after_NO[:, outputs[task]].astype(np.float64) for after_NO in after]
                changes[task].append(sample.change(columns))
    names = [group.name for group in groups]
    return {
        task: sample.intervals(names, changes[task], config.evaluation.replicates, config.seed)
        if sample.is_measurable
        else []
        for task, sample in samples.items()
    }


def _predict_permuted(
    predict: Predict, group: Group, features: Features, order_N: torch.Tensor, before_NO: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Predict the rows that a permutation changes; many columns have few values, and most rows keep theirs."""
    permuted = group.permuted(features, order_N)
    changed = group.differs(features, permuted).nonzero().flatten()
    after_NO = before_NO.copy()
    if len(changed):
        after_NO[changed.numpy()] = predict(permuted.slice(changed))
    return after_NO


@dataclass(frozen=True)
class RowValues:
    """What each row adds to the log-loss and to the AUC.

    Attributes:
        loss: (N,) in nats.
        pull: (N,) first-order effect on the AUC of one more of the row; sums to 0.
        auc: the AUC, ties counted half.
    """

    loss: Floats
    pull: Floats
    auc: float

    @classmethod
    def of(cls, labels_N: NDArray[np.bool_], probabilities_N: Floats) -> "RowValues":
        """Compute them from labels and predictions; both classes have to occur."""
        clipped_N = np.clip(probabilities_N, EPSILON, 1 - EPSILON)
        loss_N = -np.where(labels_N, np.log(clipped_N), np.log1p(-clipped_N))
        positives_P, negatives_Q = probabilities_N[labels_N], probabilities_N[~labels_N]
        wins_N = np.empty(len(labels_N))
        wins_N[labels_N] = _share_below(positives_P, negatives_Q)
        wins_N[~labels_N] = 1 - _share_below(negatives_Q, positives_P)
        auc = float(wins_N[labels_N].mean())
        return cls(loss_N, (wins_N - auc) / np.where(labels_N, len(positives_P), len(negatives_Q)), auc)


@dataclass(frozen=True)
class TaskSample:
    """The sampled impressions of a task's space, with the predictions before anything is permuted."""

    rows: TaskRows
    space: NDArray[np.bool_]
    """Shape (N,): which of the sampled impressions they are."""

    @classmethod
    def of(cls, scored: Scored, task: str, rows_N: NDArray[np.int64], probabilities_N: Floats) -> "TaskSample":
        """Take the task's part of some impressions."""
        space_N = scored.spaces[task][rows_N]
        rows = TaskRows(scored.labels[task][rows_N], probabilities_N, scored.users[rows_N])
        return cls(rows.of(space_N), space_N)

    @property
    def is_measurable(self) -> bool:
        """Return whether both classes occur."""
        return bool(self.rows.labels.any() and not self.rows.labels.all())

    @cached_property
    def before(self) -> RowValues:
        """Return the values before anything is permuted."""
        return RowValues.of(self.rows.labels, self.rows.probabilities)

    def change(self, after: list[Floats]) -> RowValues:
        """Return the mean change from the predictions before to some after, each over all sampled impressions."""
        before = self.before
        found = [RowValues.of(self.rows.labels, after_N[self.space]) for after_N in after]
        return RowValues(
            np.mean([values.loss - before.loss for values in found], axis=0),
            np.mean([values.pull - before.pull for values in found], axis=0),
            float(np.mean([values.auc - before.auc for values in found])),
        )

    def intervals(self, names: list[str], changes: list[RowValues], replicates: int, seed: int) -> list[dict[str, Any]]:
        """Return log_loss_increase and auc_decrease by feature, with 95 % bootstrap intervals over users.

        The resamples are those of `pipeline.metrics.paired_difference`, and for the log-loss so are the bounds. The
        AUC of a resample is taken to first order, from how each user pulls on it (the placements of DeLong et al.
        1988, summed by user), since ranking anew for every feature, order and resample would cost minutes.
        """
        _, users_N = np.unique(self.rows.users, return_inverse=True)
        required_UC = summarise(**self.rows.arrays).required
        rows_U = np.bincount(users_N).astype(np.float64)
        loss_UF = np.stack([sum_by(users_N, change.loss) for change in changes], axis=1)
        pull_UF = np.stack([sum_by(users_N, change.pull) for change in changes], axis=1)
        auc_F = np.array([change.auc for change in changes])
        pieces = [
            ((counts_RU @ loss_UF) / (counts_RU @ rows_U)[:, None], -auc_F - counts_RU @ pull_UF)
            for counts_RU in resamples(required_UC, replicates, seed)
        ]
        increase = _intervals(loss_UF.sum(axis=0) / rows_U.sum(), np.concatenate([loss for loss, _ in pieces]))
        decrease = _intervals(-auc_F, np.concatenate([auc for _, auc in pieces]))
        found = [
            {"feature": name, "log_loss_increase": increase[n], "auc_decrease": decrease[n]}
            for n, name in enumerate(names)
        ]
        return sorted(found, key=lambda row: -row["log_loss_increase"]["value"])


def _intervals(value_F: Floats, draws_RF: Floats) -> list[dict[str, float]]:
    low_F, high_F = np.quantile(draws_RF, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [Interval(*map(float, bounds)).as_dict() for bounds in zip(value_F, low_F, high_F, strict=True)]


def _share_below(values: Floats, among: Floats) -> Floats:
    """Return the share of the others that each value is above, those that it equals counted half."""
    ordered = np.sort(among)
    places = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return np.asarray(places / 2 / len(ordered), dtype=np.float64)


def _sample(scored: Scored, rows: int, generator: np.random.Generator) -> tuple[Features, NDArray[np.int64]]:
    """Draw at most so many impressions; return their features and their places among all, in order."""
    total = len(scored.users)
    chosen = np.sort(generator.choice(total, size=min(rows, total), replace=False))
    parts, start = [], 0
    for features in scored.features:
        inside = chosen[(chosen >= start) & (chosen < start + len(features))] - start
        parts.append(features.slice(torch.from_numpy(inside)))
        start += len(features)
    pooled = {name: torch.cat([part.pooled[name] for part in parts]) for name in parts[0].pooled}
    ids, positions = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids_BF", "positions_BF"))
    return Features(ids, positions, pooled), chosen


def _within(day_N: NDArray[np.int64], generator: np.random.Generator) -> torch.Tensor:
    """Draw an order of rows that lie day after day, which puts a row of the same day in each one's place."""
    return torch.from_numpy(np.lexsort((generator.random(len(day_N)), day_N)))
