"""Exact search for the nearest items of many users by matrix products, in 8-bit numbers where the processor has them.

The score of a user and an item is the inner product of their float32 vectors, taken in double precision and rounded to
float32; the best k are ordered by score, ties by item number. A first pass scores all items roughly, with a known bound
on its error; the maxima of groups of neighbours tell from which rough score on an item may be among the best, and only
those are scored in double precision. So the answer depends neither on the processor nor on the sizes of blocks.

Legend of shapes: B users of a block, C items of a chunk, G groups of a chunk, N pairs that may be among the best,
W width, K items found.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Precision = Literal["int8", "float32"]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

NONE = -1
BLOCK_USERS = 128
BLOCK_ITEMS = 4_096  # a block's scores, 2 MiB, are reduced to group maxima before they leave the cache
CHUNK_ITEMS = 131_072  # all scores of a block of users and a chunk of items are kept: 64 MiB
LARGEST_GROUP = 32
UNITS_OF_8_BITS = ("avx512_vnni", "avx_vnni", "amx_int8")
LARGEST_CODE = 127
LARGEST_INT, LOWEST_INT = np.int32(2**31 - 1), -(2**31)
LARGEST_FLOAT = np.finfo(np.float32).max
EMPTY = np.iinfo(np.int64).max
"""The key of an empty place: sorts behind all others."""


@dataclass(frozen=True)
class Catalogue:
    """Items' vectors, and their codes for the first pass.

    Attributes:
        vectors: (I, W) float32.
        codes: (I, W) int8, or the vectors themselves.
        scale: what a unit of a code is worth.
        error: the largest distance of a vector from what its code says.
        norm: the largest length of a vector.
    """

    vectors: Tensor
    codes: Tensor
    scale: float
    error: float
    norm: float


def fastest_precision() -> Precision:
    """Return the number format in which the first pass is the fastest on this processor.

    Without units for it the product of int8 matrices is slow, and its sums may saturate.
    """
    has = torch.cpu.get_capabilities()
    return "int8" if any(has.get(name, False) for name in UNITS_OF_8_BITS) else "float32"


def make_catalogue(vectors: Floats, precision: Precision | None = None) -> Catalogue:
    """Prepare finite vectors (I, W) of at least one item, by default for the first pass that is fastest here."""
    assert len(vectors), "no item"
    assert np.isfinite(vectors).all(), "a vector is not finite"
    kept = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    norm = float(_norms(kept).max())
    if (precision or fastest_precision()) == "float32" or kept.shape[
        1
    ] == 1:  # torch's int8 product is wrong at width 1
        return Catalogue(kept, kept, 1.0, 0.0, norm)
    scale = float(kept.abs().max()) / LARGEST_CODE or 1.0
    codes = (kept / scale).round().to(torch.int8)
    parts = zip(torch.split(kept, CHUNK_ITEMS), torch.split(codes, CHUNK_ITEMS), strict=True)
    error = max(float(_norms(part.double() - code.double() * scale).max()) for part, code in parts)
    return Catalogue(kept, codes, scale, error, norm)


def _norms(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms


@dataclass(frozen=True)
class Excluded:
    """Pairs that no answer holds: places of users among the queries, ascending, and item numbers."""

    users: Integers
    items: Integers

    def within(self, first: int, last: int) -> "Excluded":
        """Return the pairs of some items, numbered from the first of them."""
        here = (self.items >= first) & (self.items < last)
        return Excluded(self.users[here], self.items[here] - first)

    def of(self, first: int, last: int) -> "Excluded":
        """Return the pairs of some queries, numbered from the first of them."""
        low, high = np.searchsorted(self.users, (first, last))
        return Excluded(self.users[low:high] - first, self.items[low:high])


NOTHING = Excluded(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def exact_search(
    catalogue: Catalogue, queries: Floats, k: int, excluded: Excluded = NOTHING
) -> tuple[Floats, Integers]:
    """Return the scores and numbers of the k best items of every query, best first, ties by the smaller number.

    Args:
        catalogue: the items.
        queries: (Q, W) finite float32.
        k: at least 1.
        excluded: pairs to leave out.

    Returns:
        (Q, K) float32 and int64, K = min(k, items); -inf and -1 where a query has fewer items that are not excluded.
    """
    assert k >= 1, k
    assert np.isfinite(queries).all(), "a query is not finite"
    k = min(k, len(catalogue.vectors))
    keys = np.empty((len(queries), k), dtype=np.int64)
    scratch = _scratch(catalogue.codes, min(len(queries), BLOCK_USERS))
    for first in range(0, len(queries), BLOCK_USERS):
        rows = slice(first, first + BLOCK_USERS)
        block = _quantised(catalogue, queries[rows])
        keys[rows] = _best_keys(catalogue, block, k, excluded.of(first, first + BLOCK_USERS), scratch)
    return _scores_of(keys), np.where(keys == EMPTY, NONE, keys & 0xFFFFFFFF)


@dataclass(frozen=True)
class _Block:
    """Queries (B, W) in double precision and as codes; the worth of a rough score's unit and its error, (B,)."""

    queries: Tensor
    codes: Tensor
    unit: Doubles
    error: Doubles


def _quantised(catalogue: Catalogue, queries: Floats) -> _Block:
    exact = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    doubles = exact.double()
    norms = _norms(doubles)
    # An inner product in float32 is off by less than W * 2^-24 of the lengths in any order (Higham 2002, section 3.1),
    # a rounded one by 2^-24: twice that, for both and what is smaller.
    rounding = norms * catalogue.norm * (2 * (exact.shape[1] + 2) * 2.0**-24)
    if catalogue.codes.dtype != torch.int8:
        return _Block(doubles, exact, np.ones(len(exact)), rounding.numpy())
    scale = (doubles.abs().amax(1, keepdim=True) / LARGEST_CODE).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (doubles / scale).round()
    coded = codes * scale
    error = _norms(coded) * catalogue.error + _norms(doubles - coded) * catalogue.norm + rounding
    return _Block(doubles, codes.to(torch.int8), (scale.squeeze(1) * catalogue.scale).numpy(), error.numpy())


def _scratch(codes: Tensor, users: int) -> Tensor:
    """Return room for the rough scores of a block, taken once: fresh memory for each costs as much as filling it."""
    items = min(len(codes) + LARGEST_GROUP, CHUNK_ITEMS)
    return torch.empty(users * items, dtype=torch.int32 if codes.dtype == torch.int8 else torch.float32)


def _best_keys(catalogue: Catalogue, block: _Block, k: int, excluded: Excluded, scratch: Tensor) -> Integers:
    """Return the sorted keys (B, K) of a block's best items: chunk by chunk, each against the best so far."""
    users, items = len(block.codes), len(catalogue.codes)
    group = _group_size(min(items, CHUNK_ITEMS), k)
    best = np.full((users, k), EMPTY, dtype=np.int64)
    for first in range(0, items, CHUNK_ITEMS):
        last = min(first + CHUNK_ITEMS, items)
        scan = _scan(catalogue.codes[first:last], block.codes, group, excluded.within(first, last), scratch)
        at_least = _scores_of(best[:, -1]).astype(np.float64)
        if scan.maxima.shape[1] >= k:
            place = scan.maxima.shape[1] - k
            kth = np.partition(scan.maxima, place, axis=1)[:, place]
            at_least = np.maximum(at_least, kth * block.unit - block.error)
        found, numbers = _survivors(scan, (at_least - block.error) / block.unit)
        best = _merged(best, found, _keys(catalogue, block, found, numbers + first))
    return best


def _group_size(items: int, k: int) -> int:
    """Return the power of two near which the maxima to sort and the members to look at together are fewest."""
    size = 1
    while size < LARGEST_GROUP and 2 * size * size * k <= items:
        size *= 2
    return size


@dataclass(frozen=True)
class _Scan:
    """Rough scores of a chunk, block after block of items, in rows of one group of one user; their maxima (B, G)."""

    rough: Tensor
    maxima: NDArray[np.generic]
    block_groups: int

    def rows(self, users: Integers, groups: Integers) -> Integers:
        """Return the rows of `rough` that hold groups of users."""
        before = groups // self.block_groups * self.block_groups
        width = np.minimum(self.block_groups, self.maxima.shape[1] - before)
        rows: Integers = before * len(self.maxima) + users * width + groups - before
        return rows


def _scan(codes: Tensor, queries: Tensor, group: int, excluded: Excluded, scratch: Tensor) -> _Scan:
    """Score a chunk roughly; what is excluded, and the places that fill the last group, get the lowest score."""
    users, items = len(queries), len(codes)
    padded = -(-items // group) * group
    product = torch._int_mm if codes.dtype == torch.int8 else torch.mm  # noqa: SLF001  # torch has no public one of int8
    lowest = LOWEST_INT if codes.dtype == torch.int8 else -torch.inf
    rough = scratch[: users * padded]
    maxima = torch.empty(users, padded // group, dtype=scratch.dtype)
    order = np.argsort(excluded.items, kind="stable")
    starts = range(0, padded, BLOCK_ITEMS)
    cuts = np.searchsorted(excluded.items[order], [*starts, padded])
    for start, (low, high) in zip(starts, pairwise(cuts), strict=True):
        part = codes[start : start + BLOCK_ITEMS]
        stop = min(start + BLOCK_ITEMS, padded)
        if len(part) < stop - start:
            part = torch.nn.functional.pad(part, (0, 0, 0, stop - items))
        scores = rough[users * start : users * stop].view(users, stop - start)
        product(queries, part.T, out=scores)
        scores[:, items - start :] = lowest
        if low < high:
            out = order[low:high]
            scores[excluded.users[out], excluded.items[out] - start] = lowest
        torch.amax(scores.view(users, -1, group), 2, out=maxima[:, start // group : stop // group])
    return _Scan(rough.view(-1, group), maxima.numpy(), BLOCK_ITEMS // group)


def _survivors(scan: _Scan, at_least: Doubles) -> tuple[Integers, Integers]:
    """Return the users and item numbers (N,) of the scan's scores from a threshold (B,) on, ascending."""
    dtype = scan.maxima.dtype
    if dtype == np.int32:
        limits = np.ceil(np.maximum(at_least, LOWEST_INT + 1)).astype(dtype)
    else:
        limits = np.nextafter(np.maximum(at_least, -LARGEST_FLOAT).astype(dtype), -LARGEST_FLOAT, dtype=dtype)
    users, groups = np.divmod(np.flatnonzero(scan.maxima >= limits[:, None]), scan.maxima.shape[1])
    members = scan.rough.index_select(0, torch.from_numpy(scan.rows(users, groups))).numpy()
    pairs, places = np.divmod(np.flatnonzero(members >= limits[users][:, None]), members.shape[1])
    return users[pairs], groups[pairs] * members.shape[1] + places


def _keys(catalogue: Catalogue, block: _Block, users: Integers, items: Integers) -> Integers:
    """Return keys (N,) of pairs, which sort by score, best first, then by item number."""
    scores = torch.empty(len(users), dtype=torch.float64)
    numbers = torch.from_numpy(items)
    bounds = np.searchsorted(users, np.arange(len(block.queries) + 1))
    for query, (low, high) in zip(block.queries, pairwise(bounds), strict=True):
        torch.mv(catalogue.vectors.index_select(0, numbers[low:high]).double(), query, out=scores[low:high])
    bits = (scores.numpy().astype(np.float32) + np.float32(0)).view(np.int32)  # -0 becomes 0
    ascending = (bits ^ ((bits >> 31) & LARGEST_INT)).astype(np.int64)
    return (~ascending << 32) | items


def _merged(best: Integers, users: Integers, keys: Integers) -> Integers:
    """Return the smallest keys of what was found before (B, K) and of new pairs, sorted."""
    first = np.searchsorted(users, np.arange(len(best) + 1))
    k = best.shape[1]
    table = np.full((len(best), k + int(np.diff(first).max())), EMPTY, dtype=np.int64)
    table[:, :k] = best
    table[users, k + np.arange(len(users)) - first[users]] = keys
    table.sort(axis=1)
    return table[:, :k]


def _scores_of(keys: Integers) -> Floats:
    ascending = (~(keys >> 32)).astype(np.int32)
    scores = (ascending ^ ((ascending >> 31) & LARGEST_INT)).view(np.float32)
    return np.where(keys == EMPTY, -np.float32(np.inf), scores)
