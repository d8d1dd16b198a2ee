"""Exact search for the nearest items of many users by matrix products, in 8-bit numbers where the processor has them.

The score of a user and an item is the inner product of their float32 vectors, taken in double precision and rounded to
float32; the best k are ordered by score, ties by item number. A first pass scores all items roughly, with a known bound
on its error, and keeps the maxima of groups of items. They tell from which rough score on an item is a candidate.
Groups that reach it are scored roughly once more (quicker than to write all scores to memory and read some), the items
that reach it in double precision. So the answer depends neither on the processor nor on the sizes of blocks.

Why nothing is lost: each group has an item as good as its maximum, so K items score at least the K-th largest maximum
less the error; whatever scores less even with the error added is not among the best K.

Legend of shapes: B users of a block, C items of a chunk, G groups, N pairs that may be among the best, W width, K items
found. Rough scores lie item by item, (C, B): maxima of groups of items are then maxima of rows.
"""

from collections.abc import Iterator
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
BLOCK_USERS = 256
BLOCK_ITEMS = 2_048  # a block's rough scores, 2 MiB, do not leave the cache
CHUNK_ITEMS = 131_072
LARGEST_GROUP = 32
MAXIMA_PER_PLACE = 4  # fewer maxima bound the K-th best score too loosely, more take longer than what they save
PIECE_ITEMS = 256
DENSE = 8  # a product scores a pair of an item and a user in an eighth of the time that a chosen pair takes
UNITS_OF_8_BITS = ("avx512_vnni", "avx_vnni", "amx_int8")
LARGEST_CODE = 127
LARGEST_INT, LOWEST_INT = np.int32(2**31 - 1), -(2**31)
LARGEST_FLOAT = np.finfo(np.float32).max
EMPTY = (0x7F800000 << 32) | 0xFFFFFFFF
"""The key of an empty place, score -inf and number -1: sorts behind all others."""


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
    scores = np.empty((len(queries), k), dtype=np.float32)
    numbers = np.empty((len(queries), k), dtype=np.int64)
    scratch = _scratch(catalogue.codes, min(len(queries), BLOCK_USERS))
    for first in range(0, len(queries), BLOCK_USERS):
        rows = slice(first, first + BLOCK_USERS)
        block = _quantised(catalogue, queries[rows])
        keys = _best_keys(catalogue, block, k, excluded.of(first, first + BLOCK_USERS), scratch)
        scores[rows], numbers[rows] = _scores_of(keys), keys.astype(np.int32)
    return scores, numbers


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


@dataclass(frozen=True)
class _Scratch:
    """Room for the rough scores of a block, and whether each is high enough: taken once, as fresh memory is slow."""

    rough: Tensor
    reaching: NDArray[np.bool_]


def _scratch(codes: Tensor, users: int) -> _Scratch:
    cells = users * BLOCK_ITEMS
    rough = torch.empty(cells, dtype=torch.int32 if codes.dtype == torch.int8 else torch.float32)
    return _Scratch(rough, np.empty(cells, dtype=np.bool_))


def _best_keys(catalogue: Catalogue, block: _Block, k: int, excluded: Excluded, scratch: _Scratch) -> Integers:
    """Return the sorted keys (B, K) of a block's best items: chunk by chunk, under a bound that only rises."""
    users, items = len(block.codes), len(catalogue.codes)
    group = _group_size(min(items, CHUNK_ITEMS), k)
    best = np.empty((users, 0), dtype=np.int64)
    top = np.empty((users, 0), dtype=scratch.rough.numpy().dtype)
    for first in range(0, items, CHUNK_ITEMS):
        last = min(first + CHUNK_ITEMS, items)
        chunk = _Rows(catalogue.codes[first:last], -(-(last - first) // group) * group, excluded.within(first, last))
        maxima = _maxima(chunk, block.codes, group, scratch)
        top = _largest(top, maxima, k)
        limits = _limits(block, top, k)
        groups = np.flatnonzero((maxima.numpy() >= limits).any(axis=1))  # few: users want much the same items
        found, rows = _reaching(chunk.of_groups(groups, group), block.codes, group, limits, scratch)
        numbers = groups[rows // group] * group + rows % group + first
        best = _merged(best, k, found, _keys(catalogue, block, found, numbers))
    return best


def _group_size(items: int, k: int) -> int:
    """Return the power of two that leaves a few maxima for each of the best."""
    size = 1
    while size < LARGEST_GROUP and 2 * size * MAXIMA_PER_PLACE * k <= items:
        size *= 2
    return size


@dataclass(frozen=True)
class _Rows:
    """Codes (R, W) of items, the number of rows that fills the last group, and pairs to leave out."""

    codes: Tensor
    filled: int
    excluded: Excluded

    def of_groups(self, groups: Integers, group: int) -> "_Rows":
        """Return the rows of some groups, in their order, ascending."""
        rows = (groups[:, None] * group + np.arange(group)).reshape(-1)
        place = np.full(self.filled // group, NONE)
        place[groups] = np.arange(len(groups))
        places = place[self.excluded.items // group]
        kept = places != NONE
        excluded = Excluded(self.excluded.users[kept], (places * group + self.excluded.items % group)[kept])
        codes = self.codes.index_select(0, torch.from_numpy(rows[rows < len(self.codes)]))
        return _Rows(codes, len(rows), excluded)

    def scores(self, queries: Tensor, rough: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row and the rough scores of blocks of rows, all in the same place.

        What is excluded, and the rows that fill the last group, get the lowest score.
        """
        whole = self.codes.dtype == torch.int8
        product = torch._int_mm if whole else torch.mm  # noqa: SLF001  # torch has no public one of int8
        lowest = LOWEST_INT if whole else -torch.inf
        order = np.argsort(self.excluded.items, kind="stable")
        starts = range(0, self.filled, BLOCK_ITEMS)
        cuts = np.searchsorted(self.excluded.items[order], [*starts, self.filled])
        for start, (low, high) in zip(starts, pairwise(cuts), strict=True):
            part = self.codes[start : start + BLOCK_ITEMS]
            count = min(BLOCK_ITEMS, self.filled - start)
            scores = rough[: count * len(queries)].view(count, -1)
            product(part, queries.T, out=scores[: len(part)])
            scores[len(part) :] = lowest
            out = order[low:high]
            scores[self.excluded.items[out] - start, self.excluded.users[out]] = lowest
            yield start, scores


def _maxima(chunk: _Rows, queries: Tensor, group: int, scratch: _Scratch) -> Tensor:
    """Return the largest rough scores (G, B) of the groups of a chunk."""
    maxima = torch.empty(chunk.filled // group, len(queries), dtype=scratch.rough.dtype)
    for start, scores in chunk.scores(queries, scratch.rough):
        here = maxima[start // group : (start + len(scores)) // group]
        torch.amax(scores.view(-1, group, len(queries)), 1, out=here)
    return maxima


def _largest(top: NDArray[np.generic], maxima: Tensor, k: int) -> NDArray[np.generic]:
    """Return the k largest of each row of top and column of maxima, the least first; all, in any order, if no more."""
    joined = maxima.T.contiguous().numpy()
    if top.shape[1]:
        joined = np.concatenate((top, joined), axis=1)
    count = joined.shape[1]
    if count < k:
        return joined
    return np.partition(joined, count - k, axis=1)[:, count - k :]  # not in place: it may be the maxima's own memory


def _limits(block: _Block, top: NDArray[np.generic], k: int) -> NDArray[np.generic]:
    """Return the rough score (B,) from which on an item may be among the best, above the lowest score."""
    limits: Doubles = np.full(len(top), -np.inf)
    if top.shape[1] == k:
        limits = top[:, 0].astype(np.float64) - 2 * block.error / block.unit  # of the bound, and of the item's score
    if top.dtype == np.int32:
        whole: NDArray[np.int32] = np.ceil(np.maximum(limits, LOWEST_INT + 1)).astype(np.int32)
        return whole
    rounded = np.maximum(limits, -LARGEST_FLOAT).astype(np.float32)
    below: Floats = np.nextafter(rounded, -LARGEST_FLOAT, dtype=np.float32)
    return below


def _reaching(
    rows: _Rows, queries: Tensor, group: int, limits: NDArray[np.generic], scratch: _Scratch
) -> tuple[Integers, Integers]:
    """Return the users and rows (N,) whose rough scores, computed anew, reach the limits (B,), ascending by row."""
    long = np.tile(limits, group)  # in rows of one user each a comparison costs less than to begin one
    found = [np.empty(0, dtype=np.int64)]
    for start, scores in rows.scores(queries, scratch.rough):
        reaching = scratch.reaching[: scores.numel()]
        np.greater_equal(scores.numpy().reshape(-1, len(long)), long, out=reaching.reshape(-1, len(long)))
        found.append(_true_places(reaching) + start * len(limits))
    of_rows, users = np.divmod(np.concatenate(found), len(limits))
    return users, of_rows


def _true_places(flags: NDArray[np.bool_]) -> Integers:
    """Return where few flags are true, ascending: eight looked at together, then those eight one by one."""
    whole = len(flags) // 8 * 8
    words = np.flatnonzero(flags[:whole].view(np.uint64) != 0)
    bits = np.flatnonzero(flags[:whole].reshape(-1, 8)[words])
    places = (words * 8)[bits >> 3] + (bits & 7)
    return np.concatenate((places, whole + np.flatnonzero(flags[whole:])))


def _keys(catalogue: Catalogue, block: _Block, users: Integers, items: Integers) -> Integers:
    """Return keys (N,) of pairs, ascending by item; keys sort by score, best first, then by item number."""
    scores = np.empty(len(users), dtype=np.float32)
    starts = np.flatnonzero(np.diff(items, prepend=NONE))
    cuts = np.append(starts, len(items))
    for first in range(0, len(starts), PIECE_ITEMS):
        runs = cuts[first : first + PIECE_ITEMS + 1]
        pairs = slice(runs[0], runs[-1])
        vectors = catalogue.vectors.index_select(0, torch.from_numpy(items[runs[:-1]])).double()
        scores[pairs] = _inner_products(vectors, block.queries, np.diff(runs), users[pairs])
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    descending = ~(bits ^ ((bits >> 31) & LARGEST_INT))
    return (descending.astype(np.int64) << 32) | items


def _inner_products(vectors: Tensor, queries: Tensor, counts: Integers, users: Integers) -> Doubles:
    """Return the inner products (N,) of each vector with its number of the users, picked out of all if that is less."""
    rows = np.repeat(np.arange(len(vectors)), counts)
    if DENSE * len(users) >= len(vectors) * len(queries):
        products: Doubles = torch.mm(vectors, queries.T).numpy().reshape(-1)[rows * len(queries) + users]
        return products
    picked: Doubles = np.einsum("nw,nw->n", vectors.numpy()[rows], queries.numpy()[users])
    return picked


def _merged(best: Integers, k: int, users: Integers, keys: Integers) -> Integers:
    """Return the K smallest keys of what was found before (B, K or 0) and of new pairs, sorted."""
    order = np.argsort(users.astype(np.min_scalar_type(len(best) - 1)), kind="stable")
    counts = np.bincount(users, minlength=len(best))
    held = best.shape[1]
    table = np.full((len(best), max(k, held + int(counts.max()))), EMPTY, dtype=np.int64)
    table[:, :held] = best
    table[:, held:][np.arange(table.shape[1] - held) < counts[:, None]] = keys[order]
    table.sort(axis=1)
    return table[:, :k]


def _scores_of(keys: Integers) -> Floats:
    ascending = ~(keys >> 32).astype(np.int32)
    return (ascending ^ ((ascending >> 31) & LARGEST_INT)).view(np.float32)
