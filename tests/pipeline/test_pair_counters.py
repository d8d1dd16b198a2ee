"""What a counter of pairs knows of a day's users and items at a context is what `pair_features` gives each pair."""

import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from features.asof import FeatureState
from features.encoding import Encoder
from features.plan import CounterPlan, FeaturePlan, SidePlan
from pipeline.pair_counters import levels_at_a_context, pair_counter, positions_of

DAY = dt.date(2026, 1, 5)
USERS = pl.DataFrame({"user_id": ["a", "b", "c"], "city": ["x", None, "y"]})
ITEMS = pl.DataFrame({"item_id": ["i", "j", "k", "l"], "genre": ["g", "h", None, "g"]})


def _counter(*keys: str) -> CounterPlan:
    return CounterPlan(keys=keys, half_lives_days=(7.0,), smoothing=5.0, recency=True)


def _plan(*counters: CounterPlan) -> FeaturePlan:
    return FeaturePlan(
        users=SidePlan(categorical=("city",)),
        items=SidePlan(categorical=("genre",)),
        context=("tab",),
        counters=counters,
        sequence_length=0,
        item_age=False,
        time_zone="UTC",
    )


def _state(counter: CounterPlan, rows: list[tuple[str, ...]]) -> FeatureState:
    keys = pl.DataFrame(rows, schema=list(counter.keys), orient="row")
    counts = np.arange(1.0, len(rows) + 1)
    moment = pl.Series([dt.datetime(2026, 1, 4, hour, tzinfo=dt.UTC) for hour in range(len(rows))])
    frame = keys.with_columns(
        pl.Series("impressions@7", counts * 3),
        pl.Series("clicks@7", counts),
        pl.Series("conversions@7", counts / 2),
        moment.alias("last_impression_at"),
        pl.lit(None, pl.Datetime("us", "UTC")).alias("last_click_at"),
    )
    return FeatureState(DAY, {counter.name: frame}, None, None)


def _encoder(counter: CounterPlan) -> Encoder:
    knots = {name: [0.0, 0.1, 0.5, 2.0, 20.0] for name in counter.features()}
    return Encoder(vocabularies={}, knots=knots, lists={}, bins=4)


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        (("user_id", "genre"), [("a", "g"), ("b", "h"), ("a", "gone"), ("gone", "g")]),
        (("city", "item_id"), [("x", "i"), ("y", "l")]),
        (("user_id", "genre", "tab"), [("a", "g", "1"), ("b", "g", "2"), ("c", "h", "1")]),
        (("tab", "city", "genre"), [("1", "y", "g"), ("2", "x", "g")]),
    ],
)
def test_each_pair_finds_its_features(keys: tuple[str, ...], known: list[tuple[str, ...]]) -> None:
    counter = _counter(*keys)
    plan, state, encoder = _plan(counter), _state(counter, known), _encoder(counter)
    found = pair_counter(state, (USERS, ITEMS), counter, plan, {"tab": "1"}, encoder)
    users, items = (numbers.ravel() for numbers in np.indices((USERS.height, ITEMS.height)))
    pairs = pl.concat([USERS[users], ITEMS[items]], how="horizontal").with_columns(pl.lit("1").alias("tab"))
    expected = positions_of(state, pairs, [counter], plan, encoder)
    np.testing.assert_array_equal(found.positions[found.rows(users, items)], expected.to_numpy())
    assert [f"{name}_position" for name in found.names] == expected.columns
    assert len(np.unique(found.rows(users, items))) > 2


def test_a_counter_that_knows_nothing_yet_gives_every_pair_the_same() -> None:
    counter = _counter("user_id", "genre")
    plan, encoder = _plan(counter), _encoder(counter)
    found = pair_counter(FeatureState(DAY, {}, None, None), (USERS, ITEMS), counter, plan, {"tab": "1"}, encoder)
    assert found.rows(np.array([0, 1, 2]), np.array([0, 1, 2])).tolist() == [0, 0, 1]
    assert found.unseen == 0


def test_a_fixed_context_leaves_a_counter_to_the_user_to_the_item_or_to_both() -> None:
    keys = [("user_id", "tab"), ("genre", "tab"), ("city", "genre", "tab"), ("tab",), ("user_id", "item_id")]
    levels = levels_at_a_context(_plan(*(_counter(*one) for one in keys)))
    assert [counter.keys for counter in levels.user] == [("user_id", "tab")]
    assert [counter.keys for counter in levels.item] == [("genre", "tab")]
    assert [counter.keys for counter in levels.pair] == [("city", "genre", "tab"), ("user_id", "item_id")]
    assert [counter.keys for counter in levels.context] == [("tab",)]


def test_counters_of_one_side_are_no_counters_of_pairs() -> None:
    plan = _plan(_counter("user_id"), _counter("genre"))
    levels = levels_at_a_context(replace(plan, context=()))
    assert not [*levels.user, *levels.item, *levels.pair, *levels.context]
