"""Softmax gates: the weights of experts, who sees whom, and whether the load is spread.

Shapes: B batch, N gate, E expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dropout import uniform_like

SMALLEST_PRODUCT = 400
"""Multiplications a row below which torch.bmm does without MKL, 4 times slower than expert by expert."""


@dataclass(frozen=True)
class GateLevel:
    """What the gates of one level are called, and which experts each sees."""

    gates: list[str]
    """Names of the N gates."""
    experts: list[str]
    """Names of the E experts."""
    visible_NE: Tensor
    """True where the gate may give the expert a weight."""


def gate_weights(
    logits_BNE: Tensor, *, visible_NE: Tensor, temperature: float, dropout: float, training: bool
) -> Tensor:
    """Returns each gate's distribution over the experts that it sees: (B, N, E), zero for the others.

    Logits are divided by the temperature: above 1 the mixture is more even. In training each expert is dropped from
    each gate and row with the given probability and the rest renormalised, against gates that polarise (Zhao et al.
    2019, Recommending what video to watch next); a gate that would lose all its experts keeps them all.
    """
    if temperature != 1.0:
        logits_BNE = logits_BNE / temperature
    kept = visible_NE
    if training and dropout > 0:
        kept = visible_NE & (uniform_like(logits_BNE) >= dropout)
        kept = kept | (visible_NE & ~kept.any(-1, keepdim=True))
    masked_BNE = logits_BNE.masked_fill(~kept, -torch.inf)
    if torch.is_grad_enabled():
        return masked_BNE.softmax(-1)
    # Over a first dimension, 9 times faster: 3 us for 200 rows of 2 gates and 5 experts.
    gates_ENB = masked_BNE.permute(2, 1, 0).contiguous().softmax(0)
    return gates_ENB.permute(2, 1, 0).contiguous()  # torch.bmm copies other layouts row by row


def mix(gates_BNE: Tensor, outputs_BEO: Tensor) -> Tensor:
    """Returns each gate's mixture of the experts: (B, N, O)."""
    _, gates, experts = gates_BNE.shape
    if torch.is_grad_enabled() or gates * experts * outputs_BEO.shape[2] >= SMALLEST_PRODUCT:
        return torch.bmm(gates_BNE, outputs_BEO)
    mixed_NBO = outputs_BEO.new_zeros(gates, len(outputs_BEO), outputs_BEO.shape[2])
    gates_NEB1 = gates_BNE.permute(1, 2, 0).contiguous().unsqueeze(-1)
    for gate, mixed_BO in enumerate(mixed_NBO):
        for expert in range(experts):
            mixed_BO.addcmul_(gates_NEB1[gate, expert], outputs_BEO[:, expert])
    return mixed_NBO.transpose(0, 1)


def load_balance_loss(gates: Sequence[Tensor], levels: Sequence[GateLevel]) -> Tensor:
    """Returns the squared coefficient of variation of the experts' importance, the mean over all gates.

    An expert's importance to a gate is its mean weight over the batch; the variation is over the experts that the
    gate sees. It is 0 where these share evenly, and without gates; a gate that gives all to one of E has E - 1.
    Source: the importance loss of Shazeer et al. 2017, section 4, equations 6 and 7, there for one gate.
    """
    variations = []
    for gates_BNE, level in zip(gates, levels, strict=True):
        visible_NE = level.visible_NE
        importance_NE, count_N = gates_BNE.mean(0), visible_NE.sum(-1)
        # Weights sum to 1, so the mean importance of the experts that a gate sees is 1 / count.
        deviation_NE = (importance_NE * count_N.unsqueeze(-1) - 1) * visible_NE
        variations.append(deviation_NE.square().sum(-1) / count_N)
    return torch.cat(variations).mean() if variations else torch.zeros(())
