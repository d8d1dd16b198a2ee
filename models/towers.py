"""Task towers: from each task's representation to its logit.

Shapes: B batch, T task, D width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.layers import ExpertLayers, GroupedLinear


class TaskTowers(nn.Module):
    """Runs one multilayer perceptron a task, all at once; without hidden layers each tower is linear."""

    def __init__(self, *, tasks: int, input_width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = ExpertLayers(experts=tasks, input_width=input_width, hidden=hidden) if hidden else nn.Identity()
        self.output = GroupedLinear(groups=tasks, input_width=[input_width, *hidden][-1], output_width=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, D), or the same (B, D) for all tasks, to logits (B, T)."""
        logits_BT1: Tensor = self.output(self.layers(x))
        return logits_BT1.squeeze(-1)
