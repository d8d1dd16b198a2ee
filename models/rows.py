"""Reads of a table's rows, and the sums of a sparse gradient row by row.

Shapes: N looked-up rows, some of them more than once, R different rows, D width.
"""

import torch
from torch import Tensor, nn


def gather(table: Tensor, rows_N: Tensor) -> Tensor:
    """Returns rows of a table: (N, D)."""
    if table.device.type != "cpu":
        return table.index_select(0, rows_N)
    # Bags of one row, which are fetched ahead: 0.6 ms for 82 thousand rows of 16 numbers, index_select 1.1.
    starts_N = torch.arange(len(rows_N))
    return nn.functional.embedding_bag(rows_N, table.detach(), starts_N, mode="sum")


def summed_by_row(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rows of a sparse gradient in order, each once (R), and the sums of their values (R, D).

    Values are added in the order of their lookups, as by `coalesce`.
    """
    rows_N, values_ND = gradient._indices()[0], gradient._values()  # noqa: SLF001  # the public ones coalesce first
    if gradient.is_coalesced() or not len(rows_N):
        return rows_N, values_ND
    sorted_N, order_N = rows_N.sort(stable=True)
    is_first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    torch.ne(sorted_N[1:], sorted_N[:-1], out=is_first_N[1:])
    starts_R = is_first_N.nonzero().squeeze(1)
    # A bag's sum fetches the next rows ahead: 2.2 ms at 82 thousand lookups of 16 numbers, coalesce 7.1.
    return sorted_N[starts_R], nn.functional.embedding_bag(order_N, values_ND, starts_R, mode="sum")
