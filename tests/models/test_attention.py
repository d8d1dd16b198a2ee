"""Target attention against the paper's, row by row, and what its network sees."""

import pytest
import torch
from torch import Tensor

from models.attention import TargetAttention, check_attention
from models.embedding import FusedEmbedding

FIELD, GROUPS, WIDTH = 1, 2, 3
IDS_BL = torch.tensor([[3, 5, 0, 0], [0, 0, 0, 0], [7, 7, 2, 1], [4, 0, 0, 0]])


def _layers(groups: int = GROUPS) -> tuple[TargetAttention, FusedEmbedding]:
    """With weights large enough that every input matters."""
    table = FusedEmbedding(cardinalities=[6, 9], width=groups * WIDTH).double()
    attention = TargetAttention(field=FIELD, groups=groups, width=WIDTH).double()
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.normal_(table.table.weight)
    with torch.no_grad():
        table.table.weight[0] = 0.0
    return attention, table


def _weight(attention: TargetAttention, item_D: Tensor, candidate_D: Tensor, group: int) -> Tensor:
    unit = attention.unit
    x = torch.cat([item_D, candidate_D, item_D - candidate_D, item_D * candidate_D])
    hidden = torch.relu(x @ unit.hidden.weight_GIO[group] + unit.hidden.bias_GO[group])
    return (hidden @ unit.output.weight_GIO[group] + unit.output.bias_GO[group]).squeeze()


def _paper(attention: TargetAttention, candidate_BW: Tensor, table: FusedEmbedding) -> Tensor:
    """Zhou et al. 2018, equation 3: for each row and group, the sum over its ids of a(item, candidate) item."""
    rows = []
    for row, ids in enumerate(IDS_BL.tolist()):
        sum_W = torch.zeros(GROUPS * WIDTH, dtype=torch.float64)
        for number in ids:
            for group in range(GROUPS) if number else []:
                part = slice(group * WIDTH, (group + 1) * WIDTH)
                # The first field has 6 ids, 5 of them with rows of their own behind the padding's.
                item_D = table.table.weight[5 + number, part]
                sum_W[part] += _weight(attention, item_D, candidate_BW[row, part], group) * item_D
        rows.append(sum_W)
    return torch.stack(rows)


def test_values_and_gradients_equal_the_papers_sum_row_by_row() -> None:
    attention, table = _layers()
    candidate_BW = torch.randn(4, GROUPS * WIDTH, dtype=torch.float64, requires_grad=True)
    attended_BW, expected_BW = attention(IDS_BL, candidate_BW, table), _paper(attention, candidate_BW, table)
    torch.testing.assert_close(attended_BW, expected_BW)
    factor_BW = torch.randn(4, GROUPS * WIDTH, dtype=torch.float64)
    weights = [candidate_BW, table.table.weight, *attention.parameters()]
    gradients, expected = (
        torch.autograd.grad((output_BW * factor_BW).sum(), weights) for output_BW in (attended_BW, expected_BW)
    )
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.to_dense(), wanted)


def test_the_activation_unit_sees_the_ids_that_are_present_and_no_padding() -> None:
    attention, table = _layers()
    rows: list[int] = []
    attention.unit.register_forward_hook(lambda _module, arguments, _output: rows.append(len(arguments[0])))
    attention(IDS_BL, torch.randn(4, GROUPS * WIDTH, dtype=torch.float64), table)
    assert rows == [int((IDS_BL != 0).sum())] == [7]


@pytest.mark.parametrize("shape", [(3, 5), (3, 0), (0, 5)])
def test_a_row_without_ids_gives_zeros(shape: tuple[int, int]) -> None:
    attention, table = _layers()
    attended_BW = attention(torch.zeros(shape, dtype=torch.int64), torch.randn(shape[0], 6).double(), table)
    assert attended_BW.tolist() == [[0.0] * 6] * shape[0]


def test_a_group_attends_with_its_own_embeddings_alone() -> None:
    attention, table = _layers()
    candidate_BW = torch.randn(4, GROUPS * WIDTH, dtype=torch.float64)
    before_BW = attention(IDS_BL, candidate_BW, table)
    with torch.no_grad():
        table.table.weight[1:, :WIDTH] += 1.0
    after_BW = attention(IDS_BL, candidate_BW + torch.tensor([1.0] * WIDTH + [0.0] * WIDTH), table)
    assert torch.equal(after_BW[:, WIDTH:], before_BW[:, WIDTH:])
    assert (after_BW[0, :WIDTH] != before_BW[0, :WIDTH]).all()


def test_attention_begins_near_the_sum_of_the_embeddings() -> None:
    table = FusedEmbedding(cardinalities=[6, 9], width=WIDTH)
    attended_BD = TargetAttention(field=FIELD, groups=1, width=WIDTH)(IDS_BL, torch.zeros(4, WIDTH), table)
    embedded_BLD = table(IDS_BL.flatten().unsqueeze(1), fields=torch.tensor([FIELD])).view(4, 4, WIDTH)
    torch.testing.assert_close(attended_BD, embedded_BLD.sum(1), rtol=0.1, atol=1e-6)


def test_two_backward_passes_give_equal_bytes() -> None:
    attention, table = _layers(groups=1)
    ids_BL, candidate_BD = torch.randint(0, 9, (300, 6)), torch.randn(300, WIDTH, dtype=torch.float64)
    runs = []
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    for _ in range(2):
        output_BD = attention(ids_BL, candidate_BD, table)
        runs.append(torch.autograd.grad(output_BD.square().sum(), [table.table.weight, *attention.parameters()]))
    torch.use_deterministic_algorithms(mode=was_deterministic)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first.to_dense(), second.to_dense())


@pytest.mark.parametrize(
    ("attended", "target", "message"),
    [
        (["clicked"], "brand", r"attention_target is 'brand', expected a column of the candidate, one of \['item'\]"),
        (["clicked"], "place", r"attention_target is 'place', expected a column of the candidate"),
        (["tags"], "item", r"attention names \['tags'\], which hold no ids of 'item': expected names among \['clicked"),
        (["other"], "item", r"attention names \['other'\], which hold no ids of 'item'"),
    ],
)
def test_attention_without_a_candidate_or_to_something_else_is_refused(
    attended: list[str], target: str, message: str
) -> None:
    columns = {"clicked": "item", "tags": "tags"}
    with pytest.raises(ValueError, match=message):
        check_attention(attended, target, pooled=columns, single=["item", "place"], context=["place"])


def test_without_attended_columns_no_candidate_is_needed() -> None:
    check_attention([], "brand", pooled={}, single=[], context=[])
