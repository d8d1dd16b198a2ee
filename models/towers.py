"""Task towers: from each task's representation to its logit.

Shapes: B batch, T task, D width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.layers import ExpertLayers, FirstLayer, GroupedLinear


class TaskTowers(nn.Module):
    """Runs one multilayer perceptron a task, all at once; without hidden layers each tower is linear."""

    def __init__(self, *, tasks: int, input_width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = ExpertLayers(experts=tasks, input_width=input_width, hidden=hidden) if hidden else nn.Identity()
        self.output = GroupedLinear(groups=tasks, input_width=[input_width, *hidden][-1], output_width=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, D), or the same (B, D) for all tasks, to logits (B, T)."""
        return self._logits(self.layers(x))

    def first_layer(self) -> FirstLayer:
        """Returns the layer that reads the input, of towers that have hidden layers."""
        assert isinstance(self.layers, ExpertLayers)
        return FirstLayer(self.layers.first, [[task] for task in range(len(self.layers.first.weight_GIO))])

    def finish(self, first_BTD: Tensor) -> Tensor:
        """Returns the logits (B, T) from what the first layer gives, (B, T, its width)."""
        assert isinstance(self.layers, ExpertLayers)
        return self._logits(self.layers.finish(first_BTD))

    def _logits(self, x: Tensor) -> Tensor:
        logits_BT1: Tensor = self.output(x)
        return logits_BT1.squeeze(-1)
