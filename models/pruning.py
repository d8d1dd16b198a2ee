"""Leave out the tasks that only training needs, and what serves them alone.

Shapes: G groups (of a batched layer), N gate, E expert, H inputs of a body.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.cross_stitch import CrossStitch
from models.experts import Body, MMoE, SharedBottom, SingleTask
from models.layers import GroupedLinear
from models.levels import Levels

BY_GATE_AND_EXPERT = ("visible_NE", "native_NE", "trained_NE")


def keep_tasks(body: Body, tasks: int) -> list[int]:
    """Cuts a body to its first tasks, in place, and returns the numbers of the inputs (H) that it still reads.

    The outputs of these tasks stay what they were. Of several levels the last is cut alone: the gate of the shared
    experts below it sees all experts. A body whose gates see the experts of all tasks (AdaTT, STEM) keeps them.
    """
    if isinstance(body, Levels):
        return _keep_tasks_of_levels(body, tasks)
    if isinstance(body, SingleTask):
        keep_groups(body.networks, torch.arange(tasks))
    elif isinstance(body, SharedBottom):
        body.tasks = tasks
    elif isinstance(body, CrossStitch):
        body.stitches[len(body.stitches) - 1] = _weight(body.stitches[-1][:tasks])
    else:
        _keep_gates(body, tasks)
    return list(range(tasks))


def keep_groups(module: nn.Module, kept_G: Tensor) -> None:
    """Cuts every layer of a module to some of its groups, in place; weights are replaced, not changed."""
    for layer in module.modules():
        weights = dict(layer.named_parameters(recurse=False))
        for name, buffer in layer.named_buffers(recurse=False):
            groups = len(next(iter(weights.values())))
            setattr(layer, name, buffer.view(groups, -1)[kept_G].flatten())
        for name, weight in weights.items():
            setattr(layer, name, _weight(weight[kept_G]))


def _keep_gates(body: MMoE, tasks: int) -> None:
    body.size = replace(body.size, tasks=tasks)
    if body.gate_count > 1:
        body.gate_count = tasks
        keep_groups(body.gate, torch.arange(tasks))
        body.visible_NE = body.visible_NE[:tasks]


def _keep_tasks_of_levels(body: Levels, tasks: int) -> list[int]:
    level = body.levels[-1]
    seen_E = level.get_buffer("visible_NE")[:tasks].any(0)
    kept_E, owner_E = seen_E.nonzero().squeeze(1), level.get_buffer("owner_E")
    for name in BY_GATE_AND_EXPERT:
        if hasattr(level, name):
            setattr(level, name, level.get_buffer(name)[:tasks][:, kept_E])
    keep_groups(level.get_submodule("experts"), kept_E)
    gate = level.get_submodule("gate")
    assert isinstance(gate, GroupedLinear)
    keep_groups(gate, torch.arange(tasks))
    gate.weight_GIO, gate.bias_GO = _weight(gate.weight_GIO[..., kept_E]), _weight(gate.bias_GO[:, kept_E])
    if len(body.levels) > 1:
        level.owner_E = owner_E[kept_E]
        return list(range(body.size.tasks + 1))
    inputs_H = torch.unique(torch.cat([owner_E[kept_E], torch.arange(tasks, device=owner_E.device)]))
    level.owner_E = torch.searchsorted(inputs_H, owner_E[kept_E])
    return _numbers(inputs_H)


def _numbers(inputs_H: Tensor) -> list[int]:
    return [int(number) for number in inputs_H]


def _weight(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def inputs_of(kept: Sequence[int], groups: int) -> list[int]:
    """Returns the inputs that are left of some number of them: the only one where all tasks read the same."""
    return [0] if groups == 1 else list(kept)
