"""Calibration: from a ranker's probabilities to those that later outcomes agree with, task by task, in log-odds.

Shapes: N rows, O outputs, K knots.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.extra_tasks import SPACES
from models.ranker import Ranker, RankerSpec
from models.serialization import weights_digest

Floats = NDArray[np.float64]

CALIBRATION_FILE = "calibration.json"
BASE_OUTPUTS = 3
"""p_click, p_conversion and their product; outputs of further tasks follow."""
CHAINED = ("click", "conversion")
SPACE_OUTPUT = {"click": 0, "conversion": 2}
"""The output that is the probability of a space; an impression's is 1."""
SLOPE_PRIOR_PRECISION = 1.0
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), 1 - 2.0**-25
NEWTON_STEPS, HALVINGS, BISECTIONS = 100, 60, 60
FARTHEST_SHIFT = 90.0  # the logit of the smallest normal float32 is -87
TOLERANCE_NATS = 1e-9


@dataclass(frozen=True)
class Observed:
    """What was predicted of some rows of a task's space and what came of them, each (N) float64."""

    logits: Floats
    positives: Floats
    """0 or 1, or above 1 where an early conversion also stands for those that are not known yet."""
    trials: Floats
    """1, or what the row's space counts for, likewise."""


@dataclass(frozen=True)
class Platt:
    """A line in log-odds."""

    slope: float
    intercept: float

    def apply(self, logits_N: Floats) -> Floats:
        """Returns calibrated log-odds (N)."""
        return self.slope * logits_N + self.intercept


@dataclass(frozen=True)
class Isotonic:
    """A strictly increasing chain of lines in log-odds, beyond its ends of slope 1."""

    knots: list[float]
    values: list[float]

    def apply(self, logits_N: Floats) -> Floats:
        """Returns calibrated log-odds (N)."""
        inside_N = np.clip(logits_N, self.knots[0], self.knots[-1])
        interpolated_N: Floats = np.interp(inside_N, self.knots, self.values)
        return interpolated_N + (logits_N - inside_N)


CURVES: dict[str, type[Platt] | type[Isotonic]] = {"platt": Platt, "isotonic": Isotonic}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibration of one ranker; without curves it changes nothing."""

    method: str = "none"
    """platt, isotonic or none."""
    curves: Mapping[str, Platt | Isotonic] = field(default_factory=dict)
    """By task: click, conversion (given a click), and further binary tasks, each within its space."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By task that has no curve, why."""
    fitted_on: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By task the rows, positives and the ratio of predicted to observed, all before calibration."""
    weights_sha256: str = ""
    """Of the ranker that it belongs to."""

    def apply(self, outputs_NO: NDArray[np.float32], spec: RankerSpec) -> NDArray[np.float32]:
        """Returns calibrated outputs, (N, O) float32 as `predict` gives them.

        p_click_and_conversion is the product of the calibrated two. Outputs of further tasks contain the probability
        of their space (a click, a conversion): the calibrated one takes its place, and a binary task's own curve
        applies to what is left. An output that no curve reaches is returned as it was, to the bit.
        """
        if not self.curves:
            return outputs_NO
        calibrated_NO = outputs_NO.copy()
        for column, task in enumerate(CHAINED):
            if task in self.curves:
                calibrated_NO[:, column] = self._probabilities(task, outputs_NO[:, column])
        if not self.curves.keys().isdisjoint(CHAINED):
            calibrated_NO[:, 2] = calibrated_NO[:, 0] * calibrated_NO[:, 1]
        for column, (name, space) in enumerate({**spec.binary_tasks, **spec.value_tasks}.items(), start=BASE_OUTPUTS):
            within_N = within_space(outputs_NO, column, space)
            if name in self.curves:
                within_N = self._probabilities(name, within_N)
            elif not self._changes(space):
                continue
            calibrated_NO[:, column] = within_N * space_probabilities(calibrated_NO, space)
        return calibrated_NO

    def _probabilities(self, task: str, probabilities_N: NDArray[np.floating[Any]]) -> Floats:
        return sigmoid(self.curves[task].apply(log_odds(probabilities_N)))

    def _changes(self, space: str) -> bool:
        return not self.curves.keys().isdisjoint(CHAINED[: SPACES.index(space)])


def space_probabilities(outputs_NO: NDArray[np.float32], space: str) -> Floats:
    """Returns the probability of a task's space: impression, click or conversion, (N) float64."""
    if space == "impression":
        return np.ones(len(outputs_NO))
    return outputs_NO[:, SPACE_OUTPUT[space]].astype(np.float64)


def within_space(outputs_NO: NDArray[np.float32], column: int, space: str) -> Floats:
    """Returns an output over the probability of its space: (N) float64, 0 where the space's rounds to 0."""
    space_N = space_probabilities(outputs_NO, space)
    whole_N = outputs_NO[:, column].astype(np.float64)
    return np.divide(whole_N, space_N, out=np.zeros_like(whole_N), where=space_N > 0)


def log_odds(probabilities_N: NDArray[np.floating[Any]]) -> Floats:
    """Returns logits (N) float64; a float32 that is rounded to 0 or 1 is taken for the number beside it."""
    inside_N = np.clip(probabilities_N.astype(np.float64), SMALLEST, LARGEST)
    return np.asarray(np.log(inside_N) - np.log1p(-inside_N), dtype=np.float64)


def sigmoid(logits_N: Floats) -> Floats:
    """Returns probabilities (N) float64, exact for rare events."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits_N)), dtype=np.float64)


def fit_platt(observed: Observed) -> Platt:
    """Fits slope and intercept by Newton's method with line search.

    Minimises the cross-entropy, which is linear in the target, so that targets above 1 are taken as they are; there
    must be a positive, and fewer positives than trials. Platt's own smoothed targets (1999, section 2.2) assume
    targets of 0 and 1 and would move the mean. Here a normal prior of the slope, with mean 1 and variance 1, bounds
    what separable rows would send to infinity, and is lost among hundreds of positives. The intercept has none, so
    the calibrated probabilities sum to the positives exactly.
    """
    total, trials = observed.positives.sum(), observed.trials.sum()
    assert 0 < total < trials, (total, trials)
    line = np.array([1.0, _matching_intercept(observed)])
    for _ in range(NEWTON_STEPS):
        gradient, hessian = _derivatives(line, observed)
        step = np.asarray(np.linalg.solve(hessian, gradient), dtype=np.float64)
        decrease = float(gradient @ step)
        if decrease < TOLERANCE_NATS:
            return Platt(*map(float, line))
        line = _search(line, step, decrease, observed)
    raise AssertionError(f"Newton did not end in {NEWTON_STEPS} steps: {line}")


def _matching_intercept(observed: Observed) -> float:
    """Returns the shift of all log-odds whose probabilities sum to the positives, by bisection.

    Newton from the mean logit instead is lost where a cluster of predictions lies far from the others.
    """
    low, high = -2 * FARTHEST_SHIFT, 2 * FARTHEST_SHIFT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (observed.trials * sigmoid(observed.logits + middle)).sum() < observed.positives.sum():
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _loss(line: Floats, observed: Observed) -> float:
    logits_N = line[0] * observed.logits + line[1]
    losses_N = observed.trials * np.logaddexp(0.0, logits_N) - observed.positives * logits_N
    return float(losses_N.sum() + 0.5 * SLOPE_PRIOR_PRECISION * (line[0] - 1) ** 2)


def _derivatives(line: Floats, observed: Observed) -> tuple[Floats, Floats]:
    probabilities_N = sigmoid(line[0] * observed.logits + line[1])
    excess_N = observed.trials * probabilities_N - observed.positives
    curvature_N = observed.trials * probabilities_N * (1 - probabilities_N)
    gradient = np.array([excess_N @ observed.logits + SLOPE_PRIOR_PRECISION * (line[0] - 1), excess_N.sum()])
    cross = curvature_N @ observed.logits
    square = curvature_N @ observed.logits**2 + SLOPE_PRIOR_PRECISION
    return gradient, np.array([[square, cross], [cross, curvature_N.sum()]])


def _search(line: Floats, step: Floats, decrease: float, observed: Observed) -> Floats:
    """Halves a Newton step until the loss falls as much as Armijo's rule asks, but for rounding."""
    before = _loss(line, observed)
    for halving in range(HALVINGS):
        share = 0.5**halving
        moved = np.asarray(line - share * step, dtype=np.float64)
        if _loss(moved, observed) <= before - 1e-4 * share * decrease + 1e-12 * abs(before):
            return moved
    raise AssertionError(f"no step from {line} lowers the loss {before}")


def fit_isotonic(observed: Observed) -> Isotonic:
    """Fits an increasing curve: the blocks of isotonic regression, each a knot at its mean, joined by lines.

    Isotonic regression gives a block one probability, which would tie its rows. Lines between the centres of the
    blocks keep every pair of predictions in its order, so that no AUC changes (centred isotonic regression, Oron and
    Flournoy 2017). At the ends a block without a positive, or without a negative, joins its neighbour, so no
    probability becomes 0 or 1. There must be a positive, and fewer positives than trials.
    """
    from sklearn.isotonic import isotonic_regression  # serving needs no scikit-learn

    assert 0 < observed.positives.sum() < observed.trials.sum()
    logits_K, place_N = np.unique(observed.logits, return_inverse=True)
    positives_K, trials_K = np.bincount(place_N, observed.positives), np.bincount(place_N, observed.trials)
    fitted_K = isotonic_regression(positives_K / trials_K, sample_weight=trials_K)
    starts = np.flatnonzero(np.append(True, np.diff(fitted_K) > 0))
    sums = [np.add.reduceat(values_K, starts) for values_K in (positives_K, trials_K, trials_K * logits_K)]
    blocks = _joined(np.stack(sums, axis=1))
    odds = blocks[:, 0] / (blocks[:, 1] - blocks[:, 0])
    return Isotonic((blocks[:, 2] / blocks[:, 1]).tolist(), np.log(odds).tolist())


def _joined(blocks: Floats) -> Floats:
    """Joins the first blocks until one has a positive, and the last until one has a negative."""
    while blocks[0, 0] <= 0:
        blocks = np.concatenate([blocks[:1] + blocks[1:2], blocks[2:]])
    while blocks[-1, 0] >= blocks[-1, 1]:
        blocks = np.concatenate([blocks[:-2], blocks[-2:-1] + blocks[-1:]])
    return blocks


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration as JSON into a model folder, whole or not at all; its draft lies beside the folder."""
    draft = path.parent.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(asdict(calibration), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def load_calibration(path: Path, ranker: Ranker) -> Calibration:
    """Reads the calibration of a ranker; one that changes nothing where there is no file.

    Models that were registered before version 0.3 have none, and served uncalibrated probabilities.

    Raises:
        ValueError: the file is damaged, or belongs to other weights.
    """
    if not path.exists():
        return Calibration()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        curves = {task: CURVES[values["method"]](**curve) for task, curve in values["curves"].items()}
        calibration = Calibration(**{**values, "curves": curves})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): run `counterpoise calibrate` again") from error
    digest = weights_digest(ranker)
    if calibration.weights_sha256 != digest:
        raise ValueError(
            f"{path} was fitted to other weights (sha256 {calibration.weights_sha256[:8]}..., the ranker's is "
            f"{digest[:8]}...): run `counterpoise calibrate` again"
        )
    return calibration
