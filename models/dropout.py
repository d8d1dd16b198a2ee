"""Dropout drawn by a row's place in its batch, so that processes that share a batch drop what one would."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_PLACE: ContextVar[tuple[int, int] | None] = ContextVar("_PLACE", default=None)


@contextmanager
def rows_of_batch(before: int, of_batch: int) -> Iterator[None]:
    """Says that the rows that come are those of a batch after its first `before` ones, of `of_batch` in all.

    Draws are made for all rows of the batch, and these take theirs; all processes must draw from equal states. A row
    that stands in for none takes the last row's.
    """
    token = _PLACE.set((before, of_batch))
    try:
        yield
    finally:
        _PLACE.reset(token)


def drop_units(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Returns x with units dropped in training, and the rest scaled up, as `torch.nn.functional.dropout` does."""
    if not training or probability == 0:
        return x
    rows, own = _rows(x)
    return x * nn.functional.dropout(x.new_ones(rows, *x.shape[1:]), probability)[own]


def uniform_like(x: Tensor) -> Tensor:
    """Returns uniform draws from 0 to below 1 in the shape of x, whose first dimension are rows."""
    rows, own = _rows(x)
    return torch.rand(rows, *x.shape[1:], dtype=x.dtype, device=x.device)[own]


def _rows(x: Tensor) -> tuple[int, slice]:
    """Returns the rows to draw for, and which of them are those of x."""
    before, rows = _PLACE.get() or (0, len(x))
    first = min(before, rows - len(x))
    return rows, slice(first, first + len(x))
