"""MMoE and PLE in torch's own layers, expert by expert, as one writes them above a library of embeddings.

Shapes: B batch, I input width, T task, D width.
"""

import torch
from torch import Tensor, nn

from benchmarks.training_workload import HIDDEN, INPUT, LEVELS, SHARED_EXPERTS, SPECIFIC_EXPERTS, TASKS, TOWER


def _network(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def _towers() -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(_network(HIDDEN[-1], TOWER), nn.Linear(TOWER[-1], 1)) for _ in range(TASKS))


def _mix(gate: nn.Module, x_BI: Tensor, experts: list[Tensor]) -> Tensor:
    weights_B1E = gate(x_BI).softmax(-1).unsqueeze(1)
    return torch.bmm(weights_B1E, torch.stack(experts, 1)).squeeze(1)


class PlainMMoE(nn.Module):
    """One gate a task over shared experts."""

    def __init__(self) -> None:
        super().__init__()
        count = SHARED_EXPERTS["mmoe"]
        self.experts = nn.ModuleList(_network(INPUT, HIDDEN) for _ in range(count))
        self.gates = nn.ModuleList(nn.Linear(INPUT, count) for _ in range(TASKS))
        self.towers = _towers()

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return logits (B, T)."""
        experts = [expert(x_BI) for expert in self.experts]
        mixed = [_mix(gate, x_BI, experts) for gate in self.gates]
        return torch.cat([tower(x_BD) for tower, x_BD in zip(self.towers, mixed, strict=True)], dim=1)


class PlainLevel(nn.Module):
    """Experts of each task and shared ones; below the last level with a gate of the shared ones."""

    def __init__(self, width: int, *, gates: int) -> None:
        super().__init__()
        own, shared = SPECIFIC_EXPERTS["ple"], SHARED_EXPERTS["ple"]
        counts = [own] * TASKS + [shared]
        self.experts = nn.ModuleList(nn.ModuleList(_network(width, HIDDEN) for _ in range(count)) for count in counts)
        seen = [own + shared] * TASKS + [own * TASKS + shared]
        self.gates = nn.ModuleList(nn.Linear(width, count) for count in seen[:gates])

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Map one input a task and a shared one to as many as there are gates."""
        outputs = [[expert(x) for expert in part] for part, x in zip(self.experts, inputs, strict=True)]
        everything = [one for part in outputs for one in part]
        visible = [outputs[task] + outputs[-1] for task in range(TASKS)] + [everything]
        return [_mix(gate, x, experts) for gate, x, experts in zip(self.gates, inputs, visible, strict=False)]


class PlainPLE(nn.Module):
    """Levels of experts, then a tower a task."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            PlainLevel(HIDDEN[-1] if depth else INPUT, gates=TASKS + (depth < LEVELS - 1)) for depth in range(LEVELS)
        )
        self.towers = _towers()

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return logits (B, T)."""
        inputs = [x_BI] * (TASKS + 1)
        for level in self.levels:
            inputs = level(inputs)
        return torch.cat([tower(x_BD) for tower, x_BD in zip(self.towers, inputs, strict=True)], dim=1)
