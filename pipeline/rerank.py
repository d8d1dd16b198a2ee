"""Re-ranking of scored candidates: likeness and caps decide the list, then some ranks are given to exploration.

Pure functions over blocks of users; what a user gets depends on that user's candidates alone.
Shapes: U users, K candidates, L ranks of a list, I items, D width of the towers' vectors.

Cost a user: 2 K^2 D floating-point operations for all likenesses by vectors (5.1 million for K = 200 and D = 64, at the
speed of a matrix product), then some ten operations on K numbers for each of L ranks; without them the latter alone.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

MISSING = -1
"""Code of an item without a value in a column: it is like no other, and no cap counts it."""
BROKEN = 4.0  # a broken cap weighs more than all that relevance (0 to 1) and likeness (-1 to 1) can differ by
UNLIKE_ANY = np.finfo(np.float64).min / 4  # of places without an item: after all items, before those taken
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
STREAMS = 2


@dataclass(frozen=True)
class Capped:
    """At most so many items of one value in the first ranks.

    Attributes:
        codes: (U, K) values of the candidates as numbers, `MISSING` where there is none.
        most: items of a value.
        within: ranks.
    """

    codes: Integers
    most: int
    within: int


@dataclass(frozen=True)
class Likeness:
    """What makes candidates alike: the mean of the cosine of their vectors and of having equal values.

    Attributes:
        weight: of being unlike what is chosen already; relevance weighs the rest.
        cosines: (U, K, K) float32; None where vectors do not count.
        codes: for each column (U, K) as of `Capped`.
    """

    weight: float
    cosines: NDArray[np.float32] | None
    codes: Sequence[Integers]

    def to(self, chosen_U: Integers) -> Floats:
        """Return how alike all candidates are to one of each user: (U, K), at most 1."""
        users = np.arange(len(chosen_U))
        parts = [_same_value(codes_UK, chosen_U).astype(np.float64) for codes_UK in self.codes]
        if self.cosines is not None:
            parts.append(self.cosines[users, chosen_U].astype(np.float64))
        return np.asarray(sum(parts)) / len(parts)


@dataclass(frozen=True)
class Picked:
    """What a list holds, (U, L): places among the candidates, and how each came there.

    Attributes:
        places: of the candidates that were given.
        propensity: the probability that the item is in the user's list, over the draws of exploration.
        is_exploration: whether it was drawn.
    """

    places: Integers
    propensity: Floats
    is_exploration: Booleans


def choose(scores_UK: Floats, length: int, likeness: Likeness | None, caps: Sequence[Capped]) -> Integers:
    """Choose candidates one rank after the other: (U, length) places.

    A rank takes the candidate that breaks the fewest caps and, among those, has the largest
    (1 - weight) * relevance - weight * (largest likeness to an item above). Relevance is the score between the
    smallest (0) and the largest (1) of the user's candidates, so that neither unit nor level of the score matters;
    equal objectives go by place. A cap gives way only where no candidate is left that keeps it: with one cap it holds
    wherever it can hold, and lists are as long as without. What a cap keeps out may stand behind its ranks.
    Without likeness and caps the order stays. Source: Carbonell and Goldstein 1998 (MMR), greedy.

    Args:
        scores_UK: not increasing along K, -inf where there is no item.
        length: at most K.
        likeness: None where being unlike does not count.
        caps: columns' caps, any number of them.
    """
    users, weight = np.arange(len(scores_UK)), 0.0 if likeness is None else likeness.weight
    objective_UK = (1 - weight) * _relevance(scores_UK)
    objective_UK[np.isneginf(scores_UK)] = UNLIKE_ANY
    nearest_UK = np.zeros_like(scores_UK)
    counts = np.zeros((len(caps), *scores_UK.shape), dtype=np.int32)
    places_UL = np.empty((len(scores_UK), length), dtype=np.int64)
    for rank in range(length):
        value_UK = objective_UK - weight * nearest_UK
        for number, cap in enumerate(caps):
            if rank < cap.within:
                value_UK -= BROKEN * (counts[number] >= cap.most)
        chosen_U = value_UK.argmax(axis=1)
        places_UL[:, rank] = chosen_U
        objective_UK[users, chosen_U] = -np.inf
        for number, cap in enumerate(caps):
            counts[number] += _same_value(cap.codes, chosen_U)
        if likeness is not None:
            alike_UK = likeness.to(chosen_U)
            nearest_UK = alike_UK if rank == 0 else np.maximum(nearest_UK, alike_UK)
    return places_UL


def _relevance(scores_UK: Floats) -> Floats:
    """Return scores between a user's smallest (0) and largest (1); 1 where all are equal, 0 where there is no item."""
    present_UK = np.isfinite(scores_UK)
    largest_U1 = scores_UK.max(axis=1, keepdims=True)
    smallest_U1 = np.where(present_UK, scores_UK, np.inf).min(axis=1, keepdims=True)
    span_U1 = np.where(largest_U1 > smallest_U1, largest_U1 - smallest_U1, 1.0)
    below_UK = np.where(present_UK, largest_U1 - np.where(present_UK, scores_UK, 0.0), span_U1)
    return np.asarray(1 - below_UK / span_U1)


def _same_value(codes_UK: Integers, chosen_U: Integers) -> Booleans:
    """Return which candidates have the value of the chosen one: (U, K); a missing value is no value."""
    chosen_U1 = np.take_along_axis(codes_UK, chosen_U[:, None], axis=1)
    return np.asarray((codes_UK == chosen_U1) & (chosen_U1 != MISSING))


def cosines(vectors_UKD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of unit vectors, pair by pair of a user: (U, K, K)."""
    return np.asarray(vectors_UKD @ vectors_UKD.transpose(0, 2, 1))


def explore(
    chosen_UL: Integers, present_UK: Booleans, streams_U2: NDArray[np.uint64], share: float, within: int
) -> Picked:
    """Give each of the first ranks, with a probability, to a candidate drawn from those that the list leaves out.

    Of a user whose list leaves out R candidates, the first M = min(within, R) ranks are explored: each on its own
    with probability `share` loses its item and gets another one, drawn without replacement, all R alike likely. So the
    probability to be in the list is 1 - share for the item chosen for one of these ranks, 1 for the items behind, and
    share * M / R for each candidate left out; over all candidates they sum to the list's length. A drawn item stands
    at any one of the M ranks with the M-th part of its probability. Draws know no caps: they hold for the items that
    stay. Without a candidate left out (R = 0) nothing is drawn.

    Args:
        chosen_UL: places without exploration.
        present_UK: which candidates are items.
        streams_U2: two random numbers a user, from which all others follow.
        share: below 1.
        within: ranks, at most L.
    """
    users = np.arange(len(chosen_UL))
    left_UK = present_UK.copy()
    left_UK[users[:, None], chosen_UL] = False
    left_U = left_UK.sum(axis=1)
    explored_U = np.minimum(within, left_U)
    ranks_L = np.arange(chosen_UL.shape[1])
    open_UL = ranks_L < explored_U[:, None]
    drawn_UL = open_UL & (_uniform(_numbers(streams_U2[:, 0], chosen_UL.shape[1])) < share)
    keys_UK = _numbers(streams_U2[:, 1], left_UK.shape[1])
    # Sorted by random numbers, what is left out stands in a random order, of which each draw takes the next.
    order_UK = np.lexsort((keys_UK, ~left_UK), axis=1)
    next_UL = np.maximum(drawn_UL.cumsum(axis=1) - 1, 0)
    places_UL = np.where(drawn_UL, np.take_along_axis(order_UK, next_UL, axis=1), chosen_UL)
    of_drawn_U = share * explored_U / np.maximum(left_U, 1)
    propensity_UL = np.where(drawn_UL, of_drawn_U[:, None], np.where(open_UL, 1 - share, 1.0))
    return Picked(places_UL, propensity_UL, drawn_UL)


def streams(user_ids: pl.Series, seed: int, day: dt.date) -> NDArray[np.uint64]:
    """Return two random numbers of each user and day, (U, 2): by hash, so that nothing else changes them."""
    salt = f"{seed} {day} ".encode()
    digests = b"".join(hashlib.blake2b(salt + user.encode(), digest_size=8 * STREAMS).digest() for user in user_ids)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, STREAMS).astype(np.uint64)


def _numbers(streams_U: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return the first numbers of streams, (U, count). Source: Steele, Lea and Flood 2014 (SplitMix64)."""
    mixed = streams_U[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    for shift, factor in zip((30, 27), MIX, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _uniform(numbers: NDArray[np.uint64]) -> Floats:
    """Return numbers in [0, 1) from the upper 53 bits."""
    return np.asarray((numbers >> np.uint64(11)) * 2.0**-53)
