"""The traditional way: one model a task over one shared representation of the features that the ranker reads.

Click and click-and-conversion are fitted on all impressions, conversion on clicked ones. Each task has a model of its
own, so that p_click_and_conversion is not the product of the other two. Shapes: N rows, C columns.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from models.calibration import Observed, fit_platt, sigmoid
from models.embedding import PADDING
from models.inputs import Features
from models.losses import Targets
from models.ranker import RankerSpec
from models.ranker_spec import numeric_size
from pipeline.dataset import Examples

Floats = NDArray[np.float64]
Name = Literal["sk_logistic_regression", "linear_svm", "lightgbm"]
Predictor = Callable[[Any], Floats]

TASKS = ("click", "conversion", "click_and_conversion")
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation C, tried in this order until the validation loss rises."""
UNSELECTED_STRENGTH = 0.01
MAX_ITERATIONS = 1000
SVM_TOLERANCE = 1e-2
BOOSTING_ROUNDS, PATIENCE_ROUNDS, UNSELECTED_ROUNDS = 1000, 50, 200
BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.05,
    "feature_fraction": 0.8,
    "min_data_in_leaf": 100,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Baseline:
    """Fitted models of the three tasks over one representation."""

    name: Name
    represent: Callable[[Features], Any]
    predictors: Mapping[str, Predictor]

    def predict(self, features: Features) -> Floats:
        """Return p_click, p_conversion, p_click_and_conversion, each of its own model: (N, 3)."""
        represented = self.represent(features)
        return np.stack([self.predictors[task](represented) for task in TASKS], axis=1)


@dataclass(frozen=True)
class Labelled:
    """Rows of one task in some representation, with their targets (N) float64.

    A target is 0, 1, or above 1 where an early conversion also stands for those that are not known yet.
    """

    represented: Any
    targets: Floats

    @property
    def has_both_classes(self) -> bool:
        """Return whether there are positives, and fewer than rows."""
        return bool(0 < self.targets.sum() < len(self.targets))

    @property
    def weights(self) -> Floats:
        """Return a positive's target, and what is left of the rows shared by negatives, which keeps the rate: (N)."""
        negatives = self.targets == 0
        left = (len(self.targets) - self.targets.sum()) / max(int(negatives.sum()), 1)
        return np.where(negatives, left, self.targets)


def fit_baseline(
    name: Name, training: list[Examples], validation: list[Examples], spec: RankerSpec, seed: int
) -> Baseline:
    """Fit a baseline's models, in one thread; equal arguments give equal predictions.

    Logistic regression and the SVM (squared hinge) choose their regularisation, and the trees their number, by the
    log-loss of the validation days; the SVM's scores become probabilities by Platt's line, fitted there too. Where
    those days lack a class of a task, regularisation and number are fixed, and the line is fitted on the training
    rows. Delay-corrected targets enter as weights.

    Memory: 12 bytes an entry of the design matrix (see `design_matrix`) and, for the SVM, 16 more in liblinear's
    copy; for trees 4 bytes a row and column, and 1 to 4 more in LightGBM's bins. Each is doubled while days are joined.

    Raises:
        ValueError: LightGBM is not installed, or a task has one class only on the training days.
    """
    represent = _table_of(spec) if name == "lightgbm" else _design_of(spec)
    parts = [(days, _joined([represent(day.features) for day in days])) for days in (training, validation)]
    predictors = {}
    for task in TASKS:
        fitted, held_out = (_labelled(task, represented, days) for days, represented in parts)
        if not fitted.has_both_classes:
            raise ValueError(
                f"baseline {name}: {task} has targets of {fitted.targets.sum():g} in {len(fitted.targets)} training "
                "rows, expected both classes: widen split.train, or correct the labels"
            )
        predictors[task] = _fit(name, fitted, held_out if held_out.has_both_classes else None, spec, seed)
    return Baseline(name, represent, predictors)


def design_matrix(features: Features, spec: RankerSpec) -> sparse.csr_matrix:
    """Return the shared representation (N, C) float64, with a block of columns for each feature.

    In the order of the spec: single-valued columns one-hot by id, multi-valued ones as the share of each id among
    those present, numeric ones by the hat basis on their knots (a value between two knots has a share of both).
    Padding has no entry. A row has at most one entry a single-valued, one an id of a multi-valued and two a numeric
    column.
    """
    starts = accumulate(_widths(spec), initial=0)
    blocks = [(ids + start, values) for start, (ids, values) in zip(starts, _blocks(features, spec), strict=False)]
    columns, values = (np.concatenate(part, axis=1) for part in zip(*blocks, strict=True))
    bounds = np.arange(len(features) + 1, dtype=np.int64) * columns.shape[1]
    shape = (len(features), sum(_widths(spec)))
    matrix = sparse.csr_matrix((values.ravel(), columns.ravel(), bounds), shape=shape)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _widths(spec: RankerSpec) -> list[int]:
    fields = [*spec.single, *spec.pooled.values()]
    return [
        *(spec.categorical_cardinalities[name] for name in fields),
        *[numeric_size(spec).knots] * len(spec.numeric),
    ]


def _blocks(features: Features, spec: RankerSpec) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Yield for each feature its entries' places within its block and their values, both (N, entries)."""
    ids = features.ids_BF.numpy()
    for column in range(len(spec.single)):
        yield ids[:, [column]], (ids[:, [column]] != PADDING).astype(np.float64)
    for name in spec.pooled:
        several = features.pooled[name].numpy()
        present = several != PADDING
        yield several, present / present.sum(axis=1, keepdims=True).clip(min=1)
    positions = features.positions_BF.numpy().astype(np.float64)
    last = numeric_size(spec).knots - 1
    for column in range(len(spec.numeric)):
        lower = np.floor(positions[:, column])
        above = positions[:, column] - lower
        places = np.stack([lower, np.minimum(lower + 1, last)], axis=1).astype(np.int64)
        yield places, np.stack([1 - above, above], axis=1)


def _design_of(spec: RankerSpec) -> Callable[[Features], Any]:
    return lambda features: design_matrix(features, spec)


def _table_of(spec: RankerSpec) -> Callable[[Features], Any]:
    return lambda features: tree_table(features, spec)


def tree_table(features: Features, spec: RankerSpec) -> NDArray[np.float32]:
    """Return what trees read: (N, C) float32, ids first, those that are categories.

    Ids of single-valued columns and the last id of multi-valued ones (the newest of a sequence), 0 without any; then
    how many ids each multi-valued column has, and numeric positions, NaN where missing.
    """
    several = [features.pooled[name].numpy() for name in spec.pooled]
    counts = [(ids != PADDING).sum(axis=1) for ids in several]
    last = [_last(ids) for ids in several]
    positions = features.positions_BF.numpy()
    missing = positions == spec.bins + 1
    assert features.ids_BF.numel() == 0 or int(features.ids_BF.max()) < 1 << 24, "float32 has no such id"
    columns = [features.ids_BF.numpy(), *(part[:, None] for part in (*last, *counts))]
    return np.concatenate([*columns, np.where(missing, np.nan, positions)], axis=1, dtype=np.float32)


def _last(ids_NL: NDArray[np.int64]) -> NDArray[np.int64]:
    present_NL = ids_NL != PADDING
    place_N = ids_NL.shape[1] - 1 - present_NL[:, ::-1].argmax(axis=1)
    last_N: NDArray[np.int64] = ids_NL[np.arange(len(ids_NL)), place_N]
    return last_N


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else sparse.vstack(parts, format="csr")


def _labelled(task: str, represented: Any, days: list[Examples]) -> Labelled:
    pairs = [_targets(task, day.supervision.targets) for day in days]
    targets, kept = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return Labelled(represented if kept.all() else represented[kept], targets[kept])


def _targets(task: str, targets: Targets) -> tuple[Floats, NDArray[np.bool_]]:
    """Return a task's targets and which rows train it, both (N)."""
    clicks, conversions = targets.clicks_B.numpy(), targets.conversions_B.numpy()
    if task == "click":
        return clicks.astype(np.float64), targets.click_mask_B.numpy() > 0
    kept = targets.conversion_mask_B.numpy() > 0
    return (clicks * conversions).astype(np.float64), kept & (clicks > 0) if task == "conversion" else kept


def _fit(name: Name, fitted: Labelled, held_out: Labelled | None, spec: RankerSpec, seed: int) -> Predictor:
    if name == "lightgbm":
        return _fit_trees(fitted, held_out, spec, seed)
    fit = _fit_logistic if name == "sk_logistic_regression" else _fit_svm
    measured = fitted if held_out is None else held_out
    strengths = (UNSELECTED_STRENGTH,) if held_out is None else STRENGTHS
    found: list[tuple[float, Predictor]] = []
    for strength in strengths:
        predictor = fit(fitted, measured, strength, seed)
        found.append((_log_loss(predictor(measured.represented), measured.targets), predictor))
        if len(found) > 1 and found[-1][0] >= found[-2][0]:
            return found[-2][1]
    return found[-1][1]


def _fit_logistic(fitted: Labelled, _: Labelled, strength: float, seed: int) -> Predictor:
    # On 131 thousand rows of KuaiRand newton-cg takes 9 s; lbfgs had not ended after 100 s.
    model = LogisticRegression(C=strength, solver="newton-cg", max_iter=MAX_ITERATIONS, random_state=seed)
    model.fit(fitted.represented, fitted.targets > 0, sample_weight=fitted.weights)
    return lambda represented: np.asarray(model.predict_proba(represented)[:, 1])


def _fit_svm(fitted: Labelled, measured: Labelled, strength: float, seed: int) -> Predictor:
    """Fit the SVM, then the line from its scores to probabilities."""
    # On 131 thousand rows of KuaiRand coordinate descent in the dual takes 2 s, the primal 48 s to an equal log-loss.
    model = LinearSVC(C=strength, dual=True, tol=SVM_TOLERANCE, max_iter=MAX_ITERATIONS, random_state=seed)
    model.fit(fitted.represented, fitted.targets > 0, sample_weight=fitted.weights)
    scores = model.decision_function(measured.represented)
    line = fit_platt(Observed(scores, measured.targets, np.ones(len(scores))))
    return lambda represented: sigmoid(line.apply(model.decision_function(represented)))


def _fit_trees(fitted: Labelled, held_out: Labelled | None, spec: RankerSpec, seed: int) -> Predictor:
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise ValueError(
            "baseline lightgbm needs LightGBM, which is not installed: pip install counterpoise[bench]"
        ) from None

    categories = list(range(len(spec.single) + len(spec.pooled)))

    def dataset(rows: Labelled) -> Any:
        labels = {"label": rows.targets > 0, "weight": rows.weights}
        return lightgbm.Dataset(rows.represented, **labels, categorical_feature=categories)

    if held_out is None:
        rounds, watched, callbacks = UNSELECTED_ROUNDS, [], []
    else:
        rounds, watched = BOOSTING_ROUNDS, [dataset(held_out)]
        callbacks = [lightgbm.early_stopping(PATIENCE_ROUNDS, verbose=False)]
    booster = lightgbm.train(
        {**BOOSTING, "seed": seed}, dataset(fitted), rounds, valid_sets=watched, callbacks=callbacks
    )
    return lambda represented: np.asarray(booster.predict(represented, num_threads=1), dtype=np.float64)


def _log_loss(probabilities: Floats, targets: Floats) -> float:
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(targets * np.log(clipped) + (1 - targets) * np.log1p(-clipped)).mean())
