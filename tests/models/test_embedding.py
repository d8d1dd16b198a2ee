"""The fused table against one table a field."""

import pytest
import torch
from torch import Tensor, nn

from models.embedding import FusedEmbedding
from models.optimizer import build_optimizers

CARDINALITIES = [5, 3, 7]


def _separate(fused: FusedEmbedding) -> list[nn.Embedding]:
    """One table a field with the same rows: row 0 is the shared padding, the others follow field by field."""
    tables, row = [], 1
    for count in CARDINALITIES:
        own = fused.table.weight.detach()[row : row + count - 1]
        table = nn.Embedding(count, own.shape[1], padding_idx=0)
        table.load_state_dict({"weight": torch.cat([torch.zeros(1, own.shape[1]), own])})
        tables.append(table)
        row += count - 1
    return tables


def _ids(rows: int) -> Tensor:
    return torch.stack([torch.randint(0, count, (rows,)) for count in CARDINALITIES], dim=1)


def _train(fused: FusedEmbedding, ids_BF: Tensor) -> None:
    module = nn.ModuleList([fused, nn.Linear(1, 1)])
    optimizers = build_optimizers(module, learning_rate=0.1, embedding_learning_rate=0.1, weight_decay=0.0)
    for _ in range(3):
        optimizers.zero_grad()
        outputs = [fused(ids_BF).sum(), fused.pool(ids_BF[:, :1].expand(-1, 4), field=0).sum()]
        torch.autograd.backward(outputs[0] + 2 * outputs[1])
        optimizers.step()


def test_the_fused_table_equals_one_table_a_field_in_values_and_gradients() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    tables, ids_BF, factor_BFD = _separate(fused), _ids(50), torch.randn(50, 3, 4)

    embedded_BFD = fused(ids_BF)
    expected_BFD = torch.stack([table(ids_BF[:, field]) for field, table in enumerate(tables)], dim=1)
    torch.testing.assert_close(embedded_BFD, expected_BFD, rtol=0, atol=0)

    torch.autograd.backward((embedded_BFD * factor_BFD).sum())
    torch.autograd.backward((expected_BFD * factor_BFD).sum())
    gradient = fused.table.weight.grad
    assert gradient is not None
    own = [table.weight.grad[1:] for table in tables if table.weight.grad is not None]
    torch.testing.assert_close(gradient.to_dense()[1:], torch.cat(own))
    assert not gradient.to_dense()[0].any()


def test_chosen_fields_are_looked_up_in_the_order_they_are_named() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    ids_BF = _ids(20)
    chosen_BFD = fused(ids_BF[:, [2, 0]], fields=torch.tensor([2, 0]))
    torch.testing.assert_close(chosen_BFD, fused(ids_BF)[:, [2, 0]], rtol=0, atol=0)


def test_padding_is_zero_and_stays_zero_while_other_rows_learn() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    before = fused.table.weight.detach().clone()
    _train(fused, _ids(50))
    padding_BFD = fused(torch.zeros(2, 3, dtype=torch.int64))
    assert not padding_BFD.any()
    assert (fused.table.weight.detach()[1:] != before[1:]).all()


def test_only_the_rows_of_the_batch_change() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    before = fused.table.weight.detach().clone()
    _train(fused, torch.tensor([[3, 1, 6]]))
    changed = (fused.table.weight.detach() != before).any(1).nonzero().flatten()
    # Rows: 1 padding, then 4 ids of field 0 (rows 1-4), 2 of field 1 (5-6), 6 of field 2 (7-12).
    assert changed.tolist() == [3, 5, 12]


def test_pooling_is_the_mean_over_what_is_not_padding() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    table = _separate(fused)[2].weight
    ids_BL = torch.tensor([[4, 6, 0], [0, 4, 0], [0, 0, 0], [5, 5, 6]])
    expected_BD = torch.stack([(table[4] + table[6]) / 2, table[4], torch.zeros(4), (2 * table[5] + table[6]) / 3])
    torch.testing.assert_close(fused.pool(ids_BL, field=2), expected_BD)


def test_pooling_gives_each_present_id_its_share_of_the_gradient() -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=1)
    torch.autograd.backward(fused.pool(torch.tensor([[4, 2, 0, 0], [4, 0, 0, 0]]), field=0).sum())
    gradient = fused.table.weight.grad
    assert gradient is not None
    assert gradient.to_dense().flatten()[:5].tolist() == [0.0, 0.0, 0.5, 0.0, 1.5]


@pytest.mark.parametrize("lowest", [0, 1], ids=["with_padding", "without"])
def test_the_gradient_has_one_entry_for_each_id_that_is_not_padding(lowest: int) -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    ids_BF = _ids(20).clamp(min=lowest)
    torch.autograd.backward(fused(ids_BF).sum())
    gradient = fused.table.weight.grad
    assert gradient is not None
    rows_R, counts_RD = gradient.coalesce().indices()[0], gradient.coalesce().values()
    expected = torch.bincount((ids_BF + fused.offsets_F)[ids_BF > 0], minlength=len(fused.table.weight))
    assert len(rows_R) == int(expected.count_nonzero())
    assert torch.equal(counts_RD[:, 0].long(), expected[rows_R])


@pytest.mark.parametrize("ids", [[5, 0, 0], [0, 3, 0], [0, 0, -1]])
def test_an_id_out_of_its_fields_range_fails(ids: list[int]) -> None:
    fused = FusedEmbedding(cardinalities=CARDINALITIES, width=4)
    with pytest.raises(AssertionError):
        fused(torch.tensor([ids]))
    with pytest.raises(AssertionError):
        fused.pool(torch.tensor([[7]]), field=2)
