"""Reads of rows, and sums by row against coalesce."""

import torch
from torch import Tensor

from models.rows import gather, summed_by_row

ROWS, WIDTH = 50, 4


def _gradient(lookups: int) -> Tensor:
    rows_N = torch.randint(0, ROWS // 2, (lookups,))
    return torch.sparse_coo_tensor(
        rows_N.unsqueeze(0), torch.randn(lookups, WIDTH), (ROWS, WIDTH), check_invariants=False
    )


def test_sums_by_row_are_those_of_coalesce() -> None:
    gradient = _gradient(200)
    rows_R, sums_RD = summed_by_row(gradient)
    expected = gradient.coalesce()
    assert torch.equal(rows_R, expected.indices()[0])
    torch.testing.assert_close(sums_RD, expected.values())


def test_a_coalesced_gradient_is_its_own_sum() -> None:
    gradient = _gradient(30).coalesce()
    rows_R, sums_RD = summed_by_row(gradient)
    assert torch.equal(rows_R, gradient.indices()[0])
    assert torch.equal(sums_RD, gradient.values())


def test_gather_reads_rows_in_the_order_asked_for_and_none_of_none() -> None:
    table = torch.randn(ROWS, WIDTH)
    rows_R = torch.tensor([9, 0, 9, 49])
    assert torch.equal(gather(table, rows_R), table[rows_R])
    assert gather(table, rows_R[:0]).shape == (0, WIDTH)
