"""Selecting rows of features, and laying their encodings side by side, for each group on its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.embedding import FusedEmbedding
from models.inputs import Columns, Features, InputLayer
from models.numeric import NUMERIC_ENCODINGS, NumericSize


def _features() -> Features:
    return Features(torch.arange(12).view(6, 2), torch.rand(6, 3), {"history": torch.arange(24).view(6, 4)})


def test_rows_are_selected_in_every_column_by_slice_and_by_number() -> None:
    features = _features()
    for rows in (slice(2, 5), torch.tensor([5, 0, 0])):
        part = features.slice(rows)
        assert len(part) == 3
        assert torch.equal(part.ids_BF, features.ids_BF[rows])
        assert torch.equal(part.positions_BF, features.positions_BF[rows])
        assert torch.equal(part.pooled["history"], features.pooled["history"][rows])


def test_moving_to_a_device_moves_every_column() -> None:
    moved = _features().to(torch.device("meta"))
    tensors = [moved.ids_BF, moved.positions_BF, moved.pooled["history"]]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


COLUMNS = Columns(single={1: 0, 0: 1}, numeric=[2, 0], pooled={"clicked": 1, "seen": 1}, attended=["clicked"], target=0)
SIZE = NumericSize(bins=1, width=2, frequencies=3)


def _inputs() -> Features:
    pooled = {"clicked": torch.randint(0, 5, (8, 4)), "seen": torch.randint(0, 5, (8, 2))}
    return Features(torch.randint(1, 5, (8, 2)), torch.rand(8, 3), pooled)


def _layer(groups: int, size: NumericSize) -> tuple[InputLayer, FusedEmbedding]:
    layer = InputLayer(COLUMNS, numeric=size, embedding_width=3, groups=groups)
    table = FusedEmbedding(cardinalities=[5, 5], width=groups * 3)
    for weight in (*layer.parameters(), table.table.weight):
        torch.nn.init.normal_(weight)
    with torch.no_grad():
        table.table.weight[0] = 0.0
    return layer, table


def test_single_pooled_and_numeric_columns_stand_in_this_order() -> None:
    (layer, table), features = _layer(1, SIZE), _inputs()
    parts_BD: list[Tensor] = [
        table(features.ids_BF[:, [1]], fields=torch.tensor([0])).squeeze(1),
        table(features.ids_BF[:, [0]], fields=torch.tensor([1])).squeeze(1),
    ]
    parts_BD.append(layer.attention["clicked"](features.pooled["clicked"], parts_BD[1], table))
    parts_BD.append(table.pool(features.pooled["seen"], field=1))
    parts_BD.append(layer.numeric(features.positions_BF[:, [2, 0]]).flatten(1))
    joined_BI = layer(features, table)
    assert joined_BI.shape == (8, layer.width) == (8, 16)
    torch.testing.assert_close(joined_BI, torch.cat(parts_BD, dim=1))


@pytest.mark.parametrize("encoding", NUMERIC_ENCODINGS)
def test_no_weight_reaches_two_groups(encoding: str) -> None:
    layer, table = _layer(3, replace(SIZE, encoding=encoding))
    joined_BGI, weights = layer(_inputs(), table), [table.table.weight, *layer.parameters()]
    assert joined_BGI.shape == (8, 3, layer.width)
    reached = []
    for group in range(3):
        gradients = torch.autograd.grad(joined_BGI[:, group].square().sum(), weights, retain_graph=True)
        reached.append(torch.cat([gradient.to_dense().flatten() != 0 for gradient in gradients]))
    assert torch.stack(reached).sum(0).max() == 1
    assert all(group.any() for group in reached)
