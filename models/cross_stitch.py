"""Cross-stitch networks: one network a task, joined after each layer by learned mixtures.

Shapes: B batch, T receiving task, U giving task, D width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.body import BodySize, build_experts

OWN_SHARE = 0.9
"""Of a task's own activation at the start; the other tasks share the rest."""


class CrossStitch(nn.Module):
    """Gives each task after each layer a linear mixture of all tasks' activations, unit by unit.

    Source: Misra et al. 2016, equation 1, for two tasks. Each unit of a layer has a matrix (T, T) of its own, as each
    activation map has there; it starts as a convex combination near the identity, 0.9 and 0.1. With one
    task it is a plain network.
    """

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            build_experts(size, experts=size.tasks, input_width=before, hidden=[after])
            for before, after in pairwise([size.input_width, *size.hidden])
        )
        start_TU = _near_identity(size.tasks)
        self.stitches = nn.ParameterList(start_TU.unsqueeze(-1).repeat(1, 1, width) for width in size.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), or one input a task (B, T, I), to (B, T, O)."""
        for layer, stitch_TUD in zip(self.layers, self.stitches, strict=True):
            x = torch.einsum("tud,bud->btd", stitch_TUD, layer(x))
        return x


def _near_identity(tasks: int) -> Tensor:
    if tasks == 1:
        return torch.ones(1, 1)
    start_TU = torch.full((tasks, tasks), (1 - OWN_SHARE) / (tasks - 1))
    return start_TU.fill_diagonal_(OWN_SHARE)
