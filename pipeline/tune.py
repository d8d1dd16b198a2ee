"""Tune the weight of the conversion loss in two stages, on the validation day alone.

The first stage trains a coarse grid of weights with one seed on the latest training days; the second trains its best
two, and the weight that is set, with several seeds on all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipeline.compare import counts, finite
from pipeline.compare_page import estimate_text
from pipeline.evaluate import OUTPUT_OF, Impressions
from pipeline.fit import fit_of
from pipeline.metrics import METRICS
from pipeline.significance import Estimate, Replicates, contrast, replicate_metrics
from pipeline.study_data import Study
from pipeline.study_training import Material, Trained, train_ranker

GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
FINALISTS = 2
TASKS = ("click", "click_and_conversion")
JUDGED = {"log_loss": -1, "auc": 1}
"""Metrics that decide, with the sign of their better side."""
RULE = (
    "A weight is recommended where log-loss or AUC is better than with the weight that is set on one task, beyond the "
    "95 % interval over users and seeds, and no metric of either task is worse beyond its own. Of several the one "
    "with the lowest mean normalised entropy of the two tasks is taken."
)


@dataclass(frozen=True)
class Tuning:
    """How much the stages train."""

    seeds: int = 3
    """Of the second stage."""
    stage_one_days: int = 3
    """Latest training days of the first stage."""
    replicates: int = 1000
    cache: Path | None = None


def tune(study: Study, tuning: Tuning) -> dict[str, Any]:
    """Train the two stages and hold the best weights against the one that is set.

    The day that judges also chose the epoch, for all weights alike; the test day is never read. A weight of the first
    stage has one seed and few days: its order is a guess, which the second stage is there to correct.

    Raises:
        ValueError: the validation days hold one class only.
    """
    assert study.on == "validation", study.on
    rows = study.rows()
    first = replace(study, training=study.training[-tuning.stage_one_days :])
    weights = sorted({*GRID, study.config.training.conversion_weight})
    stage_one = _measure(rows, {weight: _train(first, weight, 1, tuning.cache) for weight in weights}, 20, study)
    entropy = {weight: mean_entropy(stage_one, weight) for weight in weights}
    compared = finalists(entropy, study.config.training.conversion_weight)
    trained = {weight: _train(study, weight, tuning.seeds, tuning.cache) for weight in compared}
    stage_two = _measure(rows, trained, tuning.replicates, study)
    result: dict[str, Any] = finite(
        {
            "data_set": study.config.name,
            "source": study.source,
            "on": study.on,
            "days": [str(day) for day in study.measured_days()],
            "body": study.config.model.body,
            "rule": RULE,
            "seeds": tuning.seeds,
            "replicates": tuning.replicates,
            "counts": counts(rows),
            "set": study.config.training.conversion_weight,
            "stage_one": {"days": len(first.training), "weights": _figures(stage_one, weights)},
            "stage_two": {"days": len(study.training), "weights": _compared(stage_two, compared)},
        }
    )
    return result | recommendation(result["stage_two"]["weights"], result["set"])


def finalists(entropy: Mapping[float, float], set_weight: float) -> list[float]:
    """Return the weight that is set, and the best of the others by mean normalised entropy."""
    others = sorted((value, weight) for weight, value in entropy.items() if weight != set_weight)
    return [set_weight, *(weight for _, weight in others[:FINALISTS])]


def mean_entropy(measured: Mapping[str, Mapping[float, Replicates]], weight: float) -> float:
    """Return the normalised entropy averaged over tasks and seeds: lower is better, 1 knows the base rates only."""
    column = METRICS.index("normalised_entropy")
    return float(np.mean([of_task[weight].values_SM[:, column] for of_task in measured.values()]))


def verdict(difference: Mapping[str, Estimate]) -> str:
    """Return whether a task's differences are better, worse or neither beyond their intervals; worse decides."""
    sides = [_side(difference[metric], sign) for metric, sign in JUDGED.items()]
    return "worse" if -1 in sides else "better" if 1 in sides else "not shown to differ"


def recommendation(compared: Sequence[Mapping[str, Any]], set_weight: float) -> dict[str, Any]:
    """Return the weight to use, by the rule, and a sentence that says why."""
    eligible = [
        one for one in compared if "better" in one["verdicts"].values() and "worse" not in one["verdicts"].values()
    ]
    if not eligible:
        sentence = f"Keep training.conversion_weight = {set_weight:g}: no other weight is shown to be better."
        return {"recommended": set_weight, "sentence": sentence}
    best = min(eligible, key=lambda one: float(one["mean_normalised_entropy"]))
    shown = ", ".join(f"{task} {word}" for task, word in best["verdicts"].items())
    sentence = f"Set training.conversion_weight = {best['weight']:g} instead of {set_weight:g}: {shown}."
    return {"recommended": best["weight"], "sentence": sentence}


def tune_table(result: Mapping[str, Any]) -> Table:
    """Draw the differences of the second stage to the weight that is set, after the first stage's figures."""
    one, two = result["stage_one"], result["stage_two"]
    ranking = ", ".join(f"{row['weight']:g} {row['mean_normalised_entropy']:.4f}" for row in one["weights"])
    caption = (
        f"Stage one, {one['days']} days, one seed, mean normalised entropy by weight: {ranking}. Stage two, "
        f"{two['days']} days, {result['seeds']} seeds: differences to {result['set']:g} with 95 % intervals over users "
        f"and seeds, on the validation days {', '.join(result['days'])}"
    )
    table = Table(title=f"training.conversion_weight of {result['body']} on {result['data_set']}", caption=caption)
    for name in ("weight", *(f"{task} {metric}" for task in TASKS for metric in JUDGED), "shown"):
        table.add_column(name)
    for row in two["weights"]:
        cells = [_cell(row, task, metric) for task in TASKS for metric in JUDGED]
        table.add_row(
            f"{row['weight']:g}", *cells, "; ".join(f"{task} {word}" for task, word in row["verdicts"].items())
        )
    return table


def _train(study: Study, weight: float, seeds: int, cache: Path | None) -> list[Trained]:
    material = Material(study.training, study.validation, {"measured": study.measured})
    training = study.config.training.model_copy(update={"conversion_weight": weight})
    trained = []
    for seed in range(1, seeds + 1):
        config = study.config.model_copy(update={"training": training, "seed": seed})
        trained.append(train_ranker(study.spec(config.model.body, seed), fit_of(config), material, cache))
    return trained


def _measure(
    rows: Impressions, trained: Mapping[float, Sequence[Trained]], replicates: int, study: Study
) -> dict[str, dict[float, Replicates]]:
    """Return the metrics of every weight by task, all on the same resamples of users."""
    names = {repr(weight): weight for weight in trained}
    measured = {}
    for task in TASKS:
        labels, _ = rows.of_task(task)
        of_task = replicate_metrics(
            labels=labels,
            users=rows.users,
            predictions={
                name: [one.predictions["measured"][:, OUTPUT_OF[task]] for one in trained[weight]]
                for name, weight in names.items()
            },
            replicates=replicates,
            seed=study.config.seed,
        )
        measured[task] = {names[name]: values for name, values in of_task.items()}
    return measured


def _figures(measured: Mapping[str, Mapping[float, Replicates]], weights: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "weight": weight,
            "mean_normalised_entropy": mean_entropy(measured, weight),
            "metrics": {
                task: {
                    metric: float(of_task[weight].values_SM[:, METRICS.index(metric)].mean())
                    for metric in (*JUDGED, "normalised_entropy")
                }
                for task, of_task in measured.items()
            },
        }
        for weight in weights
    ]


def _compared(measured: Mapping[str, Mapping[float, Replicates]], weights: Sequence[float]) -> list[dict[str, Any]]:
    """Return the figures of the weights, the one that is set first, and the differences of the others to it."""
    rows = _figures(measured, weights)
    rows[0] |= {"differences": {}, "verdicts": {}}
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        found = {
            task: contrast([(1, of_task[weight]), (-1, of_task[weights[0]])]) for task, of_task in measured.items()
        }
        row["differences"] = {
            task: {metric: estimates[metric].as_dict() for metric in JUDGED} for task, estimates in found.items()
        }
        row["verdicts"] = {task: verdict(estimates) for task, estimates in found.items()}
    return rows


def _side(estimate: Estimate, sign: int) -> int:
    """Return 1 where the whole interval is on the better side of 0, -1 where it is on the other, else 0."""
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return int(low > 0) - int(high < 0)


def _cell(row: Mapping[str, Any], task: str, metric: str) -> str:
    if not row["differences"]:
        return f"{row['metrics'][task][metric]:.4f}"
    return estimate_text(row["differences"][task][metric])
