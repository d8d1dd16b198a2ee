"""The encoded columns of a batch, and the layer that turns chosen ones into vectors.

Shapes: B batch, F columns of one kind, G groups, L sequence length, D width.
"""

import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.attention import TargetAttention
from models.embedding import FusedEmbedding
from models.numeric import NUMERIC_ENCODINGS, NumericSize


@dataclass(frozen=True)
class Features:
    """Encoded columns of B rows, in the order that the model's spec names them."""

    ids_BF: Tensor
    """Single-valued categorical columns, int64."""
    positions_BF: Tensor
    """Numeric columns as coordinates on their quantile knots, float32."""
    pooled: dict[str, Tensor] = field(default_factory=dict)
    """Multi-valued columns by name, each (B, L) int64 padded with 0."""

    def __len__(self) -> int:
        return len(self.ids_BF)

    def slice(self, rows: builtins.slice | Tensor) -> "Features":
        """Selects rows by a slice (without copying) or by an int64 tensor of row numbers."""
        pooled = {name: ids_BL[rows] for name, ids_BL in self.pooled.items()}
        return Features(self.ids_BF[rows], self.positions_BF[rows], pooled)

    def to(self, device: torch.device) -> "Features":
        """Moves all columns to a device."""
        pooled = {name: ids_BL.to(device) for name, ids_BL in self.pooled.items()}
        return Features(self.ids_BF.to(device), self.positions_BF.to(device), pooled)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns a layer reads, and the field of the embedding table of each."""

    single: Mapping[int, int]
    """Column of `ids_BF` to field."""
    numeric: Sequence[int]
    """Columns of `positions_BF`."""
    pooled: Mapping[str, int]
    """Name of a multi-valued column to field."""
    attended: Sequence[str] = ()
    """The columns of `pooled` that are weighted by the candidate; the others are averaged."""
    target: int | None = None
    """Column of `ids_BF` that is the candidate; needed where columns are attended."""


class InputLayer(nn.Module):
    """Concatenates the embeddings of chosen columns: single-valued, then pooled, then numeric.

    With several groups each has embeddings, curves and attention of its own, so that a task can have its own: the
    table is `groups` times as wide. The embedding table belongs to the caller, since layers share it.
    """

    columns_F: Tensor
    fields_F: Tensor
    numeric_F: Tensor

    def __init__(self, columns: Columns, *, numeric: NumericSize, embedding_width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.embedding_width = embedding_width
        self.kept = list(range(groups))
        self.pooled = dict(columns.pooled)
        self.register_buffer("columns_F", _indices(columns.single.keys()), persistent=False)
        self.register_buffer("fields_F", _indices(columns.single.values()), persistent=False)
        self.register_buffer("numeric_F", _indices(columns.numeric), persistent=False)
        self.numeric = NUMERIC_ENCODINGS[numeric.encoding](numeric, features=len(columns.numeric), groups=groups)
        self.attention = nn.ModuleDict(
            {
                name: TargetAttention(field=columns.pooled[name], groups=groups, width=embedding_width)
                for name in columns.attended
            }
        )
        self.target = list(columns.single).index(columns.target) if columns.target is not None else None
        embeddings = len(columns.single) + len(columns.pooled)
        self.width = embeddings * embedding_width + len(columns.numeric) * numeric.width

    def attention_to(self, name: str) -> TargetAttention:
        """Returns the layer that weighs a sequence by the candidate."""
        layer = self.attention[name]
        assert isinstance(layer, TargetAttention), name
        return layer

    def keep(self, groups: Sequence[int]) -> None:
        """Leaves all groups but some out of the output."""
        self.kept = list(groups)

    def forward(self, features: Features, table: FusedEmbedding) -> Tensor:
        """Returns the concatenation: (B, width) float32, with several groups (B, G, width), G those that are kept."""
        single_BFD = table(features.ids_BF.index_select(1, self.columns_F), fields=self.fields_F)
        pooled = [self._pooled(features.pooled[name], name, single_BFD, table).unsqueeze(1) for name in self.pooled]
        numeric_BFD = self.numeric(features.positions_BF.index_select(1, self.numeric_F))
        parts = [self.of_groups(part_BFD) for part_BFD in (single_BFD, *pooled, numeric_BFD)]
        return torch.cat(parts, dim=-1)

    def _pooled(self, ids_BL: Tensor, name: str, single_BFD: Tensor, table: FusedEmbedding) -> Tensor:
        if name not in self.attention:
            return table.pool(ids_BL, field=self.pooled[name])
        assert self.target is not None, name
        pooled_BD: Tensor = self.attention_to(name)(ids_BL, single_BFD[:, self.target], table)
        return pooled_BD

    def of_groups(self, part_BFD: Tensor) -> Tensor:
        """Lays columns side by side: (B, F, G x D) to (B, F x D), or to (B, G, F x D)."""
        if self.groups == 1:
            return part_BFD.flatten(1)
        rows, columns, width = part_BFD.shape
        of_group_BFGD = part_BFD.view(rows, columns, self.groups, width // self.groups)
        of_group_BGFD = of_group_BFGD.transpose(1, 2)
        if len(self.kept) < self.groups:
            # One copy, as flatten makes of all groups; an index with a list of groups is 5 times slower.
            of_group_BGFD = torch.cat([of_group_BGFD[:, group : group + 1] for group in self.kept], dim=1)
        return of_group_BGFD.flatten(2)


def check_fields(names: Iterable[str], cardinalities: Mapping[str, int]) -> None:
    """Raises ValueError for a field that is not in the embedding table."""
    if strangers := sorted(set(names) - set(cardinalities)):
        raise ValueError(
            f"fields {strangers} have no cardinality, expected some of {list(cardinalities)}: "
            "add them to categorical_cardinalities"
        )


def _indices(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64)
