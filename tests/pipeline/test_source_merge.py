"""Merged lists against a plain loop: who fills which places, which source found what, and what co-occurs."""

import numpy as np
import pytest

from pipeline.exact_search import NONE
from pipeline.item_to_item import co_occurrence_lists
from pipeline.source_merge import BLOCK, Integers, learn_order, merge, quotas

GENERATOR = np.random.default_rng(11)
USERS, ITEMS, WIDTH = 7, 60, 3 * BLOCK
LISTS = {
    name: np.stack([GENERATOR.permutation(ITEMS)[:WIDTH] for _ in range(USERS)]).astype(np.int64)
    for name in ("a", "b", "c")
}
LISTS["b"][2, 12:] = NONE
RELEVANT = {
    "click": (np.repeat(np.arange(USERS), 9), GENERATOR.integers(0, ITEMS + 5, size=9 * USERS)),
    "conversion": (np.array([0, 0, 4, 5]), np.array([3, 8, 8, 9])),
}


def _merged_by_loops(order: list[str], width: int) -> list[list[int]]:
    lists = []
    for user in range(USERS):
        chosen: list[int] = []
        for name, places in [*((name, BLOCK) for name in order), *((name, width) for name in LISTS)]:
            fresh = [item for item in LISTS[name][user].tolist() if item != NONE and item not in chosen]
            chosen += fresh[:places]
        lists.append(chosen[:width])
    return lists


def _recall_by_loops(lists: list[list[int]]) -> float:
    total = 0.0
    for users, items in RELEVANT.values():
        wanted = {user: set(items[users == user].tolist()) for user in set(users.tolist())}
        total += sum(len(found & set(lists[user])) / len(found) for user, found in wanted.items()) / len(wanted)
    return total


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "c", "a"], ["b", "b", "b"]])
def test_a_merged_list_is_that_of_a_loop_over_blocks(order: list[str]) -> None:
    merged = merge(LISTS, order, WIDTH)
    assert merged.items_UW.tolist() == _merged_by_loops(order, WIDTH)


def test_bits_tell_every_source_whose_list_has_the_item() -> None:
    merged = merge(LISTS, ["a", "b", "c"], WIDTH)
    for user in range(USERS):
        for item, bits in zip(merged.items_UW[user], merged.sources_UW[user], strict=True):
            assert bits == sum((item in LISTS[name][user]) << bit for bit, name in enumerate(LISTS))


def test_an_empty_place_of_a_source_is_no_item_and_a_list_may_end_early() -> None:
    lists = {"a": np.array([[3, NONE, NONE]]), "b": np.array([[NONE, NONE, NONE]])}
    merged = merge(lists, ["b"], 3)
    assert merged.items_UW.tolist() == [[3, NONE, NONE]]
    assert merged.sources_UW.tolist() == [[1, 0, 0]]


def test_each_block_goes_to_the_source_that_adds_most_recall() -> None:
    order = learn_order(LISTS, RELEVANT, WIDTH)
    for block in range(3):
        gains = {}
        for name in LISTS:
            chosen = [lists[: BLOCK * (block + 1)] for lists in _merged_by_loops([*order[:block], name], WIDTH)]
            # Without what only fills up behind a source that has ended.
            gains[name] = _recall_by_loops(_only(chosen, [*order[:block], name]))
        assert gains[order[block]] == pytest.approx(max(gains.values()))
    assert quotas(order, list(LISTS), WIDTH) == {name: BLOCK * order.count(name) for name in LISTS}


def _only(chosen: list[list[int]], order: list[str]) -> list[list[int]]:
    return [
        [item for item in items if any(item in LISTS[name][user] for name in order)]
        for user, items in enumerate(chosen)
    ]


def test_a_source_that_finds_nothing_fills_no_place_and_the_first_of_equals_is_taken() -> None:
    nothing: Integers = np.full((USERS, WIDTH), ITEMS - 1)
    useful = dict.fromkeys(("first", "second"), LISTS["a"])
    relevant = {"click": (np.arange(USERS), LISTS["a"][:, 0])}
    assert learn_order({"nothing": nothing, **useful}, relevant, BLOCK) == ["first"]


def test_the_last_block_of_a_width_that_is_no_multiple_has_the_places_that_are_left() -> None:
    """The eleventh place is best filled by `few`: the hits of `many` come at the twelfth and thirteenth."""
    many, few = np.arange(30)[None], np.array([[50, *range(40, 49)]])
    relevant = {"click": (np.zeros(13, dtype=np.int64), np.array([*range(10), 50, 11, 12]))}
    lists = {"many": many, "few": few}
    order = learn_order(lists, relevant, BLOCK + 1)
    assert order == ["many", "few"]
    assert quotas(order, list(lists), BLOCK + 1) == {"many": BLOCK, "few": 1}
    assert merge(lists, order, BLOCK + 1).items_UW[0, -1] == 50


def test_without_a_relevant_item_in_reach_quotas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no user has a relevant item .* or set retrieval\.sources"):
        learn_order(LISTS, {"click": (np.array([0]), np.array([10_000]))}, WIDTH)


def test_co_occurrence_is_the_sum_of_cosines_over_clicked_items() -> None:
    users, items = GENERATOR.integers(0, 8, size=40), GENERATOR.integers(0, 12, size=40)
    clicked = np.zeros((8, 12))
    clicked[users, items] = 1
    out = (np.array([0, 1]), np.array([5, 6]))
    found = co_occurrence_lists((users, items), (8, 12), out, 12)
    for user in range(8):
        scores = np.zeros(12)
        for item in range(12):
            for other in np.flatnonzero(clicked[user]):
                if item != other and clicked[:, item].any():
                    both = clicked[:, item] @ clicked[:, other]
                    scores[item] += both / np.sqrt(clicked[:, item].sum() * clicked[:, other].sum())
        scores[out[1][out[0] == user]] = 0.0
        expected = [item for item in np.argsort(-scores.round(9), kind="stable") if scores[item] > 0]
        listed = found[user][found[user] != NONE].tolist()
        assert sorted(listed) == sorted(expected)
        assert scores[listed] == pytest.approx(scores[expected])
