"""Calibrate: fit on the validation days what turns the ranker's probabilities into rates that hold."""

import datetime as dt
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.calibration import (
    CALIBRATION_FILE,
    Calibration,
    Isotonic,
    Observed,
    Platt,
    fit_isotonic,
    fit_platt,
    log_odds,
    save_calibration,
    sigmoid,
    within_space,
)
from models.losses import Targets
from models.ranker import Ranker, RankerSpec, load_ranker, predict
from models.serialization import weights_digest
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import Examples, read_examples
from pipeline.extra_targets import in_space
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder, table_versions
from pipeline.fit import PREDICT_ROWS
from pipeline.maturity import Maturity, maturity_of
from pipeline.split import Days
from pipeline.stage import LOG, Outcome
from pipeline.workspace import Workspace, read_json

FITS: dict[str, Callable[[Observed], Platt | Isotonic]] = {"platt": fit_platt, "isotonic": fit_isotonic}


def calibrate(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Write runs/<id>/model/calibration.json, fitted on the validation days with the labels that train a ranker.

    Click is fitted on all impressions, conversion on clicked ones, a further binary task within its space; the
    product follows from the first two. Impressions whose labels may still change count as they do in training, but
    for labels.immature = 'keep', see `corrected_maturity`. A
    task with fewer than calibration.min_positives of either class, or that is ordered backwards, keeps its own
    probabilities, and the outcome says why.

    Raises:
        ValueError: train has not run, or labels.immature = 'weight' has too few conversions to fit their delay on.
    """
    folder = run_folder(config, workspace, days)
    read_json(folder / "model" / "training.json", "train")
    ranker = load_ranker(folder / "model" / "ranker")
    settings = config.calibration
    rows, calibration = 0, Calibration(weights_sha256=weights_digest(ranker))
    if settings.method != "none":
        examples = _validation(config, workspace, days, ranker.spec)
        rows = sum(len(day.features) for day in examples)
        calibration = fit_calibration(ranker, examples, settings.method, settings.min_positives)
    save_calibration(calibration, folder / "model" / CALIBRATION_FILE)
    fitted = max((int(values["rows"]) for values in calibration.fitted_on.values()), default=0)
    return Outcome(rows, fitted, {"method": settings.method, **_notes(calibration)})


def fit_calibration(ranker: Ranker, examples: list[Examples], method: str, min_positives: int) -> Calibration:
    """Fit the curve of every task that has enough of both classes; the others are left out with a reason."""
    days = [
        observe(predict(ranker, day.features, PREDICT_ROWS), day.supervision.targets, ranker.spec) for day in examples
    ]
    curves: dict[str, Platt | Isotonic] = {}
    left_out: dict[str, str] = {}
    fitted_on: dict[str, dict[str, float]] = {}
    for task in days[0]:
        observed = _concatenated([day[task] for day in days])
        reason = _too_little(observed, min_positives)
        curve = FITS[method](observed) if reason is None else None
        if isinstance(curve, Platt) and curve.slope <= 0:
            reason = f"the validation days order it backwards (slope {curve.slope:.3f})"
        elif isinstance(curve, Isotonic) and len(curve.knots) == 1:
            reason = "the validation days order it backwards, or by chance (one block)"
        if reason is not None or curve is None:
            left_out[task] = str(reason)
            continue
        curves[task], fitted_on[task] = curve, _summary(observed)
    return Calibration(
        method=method, curves=curves, left_out=left_out, fitted_on=fitted_on, weights_sha256=weights_digest(ranker)
    )


def observe(outputs_NO: NDArray[np.float32], targets: Targets, spec: RankerSpec) -> dict[str, Observed]:
    """Return what each task predicted within its space, and what came of it, of the rows that would train it.

    Rows weigh what they weigh in training.
    """
    outcomes: dict[str, tuple[int, str, NDArray[np.float32], NDArray[np.float32]]] = {
        "click": (0, "impression", targets.clicks_B.numpy(), targets.click_mask_B.numpy()),
        "conversion": (1, "impression", targets.conversions_B.numpy(), _clicked(targets)),
    }
    for name, space in spec.binary_tasks.items():
        labels_B, mask_B = targets.extra[name]
        outcomes[name] = (spec.outputs().index(f"p_{name}"), space, labels_B.numpy(), mask_B.numpy())
    found = {}
    for task, (column, space, positives, mask) in outcomes.items():
        trials = in_space(space, targets).numpy()
        kept = (mask > 0) & (trials > 0)
        logits = log_odds(within_space(outputs_NO, column, space)[kept])
        weight = mask[kept].astype(np.float64)
        found[task] = Observed(logits, positives[kept] * weight, trials[kept] * weight)
    return found


def _clicked(targets: Targets) -> NDArray[np.float32]:
    clicked: NDArray[np.float32] = (targets.clicks_B * targets.conversion_mask_B).numpy()
    return clicked


def corrected_maturity(config: Config, fitted: pl.LazyFrame, cutoff: dt.datetime) -> Maturity:
    """Correct immature labels by their delay even where training keeps them, if the delay can be fitted.

    Kept, conversions that are still to come count as none: few among all training days, many on the validation day,
    which is the youngest, and a rate that is fitted to it would be too low.
    """
    if config.labels.immature == "keep":
        weighted = config.model_copy(update={"labels": config.labels.model_copy(update={"immature": "weight"})})
        try:
            return maturity_of(weighted, fitted, cutoff)
        except ValueError as error:
            LOG.warning("calibrate: immature labels are kept as negatives, their delay cannot be fitted: %s", error)
    return maturity_of(config, fitted, cutoff)


def _validation(config: Config, workspace: Workspace, days: Days, spec: RankerSpec) -> list[Examples]:
    folder = run_folder(config, workspace, days)
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    maturity = corrected_maturity(config, fitted, plan_of(config).start_of(days.test[0]))
    return [read_examples(table, version, day, spec, maturity) for day in days.validation]


def _concatenated(parts: list[Observed]) -> Observed:
    columns = zip(*((part.logits, part.positives, part.trials) for part in parts), strict=True)
    return Observed(*(np.concatenate(column) for column in columns))


def _too_little(observed: Observed, min_positives: int) -> str | None:
    positives = int((observed.positives > 0).sum())
    negatives = int((observed.positives < observed.trials).sum())
    if min(positives, negatives) < min_positives:
        return f"{positives} positives and {negatives} negatives, fewer than {min_positives} of one of them"
    if observed.positives.sum() >= observed.trials.sum():
        return "corrected for their delay, positives are as many as their rows"
    return None


def _summary(observed: Observed) -> dict[str, float]:
    predicted = (observed.trials * sigmoid(observed.logits)).sum()
    return {
        "rows": len(observed.logits),
        "positives": int((observed.positives > 0).sum()),
        "pcoc": float(predicted / observed.positives.sum()),
    }


def _notes(calibration: Calibration) -> Mapping[str, str]:
    """Return in a few words what became of each task."""
    told = {}
    for task, curve in calibration.curves.items():
        if isinstance(curve, Platt):
            told[task] = f"slope {curve.slope:.3f} intercept {curve.intercept:+.3f}"
        else:
            told[task] = f"{len(curve.knots)} knots"
    return told | {task: f"left as it is ({reason})" for task, reason in calibration.left_out.items()}
