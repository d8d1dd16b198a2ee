"""Selecting rows of features."""

import torch

from models.inputs import Features


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
