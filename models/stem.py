"""The level of STEM: gates that look at all experts and train their own, over embeddings of each task and shared ones.

Shapes: B batch, T task, N gate (one a task, and below the last level one for the shared experts), E expert, I input
width, O output width.
"""

import torch
from torch import Tensor, nn

from models.body import BodySize, build_experts, expert_owners, of_owners, weigh
from models.layers import FirstLayer, GroupedLinear


class STEMLevel(nn.Module):
    """Mixes all experts for each gate of one level, all forward and task-specific backward.

    A task's gate reads its own input plus the shared one, and passes no gradient to the experts of other tasks: it
    uses what they know without changing it. The shared gate reads the shared input and trains all experts. So with one
    level a task's loss trains its own and the shared embeddings and experts alone; with several also those of other
    tasks, through the shared gate. Source: Su et al. 2024 (AAAI), and the authors' code for the gates' inputs.
    """

    visible_NE: Tensor
    trained_NE: Tensor
    owner_E: Tensor

    def __init__(self, size: BodySize, *, input_width: int, gates: int) -> None:
        super().__init__()
        owner_E, gate_N1 = expert_owners(size), torch.arange(gates).unsqueeze(1)
        trained_NE = (owner_E == gate_N1) | (owner_E == size.tasks) | (gate_N1 == size.tasks)
        self.register_buffer("owner_E", owner_E, persistent=False)
        self.register_buffer("trained_NE", trained_NE, persistent=False)
        self.register_buffer("visible_NE", torch.ones_like(trained_NE), persistent=False)
        self.size = size
        self.experts = build_experts(size, experts=len(owner_E), input_width=input_width)
        self.gate = GroupedLinear(groups=gates, input_width=input_width, output_width=len(owner_E))

    def forward(self, x_BGI: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T + 1, I), the tasks' inputs and the shared one, to (B, N, O) and the gates' weights (B, N, E)."""
        tasks, gates = self.size.tasks, len(self.visible_NE)
        shared_B1I = x_BGI[:, tasks:]
        of_gates_BNI = torch.cat([x_BGI[:, :tasks] + shared_B1I, shared_B1I], dim=1)[:, :gates]
        gates_BNE = weigh(self.gate(of_gates_BNI), self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts(of_owners(x_BGI, self.owner_E)))

    def first_layers(self) -> list[FirstLayer]:
        """Returns the experts' first layer and the gates."""
        tasks, experts = self.size.tasks, FirstLayer(self.experts.first, [[owner] for owner in self.owner_E.tolist()])
        reads = [[gate, tasks] if gate < tasks else [tasks] for gate in range(len(self.visible_NE))]
        return [experts, FirstLayer(self.gate, reads)]

    def finish(self, first_BEO: Tensor, logits_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` does from what the first layers give."""
        gates_BNE = weigh(logits_BNE, self.visible_NE, self.size, training=self.training)
        return self._mixed(gates_BNE, self.experts.finish(first_BEO))

    def _mixed(self, gates_BNE: Tensor, outputs_BED: Tensor) -> tuple[Tensor, Tensor]:
        trained_BND = torch.bmm(gates_BNE * self.trained_NE, outputs_BED)
        return trained_BND + torch.bmm(gates_BNE * ~self.trained_NE, outputs_BED.detach()), gates_BNE
