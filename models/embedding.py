"""Embeddings of all categorical fields in one table.

Shapes: B batch, F fields, L sequence length, D width, R rows of the table, N lookups.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from models.rows import gather

PADDING = 0


class Lookup(torch.autograd.Function):
    """Gathers rows of a table with a row-sparse gradient that leaves out the row of padding.

    Unlike nn.functional.embedding's, a gradient without padding is handed on as it is, without a copy.
    """

    @staticmethod
    def forward(context: Any, table_RD: Tensor, rows: Tensor) -> Tensor:
        """Maps row numbers of any shape to their vectors, (..., D)."""
        context.save_for_backward(rows)
        context.table_shape = table_RD.shape
        return gather(table_RD, rows.flatten()).view(*rows.shape, table_RD.shape[1])

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Returns the gradient of the table."""
        (rows,) = context.saved_tensors
        rows_N, gradient_ND = rows.flatten(), gradients[0].reshape(-1, context.table_shape[1])
        is_present_N = rows_N != PADDING
        if not bool(is_present_N.all()):
            kept_N = is_present_N.nonzero().squeeze(1)
            rows_N, gradient_ND = rows_N.index_select(0, kept_N), gather(gradient_ND, kept_N)
        table_gradient_RD = torch.sparse_coo_tensor(
            rows_N.unsqueeze(0), gradient_ND, context.table_shape, check_invariants=False
        )
        return table_gradient_RD, None


def look_up(table: nn.Embedding, rows: Tensor) -> Tensor:
    """Returns rows of a table by their numbers: (..., D), with a row-sparse gradient."""
    found: Tensor = Lookup.apply(table.weight, rows)  # type: ignore[no-untyped-call]
    return found


class FusedEmbedding(nn.Module):
    """Looks up the ids of every field in one table with row-sparse gradients.

    Ids: 0 padding, 1 missing, 2 unseen, 3.. known. All fields share row 0, which is zero and stays zero.
    An id out of its field's range would read another field's row: it fails an assertion on CPU.
    """

    offsets_F: Tensor
    cardinalities_F: Tensor

    def __init__(self, *, cardinalities: Sequence[int], width: int) -> None:
        super().__init__()
        assert min(cardinalities, default=1) >= 1, cardinalities
        # Field f's ids 1.. follow the rows of the fields before it; the padding id has no row of its own.
        offsets = list(accumulate((count - 1 for count in cardinalities), initial=0))
        self.register_buffer("offsets_F", torch.tensor(offsets[:-1], dtype=torch.int64), persistent=False)
        self.register_buffer("cardinalities_F", torch.tensor(list(cardinalities), dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(offsets[-1] + 1, width, sparse=True)
        nn.init.normal_(self.table.weight, std=0.01)
        with torch.no_grad():
            self.table.weight[PADDING].zero_()

    def forward(self, ids_BF: Tensor, *, fields: Tensor | None = None) -> Tensor:
        """Embeds one id a field: (B, F) int64 to (B, F, D) float32.

        `fields` (F, int64) names the field of each column; by default the columns are all fields in order.
        """
        offsets_F = self.offsets_F if fields is None else self.offsets_F[fields]
        cardinalities_F = self.cardinalities_F if fields is None else self.cardinalities_F[fields]
        assert _in_range(ids_BF, cardinalities_F)
        return look_up(self.table, (ids_BF + offsets_F) * (ids_BF != PADDING))

    def pool(self, ids_BL: Tensor, *, field: int) -> Tensor:
        """Averages the embeddings of several ids of one field: (B, L) int64 to (B, D) float32.

        Padding is left out of the mean; a row of padding alone gives zeros.
        """
        assert _in_range(ids_BL, self.cardinalities_F[field])
        present_BL = ids_BL != PADDING
        share_BL = present_BL / present_BL.sum(1, keepdim=True).clamp(min=1)
        embedded_BLD = look_up(self.table, (ids_BL + self.offsets_F[field]) * present_BL)
        return torch.bmm(share_BL.unsqueeze(1), embedded_BLD).squeeze(1)


def _in_range(ids: Tensor, cardinalities: Tensor) -> bool:
    # On an accelerator the answer would have to be waited for.
    return ids.device.type != "cpu" or bool(((ids >= 0) & (ids < cardinalities)).all())
