"""Batched task towers against one torch network a task."""

import pytest
import torch
from torch import nn

from models.layers import GroupedLinear
from models.towers import TaskTowers


@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
def test_each_tower_equals_a_network_of_its_own(hidden: tuple[int, ...]) -> None:
    towers = TaskTowers(tasks=3, input_width=4, hidden=hidden)
    for weight in towers.parameters():
        nn.init.normal_(weight)
    x_BTD = torch.randn(10, 3, 4)
    logits_BT = towers(x_BTD)
    assert logits_BT.shape == (10, 3)

    grouped = [layer for layer in towers.modules() if isinstance(layer, GroupedLinear)]
    assert len(grouped) == len(hidden) + 1
    for task in range(3):
        out_BD = x_BTD[:, task]
        for depth, layer in enumerate(grouped):
            out_BD = nn.functional.linear(out_BD, layer.weight_GIO[task].T, layer.bias_GO[task])
            out_BD = torch.relu(out_BD) if depth < len(hidden) else out_BD
        torch.testing.assert_close(logits_BT[:, task], out_BD.squeeze(-1))
