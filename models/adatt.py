"""The level of adaptive task-to-task fusion: each task mixes the experts of all tasks and adds its own.

Shapes: B batch, T task, N gate (one a task, and below the last level one for the shared experts), E expert, I input
width, O output width.
"""

import math

import torch
from torch import Tensor, nn

from models.body import BodySize, build_experts, expert_owners, of_gates, of_owners, weigh
from models.gating import mix
from models.layers import FirstLayer, GroupedLinear


class FusionLevel(nn.Module):
    """Adds, for each gate of one level of AdaTT, a gated mixture of all experts and one of its native experts.

    The first (AllExpertGF) depends on the input; the second (NativeExpertLF) is a learned linear combination, or the
    expert itself where a task has one alone. Without shared experts it is the paper's AdaTT-sp. Source: Li et al.
    2023 (KDD), and the authors' code for the initial weights.
    """

    visible_NE: Tensor
    owner_E: Tensor
    native_NE: Tensor
    learned_E: Tensor

    def __init__(self, size: BodySize, *, input_width: int, gates: int) -> None:
        super().__init__()
        owner_E = expert_owners(size)
        native_NE = owner_E == torch.arange(gates).unsqueeze(1)
        count_E = torch.bincount(owner_E)[owner_E]
        learned_E = native_NE.any(0) & (count_E > 1)
        self.register_buffer("owner_E", owner_E, persistent=False)
        self.register_buffer("native_NE", native_NE, persistent=False)
        self.register_buffer("learned_E", learned_E, persistent=False)
        self.register_buffer("visible_NE", torch.ones_like(native_NE), persistent=False)
        self.size = size
        self.experts = build_experts(size, experts=len(owner_E), input_width=input_width)
        self.gate = GroupedLinear(groups=gates, input_width=input_width, output_width=len(owner_E))
        bounds = [math.sqrt(1 / count) for count in count_E[learned_E].tolist()]
        self.native_weight = nn.Parameter((2 * torch.rand(len(bounds)) - 1) * torch.tensor(bounds))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, I), or (B, T + 1, I) from the level below, to (B, N, O) and the gated weights (B, N, E)."""
        logits_BNE = self.gate(of_gates(x, len(self.visible_NE)))
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts(of_owners(x, self.owner_E)))

    def first_layers(self) -> list[FirstLayer]:
        """Returns the experts' first layer and the gates."""
        experts = FirstLayer(self.experts.first, [[owner] for owner in self.owner_E.tolist()])
        return [experts, FirstLayer(self.gate, [[gate] for gate in range(len(self.visible_NE))])]

    def finish(self, first_BEO: Tensor, logits_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` does from what the first layers give."""
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts.finish(first_BEO))

    def _mixed(self, gates_BNE: Tensor, outputs_BEO: Tensor) -> tuple[Tensor, Tensor]:
        ones_E = torch.ones_like(self.learned_E, dtype=self.native_weight.dtype)
        native_E = ones_E.masked_scatter(self.learned_E, self.native_weight)
        mixture_BNE = gates_BNE + self.native_NE * native_E
        return mix(mixture_BNE, outputs_BEO), gates_BNE
