"""Fit one ranker on given examples: the loop, the validation loss that keeps an epoch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.extra_tasks import extra_losses
from models.inputs import Features
from models.losses import Targets, task_losses
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, predict
from pipeline.config import Config
from pipeline.dataset import Examples, device_of
from pipeline.maturity import TASKS, base_rates
from pipeline.stage import progress

PREDICT_ROWS = 16_384


@dataclass(frozen=True)
class Fit:
    """How one ranker is fitted."""

    epochs: int
    batch_size: int
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    conversion_weight: float
    extra_weights: Mapping[str, float]
    """Of further tasks by name; that of a value is divided by its mean, so that its unit does not matter."""
    seed: int
    device: torch.device


def fit_of(config: Config, learning_rate: float | None = None) -> Fit:
    """Return how a configuration fits a ranker, at its own or at a given learning rate."""
    training = config.training
    return Fit(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=learning_rate or training.learning_rate,
        embedding_learning_rate=learning_rate or training.embedding_learning_rate,
        weight_decay=training.weight_decay,
        conversion_weight=training.conversion_weight,
        extra_weights={name: task.weight for name, task in config.labels.tasks.items()},
        seed=config.seed,
        device=device_of(training.device),
    )


def fit_ranker(
    spec: RankerSpec,
    fit: Fit,
    training: list[Examples],
    validation: list[Examples],
    begin: Callable[[Ranker], None] | None = None,
) -> tuple[Ranker, list[dict[str, float]]]:
    """Fit one ranker; days follow each other in time, rows are shuffled within a day.

    `begin` sets the initial weights; by default they are the seed's, with a bias that predicts the base rates.

    Returns:
        The weights of the epoch with the lowest validation loss, and the curve of all epochs. Where no validation
        row is mature for a task, its loss is missing and the other task selects; without any, the last epoch stays.
    """
    ranker = Ranker(spec)
    rates = base_rates([day.supervision for day in training], spec.binary_tasks, spec.value_tasks)
    weights = loss_weights(spec, fit, rates["extra"])
    if begin is None:
        ranker.start_at(**rates)
    else:
        begin(ranker)
    ranker.to(fit.device)
    optimizers = build_optimizers(
        ranker,
        learning_rate=fit.learning_rate,
        embedding_learning_rate=fit.embedding_learning_rate,
        weight_decay=fit.weight_decay,
    )
    generator = torch.Generator().manual_seed(fit.seed)
    best: dict[str, torch.Tensor] = {}
    curve: list[dict[str, float]] = []
    steps = sum(-(-len(day.clicks) // fit.batch_size) for day in training)
    for epoch in range(fit.epochs):
        batches = _batches(training, fit, generator)
        total = 0.0
        ranker.train()
        for features, targets in progress(batches, f"train {spec.body} epoch {epoch + 1}", steps):
            optimizers.zero_grad()
            losses = ranker_losses(ranker, features, targets)
            loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers.step()
            total += float(loss.detach())
        measured = _validation(ranker, validation, weights)
        if not curve or not measured or measured["validation"] < min(point["validation"] for point in curve):
            best = {name: value.detach().clone() for name, value in ranker.state_dict().items()}
        curve.append({"training": total / steps, **measured})
    ranker.load_state_dict(best)
    return ranker.to("cpu").eval(), curve


def _batches(training: list[Examples], fit: Fit, generator: torch.Generator) -> Iterator[tuple[Features, Targets]]:
    for day in training:
        order = torch.randperm(len(day.clicks), generator=generator)
        for rows in torch.split(order, fit.batch_size):
            yield day.features.slice(rows).to(fit.device), day.supervision.targets.select(rows, fit.device)


def ranker_losses(ranker: Ranker, features: Features, targets: Targets) -> dict[str, torch.Tensor]:
    """Return the loss of every task on a batch, by name."""
    spec, logits_BT = ranker.spec, ranker(features)
    return task_losses(logits_BT, targets) | extra_losses(logits_BT, targets, spec.binary_tasks, spec.value_tasks)


def loss_weights(spec: RankerSpec, fit: Fit, means: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each task's loss by name; `means` are those of further tasks within their spaces."""
    extra = {name: fit.extra_weights[name] for name in spec.binary_tasks}
    extra |= {name: fit.extra_weights[name] / means[name] for name in spec.value_tasks}
    return {"click": 1.0, "click_and_conversion": fit.conversion_weight, **extra}


def _validation(ranker: Ranker, days: list[Examples], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the loss that selects an epoch beside the losses of the tasks; empty without a mature row."""
    measured = validation_losses(ranker, days) | _extra_validation_losses(ranker, days)
    total = sum(weights[task] * loss for task, loss in measured.items())
    return {"validation": total, **measured} if measured else {}


def validation_losses(ranker: Ranker, days: list[Examples]) -> dict[str, float]:
    """Return the log-loss of click and of click-and-conversion over the rows that would train them.

    A task without such a row has no loss.
    """
    sums, rows = dict.fromkeys(TASKS, 0.0), dict.fromkeys(TASKS, 0)
    for day in days:
        probabilities = predict(ranker, day.features, PREDICT_ROWS)
        targets = day.supervision.targets
        clicks, conversions = targets.clicks_B.numpy(), targets.conversions_B.numpy()
        masks = (targets.click_mask_B.numpy(), targets.conversion_mask_B.numpy())
        for task, column, labels, mask in zip(TASKS, (0, 2), (clicks, conversions), masks, strict=True):
            kept = mask > 0
            rows[task] += int(kept.sum())
            sums[task] += _log_loss_sum(probabilities[kept, column], labels[kept])
    return {task: sums[task] / rows[task] for task in TASKS if rows[task]}


def _extra_validation_losses(ranker: Ranker, days: list[Examples]) -> dict[str, float]:
    """Return the mean loss of each further task over the rows that its mask keeps; none for a task without one."""
    spec, device = ranker.spec, next(ranker.parameters()).device
    names = [*spec.binary_tasks, *spec.value_tasks]
    sums, rows = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    ranker.eval()
    for day in days if names else []:
        for batch in torch.split(torch.arange(len(day.clicks)), PREDICT_ROWS):
            targets = day.supervision.targets.select(batch, device)
            with torch.inference_mode():
                logits_BT = ranker(day.features.slice(batch).to(device))
                losses = extra_losses(logits_BT, targets, spec.binary_tasks, spec.value_tasks)
            for name, value in losses.items():
                sums[name] += float(value) * len(batch)
                rows[name] += float(targets.extra[name][1].sum())
    return {name: sums[name] / rows[name] for name in names if rows[name]}


def _log_loss_sum(probabilities: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped)).sum())
