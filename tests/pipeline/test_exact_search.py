"""Exact search is brute force, whatever the numbers of its first pass and the sizes of its blocks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipeline.exact_search as module
from pipeline.exact_search import (
    NONE,
    NOTHING,
    Excluded,
    Precision,
    exact_search,
    fastest_precision,
    make_catalogue,
)

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
PRECISIONS: list[Precision] = ["int8", "float32"]


def brute_force(vectors: Floats, queries: Floats, k: int, excluded: Excluded = NOTHING) -> tuple[Floats, Integers]:
    """Score in double precision, round to float32, order by score and then by number."""
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    scores[excluded.users, excluded.items] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return best, np.where(np.isinf(best), NONE, order)


def drawn(rows: int, width: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def pairs(users: int, items: int, count: int) -> Excluded:
    numbers = np.unique(np.random.default_rng(9).integers(users * items, size=count))
    return Excluded(numbers // items, numbers % items)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("items", "width", "users", "k"),
    [
        (1, 3, 2, 5),  # one item, fewer than asked for
        (50, 7, 3, 50),  # all items
        (50, 8, 257, 1),  # one user more than a block has
        (2_048, 16, 5, 20),
        (2_049, 16, 5, 20),  # one item more than a block has
        (9_001, 64, 40, 200),
        (131_073, 8, 3, 20),  # one item more than a chunk has
    ],
)
def test_the_best_are_those_of_brute_force(precision: Precision, items: int, width: int, users: int, k: int) -> None:
    vectors, queries = drawn(items, width, 1), drawn(users, width, 2)
    catalogue = make_catalogue(vectors, precision)
    for excluded in (NOTHING, pairs(users, items, min(users * items // 3, 2000))):
        scores, found = exact_search(catalogue, queries, k, excluded)
        best, expected = brute_force(vectors, queries, k, excluded)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(scores, best)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_items_that_tie_come_by_their_number_and_the_smaller_one_is_kept(precision: Precision) -> None:
    vectors = np.repeat(drawn(40, 8, 3), 25, axis=0)[np.random.default_rng(4).permutation(1000)]
    queries = drawn(20, 8, 5)
    for k in (1, 10, 26, 60):
        np.testing.assert_array_equal(
            exact_search(make_catalogue(vectors, precision), queries, k)[1], brute_force(vectors, queries, k)[1]
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_closer_than_the_first_pass_can_tell_are_ordered_in_double_precision(precision: Precision) -> None:
    vectors = 1 + drawn(3000, 32, 6) * np.float32(1e-6)
    queries = 1 + drawn(10, 32, 7) * np.float32(1e-3)
    np.testing.assert_array_equal(
        exact_search(make_catalogue(vectors, precision), queries, 30)[1], brute_force(vectors, queries, 30)[1]
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 120), st.integers(1, 9), st.integers(1, 60)),
    seed=st.integers(0, 10_000),
    magnitude=st.sampled_from([0.0, 1e-18, 1.0, 1e15]),
    steps=st.sampled_from([1, 3, 1000]),
)
def test_any_small_catalogue_is_searched_as_brute_force_does(
    precision: Precision, sizes: tuple[int, int, int], seed: int, magnitude: float, steps: int
) -> None:
    items, width, k = sizes
    vectors, queries = (
        (np.round(drawn(rows, width, seed + rows) * steps) / steps * magnitude).astype(np.float32)
        for rows in (items, 7)
    )
    excluded = pairs(7, items, items)
    scores, found = exact_search(make_catalogue(vectors, precision), queries, k, excluded)
    best, expected = brute_force(vectors, queries, min(k, items), excluded)
    np.testing.assert_allclose(scores, best, rtol=1e-6)  # sums in another order may round to the next float32
    assert (found == expected)[scores == best].all()


def test_sizes_of_blocks_chunks_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = drawn(3000, 16, 10), drawn(50, 16, 11)
    excluded = pairs(50, 3000, 3000)
    expected = exact_search(make_catalogue(vectors, "float32"), queries, 40, excluded)
    for users, items, chunk, group, dense in ((7, 64, 256, 32, 0), (50, 1024, 1024, 1, 3000), (1, 512, 2048, 8, 8)):
        monkeypatch.setattr(module, "DENSE", dense)
        monkeypatch.setattr(module, "BLOCK_USERS", users)
        monkeypatch.setattr(module, "BLOCK_ITEMS", items)
        monkeypatch.setattr(module, "CHUNK_ITEMS", chunk)
        monkeypatch.setattr(module, "LARGEST_GROUP", group)
        for precision in PRECISIONS:
            scores, found = exact_search(make_catalogue(vectors, precision), queries, 40, excluded)
            np.testing.assert_array_equal(found, expected[1])
            np.testing.assert_array_equal(scores, expected[0])


def test_a_user_who_may_get_too_few_items_has_empty_places() -> None:
    out = Excluded(np.array([0] * 3 + [1] * 2), np.array([0, 1, 2, 0, 2]))
    scores, found = exact_search(make_catalogue(drawn(3, 4, 1)), drawn(2, 4, 2), 3, out)
    assert found.tolist() == [[NONE] * 3, [1, NONE, NONE]]
    assert np.isneginf(scores[found == NONE]).all()
    assert np.isfinite(scores[1, 0])


def test_the_bound_on_the_rough_scores_is_needed() -> None:
    catalogue = make_catalogue(drawn(5000, 32, 1), "int8")
    queries = drawn(50, 32, 2)
    careless = replace(catalogue, error=0.0, norm=0.0)
    assert (exact_search(careless, queries, 50)[1] != exact_search(catalogue, queries, 50)[1]).any()


def test_items_are_found_whose_rough_scores_err_as_much_as_can_be_the_other_way_than_those_of_better_ones() -> None:
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, 5000)
    vectors = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)  # few numbers add up to the bound
    queries = drawn(300, 2, 2)
    found = exact_search(make_catalogue(vectors, "int8"), queries, 5)[1]
    np.testing.assert_array_equal(found, brute_force(vectors, queries, 5)[1])


def test_no_query_finds_nothing() -> None:
    scores, found = exact_search(make_catalogue(drawn(3, 4, 1)), drawn(0, 4, 2), 2)
    assert scores.shape == found.shape == (0, 2)


def test_vectors_that_are_not_finite_are_refused() -> None:
    bad = drawn(3, 4, 1)
    bad[1, 2] = np.nan
    with pytest.raises(AssertionError, match="a vector is not finite"):
        make_catalogue(bad)
    with pytest.raises(AssertionError, match="a query is not finite"):
        exact_search(make_catalogue(drawn(3, 4, 1)), bad, 1)
    with pytest.raises(AssertionError, match="no item"):
        make_catalogue(drawn(0, 4, 1))


def test_the_fastest_precision_is_one_that_is_tested() -> None:
    assert fastest_precision() in PRECISIONS
