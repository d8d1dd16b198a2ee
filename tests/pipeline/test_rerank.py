"""Re-ranking: a greedy choice by likeness and caps, and exploration whose probabilities are known."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.ranking_section import Cap, Rerank
from pipeline.rerank import MISSING, Capped, Floats, Integers, Likeness, choose, cosines, explore, streams
from pipeline.rerank_users import Reranker, rerank, value_codes
from pipeline.retrieve import NONE

DAY = dt.date(2026, 1, 5)
USERS, CANDIDATES, LENGTH, VALUES = 3, 12, 8, 4
seeds = st.integers(0, 2**32 - 1)


def _scores(generator: np.random.Generator) -> Floats:
    """Return scores in order, some of them equal, and fewer items for the last user."""
    scores = -np.sort(-generator.integers(0, 20, (USERS, CANDIDATES)) / 7.0, axis=1)
    scores[-1, CANDIDATES - int(generator.integers(0, CANDIDATES)) :] = -np.inf
    return scores


def _codes(generator: np.random.Generator) -> Integers:
    return generator.integers(MISSING, VALUES, (USERS, CANDIDATES))


def _vectors(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    vectors = generator.normal(size=(*shape, 5))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(unit, dtype=np.float32)


def _likeness(generator: np.random.Generator, weight: float) -> Likeness:
    return Likeness(weight, cosines(_vectors(generator, USERS, CANDIDATES)), [_codes(generator)])


def naive(scores: Floats, length: int, likeness: Likeness, caps: list[Capped], user: int) -> list[int]:
    """Choose as the definition says, by loops over one user's candidates."""
    assert likeness.cosines is not None
    own = scores[user]
    present = own[np.isfinite(own)]
    span = present.max() - present.min() if len(present) and present.max() > present.min() else 1.0
    chosen: list[int] = []
    for rank in range(length):
        best: tuple[int, float, int] | None = None
        for place in range(len(own)):
            if place in chosen or not np.isfinite(own[place]):
                continue
            broken = sum(
                rank < cap.within
                and cap.codes[user, place] != MISSING
                and sum(cap.codes[user, other] == cap.codes[user, place] for other in chosen) >= cap.most
                for cap in caps
            )
            alike = [
                np.mean(
                    [
                        likeness.cosines[user, other, place],
                        *(float(codes[user, other] == codes[user, place] != MISSING) for codes in likeness.codes),
                    ]
                )
                for other in chosen
            ]
            relevance = 1 - (present.max() - own[place]) / span
            value = (1 - likeness.weight) * relevance - likeness.weight * max(alike, default=0.0)
            if best is None or (broken, -value) < (best[0], -best[1] - 1e-12):
                best = (broken, value, place)
        if best is None:
            break
        chosen.append(best[2])
    return chosen


@given(seeds, st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.integers(0, 2))
def test_the_choice_is_that_of_a_naive_loop(seed: int, weight: float, caps: int) -> None:
    generator = np.random.default_rng(seed)
    scores, likeness = _scores(generator), _likeness(generator, weight)
    capped = [
        Capped(_codes(generator), int(generator.integers(1, 3)), int(generator.integers(1, 9))) for _ in range(caps)
    ]
    places = choose(scores, LENGTH, likeness, capped)
    for user in range(USERS):
        expected = naive(scores, LENGTH, likeness, capped, user)
        assert places[user, : len(expected)].tolist() == expected


@given(seeds)
def test_without_likeness_and_caps_the_order_stays(seed: int) -> None:
    scores = _scores(np.random.default_rng(seed))
    assert (choose(scores, LENGTH, None, []) == np.arange(LENGTH)).all()


@given(seeds, st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.4]))
def test_a_list_holds_each_candidate_at_most_once_and_all_items_before_empty_places(
    seed: int, weight: float, share: float
) -> None:
    generator = np.random.default_rng(seed)
    scores = _scores(generator)
    likeness = _likeness(generator, weight)
    chosen = choose(scores, LENGTH, likeness, [Capped(_codes(generator), 1, LENGTH)])
    users = pl.Series(map(str, range(USERS)))
    picked = explore(chosen, np.isfinite(scores), streams(users, seed, DAY), share, 5)
    for user, places in enumerate(picked.places):
        assert len(set(places.tolist())) == LENGTH
        present = np.isfinite(scores[user])
        held = present[places]
        assert held.sum() == min(LENGTH, present.sum())
        assert not held[present.sum() :].any()


@given(seeds, st.integers(1, 3), st.integers(1, LENGTH), st.sampled_from([0.0, 0.5]))
def test_one_cap_holds_wherever_it_can_hold_and_else_the_list_stays_whole(
    seed: int, most: int, within: int, weight: float
) -> None:
    generator = np.random.default_rng(seed)
    scores, codes = _scores(generator), _codes(generator)
    likeness = _likeness(generator, weight) if weight else None
    places = choose(scores, LENGTH, likeness, [Capped(codes, most, within)])
    for user in range(USERS):
        present = np.isfinite(scores[user])
        counts = [int((codes[user, present] == value).sum()) for value in range(VALUES)]
        allowed = int((codes[user, present] == MISSING).sum()) + sum(min(count, most) for count in counts)
        top = codes[user, places[user, :within]][present[places[user, :within]]]
        assert len(top) == min(within, present.sum())
        keeps = max((int((top[:allowed] == value).sum()) for value in range(VALUES)), default=0) <= most
        assert keeps


def test_what_a_cap_keeps_out_stands_right_behind_its_ranks() -> None:
    codes = np.array([[0, 0, 0, 1, 2, 0]])
    places = choose(np.array([[6.0, 5, 4, 3, 2, 1]]), 6, None, [Capped(codes, 2, 4)])
    assert places.tolist() == [[0, 1, 3, 4, 2, 5]]


def test_items_without_a_value_are_neither_capped_nor_alike() -> None:
    codes, scores = np.full((1, 4), MISSING), np.array([[4.0, 3, 2, 1]])
    assert choose(scores, 4, Likeness(0.9, None, [codes]), [Capped(codes, 1, 4)]).tolist() == [[0, 1, 2, 3]]
    assert value_codes(pl.Series(["b", None, "a", "b"])).tolist() == [2, MISSING, 1, 2]


def test_neither_unit_nor_level_of_the_score_changes_what_diversity_chooses() -> None:
    generator = np.random.default_rng(5)
    scores = -np.sort(-generator.normal(size=(USERS, CANDIDATES)), axis=1)
    likeness = _likeness(generator, 0.3)
    expected = choose(scores, LENGTH, likeness, [])
    assert (choose(scores / 1024 - 8, LENGTH, likeness, []) == expected).all()
    assert not (expected == np.arange(LENGTH)).all()


@pytest.mark.parametrize("left_out", [40, 3, 0], ids=["many", "fewer than ranks", "none"])
def test_logged_propensities_are_the_frequencies_of_100_000_draws(left_out: int) -> None:
    draws, length, within, share = 100_000, 8, 5, 0.3
    count = length + left_out
    users = pl.Series([f"u{n}" for n in range(draws)])
    chosen = np.broadcast_to(np.arange(left_out, count), (draws, length))
    present = np.ones((draws, count), dtype=np.bool_)
    picked = explore(chosen, present, streams(users, 1, DAY), share, within)
    frequency = np.bincount(picked.places.ravel(), minlength=count) / draws
    logged = np.full(count, np.nan)
    logged[picked.places.ravel()] = picked.propensity.ravel()
    assert np.isfinite(logged).all()
    assert logged.sum() == pytest.approx(length)
    error = 4.5 * np.sqrt(logged * (1 - logged) / draws)
    assert (np.abs(frequency - logged) <= error).all()
    # all draws of an item say the same of it, and it stands at each explored rank alike often
    assert np.ptp(picked.propensity[picked.is_exploration]) == 0 if left_out else not picked.is_exploration.any()
    explored = min(within, left_out)
    by_rank = picked.is_exploration.mean(axis=0)
    np.testing.assert_allclose(by_rank[:explored], share, atol=0.007)
    assert not by_rank[explored:].any()


def test_two_explored_ranks_draw_independently_and_pairs_of_items_alike_often() -> None:
    draws = 100_000
    users = pl.Series([f"u{n}" for n in range(draws)])
    picked = explore(
        np.broadcast_to(np.arange(2), (draws, 2)), np.ones((draws, 5), dtype=np.bool_), streams(users, 2, DAY), 0.5, 2
    )
    both = picked.is_exploration.all(axis=1)
    assert both.mean() == pytest.approx(0.25, abs=0.007)
    pairs = np.bincount(picked.places[both] @ np.array([5, 1]), minlength=25)
    assert np.count_nonzero(pairs) == 6  # the ordered pairs of three candidates
    np.testing.assert_allclose(pairs[pairs > 0] / both.sum(), 1 / 6, atol=0.012)


def test_draws_depend_on_seed_day_and_user_and_on_nothing_else() -> None:
    users = pl.Series(["a", "b", "c"])
    first = streams(users, 1, DAY)
    assert (streams(users.reverse(), 1, DAY)[::-1] == first).all()
    others = [streams(users, 2, DAY), streams(users, 1, DAY + dt.timedelta(days=1))]
    assert len({tuple(row) for found in (first, *others) for row in found.tolist()}) == 9


def test_a_user_gets_the_same_list_in_any_block_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    items = np.argsort(generator.random((40, 30)), axis=1)
    items[7, 20:] = NONE
    scores = np.where(items == NONE, -np.inf, -np.sort(-generator.random((40, 30)), axis=1))
    settings = Rerank(
        diversity=0.4,
        likeness=["vectors", "category"],
        caps=[Cap(column="category", most=2, within=6)],
        exploration=0.3,
        exploration_within=5,
    )
    codes = {"category": generator.integers(0, 5, 30)}
    reranker = Reranker(settings, 10, 1, DAY, _vectors(generator, 30), codes)
    users = pl.Series([f"u{n}" for n in range(40)])
    whole = rerank(reranker, users, items, scores)
    monkeypatch.setattr("pipeline.rerank_users.COSINES", 7 * 30**2)
    parts = [rerank(reranker, users[rows], items[rows], scores[rows]) for rows in (slice(0, 13), slice(13, 40))]
    for name in ("places", "propensity", "is_exploration"):
        together = np.concatenate([getattr(part, name) for part in parts])
        assert together.tobytes() == getattr(whole, name).tobytes()
    assert whole.is_exploration.any()


@pytest.mark.parametrize(
    ("rerank_keys", "message"),
    [
        ({"diversity": 1.0}, r"ranking.rerank.diversity\n.*less than 1"),
        ({"exploration": 1.0}, r"ranking.rerank.exploration\n.*less than 1"),
        ({"caps": [{"column": "brand", "most": 0, "within": 5}]}, r"caps.0.most\n.*greater than or equal to 1"),
        ({"caps": [{"column": "author", "most": 1, "within": 5}]}, r"names \['author'\], no categorical columns"),
        ({"likeness": ["price"]}, r"names \['price'\], no categorical columns of items: expected some of \['brand'"),
        ({"likeness": ["brand", "brand"]}, "expected each name once"),
        ({"caps": [{"column": "brand", "most": 1, "within": 51}]}, r"caps\[0\].within reaches beyond .* = 50: 51"),
        ({"exploration": 0.1, "exploration_within": 60}, "exploration_within reaches beyond"),
    ],
    ids=str,
)
def test_settings_that_cannot_hold_are_refused(
    make_config: Callable[..., Config], rerank_keys: dict[str, Any], message: str
) -> None:
    items = {"file": "items.csv", "id": "item_id", "static": True, "categorical": ["brand"], "numeric": ["price"]}
    with pytest.raises(ValidationError, match=message):
        make_config(items=items, ranking={"rerank": rerank_keys})


def test_exploration_needs_candidates_that_lists_leave_out(make_config: Callable[..., Config]) -> None:
    sections = {"retrieval": {"candidates": 50}, "ranking": {"rerank": {"exploration": 0.1}}}
    with pytest.raises(ValidationError, match="draws from candidates that a list leaves out"):
        make_config(**sections)
    sections["ranking"] = {"rerank": {"diversity": 0.1}}
    assert make_config(**sections).ranking.rerank.is_on()
