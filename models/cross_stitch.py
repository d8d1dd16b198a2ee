"""Cross-stitch networks: one network a task, joined after each layer by learned mixtures.

Shapes: B batch, T receiving task, U giving task, D width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.body import BodySize, build_experts
from models.layers import ExpertLayers, FirstLayer

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
        return self._above(self._first_network()(x))

    def first_layers(self) -> list[FirstLayer]:
        """Returns the one layer that reads the input."""
        first = self._first_network().first
        return [FirstLayer(first, [[task] for task in range(len(first.weight_GIO))])]

    def finish(self, firsts: Sequence[Tensor]) -> Tensor:
        """Returns the output (B, T, O) from what the first layer gives, (B, T, its width)."""
        return self._above(self._first_network().finish(firsts[0]))

    def _above(self, x: Tensor) -> Tensor:
        x = torch.einsum("tud,bud->btd", self.stitches[0], x)
        for layer, stitch_TUD in zip(self.layers[1:], self.stitches[1:], strict=True):
            x = torch.einsum("tud,bud->btd", stitch_TUD, layer(x))
        return x

    def _first_network(self) -> ExpertLayers:
        network = self.layers[0]
        assert isinstance(network, ExpertLayers)
        return network


def _near_identity(tasks: int) -> Tensor:
    if tasks == 1:
        return torch.ones(1, 1)
    start_TU = torch.full((tasks, tasks), (1 - OWN_SHARE) / (tasks - 1))
    return start_TU.fill_diagonal_(OWN_SHARE)
