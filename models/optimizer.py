"""Optimisers: row-sparse Adam for embedding tables, AdamW for everything else."""

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, SparseAdam


@dataclass(frozen=True)
class Optimizers:
    """Steps the embedding tables and the other weights together."""

    sparse: SparseAdam
    dense: AdamW

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.sparse.zero_grad()
        self.dense.zero_grad()

    def step(self) -> None:
        """Updates the weights: all dense ones, and the rows of the tables that have a gradient."""
        self.sparse.step()  # type: ignore[no-untyped-call]
        self.dense.step()


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
        sparse=SparseAdam(tables, lr=embedding_learning_rate),
        dense=AdamW(groups, lr=learning_rate, fused=fused),
    )


def _is_free(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("bias", "scale"))
