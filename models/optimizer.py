"""Optimisers: row-sparse Adam for embedding tables, AdamW for everything else."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from models.row_adam import RowAdam


@dataclass(frozen=True)
class Optimizers:
    """Steps the embedding tables and the other weights together."""

    sparse: RowAdam
    dense: AdamW

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.sparse.zero_grad()
        self.dense.zero_grad()

    def step(self) -> None:
        """Updates the weights: all dense ones, and the rows of the tables that have a gradient."""
        self.sparse.step()
        self.dense.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns all that both have learned of their weights, by name."""
        parts = {"sparse": self.sparse, "dense": self.dense}
        return {f"{part}.{name}": value for part, one in parts.items() for name, value in state_tensors(one).items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state_tensors` gave of optimisers of the same module."""
        for part, one in {"sparse": self.sparse, "dense": self.dense}.items():
            load_state_tensors(one, under(part, tensors))


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns an optimiser's state by number of the weight and name, such as `0.exp_avg`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, weight in enumerate(weights)
        for name, value in optimizer.state.get(weight, {}).items()
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes up what `state_tensors` gave of an optimiser of the same weights."""
    weights = [(weight, group) for group in optimizer.param_groups for weight in group["params"]]
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        weight, group = weights[int(number)]
        # Steps are counted beside the weight where the update is one kernel, else on the CPU; RowAdam's is a number.
        device = weight.device if key != "step" or group.get("fused") else value.device
        whole = not value.is_floating_point() and value.dim() == 0
        optimizer.state[weight][key] = int(value) if whole else value.to(device, copy=True)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those whose names begin with a prefix and a dot, by the rest of their names."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def build_optimizers(
    module: nn.Module, *, learning_rate: float, embedding_learning_rate: float, weight_decay: float
) -> Optimizers:
    """Builds the optimisers of a module with at least one sparse embedding table.

    Weight decay applies to weights, not to biases, nor to the scales of norms, nor to tables, where it would depend
    on how often a row is seen.
    """
    tables = [layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding) and layer.sparse]
    in_tables = {id(table) for table in tables}
    named = [(name, weight) for name, weight in module.named_parameters() if id(weight) not in in_tables]
    decayed = [weight for name, weight in named if not _is_free(name)]
    free = [weight for name, weight in named if _is_free(name)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    fused = {weight.device.type for _, weight in named} <= {"cpu", "cuda"}
    return Optimizers(
        sparse=RowAdam(tables, learning_rate=embedding_learning_rate),
        dense=AdamW(groups, lr=learning_rate, fused=fused),
    )


def _is_free(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("bias", "scale"))
