"""Metrics of the published lists: what they catch of the next day, and how they spread over the catalogue.

Shape suffixes: U users, K slots of a list, P relevant (user, item) pairs, E evaluated users, R bootstrap
replicates, M metrics.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from pipeline.metrics import Floats, Integers, Interval, sum_by, user_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EMPTY = -1


class ListMetrics(TypedDict):
    """Recall and NDCG by list length, and the number of users they are means over."""

    recall: dict[int, Interval]
    ndcg: dict[int, Interval]
    users: int


class GroupRecall(TypedDict):
    """Recall by list length among the relevant items of one group, their pairs and their share of all weight."""

    pairs: int
    share: float
    recall: dict[int, Interval]


def evaluate_lists(
    *,
    lists_UK: NDArray[np.int64],
    relevant_users: NDArray[Any],
    relevant_items: NDArray[Any],
    ks: Sequence[int],
    replicates: int = 200,
    seed: int = 0,
) -> ListMetrics:
    """Measure the lists against what users went on to click or convert on, with 95 % intervals over users.

    Row u of lists_UK holds the item codes shown to user u, best first, -1 in an empty slot; relevant_users
    are row numbers and relevant_items item codes, both of shape (P,). Repeated pairs count once, and so does
    an item that a list repeats, at its first slot. Means are over the users with a relevant item, those with
    an empty list included.

    - recall at k: relevant items in the first k slots over all relevant items of the user. With more than k
      relevant items it stays below 1: it is not divided by min(k, relevant).
    - ndcg at k: gain 1, discount 1 / log2(slot + 1) from slot 1, over the same sum for the best possible
      list (Järvelin and Kekäläinen 2002; the discount of Burges et al. 2005).

    Raises ValueError when no pair is given, a pair is out of range, or ks repeat or are not within 1 to K.
    """
    _check(lists_UK, relevant_users, relevant_items, ks)
    users_P, items_P = _distinct(relevant_users, relevant_items)
    rows_E, evaluated_P = np.unique(users_P, return_inverse=True)
    slots_P = _slots(lists_UK[:, : max(ks)], users_P, items_P)
    recall_EM = np.stack([_recall(evaluated_P, slots_P, k) for k in ks], axis=1)
    ndcg_EM = np.stack([_ndcg(evaluated_P, slots_P, k) for k in ks], axis=1)
    values_EM = np.concatenate([recall_EM, ndcg_EM], axis=1)
    intervals = user_bootstrap(
        lambda counts_RE: counts_RE @ values_EM / rows_E.size,
        np.ones((rows_E.size, 1)),
        replicates=replicates,
        seed=seed,
    )
    return {
        "recall": dict(zip(ks, intervals[: len(ks)], strict=True)),
        "ndcg": dict(zip(ks, intervals[len(ks) :], strict=True)),
        "users": rows_E.size,
    }


def recall_of_users(
    *, lists_UK: NDArray[np.int64], relevant_users: NDArray[Any], relevant_items: NDArray[Any], k: int
) -> tuple[Integers, Floats]:
    """Return the users with a relevant item, as row numbers (E,), and the recall at k of each, (E,).

    Arguments and errors as in `evaluate_lists`, whose recall is the mean of these.
    """
    _check(lists_UK, relevant_users, relevant_items, [k])
    users_P, items_P = _distinct(relevant_users, relevant_items)
    rows_E, evaluated_P = np.unique(users_P, return_inverse=True)
    return rows_E, _recall(evaluated_P, _slots(lists_UK[:, :k], users_P, items_P), k)


def recall_by_group(  # noqa: PLR0913  # those of `evaluate_lists`, and the groups
    *,
    lists_UK: NDArray[np.int64],
    relevant_users: NDArray[Any],
    relevant_items: NDArray[Any],
    group_of_item: NDArray[Any],
    ks: Sequence[int],
    replicates: int = 200,
    seed: int = 0,
) -> dict[Any, GroupRecall]:
    """Divide the recall of `evaluate_lists` among groups of the relevant items, with 95 % intervals over users.

    Arguments and errors as there; group_of_item has the group of each item code. A relevant item of a user with n of
    them counts 1 / n, as it does in the mean over users; a group's recall is the share of its items' weight that the
    first k slots hold, and its `share` is its part of the whole weight. So the recall of all items is the sum of
    share times recall over the groups. A group without a relevant item is left out.
    """
    _check(lists_UK, relevant_users, relevant_items, ks)
    users_P, items_P = _distinct(relevant_users, relevant_items)
    _, evaluated_P = np.unique(users_P, return_inverse=True)
    counts_E = np.bincount(evaluated_P)
    weights_P, groups_P = 1 / counts_E[evaluated_P], group_of_item[items_P]
    hits_PM = _slots(lists_UK[:, : max(ks)], users_P, items_P)[:, None] < np.array(ks)
    found = {}
    for group in np.unique(groups_P):
        weights_of_P = np.where(groups_P == group, weights_P, 0.0)
        held_EM = np.stack([sum_by(evaluated_P, weights_of_P * hits_P) for hits_P in hits_PM.T], axis=1)
        all_E1 = sum_by(evaluated_P, weights_of_P)[:, None]
        intervals = user_bootstrap(partial(_ratio, held_EM, all_E1), all_E1, replicates=replicates, seed=seed)
        found[group] = GroupRecall(
            pairs=int((groups_P == group).sum()),
            share=float(all_E1.sum() / counts_E.size),
            recall=dict(zip(ks, intervals, strict=True)),
        )
    return found


def _ratio(held_EM: Floats, all_E1: Floats, counts_RE: Floats) -> Floats:
    # Two orders of one sum may differ in the last bit, where all is held.
    ratio_RM: Floats = np.minimum((counts_RE @ held_EM) / (counts_RE @ all_E1), 1.0)
    return ratio_RM


def coverage(lists_UK: NDArray[np.int64], *, catalogue_size: int) -> float:
    """Compute the share of the catalogue that at least one list shows, 0 when every slot is empty.

    Raises ValueError when the lists show more items than the catalogue has.
    """
    return _exposures(lists_UK, catalogue_size).size / catalogue_size


def gini(lists_UK: NDArray[np.int64], *, catalogue_size: int) -> float:
    """Compute the Gini coefficient of how often each item of the catalogue is shown.

    0 when all items are shown equally often, (n - 1) / n when one of n takes every slot. Items never shown
    count with 0 (Fleder and Hosanagar 2009).

    Raises ValueError when the lists show nothing, or more items than the catalogue has.
    """
    exposures = np.sort(_exposures(lists_UK, catalogue_size))
    if exposures.size == 0:
        raise ValueError(f"all {lists_UK.size} slots are empty; the Gini of exposure is undefined: rank first")
    # Items never shown take the first ranks and add nothing to the sum.
    ranks = np.arange(catalogue_size - exposures.size, catalogue_size) + 1
    return float((2 * ranks - catalogue_size - 1) @ exposures / (catalogue_size * exposures.sum()))


def lorenz(lists_UK: NDArray[np.int64], *, catalogue_size: int) -> tuple[Floats, Floats]:
    """Compute shares of the catalogue, items shown least first, and the shares of all slots that they take.

    Both have shape (catalogue_size,) and end at 1; the Gini is 1 less twice the area under the curve from (0, 0).

    Raises ValueError when the lists show nothing, or more items than the catalogue has.
    """
    exposures = np.sort(_exposures(lists_UK, catalogue_size))
    if exposures.size == 0:
        raise ValueError(f"all {lists_UK.size} slots are empty; the Lorenz curve is undefined: rank first")
    held = np.concatenate([np.zeros(catalogue_size - exposures.size), np.cumsum(exposures)])
    return np.arange(1, catalogue_size + 1) / catalogue_size, held / held[-1]


def _recall(evaluated_P: Integers, slots_P: Integers, k: int) -> Floats:
    return sum_by(evaluated_P, slots_P < k) / np.bincount(evaluated_P)


def _ndcg(evaluated_P: Integers, slots_P: Integers, k: int) -> Floats:
    discounts = 1 / np.log2(np.arange(k) + 2)
    gains_P = np.append(discounts, 0.0)[np.minimum(slots_P, k)]
    best_E: Floats = np.cumsum(discounts)[np.minimum(np.bincount(evaluated_P), k) - 1]
    return sum_by(evaluated_P, gains_P) / best_E


def _slots(lists_UK: NDArray[np.int64], users_P: Integers, items_P: Integers) -> Integers:
    """Find the first slot, from 0, that shows each pair's item to its user; K where none does."""
    slots = lists_UK.shape[1]
    slots_P = np.full(users_P.size, slots)
    # Slot by slot keeps memory at P instead of P x K; backwards, so that the first slot wins.
    for slot in reversed(range(slots)):
        slots_P[lists_UK[users_P, slot] == items_P] = slot
    return slots_P


def _distinct(users: NDArray[Any], items: NDArray[Any]) -> tuple[Integers, Integers]:
    order = np.lexsort((items, users))
    users_P, items_P = users[order], items[order]
    repeats = (users_P[1:] == users_P[:-1]) & (items_P[1:] == items_P[:-1])
    keep = np.append(True, ~repeats)
    return users_P[keep], items_P[keep]


def _exposures(lists_UK: NDArray[np.int64], catalogue_size: int) -> Integers:
    shown, exposures = np.unique(lists_UK[lists_UK != EMPTY], return_counts=True)
    if shown.size > catalogue_size or catalogue_size < 1:
        raise ValueError(
            f"the lists show {shown.size} different items of a catalogue of {catalogue_size}: "
            "count the catalogue on the day the lists were made"
        )
    return exposures


def _check(
    lists_UK: NDArray[np.int64], relevant_users: NDArray[Any], relevant_items: NDArray[Any], ks: Sequence[int]
) -> None:
    users, slots = lists_UK.shape
    if relevant_users.shape != relevant_items.shape or relevant_users.ndim != 1:
        shapes = f"{relevant_users.shape} and {relevant_items.shape}"
        raise ValueError(f"relevant users and items need one shape (P,), got {shapes}")
    if relevant_users.size == 0:
        raise ValueError("no user has a relevant item; recall and NDCG are undefined: evaluate a longer period")
    if relevant_users.min() < 0 or relevant_users.max() >= users:
        span = f"{relevant_users.min()} to {relevant_users.max()}"
        raise ValueError(f"relevant users are {span}, expected row numbers 0 to {users - 1} of the lists")
    if relevant_items.min() < 0:
        raise ValueError(f"a relevant item has code {relevant_items.min()}, expected 0 or more")
    if len(set(ks)) < len(ks) or not set(ks) <= set(range(1, slots + 1)) or not ks:
        raise ValueError(f"ks is {list(ks)}, expected one or more different lengths within 1 to {slots}")
