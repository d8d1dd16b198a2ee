"""Claims about raw events: types and reasons of the contract, and which copy of an event stays."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from features.events import (
    EventContract,
    event_schema,
    lose_to_a_copy,
    merge_copies,
    parse_events,
    repeat_an_impression,
    value_columns,
)
from features.schema import read_times, timestamp

TIME = dt.datetime(2026, 1, 1, 22, 30, tzinfo=dt.UTC)
LATEST = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
ROW = {
    "event_id": "e1",
    "kind": "show",
    "event_time": "2026-01-01T22:30:00Z",
    "received_time": "2026-01-01T22:31:00Z",
    "user_id": "u1",
    "item_id": "i1",
    "impression_id": "p1",
    "request_id": "r1",
    "value": "2.5",
    "surface": "home",
}


def contract(kind: str | None = None) -> EventContract:
    return EventContract(
        kind=kind,
        names={"show": "impression", "tap": "click", "buy": "conversion", "order": "conversion"},
        context=("surface",),
        hour=True,
        time_unit="us",
        time_zone="Asia/Shanghai",
        latest=LATEST,
    )


def raw(**changes: str | None) -> pl.DataFrame:
    row = {name: value for name, value in {**ROW, **changes}.items() if value != "absent"}
    schema = dict.fromkeys(row, pl.String)
    return pl.DataFrame([row], schema=schema).with_columns(
        pl.lit("log").alias("file"), pl.lit(7, pl.Int64).alias("row")
    )


def parsed(**changes: str | None) -> dict[str, object]:
    events, rejected = parse_events(raw(**changes), contract())
    assert rejected.is_empty()
    return events.row(0, named=True)


def test_a_row_becomes_an_event_by_the_contract() -> None:
    events, rejected = parse_events(raw(kind="buy"), contract())
    assert events.schema == event_schema(("surface",), hour=True)
    assert rejected.is_empty()
    assert events.row(0, named=True) == {
        "event_id": "e1",
        "kind": "conversion",
        "event_time": TIME,
        "received_time": TIME + dt.timedelta(minutes=1),
        "user_id": "u1",
        "item_id": "i1",
        "impression_id": "p1",
        "value": 2.5,
        "surface": "home",
        "hour": "6",
        "file": "log",
        "row": 7,
        "date": dt.date(2026, 1, 2),
    }


@pytest.mark.parametrize(
    ("changes", "column", "expected"),
    [
        ({"received_time": "absent"}, "received_time", TIME),
        ({"received_time": ""}, "received_time", TIME),
        ({"impression_id": ""}, "impression_id", "r1|i1"),
        ({"impression_id": "absent"}, "impression_id", "r1|i1"),
        (
            {"impression_id": "", "request_id": "absent"},
            "impression_id",
            f"u1|i1|{int(TIME.timestamp()) * 1_000_000}",
        ),
        ({"kind": "tap", "impression_id": "", "request_id": ""}, "impression_id", None),
        ({"kind": "tap", "user_id": ""}, "user_id", None),
        ({"kind": "tap", "user_id": "", "impression_id": ""}, "impression_id", "r1|i1"),
        ({"kind": "order", "value": ""}, "value", None),
        ({"kind": "show", "value": "much"}, "value", None),
        ({"surface": "absent"}, "surface", None),
        ({"user_id": "x" * 512}, "user_id", "x" * 512),
        ({"event_time": "2026-01-01 22:30:00"}, "event_time", TIME),
    ],
)
def test_what_is_absent_has_a_default(changes: dict[str, str], column: str, expected: object) -> None:
    assert parsed(**changes)[column] == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_id": " "}, "event_id is empty"),
        ({"kind": "scroll"}, "kind is unknown"),
        ({"kind": None}, "kind is unknown"),
        ({"event_time": ""}, "event_time is empty or no time"),
        ({"event_time": "yesterday"}, "event_time is empty or no time"),
        ({"event_time": "1970-01-01"}, "event_time is before 1990: is source.time_unit = 'us' right?"),
        ({"event_time": "2026-02-01T00:00:00Z"}, "event_time is in the future"),
        ({"event_time": "9200000000000000000"}, "event_time is in the future"),
        ({"received_time": "soon"}, "received_time is no time"),
        ({"received_time": "2099-01-01"}, "received_time is in the future"),
        ({"received_time": "2026-01-01T22:29:59Z"}, "received_time is before event_time"),
        ({"user_id": ""}, "user_id is empty"),
        ({"item_id": ""}, "item_id is empty"),
        (
            {"kind": "tap", "user_id": "", "impression_id": "", "request_id": ""},
            "names neither an impression nor a user and an item",
        ),
        ({"kind": "buy", "item_id": "", "impression_id": ""}, "names neither an impression nor a user and an item"),
        ({"item_id": "x" * 513}, "item_id is longer than 512 characters"),
        ({"kind": "buy", "value": "much"}, "value is no number"),
        ({"kind": "buy", "value": "inf"}, "value is no number"),
    ],
)
def test_each_broken_rule_has_its_reason(changes: dict[str, str | None], reason: str) -> None:
    events, rejected = parse_events(raw(**changes), contract())
    assert events.is_empty()
    assert rejected["reason"].to_list() == [reason]
    assert rejected.drop("reason").equals(raw(**changes)), "the row is kept as it was"


def test_a_stream_of_one_kind_needs_no_column_that_tells_it() -> None:
    events, _ = parse_events(raw(kind="absent"), contract("click"))
    assert events["kind"].to_list() == ["click"]


def copies(*rows: tuple[str, int, float, str]) -> pl.DataFrame:
    """Return conversions of id, minutes until receipt, value and file."""
    frames = [
        parse_events(raw(kind="buy", event_id=name, value=str(value)), contract())[0].with_columns(
            pl.lit(TIME + dt.timedelta(minutes=minutes)).cast(pl.Datetime("us", "UTC")).alias("received_time"),
            pl.lit(file).alias("file"),
        )
        for name, minutes, value, file in rows
    ]
    return pl.concat(frames)


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_copies_the_earliest_received_stays(*, reverse: bool) -> None:
    rows = copies(("a", 3, 1, "x"), ("b", 1, 1, "x"), ("a", 2, 1, "y"), ("a", 2, 1, "z"))
    kept, duplicates, repeats = merge_copies(rows.reverse() if reverse else rows)
    assert kept.select("event_id", "file").rows() == [("a", "y"), ("b", "x")]
    assert (duplicates, repeats.height) == (2, 0)


@pytest.mark.parametrize("reverse", [False, True])
def test_of_copies_with_other_values_the_first_received_then_the_least_stays(*, reverse: bool) -> None:
    rows = copies(("a", 2, 1, "x"), ("a", 1, 5, "y"), ("b", 1, 3, "x"), ("b", 1, 2, "y"))
    kept, duplicates, repeats = merge_copies(rows.reverse() if reverse else rows)
    assert kept.select("event_id", "value").rows() == [("a", 5.0), ("b", 2.0)]
    assert duplicates == 0
    assert sorted(repeats.select("event_id", "value").rows()) == [("a", 1.0), ("b", 3.0)]


def test_one_id_of_two_kinds_is_two_events() -> None:
    both = pl.concat(parse_events(raw(kind=kind), contract())[0] for kind in ("show", "tap"))
    kept, duplicates, repeats = merge_copies(both)
    assert (kept.height, duplicates, repeats.height) == (2, 0, 0)


def on_days(*rows: tuple[int, int]) -> pl.DataFrame:
    """Return copies of one event by day of January and minutes until receipt."""
    frames = [
        copies(("a", minutes, 1, "x")).with_columns(pl.lit(dt.date(2026, 1, day)).alias("date"))
        for day, minutes in rows
    ]
    return pl.concat(frames).with_columns(pl.lit(value=True).alias("is_stored"))


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ([(1, 1), (3, 2)], [3]),
        ([(1, 2), (3, 1)], [1]),
        ([(1, 1), (4, 2)], []),
        ([(1, 1), (3, 2), (5, 3)], [3, 5]),
    ],
)
def test_a_copy_of_a_day_within_reach_loses_to_the_earlier_received(
    rows: list[tuple[int, int]], lost: list[int]
) -> None:
    losers = lose_to_a_copy(on_days(*rows), reach_days=2)
    assert sorted(day.day for day in losers["date"]) == lost


def test_an_impression_within_reach_of_one_that_comes_first_repeats_it() -> None:
    rows = pl.DataFrame(
        {
            "event_id": ["a", "b", "c", "d", "e"],
            "impression_id": ["p", "p", "p", "q", "p"],
            "place": [2, 1, 3, 0, 1],
            "date": [dt.date(2026, 1, day) for day in (1, 2, 9, 1, 2)],
        }
    )
    assert sorted(repeat_an_impression(rows, reach_days=3)["event_id"]) == ["a", "e"]


def test_copies_must_agree_in_all_but_when_and_where_they_were_received() -> None:
    left_out = set(event_schema((), hour=False)) - set(value_columns(event_schema((), hour=False).to_frame()))
    assert left_out == {"received_time", "file", "row"}


def test_damaged_times_read_the_same_whether_or_not_the_usual_format_is_tried_first() -> None:
    damages = np.random.default_rng(7)
    texts = [f"2026-01-{day:02}T22:30:{second:02}.120450Z" for day in range(1, 32) for second in range(60)]
    for place in range(len(texts)):
        at = damages.integers(len(texts[place]))
        texts[place] = (
            texts[place][:at] + "0179-:TZ.+ "[damages.integers(11)] + texts[place][at + damages.integers(2) :]
        )
    given = pl.Series("time", [*texts, None, "", "1767306600000000", "2026-01-01 22:30:00", "2026-01-01"])
    expected = given.to_frame().select(timestamp(pl.col("time"), pl.String(), "us")).to_series()
    assert read_times(given, "us").equals(expected, check_names=True)
    assert 0 < expected.null_count() < len(texts)


def test_events_are_ordered_by_kind_then_time_then_id() -> None:
    kinds = ["impression", "click", "conversion"]
    rows = [raw(event_id=f"e{number}", kind=kind) for number in (2, 1) for kind in ("show", "tap", "buy")]
    events = parse_events(pl.concat([*rows, raw(event_id="e0", event_time="1991-01-01T00:00:00Z")]), contract())[0]
    ordered = merge_copies(events)[0]
    assert ordered.select("kind", "event_time", "event_id").equals(
        events.select("kind", "event_time", "event_id").sort("kind", "event_time", "event_id")
    )
    assert ordered["kind"].unique(maintain_order=True).to_list() == sorted(kinds)
