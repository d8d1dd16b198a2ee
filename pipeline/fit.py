"""Fit one ranker on given examples: the loop, the validation loss that keeps an epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.extra_tasks import extra_losses
from models.gating import load_balance_loss
from models.inputs import Features
from models.losses import AUXILIARY_HEADS, Propensity, Targets, task_losses, without_gradient
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, predict
from models.task_weights import Balancing, build_balance
from pipeline.config import Config
from pipeline.dataset import Examples, device_of
from pipeline.maturity import TASKS, base_rates
from pipeline.stage import progress

PREDICT_ROWS = 16_384
SEPARATE = "single_task"
"""The body whose networks are trained as if each were alone: a product's loss does not reach another's.

With several epochs one is kept for all of them, by the sum of their validation losses.
"""


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
    debiasing_weight: float
    """Of the losses that correct for what is clicked, within the task of conversion."""
    counterfactual_prior_weight: float
    """Within these, of the disagreement of factual and counterfactual."""
    propensity: Propensity
    balancing: Balancing
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
        debiasing_weight=training.debiasing_weight,
        counterfactual_prior_weight=training.counterfactual_prior_weight,
        propensity=Propensity(floor=training.propensity_floor, self_normalised=training.self_normalised),
        balancing=Balancing(
            way=training.task_weights,
            learning_rate=training.task_weight_learning_rate,
            asymmetry=training.gradnorm_asymmetry,
        ),
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

    Raises:
        ValueError: a loss is no number any more.
    """
    ranker = Ranker(spec)
    rates = base_rates([day.supervision for day in training], spec.binary_tasks, spec.value_tasks)
    weights = loss_weights(spec, fit, rates["extra"])
    if begin is None:
        ranker.start_at(**rates)
    else:
        begin(ranker)
    ranker.to(fit.device)
    with torch.random.fork_rng(devices=[fit.device] if fit.device.type == "cuda" else []):
        # Dropout draws from the global state: without this a fit would depend on what was drawn before.
        torch.manual_seed(fit.seed)
        best, curve = _train(ranker, fit, training, validation, weights)
    ranker.load_state_dict(best)
    return ranker.to("cpu").eval(), curve


def _train(
    ranker: Ranker, fit: Fit, training: list[Examples], validation: list[Examples], weights: Mapping[str, float]
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Return the weights of the best epoch and the curve of all."""
    optimizers = build_optimizers(
        ranker,
        learning_rate=fit.learning_rate,
        embedding_learning_rate=fit.embedding_learning_rate,
        weight_decay=fit.weight_decay,
    )
    generator = torch.Generator().manual_seed(fit.seed)
    balance = build_balance(fit.balancing, ranker, balanced_tasks(ranker.spec), generator)
    best: dict[str, torch.Tensor] = {}
    curve: list[dict[str, float]] = []
    steps = sum(-(-len(day.clicks) // fit.batch_size) for day in training)
    for epoch in range(fit.epochs):
        batches = _batches(training, fit, generator)
        total = 0.0
        ranker.train()
        for features, targets in progress(batches, f"train {ranker.spec.body} epoch {epoch + 1}", steps):
            optimizers.zero_grad()
            losses, rest = _step_losses(ranker, fit, (features, targets), weights)
            total += float(balance.backward(losses, rest))
            optimizers.step()
        measured = _validation(ranker, validation, weights)
        if not math.isfinite(total + sum(measured.values())):
            raise ValueError(
                f"training of {ranker.spec.body} diverged in epoch {epoch + 1}: its loss is no number; lower "
                "training.learning_rate and training.embedding_learning_rate, or set model.expert_norm = 'layer'"
            )
        if not curve or not measured or measured["validation"] < min(point["validation"] for point in curve):
            best = {name: value.detach().clone() for name, value in ranker.state_dict().items()}
        learned = {f"weight_{task}": weight for task, weight in balance.weights().items()}
        curve.append({"training": total / steps, **measured, **learned})
    return best, curve


def balanced_tasks(spec: RankerSpec) -> list[str]:
    """Return the names of the tasks whose losses are balanced: all losses of conversion are one task's."""
    return ["click", "conversion", *spec.binary_tasks, *spec.value_tasks]


def _step_losses(
    ranker: Ranker, fit: Fit, batch: tuple[Features, Targets], weights: Mapping[str, float]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return the loss of each balanced task, with the weights that are set, and that of the gates' load balance."""
    features, targets = batch
    spec, rest = ranker.spec, None
    if spec.load_balance > 0:
        logits_BT, gates = ranker.forward_with_gates(features)
        rest = spec.load_balance * load_balance_loss(gates, ranker.gate_levels()) if gates else None
    else:
        logits_BT = ranker(features)
    parts: dict[str, list[torch.Tensor]] = {task: [] for task in balanced_tasks(spec)}
    for name, loss in _losses(spec, logits_BT, targets, fit.propensity).items():
        parts[name if name in parts else "conversion"].append(weights[name] * loss)
    return {task: torch.stack(losses).sum() for task, losses in parts.items()}, rest


def _batches(training: list[Examples], fit: Fit, generator: torch.Generator) -> Iterator[tuple[Features, Targets]]:
    for day in training:
        order = torch.randperm(len(day.clicks), generator=generator)
        for rows in torch.split(order, fit.batch_size):
            yield day.features.slice(rows).to(fit.device), day.supervision.targets.select(rows, fit.device)


def ranker_losses(ranker: Ranker, features: Features, targets: Targets) -> dict[str, torch.Tensor]:
    """Return every loss on a batch by name, as the ranker's spec asks for, corrections by default settings."""
    return _losses(ranker.spec, ranker(features), targets, Propensity())


def _losses(
    spec: RankerSpec, logits_BT: torch.Tensor, targets: Targets, propensity: Propensity
) -> dict[str, torch.Tensor]:
    separate = spec.body == SEPARATE
    losses = task_losses(
        logits_BT,
        targets,
        conversion_loss=spec.conversion_loss,
        auxiliary_B=logits_BT[:, -1] if AUXILIARY_HEADS[spec.conversion_loss] else None,
        propensity=propensity,
        separate=separate,
    )
    of_extra_BT = without_gradient(logits_BT, heads=len(TASKS)) if separate else logits_BT
    return losses | extra_losses(of_extra_BT, targets, spec.binary_tasks, spec.value_tasks)


def loss_weights(spec: RankerSpec, fit: Fit, means: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each loss by name; `means` are those of further tasks within their spaces."""
    extra = {name: fit.extra_weights[name] for name in spec.binary_tasks}
    extra |= {name: fit.extra_weights[name] / means[name] for name in spec.value_tasks}
    debiasing = fit.debiasing_weight
    return {
        "click": 1.0,
        "click_and_conversion": fit.conversion_weight,
        "conversion": fit.conversion_weight if spec.conversion_loss == "click_only" else debiasing,
        "imputation": debiasing,
        "counterfactual": debiasing,
        "counterfactual_prior": debiasing * fit.counterfactual_prior_weight,
        **extra,
    }


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
