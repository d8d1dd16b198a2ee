"""Bodies between the input and the task towers: who shares what.

Shapes: B batch, T task, E expert, D width, G group (of a batched layer), I input width, O output width,
N gate (one a task, and one for the shared experts below the last level of PLE).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

SHARED_INPUT_DIMENSIONS = 2
"""Of an input (B, I) that all groups read; an input (B, G, I) has one a group."""


@dataclass(frozen=True, kw_only=True)
class BodySize:
    """Sizes of a body; each body reads those that it has."""

    input_width: int
    tasks: int
    """Number of outputs T."""
    hidden: Sequence[int]
    """Widths of an expert's layers; the last is the body's output width."""
    experts: int = 4
    """Experts that all tasks share (MMoE, PLE)."""
    task_experts: int = 2
    """Experts of each task alone (PLE)."""
    levels: int = 2
    """Extraction levels (PLE)."""
    dropout: float = 0.0
    """Share of an expert's activations dropped after each layer in training."""


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


class ExpertLayers(nn.Module):
    """Runs E multilayer perceptrons of one shape side by side, ReLU after each layer."""

    def __init__(self, *, experts: int, input_width: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        assert len(hidden) > 0
        widths = [input_width, *hidden]
        self.layers = nn.ModuleList(
            GroupedLinear(groups=experts, input_width=before, output_width=after) for before, after in pairwise(widths)
        )
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), the same input for all experts, or (B, E, I), one each, to (B, E, O)."""
        for layer in self.layers:
            x = nn.functional.dropout(torch.relu(layer(x)), self.dropout, self.training)
        return x


class SingleTask(nn.Module):
    """Gives each task a network of its own; with inputs of its own too, nothing is shared."""

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.networks = _experts(size, experts=size.tasks, input_width=size.input_width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), or one input a task (B, T, I), to (B, T, O)."""
        output_BTD: Tensor = self.networks(x)
        return output_BTD


class SharedBottom(nn.Module):
    """Gives all tasks the output of one network (Caruana 1997)."""

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.tasks = size.tasks
        self.network = _experts(size, experts=1, input_width=size.input_width)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, I) to (B, T, O)."""
        output_B1D: Tensor = self.network(x_BD)
        return output_B1D.expand(-1, self.tasks, -1)


class MMoE(nn.Module):
    """Mixes shared experts by one softmax gate a task (Ma et al. 2018, equations 6 and 7).

    The gates' linear layers have a bias, in PLE too, where the papers have none: it holds the mean mixture.
    """

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.experts = _experts(size, experts=size.experts, input_width=size.input_width)
        self.gate = GroupedLinear(groups=size.tasks, input_width=size.input_width, output_width=size.experts)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, I) to (B, T, O)."""
        (gates_BTE,) = self.gates(x_BD)
        return _mix(gates_BTE, self.experts(x_BD))

    def gates(self, x_BD: Tensor) -> list[Tensor]:
        """Returns the weight of each expert for each task: one tensor (B, T, E), rows that sum to 1."""
        return [self.gate(x_BD).softmax(-1)]


class ExtractionLevel(nn.Module):
    """Mixes, for each gate of one level of PLE, the experts that it may see (Tang et al. 2020, section 4.2).

    Experts are ordered task by task, the shared ones last. A task's gate sees its own experts and the shared
    ones; the shared gate, present when `gates` is one more than the tasks, sees all.
    """

    visible_NE: Tensor
    owner_E: Tensor

    def __init__(self, size: BodySize, *, input_width: int, gates: int) -> None:
        super().__init__()
        counts = torch.tensor([size.task_experts] * size.tasks + [size.experts])
        owner_E = torch.arange(size.tasks + 1).repeat_interleave(counts)
        gate_N1 = torch.arange(gates).unsqueeze(1)
        visible_NE = (owner_E == gate_N1) | (owner_E == size.tasks) | (gate_N1 == size.tasks)
        self.register_buffer("owner_E", owner_E, persistent=False)
        self.register_buffer("visible_NE", visible_NE, persistent=False)
        self.gate_count = gates
        self.experts = _experts(size, experts=len(owner_E), input_width=input_width)
        self.gate = GroupedLinear(groups=gates, input_width=input_width, output_width=len(owner_E))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), or (B, T + 1, I) from the level below, to (B, N, O)."""
        of_experts = x if x.dim() == SHARED_INPUT_DIMENSIONS else x.index_select(1, self.owner_E)
        return _mix(self.gates(x), self.experts(of_experts))

    def gates(self, x: Tensor) -> Tensor:
        """Returns each gate's weights of experts: (B, N, E), zero where the gate does not see the expert."""
        of_gates = x if x.dim() == SHARED_INPUT_DIMENSIONS else x[:, : self.gate_count]
        logits_BNE: Tensor = self.gate(of_gates)
        return logits_BNE.masked_fill(~self.visible_NE, -torch.inf).softmax(-1)


class PLE(nn.Module):
    """Extracts shared and task-specific knowledge level by level (Tang et al. 2020, section 4.3).

    Levels below the last have a gate a task and one for the shared experts; the last has only the task gates.
    """

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        last = size.levels - 1
        self.levels = nn.ModuleList(
            ExtractionLevel(
                size,
                input_width=size.hidden[-1] if level else size.input_width,
                gates=size.tasks + (level < last),
            )
            for level in range(size.levels)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, I) to (B, T, O)."""
        for level in self.levels:
            x_BD = level(x_BD)
        return x_BD

    def gates(self, x_BD: Tensor) -> list[Tensor]:
        """Returns each level's weights of experts: (B, N, E), zero where the gate does not see the expert."""
        weights = []
        for level in self.levels:
            assert isinstance(level, ExtractionLevel)
            weights.append(level.gates(x_BD))
            x_BD = level(x_BD)
        return weights


def _experts(size: BodySize, *, experts: int, input_width: int) -> ExpertLayers:
    return ExpertLayers(experts=experts, input_width=input_width, hidden=size.hidden, dropout=size.dropout)


def _mix(gates_BNE: Tensor, outputs_BED: Tensor) -> Tensor:
    return torch.bmm(gates_BNE, outputs_BED)


def input_groups(body: str, tasks: int) -> int:
    """Returns how many sets of embeddings a body reads: one for all tasks, or one a task."""
    return tasks if body == "single_task" else 1


BODIES: dict[str, Callable[[BodySize], nn.Module]] = {
    "single_task": SingleTask,
    "shared_embedding": SingleTask,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
}
