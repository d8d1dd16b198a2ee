"""What a ranker descends: the losses of a batch, by the task that they train."""

from collections.abc import Mapping

import torch

from models.extra_tasks import extra_losses
from models.gating import load_balance_loss
from models.inputs import Features
from models.losses import AUXILIARY_HEADS, Propensity, Targets, task_losses, without_gradient
from models.ranker import Ranker, RankerSpec
from pipeline.maturity import TASKS

SEPARATE = "single_task"
"""The body whose networks are trained as if each were alone: a product's loss does not reach another's.

With several epochs one is kept for all of them, by the sum of their validation losses.
"""


def balanced_tasks(spec: RankerSpec) -> list[str]:
    """Return the names of the tasks whose losses are balanced: all losses of conversion are one task's."""
    return ["click", "conversion", *spec.binary_tasks, *spec.value_tasks]


def step_losses(
    ranker: Ranker, propensity: Propensity, batch: tuple[Features, Targets], weights: Mapping[str, float]
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
    for name, loss in _losses(spec, logits_BT, targets, propensity).items():
        parts[name if name in parts else "conversion"].append(weights[name] * loss)
    return {task: torch.stack(losses).sum() for task, losses in parts.items()}, rest


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
