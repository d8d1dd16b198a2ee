"""Candidates of several sources in one list, with quotas that a day's clicks and conversions decide.

Shapes: U users, K places of a list, W places of the merged list, P relevant pairs, S sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.exact_search import NONE

BLOCK = 10
"""Places that one source fills at a time: single places are decided by too few hits."""
TOWERS, SEQUENCE, POPULAR = SOURCES = ("two_towers", "sequence", "popular")
"""The sources of candidates; bit s of a candidate's number says that source s found it."""
Integers = NDArray[np.int64]
Bits = NDArray[np.uint8]
Pairs = tuple[Integers, Integers]


@dataclass(frozen=True)
class Merged:
    """A list of each user, and which sources found each item among their first W: bit s is of source s."""

    items_UW: Integers
    sources_UW: Bits


def quotas(order: Sequence[str], names: Sequence[str], width: int) -> dict[str, int]:
    """Return the places that each source fills of a list so wide."""
    places = list(zip(order, _blocks(width), strict=False))
    return {name: sum(count for one, count in places if one == name) for name in names}


def _blocks(width: int) -> list[int]:
    """Return the places of each block: the last one may have fewer."""
    return [min(BLOCK, width - start) for start in range(0, width, BLOCK)]


def learn_order(lists: Mapping[str, Integers], relevant: Mapping[str, Pairs], width: int) -> list[str]:
    """Decide which source fills each block of places, so that each block adds most recall to those before it.

    The recall is the sum over labels of the mean over users with a relevant item. A source adds its best items that are
    not in the list yet, as `merge` does; the order is the greedy one, and the first of equal sources is taken.

    Args:
        lists: items of each source (U, K), best first, -1 behind its end.
        relevant: user and item numbers by label.
        width: places of the merged list.

    Raises:
        ValueError: there is no relevant pair.
    """
    weights = _Weights(relevant, 1 + max(int(items.max()) for items in lists.values()))
    state = {name: _Rest(items) for name, items in lists.items()}
    order = []
    for places in _blocks(width):
        offered = {name: rest.first(places) for name, rest in state.items()}
        gains = {name: weights.of(items) for name, items in offered.items()}
        order.append(max(gains, key=lambda name: gains[name]))
        for rest in state.values():
            rest.remove(offered[order[-1]])
    return order


def merge(lists: Mapping[str, Integers], order: Sequence[str], width: int) -> Merged:
    """Fill a list block by block from the sources of an order, then from all of them in their order.

    A source whose items are all in the list already leaves its places to the next ones.
    """
    state = {name: _Rest(items) for name, items in lists.items()}
    parts, filled_U = [], np.zeros(len(next(iter(lists.values()))), dtype=np.int64)
    for name, places in [*((name, BLOCK) for name in order), *((name, width) for name in lists)]:
        if (filled_U >= width).all():
            break
        parts.append(state[name].first(places))
        filled_U += (parts[-1] != NONE).sum(axis=1)
        for rest in state.values():
            rest.remove(parts[-1])
    every = np.concatenate(parts, axis=1)
    kept = np.argsort(every == NONE, axis=1, kind="stable")[:, :width]
    items_UW = np.take_along_axis(every, kept, axis=1)
    sources_UW = np.zeros(items_UW.shape, dtype=np.uint8)
    for bit, items in enumerate(lists.values()):
        sources_UW |= (_is_in(items_UW, items[:, :width]) << bit).astype(np.uint8)
    return Merged(items_UW, sources_UW)


class _Rest:
    """The items of a source that are not in the list yet."""

    def __init__(self, items_UK: Integers) -> None:
        self.items_UK = items_UK.copy()

    def first(self, places: int) -> Integers:
        """Return the first ones, (U, places), -1 where there are fewer."""
        order = np.argsort(self.items_UK == NONE, axis=1, kind="stable")[:, :places]
        return np.take_along_axis(self.items_UK, order, axis=1)

    def remove(self, items_UB: Integers) -> None:
        """Take items out that the list has."""
        for items_U in items_UB.T:
            self.items_UK[self.items_UK == items_U[:, None]] = NONE


class _Weights:
    """What each relevant pair adds to the recall: 1 over the user's relevant items and over the users, by label."""

    def __init__(self, relevant: Mapping[str, Pairs], items: int) -> None:
        pairs, weights = [], []
        for users, numbers in relevant.values():
            reachable = numbers < items  # what no source lists counts among the missed
            distinct = np.unique(np.stack([users, numbers]), axis=1)
            of_user = np.bincount(distinct[0]) if distinct.size else np.zeros(0)
            users_in, numbers_in = np.unique(np.stack([users, numbers])[:, reachable], axis=1)
            pairs.append(users_in * items + numbers_in)
            weights.append(1 / of_user[users_in] / max(1, np.count_nonzero(of_user)))
        if not any(map(len, pairs)):
            raise ValueError(
                "no user has a relevant item that a source lists: learn quotas on another day by --date or "
                "split.validation, or set retrieval.sources = ['two_towers']"
            )
        self.items = items
        self.pairs, place = np.unique(np.concatenate(pairs), return_inverse=True)
        self.weights = np.bincount(place, weights=np.concatenate(weights))

    def of(self, items_UB: Integers) -> float:
        """Return what items of each user add."""
        asked = np.arange(len(items_UB))[:, None] * self.items + items_UB
        place = np.minimum(np.searchsorted(self.pairs, asked), len(self.pairs) - 1)
        hit = (self.pairs[place] == asked) & (items_UB != NONE)
        return float(self.weights[place][hit].sum())


def _is_in(items_UK: Integers, others_UB: Integers) -> NDArray[np.bool_]:
    """Return which items of each user are among the user's others; an empty place is not."""
    span = 2 + max(int(items_UK.max(initial=0)), int(others_UB.max(initial=0)))
    rows = np.arange(len(items_UK))[:, None] * span
    return np.isin(rows + items_UK, (rows + others_UB)[others_UB != NONE])
