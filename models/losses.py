"""The ranker's training losses: of click, and of conversion in one of several ways.

Shapes: B batch, T task (0 click, 1 conversion given a click).
"""

from collections.abc import Callable, Mapping
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
    """0 where the impression does not count in the click loss, else its weight, 1 unless impressions are weighed."""
    conversion_mask_B: Tensor
    """Likewise in the click-and-conversion loss."""
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


AUXILIARY_HEADS: dict[str, tuple[str, ...]] = {
    "esmm": (),
    "click_only": (),
    "escm2_ips": (),
    "escm2_dr": ("imputation",),
    "dcmt": ("counterfactual",),
}
"""The ways to supervise conversions, each with the heads that it needs in training beside those of the tasks."""
UNSTABLE = frozenset({"escm2_dr"})
"""Ways whose imputed labels are learned beside what they supervise: they may run away together."""
LOSS_NAMES = frozenset(
    {"click", "click_and_conversion", "conversion", "imputation", "counterfactual", "counterfactual_prior"}
)
"""Names that `task_losses` may give; no further task can have one of them."""


@dataclass(frozen=True)
class Propensity:
    """How a row is weighed by the inverse probability of being seen: of its click, for a conversion."""

    floor: float = 0.05
    """Smallest probability that is divided by: no row weighs more than 1 / floor."""
    self_normalised: bool = True
    """Whether the weights of a batch are scaled to sum to the rows that they stand for (SNIPS)."""
    over_batch: Callable[[Tensor], Tensor] | None = None
    """Adds sums over these rows to those over the rest of their batch; None where these rows are the batch."""

    def weights(self, seen_B: Tensor, probability_B: Tensor, mask_B: Tensor) -> Tensor:
        """Returns seen / probability over the rows of a mask, without gradient: (B), 0 where a row is not seen.

        Self-normalised they sum to the mask's rows, as they do on average without (Swaminathan and Joachims 2015);
        a batch in which no row is seen has weights 0. The gradient stops here: else a row's loss would teach its
        click to be likely.
        """
        weights_B = mask_B * seen_B / probability_B.detach().clamp(min=self.floor)
        if not self.self_normalised:
            return weights_B
        sums = torch.stack([weights_B.sum(), mask_B.sum()])
        total, rows = sums if self.over_batch is None else self.over_batch(sums)
        return weights_B * torch.where(total > 0, rows / total.clamp(min=torch.finfo().tiny), 0.0)


def task_losses(
    logits_BT: Tensor,
    targets: Targets,
    *,
    conversion_loss: str = "esmm",
    auxiliary_B: Tensor | None = None,
    propensity: Propensity = Propensity(),
    separate: bool = False,
) -> dict[str, Tensor]:
    """Returns the losses of click and of conversion by name, each over the impressions its mask keeps.

    Logits are (B, 2) float32, further columns are not read; `auxiliary_B` (B) is the logit of the head that the way
    to supervise conversions needs (`AUXILIARY_HEADS`). With `separate` the losses of conversion take the click's logit
    as a constant: networks that share nothing are then trained as if each were alone. All sums are divided by the
    batch size, whatever the masks: a kept impression weighs the same in a batch that keeps few as in one that keeps
    all, and a batch that keeps none gives 0. Finite logits give finite losses and gradients. Cross-entropy, and the
    gradient of a squared error, are linear in the target, so targets above 1 with the right mean give the right mean
    gradient.

    - esmm: cross-entropies of click and of click-and-conversion over all impressions. A conversion is supervised only
      through its product with the click, so impressions without a click are no missing data (Ma et al. 2018,
      equation 3).
    - click_only: cross-entropy of conversion over clicked impressions. Biased on the others.
    - escm2_ips: esmm, and the cross-entropy of conversion over clicked impressions, each weighed by the inverse
      probability of its click (Wang et al. 2022, ESCM2, section 4.2).
    - escm2_dr: esmm, and the doubly robust risk of conversion (ibid., section 4.3); see `_doubly_robust`.
    - dcmt: esmm, and a head for what would not have converted; see `_counterfactual`.
    """
    click_loss = binary_cross_entropy_with_logits(logits_BT[:, 0], targets.clicks_B, weight=targets.click_mask_B)
    if separate:
        logits_BT = without_gradient(logits_BT, heads=1)
    if conversion_loss == "click_only":
        clicked_B = targets.conversion_mask_B * targets.clicks_B
        return {"click": click_loss, "conversion": (clicked_B * _errors(logits_BT[:, 1], targets.conversions_B)).mean()}
    losses = {"click": click_loss, "click_and_conversion": _entire_space_loss(logits_BT, targets)}
    if conversion_loss == "escm2_ips":
        weights_B = _click_weights(logits_BT, targets, propensity)
        losses["conversion"] = (weights_B * _errors(logits_BT[:, 1], targets.conversions_B)).mean()
    elif conversion_loss == "escm2_dr":
        assert auxiliary_B is not None
        losses |= _doubly_robust(logits_BT, auxiliary_B, targets, propensity)
    elif conversion_loss == "dcmt":
        assert auxiliary_B is not None
        losses |= _counterfactual(logits_BT, auxiliary_B, targets, propensity)
    return losses


def without_gradient(logits_BT: Tensor, *, heads: int) -> Tensor:
    """Returns the logits with those of the first heads as constants."""
    return torch.cat([logits_BT[:, :heads].detach(), logits_BT[:, heads:]], dim=1)


def _entire_space_loss(logits_BT: Tensor, targets: Targets) -> Tensor:
    space = entire_space(logits_BT)
    both_B = targets.clicks_B * targets.conversions_B
    log_likelihood_B = both_B * space.click_and_conversion_B + (1 - both_B) * space.no_click_and_conversion_B
    return -(targets.conversion_mask_B * log_likelihood_B).mean()


def _doubly_robust(
    logits_BT: Tensor, imputation_B: Tensor, targets: Targets, propensity: Propensity
) -> dict[str, Tensor]:
    """Returns the doubly robust risk of conversion over all impressions, and what teaches the imputation.

    The risk is the imputed error of each impression, corrected on clicked ones by the inverse probability of their
    click. The imputed error is the cross-entropy against an imputed label, as in Wang et al. 2019 (doubly robust joint
    learning, equations 7 and 8): an error that a head gave without regard to the prediction, as in ESCM2, would leave
    the prediction the gradient of the inverse probabilities alone. Each loss teaches its own head only: the label is
    constant in the risk, the prediction in the squared difference of the errors.
    """
    logit_B, weights_B = logits_BT[:, 1], _click_weights(logits_BT, targets, propensity)
    label_B = imputation_B.sigmoid()
    # Cross-entropy is linear in the label: two errors of one logit differ by their labels' difference times it.
    correction_B = -(targets.conversions_B - label_B.detach()) * logit_B
    risk_B = targets.conversion_mask_B * _errors(logit_B, label_B.detach()) + weights_B * correction_B
    squares_B = ((targets.conversions_B - label_B) * logit_B.detach()).square()
    return {"conversion": risk_B.mean(), "imputation": (weights_B * squares_B).mean()}


def _counterfactual(
    logits_BT: Tensor, counterfactual_B: Tensor, targets: Targets, propensity: Propensity
) -> dict[str, Tensor]:
    """Returns the losses of the factual and of the counterfactual head, and their disagreement.

    The factual head learns conversions of clicked impressions, weighed by 1 / p_click; the counterfactual one, that
    unclicked impressions, weighed by 1 / (1 - p_click), have the flipped label 1. Over all impressions the two
    probabilities are to sum to 1, by the mean of |1 - (p + p*)|. Source: Zhu et al. 2023, DCMT, section III.
    """
    unclicked_B = propensity.weights(1 - targets.clicks_B, (-logits_BT[:, 0]).sigmoid(), targets.conversion_mask_B)
    factual_B = _click_weights(logits_BT, targets, propensity) * _errors(logits_BT[:, 1], targets.conversions_B)
    disagreement_B = (1 - logits_BT[:, 1].sigmoid() - counterfactual_B.sigmoid()).abs()
    return {
        "conversion": factual_B.mean(),
        "counterfactual": (unclicked_B * _errors(counterfactual_B, torch.ones_like(counterfactual_B))).mean(),
        "counterfactual_prior": (targets.conversion_mask_B * disagreement_B).mean(),
    }


def _click_weights(logits_BT: Tensor, targets: Targets, propensity: Propensity) -> Tensor:
    return propensity.weights(targets.clicks_B, logits_BT[:, 0].sigmoid(), targets.conversion_mask_B)


def _errors(logits_B: Tensor, targets_B: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits_B, targets_B, reduction="none")
