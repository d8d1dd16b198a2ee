"""Compare: bodies and baselines trained on the same examples with several seeds, measured on the same impressions.

What one model is said to do better than another holds beyond the luck of users, of seeds and of looking often: the
interval is over users and seeds (`pipeline.significance.contrast`), the p-value adjusted by Holm's method for all
pairs of models on a task and a metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.experts import BODIES
from models.ranker_spec import LINEAR
from pipeline.delong import areas
from pipeline.evaluate import OUTPUT_OF, TASKS, Impressions
from pipeline.fit import fit_of
from pipeline.metrics import METRICS
from pipeline.significance import SIGNIFICANCE, Estimate, Replicates, contrast, holm, replicate_metrics
from pipeline.study_data import Study
from pipeline.study_training import Fitted, Material, Trained, train, train_ranker

BaselineName = Literal["sk_logistic_regression", "linear_svm", "lightgbm"]
BASELINES: tuple[BaselineName, ...] = ("sk_logistic_regression", "linear_svm", "lightgbm")
CONTROL = "single_task"
SHOWN = ("auc", "gauc", "log_loss", "pcoc")
COMPARED = {"auc": 1, "gauc": 1, "log_loss": -1}
"""Metrics that have a better side, with its sign."""
RULE = (
    "A model beats another on a task and a metric where the difference has the better sign and Holm's adjusted "
    "p-value is below 0.05. It is adjusted for all pairs of models on that task and that metric, not over tasks and "
    "metrics: a claim on another task or metric is another look. Intervals are at 95 %, over users and seeds; they are "
    "not adjusted. A model with one seed, which every baseline is, adds users' luck only, and what is said of it holds "
    "for that one training. DeLong's interval takes impressions as independent and the seeds as given."
)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    bodies: Sequence[str]
    baselines: Sequence[str] = ()
    seeds: int = 5
    replicates: int = 1000
    cache: Path | None = None


def compare(study: Study, comparison: Comparison) -> dict[str, Any]:
    """Train every body with every seed and every baseline once, and compare all with each other.

    All see the same rows with the same epochs, batch size and learning rates; the logistic regression `linear` has the
    learning rate of the pipeline's baseline. Equal arguments give an equal answer, but for seconds and MiB where a
    model was not read from the cache.

    Raises:
        ValueError: a name is unknown, fewer than two models, or the measured days hold one class only.
    """
    _check(comparison)
    return compare_trained(study, _train_all(study, comparison), comparison.seeds, comparison.replicates)


def compare_trained(
    study: Study, trained: Mapping[str, Sequence[Trained]], seeds: int, replicates: int
) -> dict[str, Any]:
    """Compare models that predicted the measured days of a study, each with one or more seeds."""
    rows = study.rows()
    differences, models = {}, {name: _costs(many) for name, many in trained.items()}
    for task in TASKS:
        measured = _measure(rows, task, trained, replicates, study.config.seed)
        for name, model in measured.items():
            models[name].setdefault("tasks", {})[task] = _levels(model)
        differences[task] = differences_of(measured, _contrasts_of_areas(rows, task, trained))
    result: dict[str, Any] = finite(
        {
            "data_set": study.config.name,
            "source": study.source,
            "on": study.on,
            "days": [str(day) for day in study.measured_days()],
            "seeds": seeds,
            "replicates": replicates,
            "rule": RULE,
            "counts": counts(rows),
            "models": models,
            "differences": differences,
        }
    )
    return result


def _check(comparison: Comparison) -> None:
    for option, chosen, known in (
        ("--bodies", comparison.bodies, [LINEAR, *BODIES]),
        ("--baselines", comparison.baselines, list(BASELINES)),
    ):
        if strangers := sorted(set(chosen) - set(known)):
            raise ValueError(f"{option} names {strangers}: expected some of {known}")
    if len(names := {*comparison.bodies, *comparison.baselines}) < 2:  # noqa: PLR2004  # one model has no difference
        raise ValueError(f"a comparison needs two models, got {sorted(names)}: name more with --bodies or --baselines")


def _train_all(study: Study, comparison: Comparison) -> dict[str, list[Trained]]:
    material = Material(study.training, study.validation, {"measured": study.measured})
    trained: dict[str, list[Trained]] = {}
    for body in dict.fromkeys(comparison.bodies):
        rate = study.config.training.baseline_learning_rate if body == LINEAR else None
        trained[body] = []
        for seed in range(1, comparison.seeds + 1):
            fit = fit_of(study.config.model_copy(update={"seed": seed}), rate)
            trained[body].append(train_ranker(study.spec(body, seed), fit, material, comparison.cache))
    for name in [known for known in BASELINES if known in comparison.baselines]:
        trained[name] = [_train_baseline(name, study, material, comparison.cache)]
    return trained


def _train_baseline(name: BaselineName, study: Study, material: Material, cache: Path | None) -> Trained:
    from pipeline.baselines import fit_baseline  # scikit-learn takes a second to import, and only baselines need it

    spec = study.spec(LINEAR, 1)

    def make() -> Fitted:
        return Fitted(fit_baseline(name, material.training, material.validation, spec, 1).predict)

    return train(name, [name, spec.single, spec.numeric, spec.pooled, spec.bins], material, cache, make)


def _measure(
    rows: Impressions, task: str, trained: Mapping[str, Sequence[Trained]], replicates: int, seed: int
) -> dict[str, Replicates]:
    labels, space = rows.of_task(task)
    return replicate_metrics(
        labels=labels[space],
        users=rows.users[space],
        predictions={
            name: [one.predictions["measured"][space, OUTPUT_OF[task]] for one in many]
            for name, many in trained.items()
        },
        replicates=replicates,
        seed=seed,
    )


def _levels(model: Replicates) -> dict[str, dict[str, Any]]:
    """Return each metric's mean and standard deviation over seeds, and its value of every seed."""
    levels = {}
    for name in SHOWN:
        values = model.values_SM[:, METRICS.index(name)]
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        levels[name] = {"mean": float(values.mean()), "standard_deviation": spread, "by_seed": values.tolist()}
    return levels


def _costs(many: Sequence[Trained]) -> dict[str, Any]:
    """Return means over seeds of what a model costs."""
    first = many[0].record
    scored, spent = (sum(one.record[key] for one in many) for key in ("scored_rows", "scoring_cpu_seconds"))
    return {
        "seeds": len(many),
        "parameters": first.get("parameters"),
        "parameters_outside_tables": first.get("parameters_outside_tables"),
        "training_cpu_seconds": float(np.mean([one.record["training_cpu_seconds"] for one in many])),
        "training_seconds": float(np.mean([one.record["training_seconds"] for one in many])),
        "scoring_rows_per_cpu_second": scored / spent if spent else None,
        "peak_mib": max(one.record["peak_mib"] for one in many),
    }


def _contrasts_of_areas(
    rows: Impressions, task: str, trained: Mapping[str, Sequence[Trained]]
) -> dict[tuple[str, str], dict[str, float]]:
    """Return DeLong's estimate of every difference of two models' mean AUC over seeds."""
    labels, space = rows.of_task(task)
    runs = [(name, len(many), one) for name, many in trained.items() for one in many]
    scores_KN = np.stack([one.predictions["measured"][space, OUTPUT_OF[task]] for _, _, one in runs])
    found = areas(labels[space], scores_KN)
    weights = {name: np.array([(other == name) / many for other, many, _ in runs]) for name in trained}
    return {
        (name, reference): found.contrast(weights[name] - weights[reference]).as_dict()
        for name in trained
        for reference in trained
        if name != reference
    }


def differences_of(
    measured: Mapping[str, Replicates], of_areas: Mapping[tuple[str, str], dict[str, float]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Hold every model against every other on one task.

    Args:
        measured: their metrics, on the same resamples.
        of_areas: DeLong's estimate by model and reference.

    Returns:
        By reference and then by model, each metric's estimate with its adjusted p-value and what it shows. Either way
        round a pair has the same p-value, adjusted for all pairs on the metric.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {
        reference: {name: {"delong": of_areas[name, reference]} for name in measured if name != reference}
        for reference in measured
    }
    pairs = {
        (name, reference): contrast([(1, measured[name]), (-1, measured[reference])])
        for reference, name in combinations(measured, 2)
    }
    for metric in COMPARED:
        adjusted = holm([estimates[metric].p for estimates in pairs.values()])
        for ((name, reference), estimates), p_holm in zip(pairs.items(), adjusted, strict=True):
            found[reference][name][metric] = _shown(metric, estimates[metric], p_holm)
            found[name][reference][metric] = _shown(metric, _turned(estimates[metric]), p_holm)
    return found


def _turned(estimate: Estimate) -> Estimate:
    """Return the difference the other way round; subtracted from 0, since -0.0 would be printed."""
    return Estimate(0.0 - estimate.value, 0.0 - estimate.high, 0.0 - estimate.low, estimate.p)


def _shown(metric: str, estimate: Estimate, p_holm: float) -> dict[str, Any]:
    shown = "nothing shown"
    if p_holm < SIGNIFICANCE:
        shown = "beats" if COMPARED[metric] * estimate.value > 0 else "loses"
    return {**estimate.as_dict(), "p_holm": p_holm, "shows": shown}


def counts(rows: Impressions) -> dict[str, int]:
    """Count the measured impressions, their users and labels."""
    return {
        "impressions": len(rows.clicks),
        "users": int(rows.users.max()) + 1,
        "clicks": int(rows.clicks.sum()),
        "conversions": int(rows.conversions.sum()),
    }


def finite(values: Any) -> Any:
    """Put None for NaN and infinity anywhere in nested values, since JSON has neither."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
