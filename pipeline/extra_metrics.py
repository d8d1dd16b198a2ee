"""Metrics of tasks beyond click and conversion, over all test impressions.

Shape suffixes: N impressions, U users, R bootstrap replicates.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.ranker import RankerSpec
from pipeline.config import Config
from pipeline.dataset import Examples
from pipeline.extra_targets import in_space
from pipeline.metrics import CONFIDENCE, evaluate_task

Floats = NDArray[np.float64]


def evaluate_extra(
    config: Config, spec: RankerSpec, examples: list[Examples], outputs: NDArray[np.floating[Any]]
) -> dict[str, dict[str, Any]]:
    """Measure every further task; {} without any.

    A binary task has the metrics of click: its label is false outside its space. A number has `ratio`, predicted over
    actual sum, and `gini`, see `normalised_gini`. Impressions within the space whose label the log does not give are
    left out and counted (`without_label`). A task with one class has a `reason` instead.

    Args:
        config: the run's configuration.
        spec: names the tasks and the outputs.
        examples: the test days, with labels as known today.
        outputs: (N, O) as `predict` gives them.
    """
    users = np.unique(np.concatenate([day.frame["user_id"].to_numpy() for day in examples]), return_inverse=True)[1]
    measured: dict[str, dict[str, Any]] = {}
    for name, space in {**spec.binary_tasks, **spec.value_tasks}.items():
        labels, masks, within = (np.concatenate(parts).astype(np.float64) for parts in _columns(examples, name, space))
        known = (masks > 0) | (within == 0)
        binary = name in spec.binary_tasks
        predicted = outputs[known, spec.outputs().index(f"p_{name}" if binary else f"expected_{name}")]
        given = (labels * masks)[known], predicted.astype(np.float64), _groups(users[known])
        counts = {"rows": int(known.sum()), "without_label": int((~known).sum())}
        measured[name] = counts | _measure(config, given, binary=binary)
    return measured


def _columns(examples: list[Examples], name: str, space: str) -> tuple[list[NDArray[Any]], ...]:
    """Return labels, masks and whether each impression is in the task's space, day by day."""
    targets = [day.supervision.targets for day in examples]
    return (
        [day.extra[name][0].numpy() for day in targets],
        [day.extra[name][1].numpy() for day in targets],
        [in_space(space, day).numpy() for day in targets],
    )


def _measure(
    config: Config, given: tuple[Floats, Floats, NDArray[np.int64]], *, binary: bool
) -> dict[str, dict[str, float] | str]:
    """Measure a task on its known rows, or say why it cannot be: a quiet day must not stop the night."""
    labels, predicted, users = given
    above = int((labels > 0).sum())
    if above in ({0, len(labels)} if binary else {0}):
        return {"reason": f"{above} of {len(labels)} test rows are above 0"}
    settings = {"replicates": config.evaluation.replicates, "seed": config.seed}
    if binary:
        found = evaluate_task(labels=labels > 0, probabilities=predicted, users=users, **settings)
        return {metric: interval.as_dict() for metric, interval in found.items()}
    return dict(_evaluate_value(labels, predicted, users, **settings))


def _evaluate_value(
    actual: Floats, predicted: Floats, users: NDArray[np.int64], *, replicates: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return ratio and gini with percentile intervals of a bootstrap over users."""
    generator = np.random.default_rng(seed)
    count = int(users.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=replicates)
    orders = (_groups(actual), _groups(predicted))

    def measure(weights: NDArray[Any]) -> tuple[float, float]:
        total = float((actual * weights).sum())
        ratio = float((predicted * weights).sum()) / total if total else float("nan")
        return ratio, _gini(actual, orders, weights)

    found = np.array([measure(weights[users]) for weights in drawn])
    whole = measure(np.ones(len(actual)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail], axis=0)
    return {
        name: {"value": float(whole[n]), "low": float(low[n]), "high": float(high[n])}
        for n, name in enumerate(("ratio", "gini"))
    }


def normalised_gini(actual: Floats, predicted: Floats) -> float:
    """Return how well predictions order actual sums: 1 as the actual order does, 0 as chance does, NaN without a sum.

    The area between the Lorenz curve of the actual values, in the order of the prediction, and the diagonal, over
    that in their own order; ties share their mean.
    Source: Wang, Liu and Miao 2019 (customer lifetime value), section 4.
    """
    return _gini(actual, (_groups(actual), _groups(predicted)), np.ones(len(actual)))


def _groups(order: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of each value among the distinct ones."""
    places: NDArray[np.int64] = np.unique(order, return_inverse=True)[1]
    return places


def _gini(actual: Floats, orders: tuple[NDArray[np.int64], NDArray[np.int64]], weights: NDArray[Any]) -> float:
    best, reached = (_lorenz_area(actual, groups, weights) for groups in orders)
    return reached / best if best else float("nan")


def _lorenz_area(actual: Floats, groups: NDArray[np.int64], weights: NDArray[Any]) -> float:
    rows, sums = np.bincount(groups, weights=weights), np.bincount(groups, weights=actual * weights)
    if not sums.sum():
        return 0.0
    share, held = np.append(0, rows.cumsum()) / rows.sum(), np.append(0, sums.cumsum()) / sums.sum()
    return 0.5 - float(np.trapezoid(held, share))
