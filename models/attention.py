"""Target attention: what a user did before, weighted by what the candidate is.

Shapes: B batch, L sequence length, G groups, D width, R present ids of all sequences, U users, N pairs of a user and a
candidate, P present ids of all pairs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.embedding import PADDING, FusedEmbedding
from models.layers import GroupedLinear

UNIT_HIDDEN_WIDTH = 36


class ActivationUnit(nn.Module):
    """Weighs an item of a sequence by a candidate, in each group on its own.

    A network with one hidden layer of 36 (ReLU) reads the item, the candidate, their difference and their
    element-wise product: Zhou et al. 2018, section 4.3 and figure 2, which speaks of an outer product; difference
    and element-wise product are those of the authors' code.
    """

    def __init__(self, *, groups: int, width: int) -> None:
        super().__init__()
        self.hidden = GroupedLinear(groups=groups, input_width=4 * width, output_width=UNIT_HIDDEN_WIDTH)
        self.output = GroupedLinear(groups=groups, input_width=UNIT_HIDDEN_WIDTH, output_width=1)
        # Begins as sum pooling: with embeddings near zero, weights near zero would leave both without gradient.
        nn.init.ones_(self.output.bias_GO)

    def forward(self, item_RGD: Tensor, candidate_RGD: Tensor) -> Tensor:
        """Returns one weight a row and group, of any sign and size: (R, G, 1)."""
        parts = [item_RGD, candidate_RGD, item_RGD - candidate_RGD, item_RGD * candidate_RGD]
        weight_RG1: Tensor = self.output(torch.relu(self.hidden(torch.cat(parts, dim=-1))))
        return weight_RG1


class TargetAttention(nn.Module):
    """Sums the embeddings of a sequence, weighted by the candidate (DIN, Zhou et al. 2018, equation 3).

    The weights are not normalised, as in the paper, so that more of what resembles the candidate gives more. The
    activation unit runs on the ids that are present and on no padding.
    """

    field_1: Tensor

    def __init__(self, *, field: int, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.unit = ActivationUnit(groups=groups, width=width)
        self.register_buffer("field_1", torch.tensor([field]), persistent=False)

    def forward(self, ids_BL: Tensor, candidate_BW: Tensor, table: FusedEmbedding) -> Tensor:
        """Maps ids (B, L) int64, 0 where absent, and candidates (B, G x D) to (B, G x D); no ids give zeros."""
        present_BL = ids_BL != PADDING
        rows_R = present_BL.nonzero()[:, 0]
        return self._weighted(self._items(ids_BL[present_BL], table), rows_R, candidate_BW)

    def of_pairs(self, ids_UL: Tensor, user_N: Tensor, candidate_NW: Tensor, table: FusedEmbedding) -> Tensor:
        """Returns what `forward` does of `ids_UL[user_N]`, with the ids of a user looked up once: (N, G x D)."""
        present_UL = ids_UL != PADDING
        count_N, end_U = present_UL.sum(1)[user_N], present_UL.sum(1).cumsum(0)
        pair_P = torch.arange(len(user_N)).repeat_interleave(count_N)
        # An id's place among those of its user, behind those of the users before.
        place_P = torch.arange(len(pair_P)) + (end_U[user_N] - count_N.cumsum(0))[pair_P]
        return self._weighted(self._items(ids_UL[present_UL], table)[place_P], pair_P, candidate_NW)

    def _items(self, ids_R: Tensor, table: FusedEmbedding) -> Tensor:
        item_RW: Tensor = table(ids_R.unsqueeze(1), fields=self.field_1).squeeze(1)
        return item_RW

    def _weighted(self, item_RW: Tensor, rows_R: Tensor, candidate_BW: Tensor) -> Tensor:
        shape = (len(rows_R), self.groups, candidate_BW.shape[1] // self.groups)
        item_RGD, candidate_RGD = (x.view(shape) for x in (item_RW, candidate_BW.index_select(0, rows_R)))
        weighted_RGD = self.unit(item_RGD, candidate_RGD) * item_RGD
        # index_add and the gradient of index_select are deterministic on a GPU too, in torch's deterministic mode.
        return torch.zeros_like(candidate_BW).index_add(0, rows_R, weighted_RGD.flatten(1))


def check_attention(
    attended: Sequence[str], target: str, *, pooled: Mapping[str, str], single: Sequence[str], context: Sequence[str]
) -> None:
    """Raises ValueError unless the attended columns are sequences of the target, a column of the candidate."""
    if not attended:
        return
    if target not in single or target in context:
        candidates = [name for name in single if name not in context]
        raise ValueError(f"attention_target is {target!r}, expected a column of the candidate, one of {candidates}")
    sequences = [name for name, field in pooled.items() if field == target]
    if strangers := sorted(set(attended) - set(sequences)):
        raise ValueError(
            f"attention names {strangers}, which hold no ids of {target!r}: expected names among {sequences}"
        )
