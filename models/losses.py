"""The ranker's training loss.

Shapes: B batch, T task (0 click, 1 conversion given a click).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.entire_space import entire_space


@dataclass(frozen=True)
class Targets:
    """What the loss is told of each impression, each (B) float32."""

    clicks_B: Tensor
    """0 or 1."""
    conversions_B: Tensor
    """0 or 1, or above 1 where an early conversion also stands for those that are not known yet."""
    click_mask_B: Tensor
    """1 where the impression counts in the click loss, else 0."""
    conversion_mask_B: Tensor
    """1 where the impression counts in the click-and-conversion loss, else 0."""
    extra: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Label and mask of each further task by name, likewise (B)."""

    def select(self, rows: Tensor, device: torch.device) -> "Targets":
        """Returns some rows, by their numbers, on a device."""

        def pick(column_B: Tensor) -> Tensor:
            return column_B[rows].to(device)

        return Targets(
            clicks_B=pick(self.clicks_B),
            conversions_B=pick(self.conversions_B),
            click_mask_B=pick(self.click_mask_B),
            conversion_mask_B=pick(self.conversion_mask_B),
            extra={name: (pick(labels), pick(mask)) for name, (labels, mask) in self.extra.items()},
        )


def task_losses(logits_BT: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Returns the cross-entropies of click and of click-and-conversion, each over the impressions its mask keeps.

    Logits are (B, 2) float32. Both sums are divided by the batch size, whatever the masks: a kept impression
    weighs the same in a batch that keeps few as in one that keeps all, and a batch that keeps none gives 0. A
    conversion is supervised only through its product with the click, so impressions without a click are no missing
    data. Cross-entropy is linear in the target, so a target above 1 with the right mean gives the right mean loss.
    Source: ESMM, Ma et al. 2018, equation 3.
    """
    space = entire_space(logits_BT)
    both_B = targets.clicks_B * targets.conversions_B
    log_likelihood_B = both_B * space.click_and_conversion_B + (1 - both_B) * space.no_click_and_conversion_B
    click_loss = binary_cross_entropy_with_logits(logits_BT[:, 0], targets.clicks_B, weight=targets.click_mask_B)
    return {"click": click_loss, "click_and_conversion": -(targets.conversion_mask_B * log_likelihood_B).mean()}


def joint_loss(logits_BT: Tensor, targets: Targets, *, conversion_weight: float) -> Tensor:
    """Adds the losses of the tasks, click with weight 1."""
    losses = task_losses(logits_BT, targets)
    return losses["click"] + conversion_weight * losses["click_and_conversion"]
