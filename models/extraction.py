"""The level of progressive layered extraction: experts of each task and shared ones.

Shapes: B batch, T task, N gate (one a task, and below the last level one for the shared experts), E expert, I input
width, O output width.
"""

import torch
from torch import Tensor, nn

from models.body import BodySize, build_experts, expert_owners, of_gates, of_owners, weigh
from models.gating import mix
from models.layers import FirstLayer, GroupedLinear


class ExtractionLevel(nn.Module):
    """Mixes, for each gate of one level of PLE, the experts that it may see (Tang et al. 2020, section 4.2).

    Experts are ordered task by task, the shared ones last. A task's gate sees its own experts and the shared
    ones; the shared gate, present when `gates` is one more than the tasks, sees all.
    """

    visible_NE: Tensor
    owner_E: Tensor

    def __init__(self, size: BodySize, *, input_width: int, gates: int) -> None:
        super().__init__()
        owner_E, gate_N1 = expert_owners(size), torch.arange(gates).unsqueeze(1)
        visible_NE = (owner_E == gate_N1) | (owner_E == size.tasks) | (gate_N1 == size.tasks)
        self.register_buffer("owner_E", owner_E, persistent=False)
        self.register_buffer("visible_NE", visible_NE, persistent=False)
        self.size = size
        self.experts = build_experts(size, experts=len(owner_E), input_width=input_width)
        self.gate = GroupedLinear(groups=gates, input_width=input_width, output_width=len(owner_E))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, I), or (B, T + 1, I) from the level below, to (B, N, O) and the gates' weights (B, N, E)."""
        logits_BNE = self.gate(of_gates(x, len(self.visible_NE)))
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return mix(gates_BNE, self.experts(of_owners(x, self.owner_E))), gates_BNE

    def first_layers(self) -> list[FirstLayer]:
        """Returns the experts' first layer and the gates."""
        experts = FirstLayer(self.experts.first, [[owner] for owner in self.owner_E.tolist()])
        return [experts, FirstLayer(self.gate, [[gate] for gate in range(len(self.visible_NE))])]

    def finish(self, first_BEO: Tensor, logits_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` does from what the first layers give."""
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return mix(gates_BNE, self.experts.finish(first_BEO)), gates_BNE
