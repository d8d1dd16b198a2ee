"""What the experiments on multi-task learning share: settings, equal capacity, verdicts.

An experiment answers one question by cells, each an estimate that its rule lets pass or fail; the rule is written down
before anything is trained. Differences are joint body minus single-task networks, paired by rows, users and seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.ranker import Ranker, RankerSpec
from pipeline.compare import CONTROL, counts, finite
from pipeline.evaluate import OUTPUT_OF
from pipeline.fit import Fit, fit_of
from pipeline.significance import Estimate, Replicates, replicate_metrics
from pipeline.study_data import Study
from pipeline.study_training import Trained, sizes

SEARCH_STEPS = 24
WIDEST = 16.0
CAPACITY_TOLERANCE = 0.05


@dataclass(frozen=True)
class Experiment:
    """How an experiment is run."""

    body: str = "ple"
    seeds: int = 5
    replicates: int = 1000
    cache: Path | None = None

    def seed_numbers(self) -> range:
        """Return the seeds, from 1."""
        return range(1, self.seeds + 1)


@dataclass(frozen=True)
class Cell:
    """One figure that the rule judges; `role` says by which part of it."""

    name: str
    role: str
    estimate: Estimate
    passed: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            **self.estimate.as_dict(),
            "passed": self.passed,
            "detail": self.detail,
        }


def specs_of(study: Study, experiment: Experiment, seed: int) -> tuple[RankerSpec, RankerSpec]:
    """Return the joint body's spec, and that of single-task networks with as many weights outside the embeddings.

    Raises:
        ValueError: the body is the control itself, or unknown.
    """
    if experiment.body == CONTROL:
        raise ValueError(f"--body {CONTROL} is what the joint body is held against: choose another, such as ple")
    joint = study.spec(experiment.body, seed)
    return joint, at_capacity(study.spec(CONTROL, seed), weights_outside_tables(joint))


def weights_outside_tables(spec: RankerSpec) -> int:
    """Count the weights outside the embedding tables, without making the tables."""
    smallest = replace(spec, categorical_cardinalities=dict.fromkeys(spec.categorical_cardinalities, 1))
    return sizes(Ranker(smallest))["parameters_outside_tables"]


def at_capacity(spec: RankerSpec, weights: int) -> RankerSpec:
    """Scale the hidden widths by one factor so that the weights outside the tables come nearest to a number."""
    low, high, tried = 1 / WIDEST, WIDEST, [spec]
    for _ in range(SEARCH_STEPS):
        factor = (low * high) ** 0.5
        tried.append(replace(spec, hidden=tuple(max(1, round(width * factor)) for width in spec.hidden)))
        low, high = (factor, high) if weights_outside_tables(tried[-1]) < weights else (low, factor)
    return min(tried, key=lambda one: abs(weights_outside_tables(one) - weights))


def capacity(study: Study, experiment: Experiment) -> dict[str, Any]:
    """Return the widths and weights outside the embeddings of both sides."""
    joint, single = specs_of(study, experiment, 1)
    return {
        name: {"body": spec.body, "hidden": list(spec.hidden), "weights": weights_outside_tables(spec)}
        for name, spec in (("joint", joint), ("single", single))
    }


def capacity_fault(sides: Mapping[str, Any]) -> list[str]:
    """Say where the two sides' weights differ by more than a few per cent; empty where they do not."""
    ratio = sides["single"]["weights"] / sides["joint"]["weights"]
    if abs(ratio - 1) <= CAPACITY_TOLERANCE:
        return []
    return [f"capacity: single-task networks have {ratio:.2f} times the joint body's weights outside embeddings"]


def fit_with_seed(study: Study, seed: int, epochs: int | None = None) -> Fit:
    """Return the configuration's fit with a seed, and with another number of epochs where it is given."""
    fit = fit_of(study.config.model_copy(update={"seed": seed}))
    return fit if epochs is None else replace(fit, epochs=epochs)


def measure_task(
    study: Study,
    task: str,
    trained: Mapping[str, Sequence[Trained]],
    experiment: Experiment,
    measured: str = "measured",
) -> dict[str, Replicates]:
    """Measure one task of models by name, on the same resamples; `measured` names the set of days."""
    rows = study.rows()
    labels, space = rows.of_task(task)
    return replicate_metrics(
        labels=labels[space],
        users=rows.users[space],
        predictions={
            name: [one.predictions[measured][space, OUTPUT_OF[task]] for one in many] for name, many in trained.items()
        },
        replicates=experiment.replicates,
        seed=study.config.seed,
    )


def verdict(study: Study, experiment: Experiment, texts: Mapping[str, str], cells: Sequence[Cell]) -> dict[str, Any]:
    """Put an experiment's result together; `texts` has its name, question, rule and sentence."""
    failed = [f"{cell.name}: {_words(cell)}" for cell in cells if not cell.passed]
    result: dict[str, Any] = finite(
        {
            **texts,
            "data_set": study.config.name,
            "source": study.source,
            "on": study.on,
            "days": [str(day) for day in study.measured_days()],
            "counts": counts(study.rows()),
            "body": experiment.body,
            "seeds": experiment.seeds,
            "replicates": experiment.replicates,
            "cells": [cell.as_dict() for cell in cells],
            "failures": failed,
        }
    )
    return result


def _words(cell: Cell) -> str:
    one = cell.estimate
    parts = [f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"] if math.isfinite(one.value) else []
    return ", ".join([*parts, cell.role, *([cell.detail] if cell.detail else [])])
