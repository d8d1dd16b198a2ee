"""Claims about the metrics of the published lists."""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pipeline.ranking_metrics import ListMetrics, coverage, evaluate_lists, gini, lorenz, recall_by_group

if TYPE_CHECKING:
    from numpy.typing import NDArray


def measure(lists: list[list[int]], pairs: list[tuple[int, int]], ks: list[int], **settings: int) -> ListMetrics:
    users, items = np.array(pairs).reshape(-1, 2).T
    return evaluate_lists(lists_UK=np.array(lists), relevant_users=users, relevant_items=items, ks=ks, **settings)


def values(metrics: ListMetrics, name: str) -> dict[int, float]:
    intervals = metrics["recall"] if name == "recall" else metrics["ndcg"]
    return {k: interval.value for k, interval in intervals.items()}


def drawn(*, users: int, items: int = 60, slots: int = 20, seed: int) -> dict[str, Any]:
    """Draw lists without repeats and relevant pairs at random, with users that have none."""
    generator = np.random.default_rng(seed)
    lists_UK = np.argsort(generator.random((users, items)), axis=1)[:, :slots]
    pair_users, pair_items = np.nonzero(generator.random((users, items)) < 0.05)
    return {"lists_UK": lists_UK, "relevant_users": pair_users, "relevant_items": pair_items}


# User 0 finds 11 at slot 1, 13 at slot 3 and misses 99; user 1 finds 23 at slot 2; user 2 wants nothing.
LISTS = [[11, 12, 13], [21, 23, -1], [31, 32, 33]]
PAIRS = [(0, 11), (0, 13), (0, 99), (1, 23)]


def test_recall_divides_hits_by_all_relevant_items_of_the_user() -> None:
    # k=1: (1/3 + 0) / 2. k=2: (1/3 + 1) / 2. k=3: (2/3 + 1) / 2.
    expected = {1: 1 / 6, 2: 2 / 3, 3: 5 / 6}
    assert values(measure(LISTS, PAIRS, [1, 2, 3]), "recall") == pytest.approx(expected)


def test_recall_stays_below_one_with_more_relevant_items_than_slots() -> None:
    # Every slot hits, yet 3 of 4 relevant items fit.
    assert values(measure([[1, 2, 3]], [(0, 1), (0, 2), (0, 3), (0, 4)], [3]), "recall")[3] == 0.75


def test_ndcg_discounts_by_slot_and_divides_by_the_best_list() -> None:
    # Discounts 1, 1/log2(3), 1/2. User 0 at k=3: (1 + 1/2) / (1 + 1/log2(3) + 1/2); user 1: 1/log2(3) / 1.
    at_three = (1.5 / (1.5 + 1 / log2(3)) + 1 / log2(3)) / 2
    # At k=1 user 0's best list holds one item and so does the list; user 1 has nothing in slot 1.
    assert values(measure(LISTS, PAIRS, [1, 3]), "ndcg") == pytest.approx({1: 0.5, 3: at_three})


def test_users_without_a_relevant_item_are_left_out_and_those_without_a_list_are_not() -> None:
    metrics = measure([[1, 2], [-1, -1], [1, 2]], [(0, 1), (1, 1)], [2])
    assert metrics["users"] == 2
    assert (values(metrics, "recall")[2], values(metrics, "ndcg")[2]) == (0.5, 0.5)


def test_repeated_relevance_counts_once() -> None:
    assert measure(LISTS, PAIRS * 3, [1, 2, 3]) == measure(LISTS, PAIRS, [1, 2, 3])


def test_an_item_repeated_in_a_list_counts_once_at_its_first_slot() -> None:
    metrics = measure([[5, 7, 7, 7]], [(0, 7)], [4])
    assert (values(metrics, "recall")[4], values(metrics, "ndcg")[4]) == pytest.approx((1.0, 1 / log2(3)))


def test_an_item_relevant_to_another_user_is_no_hit() -> None:
    assert values(measure([[1], [2]], [(0, 2), (1, 1)], [1]), "recall")[1] == 0.0


def test_item_codes_may_be_any_large_integer() -> None:
    large = 2**62
    assert values(measure([[large, 1]], [(0, large)], [1]), "recall")[1] == 1.0


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ndcg_agrees_with_scikit_learn(k: int) -> None:
    rows = drawn(users=300, seed=k)
    relevance = np.zeros((300, 60))
    relevance[rows["relevant_users"], rows["relevant_items"]] = 1
    # A score that falls with the slot, and below it for items not listed: no tie among the first 20.
    scores = np.zeros((300, 60))
    np.put_along_axis(scores, rows["lists_UK"], np.arange(20, 0, -1.0)[None], axis=1)
    asked = relevance.any(axis=1)
    expected = ndcg_score(relevance[asked], scores[asked], k=k)
    assert values(evaluate_lists(**rows, ks=[k], replicates=1), "ndcg")[k] == pytest.approx(expected)


def test_recall_agrees_with_sets() -> None:
    rows = drawn(users=200, seed=4)
    relevant: dict[int, set[int]] = {}
    for user, item in zip(rows["relevant_users"].tolist(), rows["relevant_items"].tolist(), strict=True):
        relevant.setdefault(user, set()).add(item)
    shares = [len(items & set(rows["lists_UK"][user, :7].tolist())) / len(items) for user, items in relevant.items()]
    metrics = evaluate_lists(**rows, ks=[7])
    assert values(metrics, "recall")[7] == pytest.approx(np.mean(shares))
    assert metrics["users"] == len(relevant)


@given(st.integers(0, 2**32 - 1))
def test_a_longer_list_never_recalls_less_and_no_metric_leaves_zero_to_one(seed: int) -> None:
    metrics = evaluate_lists(**drawn(users=30, seed=seed), ks=[1, 5, 10, 20], replicates=1)
    recalls = list(values(metrics, "recall").values())
    assert recalls == sorted(recalls)
    assert all(0 <= value <= 1 for value in recalls + list(values(metrics, "ndcg").values()))


@given(st.integers(0, 2**32 - 1))
def test_the_relevant_items_first_make_every_metric_perfect(seed: int) -> None:
    rows = drawn(users=30, seed=seed)
    lists_UK = np.full((30, 60), -1)
    for user in range(30):
        items = rows["relevant_items"][rows["relevant_users"] == user]
        lists_UK[user, : items.size] = items
    metrics = evaluate_lists(**rows | {"lists_UK": lists_UK}, ks=[3, 60], replicates=1)
    assert values(metrics, "ndcg") == pytest.approx({3: 1.0, 60: 1.0})
    assert values(metrics, "recall")[60] == pytest.approx(1.0)


def test_intervals_contain_the_value_and_shrink_with_the_root_of_the_users() -> None:
    few, many = (evaluate_lists(**drawn(users=users, seed=6), ks=[10])["ndcg"][10] for users in (200, 3200))
    assert few.low < few.value < few.high
    assert many.low < many.value < many.high
    # 16 times the users, a quarter of the width; the bands allow for 200 replicates' noise.
    assert 3 < (few.high - few.low) / (many.high - many.low) < 5.5


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    rows = drawn(users=100, seed=7)
    assert evaluate_lists(**rows, ks=[5], seed=1) == evaluate_lists(**rows, ks=[5], seed=1)
    assert evaluate_lists(**rows, ks=[5], seed=1) != evaluate_lists(**rows, ks=[5], seed=2)


def test_coverage_is_the_share_of_the_catalogue_shown() -> None:
    lists_UK = np.array([[1, 2, -1], [2, 3, -1]])
    assert coverage(lists_UK, catalogue_size=12) == 0.25
    assert coverage(np.full((2, 2), -1), catalogue_size=12) == 0.0


def test_gini_runs_from_equal_exposure_to_one_item_everywhere() -> None:
    assert gini(np.array([[1, 2], [3, 4]]), catalogue_size=4) == 0.0
    assert gini(np.array([[1], [1], [1]]), catalogue_size=4) == 0.75


def test_gini_agrees_with_the_mean_difference_of_all_pairs() -> None:
    # Exposures 3, 1, 0, 0: half the mean absolute difference over the mean.
    exposures = np.array([3, 1, 0, 0])
    expected = np.abs(exposures[:, None] - exposures[None]).mean() / (2 * exposures.mean())
    assert gini(np.array([[8, 9], [8, -1], [8, -1]]), catalogue_size=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pairs", "ks", "message"),
    [
        ([], [1], "no user has a relevant item; recall and NDCG are undefined"),
        ([(3, 11)], [1], r"relevant users are 3 to 3, expected row numbers 0 to 2"),
        ([(0, 11), (-1, 11)], [1], r"relevant users are -1 to 0, expected row numbers 0 to 2"),
        ([(0, -1)], [1], r"a relevant item has code -1, expected 0 or more"),
        (PAIRS, [], r"ks is \[\], expected one or more different lengths within 1 to 3"),
        (PAIRS, [0, 2], r"ks is \[0, 2\], expected one or more"),
        (PAIRS, [2, 4], r"ks is \[2, 4\], expected one or more"),
        (PAIRS, [2, 2], r"ks is \[2, 2\], expected one or more different lengths"),
    ],
)
def test_what_cannot_be_measured_is_named(pairs: list[tuple[int, int]], ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(LISTS, pairs, ks)


def test_relevant_users_and_items_come_in_pairs() -> None:
    with pytest.raises(ValueError, match=r"need one shape \(P,\), got \(2,\) and \(1,\)"):
        evaluate_lists(lists_UK=np.array(LISTS), relevant_users=np.array([0, 1]), relevant_items=np.array([11]), ks=[1])


def test_a_catalogue_smaller_than_what_is_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="the lists show 3 different items of a catalogue of 2"):
        coverage(np.array([[1, 2, 3]]), catalogue_size=2)
    with pytest.raises(ValueError, match="the lists show 0 different items of a catalogue of 0"):
        coverage(np.array([[-1]]), catalogue_size=0)


def test_a_gini_of_empty_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="all 4 slots are empty; the Gini of exposure is undefined"):
        gini(np.full((2, 2), -1), catalogue_size=5)


# Items 0 to 9 are of group "a", the others of "b".
GROUPS = np.array(["a"] * 10 + ["b"] * 90)


def grouped(lists: NDArray[np.int64], users: NDArray[Any], items: NDArray[Any], ks: list[int]) -> dict[Any, Any]:
    return recall_by_group(
        lists_UK=lists, relevant_users=users, relevant_items=items, group_of_item=GROUPS, ks=ks, replicates=50
    )


def test_a_relevant_item_counts_by_how_many_its_user_has() -> None:
    # User 0 wants 3 and 50, each a half; user 1 wants 4. Of group a's weight 3/2, the first slot holds 4 alone.
    found = grouped(np.array([[50, 3], [4, 60]]), np.array([0, 0, 1]), np.array([3, 50, 4]), [1, 2])
    assert {name: row["pairs"] for name, row in found.items()} == {"a": 2, "b": 1}
    assert {name: row["share"] for name, row in found.items()} == {"a": 0.75, "b": 0.25}
    assert found["a"]["recall"][1].value == pytest.approx(1 / 1.5)
    assert found["a"]["recall"][2].value == found["b"]["recall"][1].value == 1


@given(seed=st.integers(0, 200))
def test_the_groups_recalls_weighted_by_their_shares_sum_to_the_recall_of_all(seed: int) -> None:
    sample = drawn(users=15, seed=seed)
    whole = evaluate_lists(**sample, ks=[5, 20], replicates=2)["recall"]
    found = grouped(sample["lists_UK"], sample["relevant_users"], sample["relevant_items"], [5, 20])
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)
    for k in (5, 20):
        parts = sum(row["share"] * row["recall"][k].value for row in found.values())
        assert parts == pytest.approx(whole[k].value)


def test_a_group_of_all_items_has_the_recall_of_all_with_its_interval() -> None:
    sample = drawn(users=40, seed=2)
    whole = evaluate_lists(**sample, ks=[5], replicates=50, seed=0)["recall"]
    (only,) = recall_by_group(**sample, group_of_item=np.zeros(60, dtype=int), ks=[5], replicates=50, seed=0).values()
    assert only["recall"][5].value == pytest.approx(whole[5].value)
    assert (only["recall"][5].low, only["recall"][5].high) == pytest.approx((whole[5].low, whole[5].high))


def test_no_relevant_pair_has_no_recall_by_group() -> None:
    with pytest.raises(ValueError, match="no user has a relevant item"):
        grouped(np.array([[1, 2]]), np.zeros(0, dtype=int), np.zeros(0, dtype=int), [1])


def test_the_lorenz_curve_begins_with_the_items_shown_least() -> None:
    # Of four items one is shown three times, one once, two never.
    shares, held = lorenz(np.array([[7, 8], [7, -1], [7, -1]]), catalogue_size=4)
    assert shares.tolist() == [0.25, 0.5, 0.75, 1]
    assert held.tolist() == [0, 0, 0.25, 1]


@given(seed=st.integers(0, 200))
def test_the_gini_is_what_the_lorenz_curve_leaves_below_the_diagonal(seed: int) -> None:
    lists_UK = drawn(users=5, seed=seed)["lists_UK"]
    shares, held = lorenz(lists_UK, catalogue_size=60)
    area = np.trapezoid(np.append(0, held), np.append(0, shares))
    assert gini(lists_UK, catalogue_size=60) == pytest.approx(1 - 2 * area)


def test_empty_lists_have_no_lorenz_curve() -> None:
    with pytest.raises(ValueError, match="all 2 slots are empty; the Lorenz curve is undefined"):
        lorenz(np.array([[-1, -1]]), catalogue_size=4)
