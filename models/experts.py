"""Bodies between the input and the task towers: who shares what.

Shapes: B batch, T task, N gate, E expert, D width, I input width, O output width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from models.adatt import FusionLevel
from models.body import BodySize, build_experts, shared_names, weigh
from models.cross_stitch import CrossStitch
from models.extraction import ExtractionLevel
from models.gating import GateLevel, mix
from models.layers import FirstLayer, GroupedLinear
from models.levels import Levels
from models.stem import STEMLevel


class SingleTask(nn.Module):
    """Gives each task a network of its own; with inputs of its own too, nothing is shared."""

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.networks = build_experts(size, experts=size.tasks, input_width=size.input_width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), or one input a task (B, T, I), to (B, T, O)."""
        output_BTD: Tensor = self.networks(x)
        return output_BTD

    def first_layers(self) -> list[FirstLayer]:
        """Returns the one layer that reads the input."""
        first = self.networks.first
        return [FirstLayer(first, [[task] for task in range(len(first.weight_GIO))])]

    def finish(self, firsts: Sequence[Tensor]) -> Tensor:
        """Returns the output (B, T, O) from what the first layer gives, (B, T, its width)."""
        return self.networks.finish(firsts[0])


class SharedBottom(nn.Module):
    """Gives all tasks the output of one network (Caruana 1997)."""

    def __init__(self, size: BodySize) -> None:
        super().__init__()
        self.tasks = size.tasks
        self.network = build_experts(size, experts=1, input_width=size.input_width)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, I) to (B, T, O)."""
        output_B1D: Tensor = self.network(x_BD)
        return output_B1D.expand(-1, self.tasks, -1)

    def first_layers(self) -> list[FirstLayer]:
        """Returns the one layer that reads the input."""
        return [FirstLayer(self.network.first, [[0]])]

    def finish(self, firsts: Sequence[Tensor]) -> Tensor:
        """Returns the output (B, T, O) from what the first layer gives, (B, 1, its width)."""
        return self.network.finish(firsts[0]).expand(-1, self.tasks, -1)


class MMoE(nn.Module):
    """Mixes shared experts by one softmax gate a task (Ma et al. 2018, equations 6 and 7).

    With `gates` = 1 one gate serves all tasks: the mixture of experts of equation 5, which the paper calls OMoE, the
    dense form of Shazeer et al. 2017, equation 1. The gates' linear layers have a bias, in the other bodies too,
    where the papers have none: it holds the mean mixture.
    """

    visible_NE: Tensor

    def __init__(self, size: BodySize, *, gates: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.gate_count = size.tasks if gates is None else gates
        assert self.gate_count in {1, size.tasks}, gates
        self.experts = build_experts(size, experts=size.experts, input_width=size.input_width)
        self.gate = GroupedLinear(groups=self.gate_count, input_width=size.input_width, output_width=size.experts)
        visible_NE = torch.ones(self.gate_count, size.experts, dtype=torch.bool)
        self.register_buffer("visible_NE", visible_NE, persistent=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, I) to (B, T, O)."""
        return self.forward_with_gates(x_BD)[0]

    def forward_with_gates(self, x_BD: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the output beside the weight of each expert in each gate: one tensor (B, N, E)."""
        gates_BNE = weigh(self.gate(x_BD), self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts(x_BD)), [gates_BNE]

    def first_layers(self) -> list[FirstLayer]:
        """Returns the experts' first layer and the gates."""
        return [FirstLayer(part, [[0]] * len(part.weight_GIO)) for part in (self.experts.first, self.gate)]

    def finish(self, firsts: Sequence[Tensor]) -> Tensor:
        """Returns the output (B, T, O) from what the first layers give, (B, G, width) each."""
        first_BEO, logits_BNE = firsts
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts.finish(first_BEO))

    def _mixed(self, gates_BNE: Tensor, outputs_BED: Tensor) -> Tensor:
        return mix(gates_BNE, outputs_BED).expand(-1, self.size.tasks, -1)

    def gate_levels(self, tasks: Sequence[str]) -> list[GateLevel]:
        """Names the gates and the experts of the one level."""
        assert len(tasks) == self.size.tasks, tasks
        gates = list(tasks) if self.gate_count == len(tasks) else ["all tasks"]
        return [GateLevel(gates, shared_names(self.size), self.visible_NE)]


def input_groups(body: str, tasks: int, *, task_embeddings: bool) -> int:
    """Returns how many sets of embeddings a body reads: one for all tasks, one a task, or one more that is shared.

    Bodies with experts of each task (CGC, PLE, AdaTT) read the last where they are asked to, STEM always.
    """
    if body == "single_task":
        return tasks
    apart = body == "stem" or (task_embeddings and body in {"cgc", "ple", "adatt"})
    return tasks + 1 if apart else 1


def _customized_gate_control(size: BodySize) -> Levels:
    return Levels(replace(size, levels=1), level=ExtractionLevel)


GatedBody = MMoE | Levels
Body = SingleTask | SharedBottom | CrossStitch | GatedBody
BODIES: dict[str, Callable[[BodySize], Body]] = {
    "single_task": SingleTask,
    "shared_embedding": SingleTask,
    "shared_bottom": SharedBottom,
    "cross_stitch": CrossStitch,
    "moe": partial(MMoE, gates=1),
    "mmoe": MMoE,
    "cgc": _customized_gate_control,
    "ple": partial(Levels, level=ExtractionLevel),
    "adatt": partial(Levels, level=FusionLevel),
    "stem": partial(Levels, level=STEMLevel),
}
"""`cgc` is PLE with one level, whatever the size's levels say."""
WITH_SHARED_EXPERTS = ("moe", "mmoe", "cgc", "ple", "stem")
"""Bodies that need at least one shared expert."""
