"""Layers of several networks side by side.

Shapes: B batch, E expert, G group (of a batched layer), I input width, O output width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.dropout import drop_units

SHARED_INPUT_DIMENSIONS = 2
"""Of an input (B, I) that all groups read; an input (B, G, I) has one a group."""
MOMENTUM = 0.1
"""Share of the newest batch in the running moments of batch normalisation, as in torch."""


class GroupedLinear(nn.Module):
    """Applies one linear layer a group, G layers in one product."""

    def __init__(self, *, groups: int, input_width: int, output_width: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(input_width)
        self.weight_GIO = nn.Parameter(torch.empty(groups, input_width, output_width).uniform_(-bound, bound))
        self.bias_GO = nn.Parameter(torch.zeros(groups, output_width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), the same input for all groups, or (B, G, I), one each, to (B, G, O)."""
        groups, _, output_width = self.weight_GIO.shape
        if x.dim() > SHARED_INPUT_DIMENSIONS:
            return torch.baddbmm(self.bias_GO.unsqueeze(1), x.transpose(0, 1), self.weight_GIO).transpose(0, 1)
        # One wide product: a batched one would hold the input's gradient once a group before summing.
        weight_IO = self.weight_GIO.transpose(0, 1).flatten(1)
        return torch.addmm(self.bias_GO.flatten(), x, weight_IO).view(-1, groups, output_width)


@dataclass(frozen=True)
class FirstLayer:
    """A linear layer that reads a network's input: where the input is made of parts, its output is a sum of theirs."""

    linear: GroupedLinear
    reads: list[list[int]]
    """Of each group G the numbers of the inputs (B, G, I) whose sum it reads."""


class LayerNorm(nn.Module):
    """Normalises each row of each group over its units (Ba et al. 2016), then scales and shifts unit by unit."""

    def __init__(self, *, groups: int, width: int) -> None:
        super().__init__()
        self.scale_GO = nn.Parameter(torch.ones(groups, width))
        self.bias_GO = nn.Parameter(torch.zeros(groups, width))

    def forward(self, x_BGO: Tensor) -> Tensor:
        """Keeps the shape (B, G, O)."""
        return nn.functional.layer_norm(x_BGO, x_BGO.shape[-1:]) * self.scale_GO + self.bias_GO


class BatchNorm(nn.Module):
    """Normalises each unit of each group over the rows of a training batch (Ioffe and Szegedy 2015).

    In evaluation, and for a training batch of one row, which has no variance, the running moments stand for the
    batch's, so that a row's output does not depend on the rows beside it.
    """

    running_mean_O: Tensor
    running_variance_O: Tensor

    def __init__(self, *, groups: int, width: int) -> None:
        super().__init__()
        self.scale_GO = nn.Parameter(torch.ones(groups, width))
        self.bias_GO = nn.Parameter(torch.zeros(groups, width))
        self.register_buffer("running_mean_O", torch.zeros(groups * width))
        self.register_buffer("running_variance_O", torch.ones(groups * width))

    def forward(self, x_BGO: Tensor) -> Tensor:
        """Keeps the shape (B, G, O)."""
        normal_BO = nn.functional.batch_norm(
            x_BGO.flatten(1),
            self.running_mean_O,
            self.running_variance_O,
            training=self.training and len(x_BGO) > 1,
            momentum=MOMENTUM,
        )
        return normal_BO.view(x_BGO.shape) * self.scale_GO + self.bias_GO


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "swish": nn.functional.silu}
NORMS: dict[str, Callable[..., nn.Module] | None] = {"none": None, "layer": LayerNorm, "batch": BatchNorm}


class ExpertLayers(nn.Module):
    """Runs E multilayer perceptrons of one shape side by side; each layer: linear, norm, activation, dropout."""

    def __init__(
        self,
        *,
        experts: int,
        input_width: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        assert len(hidden) > 0
        widths = [input_width, *hidden]
        self.layers = nn.ModuleList(
            GroupedLinear(groups=experts, input_width=before, output_width=after) for before, after in pairwise(widths)
        )
        build = NORMS[norm]
        self.norms = nn.ModuleList(build(groups=experts, width=width) for width in hidden if build is not None)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), the same input for all experts, or (B, E, I), one each, to (B, E, O)."""
        return self.finish(self.first(x))

    @property
    def first(self) -> GroupedLinear:
        """The linear layer that reads the input."""
        layer = self.layers[0]
        assert isinstance(layer, GroupedLinear)
        return layer

    def finish(self, first_BEO: Tensor) -> Tensor:
        """Returns the output (B, E, O) from what the first linear layer gives, (B, E, its width)."""
        x = self._activated(first_BEO, 0)
        for depth, layer in enumerate(self.layers[1:], start=1):
            x = self._activated(layer(x), depth)
        return x

    def _activated(self, x: Tensor, depth: int) -> Tensor:
        if self.norms:
            x = self.norms[depth](x)
        return drop_units(self.activation(x), self.dropout, training=self.training)
