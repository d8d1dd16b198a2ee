"""Embeddings of all categorical fields in one table.

Shapes: B batch, F fields, L sequence length, D width, N indices.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

PADDING = 0


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
        present_BF = ids_BF != PADDING
        embedded_BFD = nn.functional.embedding((ids_BF + offsets_F) * present_BF, self.table.weight, sparse=True)
        # The table's own padding_idx would copy the gradient without padding: 4 ms more at 4096 x 15 x 16.
        return embedded_BFD * present_BF.unsqueeze(-1)

    def pool(self, ids_BL: Tensor, *, field: int) -> Tensor:
        """Averages the embeddings of several ids of one field: (B, L) int64 to (B, D) float32.

        Padding is left out of the mean; a row of padding alone gives zeros.
        """
        assert _in_range(ids_BL, self.cardinalities_F[field])
        present_BL = ids_BL != PADDING
        share_BL = present_BL / present_BL.sum(1, keepdim=True).clamp(min=1)
        # Gather and product: 20 ms forward, backward, coalesced at 4096 x 50 x 16, half padding, one thread,
        # and 4 ms forward; nn.functional.embedding_bag 27 ms and 11 ms.
        embedded_BLD = nn.functional.embedding(
            (ids_BL + self.offsets_F[field]) * present_BL, self.table.weight, padding_idx=PADDING, sparse=True
        )
        return torch.bmm(share_BL.unsqueeze(1), embedded_BLD).squeeze(1)


def _in_range(ids: Tensor, cardinalities: Tensor) -> bool:
    # On an accelerator the answer would have to be waited for.
    return ids.device.type != "cpu" or bool(((ids >= 0) & (ids < cardinalities)).all())
