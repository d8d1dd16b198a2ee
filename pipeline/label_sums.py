"""Sums over labels: all that training asks of its rows before it reads them, and small however many they are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch

from models.extra_tasks import SPACES
from pipeline.extra_targets import NONE, in_space
from pipeline.maturity import TASKS, Maturity, Supervision
from pipeline.split import Days

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class TaskSums:
    """Rows that train a task, how many of them are positive, the sum of their targets, and rows left out by reason."""

    rows: int = 0
    positives: int = 0
    target_sum: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "TaskSums") -> "TaskSums":
        return TaskSums(
            self.rows + other.rows,
            self.positives + other.positives,
            self.target_sum + other.target_sum,
            dict(Counter(self.left_out) + Counter(other.left_out)),
        )


@dataclass(frozen=True)
class ExtraSums:
    """Sums of a further task's masked labels and masks, and its rows that give a label and that are above 0."""

    labels: float = 0.0
    mask: float = 0.0
    within: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SPACES, 0.0))
    """Of each space, the mask's sum over it."""
    rows: int = 0
    above: int = 0

    def __add__(self, other: "ExtraSums") -> "ExtraSums":
        return ExtraSums(
            self.labels + other.labels,
            self.mask + other.mask,
            {space: self.within[space] + other.within[space] for space in SPACES},
            self.rows + other.rows,
            self.above + other.above,
        )


@dataclass(frozen=True)
class LabelSums:
    """Sums over some impressions; they add up over blocks and days."""

    tasks: Mapping[str, TaskSums] = field(default_factory=lambda: dict.fromkeys(TASKS, TaskSums()))
    clicks: float = 0.0
    """Of the impressions that train the task of click and conversion."""
    clicked_rows: int = 0
    """Impressions with a click known before the cutoff, whatever their masks."""
    extra: Mapping[str, ExtraSums] = field(default_factory=dict)

    def __add__(self, other: "LabelSums") -> "LabelSums":
        names = [*self.extra, *(name for name in other.extra if name not in self.extra)]
        return LabelSums(
            {task: self.tasks[task] + other.tasks[task] for task in TASKS},
            self.clicks + other.clicks,
            self.clicked_rows + other.clicked_rows,
            {name: self.extra.get(name, ExtraSums()) + other.extra.get(name, ExtraSums()) for name in names},
        )

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return for each task its rows, positives, sum of targets, and rows left out by reason."""
        return {task: asdict(self.tasks[task]) for task in TASKS}


def sums_of(part: Supervision) -> LabelSums:
    """Sum over the impressions that are in memory."""
    targets = part.targets
    extra = {
        name: ExtraSums(
            labels=float((labels * mask).sum()),
            mask=float(mask.sum()),
            within={space: float((in_space(space, targets) * mask).sum()) for space in SPACES},
            rows=int((mask > 0).sum()),
            above=int((labels * mask > 0).sum()),
        )
        for name, (labels, mask) in targets.extra.items()
    }
    return LabelSums(
        {task: _task_sums(part, task) for task in TASKS},
        float(targets.clicks_B[targets.conversion_mask_B > 0].sum()),
        int(targets.clicks_B.count_nonzero()),
        extra,
    )


def total(parts: Iterable[LabelSums]) -> LabelSums:
    """Add sums in their order; without any, all are 0."""
    return reduce(LabelSums.__add__, parts, LabelSums())


def _task_sums(part: Supervision, task: str) -> TaskSums:
    labels = kept_labels(part, task)
    return TaskSums(len(labels), int(labels.count_nonzero()), float(labels.sum()), dict(part.left_out.get(task, {})))


def kept_labels(part: Supervision, task: str) -> torch.Tensor:
    """Return the targets of the impressions that train a task: (N kept) float32."""
    targets = part.targets
    if task == "click":
        return targets.clicks_B[targets.click_mask_B > 0]
    return (targets.clicks_B * targets.conversions_B)[targets.conversion_mask_B > 0]


def base_rates(
    sums: LabelSums, binary_tasks: Mapping[str, str] = NONE, value_tasks: Mapping[str, str] = NONE
) -> dict[str, Any]:
    """Return the smoothed rates that a ranker starts at, of what trains it; even a tiny log has none of 0 or 1.

    `extra` has the mean of each further task's label within its space.
    """
    click, both = sums.tasks["click"], sums.tasks["click_and_conversion"]
    conversions = min(both.target_sum, sums.clicks)
    return {
        "click_rate": (click.target_sum + 1) / (click.rows + 2),
        "conversion_rate": (conversions + 1) / (sums.clicks + 2),
        "extra": base_means(sums, binary_tasks, value_tasks),
    }


def base_means(sums: LabelSums, binary_tasks: Mapping[str, str], value_tasks: Mapping[str, str]) -> dict[str, float]:
    """Return the mean of each further task's label within its space; the rates smoothed, so that none is 0 or 1."""
    means = {}
    for name, space in binary_tasks.items():
        rows = sums.extra[name].within[space]
        means[name] = (min(sums.extra[name].labels, rows) + 1) / (rows + 2)
    for name in value_tasks:
        means[name] = sums.extra[name].labels / sums.extra[name].mask
    return means


def check_extra(sums: LabelSums) -> None:
    """Refuse a task without anything to learn.

    Raises:
        ValueError: no training row has a label above 0.
    """
    for name, extra in sums.extra.items():
        if not extra.above:
            raise ValueError(
                f"labels.tasks.{name} is above 0 on none of the {extra.rows} training rows that give it: correct its "
                "expression or its space, or remove the task"
            )


def check_classes(training: LabelSums, maturity: Maturity, days: Days) -> None:
    """Refuse to train a task on one class.

    Raises:
        ValueError: all rows that a task trains on have the same label, or there are none; or a further task has no
            label above 0.
    """
    check_extra(training)
    for task, sums in training.tasks.items():
        label = "clicks" if task == "click" else "conversions"
        if sums.positives in {0, sums.rows}:
            raise ValueError(
                f"training days {days.train[0]} to {days.train[-1]} hold {sums.positives} {label} in "
                f"{sums.rows} rows: both classes are needed; labels.immature = '{maturity.immature}' left out "
                f"{sum(sums.left_out.values())} rows whose {label} were not final before {maturity.cutoff}; widen "
                "split.train, shorten the windows of labels if they are longer than needed, correct the labels, or "
                "let a log that is too young train with 'keep'"
            )


def selected_by(validation: LabelSums) -> str:
    """Return the losses that select the epoch: of the tasks that the validation days have mature rows of."""
    return " + ".join(task for task in TASKS if validation.tasks[task].rows) or "none: the last epoch"


def maturity_record(maturity: Maturity, training: LabelSums, validation: LabelSums) -> dict[str, Any]:
    """Return what training.json says of labels: the rule, counts of each part, and the fitted delay in hours."""
    delays = maturity.delays_us
    hours: list[float] = (np.quantile(delays, QUANTILES) / HOUR_US).tolist() if len(delays) else []
    return {
        "immature": maturity.immature,
        "cutoff": str(maturity.cutoff),
        "training": training.counts(),
        "validation": validation.counts(),
        "epoch_selected_by": selected_by(validation),
        "delay_conversions": len(delays),
        "delay_quantiles_hours": dict(zip(map(str, QUANTILES), hours, strict=False)),
    }
