"""What all bodies have in common: their sizes, their experts and whose each expert is.

Shapes: B batch, T task, E expert, I input width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.gating import gate_weights
from models.layers import ACTIVATIONS, NORMS, SHARED_INPUT_DIMENSIONS, ExpertLayers

SHARED = "shared"


@dataclass(frozen=True, kw_only=True)
class BodySize:
    """Sizes and options of a body; each body reads those that it has."""

    input_width: int
    tasks: int
    """Number of outputs T."""
    hidden: Sequence[int]
    """Widths of an expert's layers; the last is the body's output width."""
    experts: int = 4
    """Experts that all tasks share (MoE, MMoE, CGC, PLE, AdaTT, STEM); AdaTT may have none."""
    task_experts: int = 2
    """Experts of each task alone (CGC, PLE, AdaTT, STEM)."""
    levels: int = 2
    """Levels of experts (PLE, AdaTT, STEM); CGC has one whatever this says."""
    dropout: float = 0.0
    """Share of an expert's activations dropped after each layer in training."""
    expert_activation: str = "relu"
    """relu or swish."""
    expert_norm: str = "none"
    """none, layer or batch: normalises before each activation."""
    gate_dropout: float = 0.0
    """Probability that a gate loses an expert in training."""
    gate_temperature: float = 1.0
    """Divides a gate's logits."""


def check_size(size: BodySize) -> None:
    """Raises ValueError for options that no body can have."""
    for name, value, known in (
        ("expert_activation", size.expert_activation, ACTIVATIONS),
        ("expert_norm", size.expert_norm, NORMS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {list(known)}")
    if not size.hidden:
        raise ValueError("hidden is empty, expected the width of at least one layer, such as (128, 64)")
    if not 0 <= size.gate_dropout < 1:
        raise ValueError(f"gate_dropout is {size.gate_dropout}, expected a probability from 0 to below 1, such as 0.1")
    if not size.gate_temperature > 0:
        raise ValueError(f"gate_temperature is {size.gate_temperature}, expected a number above 0: 1 changes nothing")


def build_experts(
    size: BodySize, *, experts: int, input_width: int, hidden: Sequence[int] | None = None
) -> ExpertLayers:
    """Builds experts with the options of a body; `hidden` replaces the widths of its layers."""
    return ExpertLayers(
        experts=experts,
        input_width=input_width,
        hidden=size.hidden if hidden is None else hidden,
        dropout=size.dropout,
        activation=size.expert_activation,
        norm=size.expert_norm,
    )


def weigh(logits_BNE: Tensor, visible_NE: Tensor, size: BodySize, *, training: bool) -> Tensor:
    """Returns the gates' weights of experts with the options of a body: (B, N, E)."""
    return gate_weights(
        logits_BNE,
        visible_NE=visible_NE,
        temperature=size.gate_temperature,
        dropout=size.gate_dropout,
        training=training,
    )


def expert_owners(size: BodySize) -> Tensor:
    """Returns the task of each expert, T for the shared ones: (E) int64, task by task, the shared ones last."""
    counts = torch.tensor([size.task_experts] * size.tasks + [size.experts])
    return torch.arange(size.tasks + 1).repeat_interleave(counts)


def of_owners(x: Tensor, owner_E: Tensor) -> Tensor:
    """Gives each expert its owner's input: (B, T + 1, I) to (B, E, I); an input (B, I) of all stays as it is."""
    return x if x.dim() == SHARED_INPUT_DIMENSIONS else x.index_select(1, owner_E)


def of_gates(x: Tensor, gates: int) -> Tensor:
    """Gives each gate its own input: (B, T + 1, I) to (B, N, I); an input (B, I) of all stays as it is."""
    return x if x.dim() == SHARED_INPUT_DIMENSIONS else x[:, :gates]


def expert_names(size: BodySize, tasks: Sequence[str]) -> list[str]:
    """Names experts by owner and number, in the order of `expert_owners`."""
    assert len(tasks) == size.tasks, tasks
    own = [f"{task} {number + 1}" for task in tasks for number in range(size.task_experts)]
    return own + shared_names(size)


def shared_names(size: BodySize) -> list[str]:
    """Names the experts that all tasks share."""
    return [f"{SHARED} {number + 1}" for number in range(size.experts)]
