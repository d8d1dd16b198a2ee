"""Claims about point in time: what was known before day D begins counts for D, and nothing else does."""

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from features.asof import (
    FeatureState,
    advance_state,
    day_partials,
    example_features,
    initial_state,
    item_features,
    pair_features,
    replay,
    user_features,
)
from features.counters import MEASURES
from features.plan import CounterPlan, FeaturePlan, SidePlan

Maker = Callable[[list[dict[str, Any]], str], pl.DataFrame]
Sides = tuple[pl.DataFrame | None, pl.DataFrame | None]
FIRST = dt.date(2026, 1, 1)
SECOND = 1 / 3600
SHANGHAI = "Asia/Shanghai"
ONLY_USER = FeaturePlan(
    users=SidePlan(),
    items=SidePlan(),
    context=(),
    counters=(CounterPlan(keys=("user_id",), half_lives_days=(7.0,), smoothing=1.0, recency=False),),
    sequence_length=2,
    item_age=False,
    time_zone="UTC",
)


def day(number: int) -> dt.date:
    return FIRST + dt.timedelta(days=number - 1)


def state_of(rows: pl.DataFrame, until: int, plan: FeaturePlan, sides: Sides) -> FeatureState:
    """Advance day by day to the state as of day `until`."""
    state = replay(
        lambda date: day_partials(rows.filter(pl.col("date") == date), *sides, plan), FIRST, day(until), plan
    )
    assert state.as_of == day(until)
    return state


def counts(rows: pl.DataFrame, until: int, plan: FeaturePlan = ONLY_USER) -> tuple[float, float, float]:
    """Return what the user's counter knows, decay undone for one event each."""
    state = state_of(rows, until, plan, (None, None)).counters.get("user_id")
    if state is None or state.is_empty():
        return (0, 0, 0)
    return tuple(int(state[f"{name}@7"].sum() > 0) for name in ("impressions", "clicks", "conversions"))  # type: ignore[return-value]


def test_an_event_known_before_the_day_begins_counts_and_one_known_as_it_begins_does_not(
    make_rows: Maker,
) -> None:
    before = make_rows([{"event_time": 23, "received_time": 24 - SECOND}], "UTC")
    at = make_rows([{"event_time": 23, "received_time": 24}], "UTC")
    assert [counts(before, until) for until in (1, 2, 3)] == [(0, 0, 0), (1, 0, 0), (1, 0, 0)]
    assert [counts(at, until) for until in (1, 2, 3)] == [(0, 0, 0), (0, 0, 0), (1, 0, 0)]


def test_the_day_begins_at_midnight_of_the_plan_s_time_zone(make_rows: Maker) -> None:
    plan = replace(ONLY_USER, time_zone=SHANGHAI)
    before = make_rows([{"event_time": 14, "received_time": 16 - SECOND}], SHANGHAI)
    at = make_rows([{"event_time": 14, "received_time": 16}], SHANGHAI)
    assert counts(before, 2, plan) == (1, 0, 0)
    assert counts(at, 2, plan) == (0, 0, 0)
    assert counts(at, 3, plan) == (1, 0, 0)
    assert plan.start_of(day(2)) == dt.datetime(2026, 1, 1, 16, tzinfo=dt.UTC)


def test_a_late_click_and_a_later_conversion_count_from_their_own_days(make_rows: Maker) -> None:
    late = {"event_time": 1, "click_known_at": 49, "conversion_known_at": 72}
    rows = make_rows([late], "UTC")
    expected = [(0, 0, 0), (1, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert [counts(rows, until) for until in range(1, 6)] == expected
    state = state_of(rows, 4, ONLY_USER, (None, None))
    assert state.sequences is not None
    assert state.sequences.rows() == [("u1", ["i1"], [])]


def test_a_late_click_decays_from_the_day_on_which_it_was_known(make_rows: Maker) -> None:
    rows = make_rows([{"event_time": 1, "click_known_at": 49}], "UTC")
    counter = state_of(rows, 4, ONLY_USER, (None, None)).counters["user_id"]
    assert counter["clicks@7"].item() == 1.0
    assert counter["impressions@7"].item() == pytest.approx(0.5 ** (2 / 7))


def test_a_day_without_rows_decays_and_lets_pending_events_in(make_rows: Maker) -> None:
    rows = make_rows([{"event_time": 1, "received_time": 30}, {"event_time": 2}], "UTC")
    counter = state_of(rows, 3, ONLY_USER, (None, None)).counters["user_id"]
    assert counter["impressions@7"].item() == pytest.approx(1 + 0.5 ** (1 / 7))


def test_what_became_known_on_another_day_is_our_own_mistake(make_rows: Maker) -> None:
    partials = day_partials(make_rows([{"event_time": 30}], "UTC"), None, None, ONLY_USER)
    with pytest.raises(AssertionError, match="what became known on the day only"):
        advance_state(initial_state(FIRST), partials, ONLY_USER)


def test_a_label_that_moved_to_another_impression_still_counts_where_it_was_counted(make_rows: Maker) -> None:
    rows = make_rows([{"event_time": 1}], "UTC")
    moved = rows.with_columns(click_counted_at=pl.col("event_time") + dt.timedelta(hours=2))
    assert counts(moved, 2) == (1, 1, 0)


HISTORY = pl.DataFrame(
    {
        "user_id": ["u1", "u1", "u2"],
        "valid_from": [
            dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            dt.datetime(2026, 1, 3, 5, tzinfo=dt.UTC),
            dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        ],
        "segment": ["a", "b", "c"],
        "income": [1.0, 2.0, 3.0],
    },
    schema_overrides={"valid_from": pl.Datetime("us", "UTC")},
)


def test_a_side_table_with_history_holds_as_of_the_start_of_the_day(plan: FeaturePlan, items: pl.DataFrame) -> None:
    found = []
    for number in (1, 2, 3, 4):
        ids = pl.DataFrame({"user_id": ["u1", "u2"]})
        found.append(user_features(initial_state(day(number)), ids, HISTORY, plan)["segment"].to_list())
    assert found == [["a", None], ["a", "c"], ["a", "c"], ["b", "c"]], "a row of 5 o'clock holds from the next day"
    del items


def test_a_counter_keyed_by_a_column_with_history_counts_under_the_day_of_knowledge(
    make_rows: Maker, plan: FeaturePlan, items: pl.DataFrame
) -> None:
    rows = make_rows([{"event_time": 1, "click_known_at": 80}, {"event_time": 2, "user_id": "u2"}], "UTC")
    counted = day_partials(rows, HISTORY, items, plan)["segment_x_brand"]
    assert counted.select("known_on", "segment", "impressions", "clicks").rows() == [
        (day(1), "a", 1.0, 0.0),
        (day(4), "b", 0.0, 1.0),
    ], "u2 has no row on the first day, so no segment to count under"


def test_users_and_items_are_known_once_an_impression_was_received(make_rows: Maker) -> None:
    rows = make_rows([{"event_time": 1}, {"event_time": 2, "user_id": "u2", "received_time": 30}], "UTC")
    found = [state_of(rows, until, ONLY_USER, (None, None)) for until in (1, 2, 3)]
    assert [state.ids("user").to_list() for state in found] == [[], ["u1"], ["u1", "u2"]]
    assert found[2].ids("item").to_list() == ["i1"]


EVENT = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u1", "u2", "u3", "u9"]),
        "item_id": st.sampled_from(["i1", "i2", "i3", "i4", "i9"]),
        "surface": st.sampled_from(["home", "search"]),
        "event_time": st.integers(0, 95),
        "received": st.integers(0, 30),
        "clicked": st.none() | st.integers(0, 60),
        "converted": st.none() | st.integers(0, 60),
    }
)


def timed(event: dict[str, Any]) -> dict[str, Any]:
    """Turn delays into times, knowing a conversion only after its click."""
    row = {name: event[name] for name in ("user_id", "item_id", "surface", "event_time")}
    row["received_time"] = event["event_time"] + event["received"]
    if event["clicked"] is not None:
        row["click_known_at"] = row["received_time"] + event["clicked"]
        if event["converted"] is not None:
            row["conversion_known_at"] = row["click_known_at"] + event["converted"]
    return row


EVENTS = st.lists(EVENT.map(timed), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(events=EVENTS, order=st.randoms(use_true_random=False), until=st.integers(1, 4))
def test_neither_order_nor_what_is_known_later_changes_a_feature_by_a_bit(
    events: list[dict[str, Any]], order: Random, until: int, make_rows: Maker, plan: FeaturePlan, sides: Sides
) -> None:
    rows = make_rows(events, "UTC")
    today = rows.filter(pl.col("date") == day(until)).select("impression_id", "user_id", "item_id", "surface")
    past = rows.filter(pl.col("date") < day(until))
    places = list(range(past.height))
    order.shuffle(places)
    start = plan.start_of(day(until))
    known = past.with_columns(
        pl.when(pl.col(name) < start).then(pl.col(name)).alias(name)
        for name in ("received_time", "click_counted_at", "conversion_counted_at")
    ).filter(pl.col("received_time").is_not_null())
    expected = example_features(state_of(known, until, plan, sides), today, *sides, plan)
    assert expected.height == today.height
    for other in (past, past[places], rows):
        found = example_features(state_of(other, until, plan, sides), today, *sides, plan)
        assert expected.equals(found, null_equal=True)


@settings(max_examples=25, deadline=None)
@given(events=EVENTS)
def test_advancing_day_by_day_equals_counting_the_whole_log(
    events: list[dict[str, Any]], make_rows: Maker, plan: FeaturePlan, sides: Sides
) -> None:
    state = state_of(make_rows(events, "UTC"), 5, plan, sides)
    expected: dict[str, list[float]] = {}
    for event in events:
        for place, time in enumerate(("received_time", "click_known_at", "conversion_known_at")):
            age_days = 3 - event.get(time, math.inf) // 24
            if age_days >= 0:
                counted = expected.setdefault(event["user_id"], [0.0, 0.0, 0.0])
                counted[place] += 0.5 ** (age_days / 7)
    counter = state.counters["user_id"].select("user_id", *(f"{name}@7" for name in MEASURES))
    assert {user: list(values) for user, *values in counter.rows()} == {
        user: pytest.approx(values, rel=1e-12) for user, values in expected.items()
    }


@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_scoring_s_features_of_a_pair_are_training_s(
    events: list[dict[str, Any]],
    make_rows: Maker,
    plan: FeaturePlan,
    users: pl.DataFrame,
    items: pl.DataFrame,
) -> None:
    rows = make_rows(events, "UTC")
    state = state_of(rows, 4, plan, (users, items))
    pairs = rows.select("impression_id", "user_id", "item_id", "surface")
    expected = example_features(state, pairs, users, items, plan)
    user_side = user_features(state, pairs.select("user_id").unique(), users, plan)
    item_side = item_features(state, pairs.select("item_id").unique(), items, plan)
    joined = pairs.join(user_side, on="user_id", how="left", maintain_order="left")
    joined = joined.join(item_side, on="item_id", how="left", maintain_order="left")
    found = pair_features(state, joined, plan).select(expected.columns)
    assert_frame_equal(found, expected, check_exact=True)
    declared = [*plan.user_columns(), *plan.item_columns(), *plan.pair_columns()]
    assert sorted(expected.columns) == sorted([*pairs.columns, *declared])


def test_nothing_known_and_no_side_row_give_missing_features_not_errors(
    plan: FeaturePlan, users: pl.DataFrame, items: pl.DataFrame
) -> None:
    pairs = pl.DataFrame({"user_id": ["u9"], "item_id": ["i9"], "surface": ["home"]})
    row = example_features(initial_state(FIRST), pairs, users, items, plan).row(0, named=True)
    assert row["segment"] is None
    assert row["item_age_days"] is None
    assert row["last_clicked_items"] == []
    assert row["user_id__impressions_7d"] == 0.0
    assert row["user_id__click_rate_7d"] == 0.0
    assert row["user_id__hours_since_click"] is None
    assert row["brand__impressions_7d"] is None, "a missing key is no entity"


def test_the_age_of_an_item_is_in_days_since_it_was_available(plan: FeaturePlan, items: pl.DataFrame) -> None:
    frame = item_features(initial_state(day(11)), pl.DataFrame({"item_id": ["i1", "i3"]}), items, plan)
    assert frame["item_age_days"].to_list() == [10.0, None]
