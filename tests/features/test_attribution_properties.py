"""Attribution equals a naive reference, and what is counted depends only on what was received by then."""

import datetime as dt
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.attribution import Windows, attribute_clicks, attribute_conversions, label_impressions

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TIME = pl.Datetime("us", "UTC")
WINDOWS = Windows(click=dt.timedelta(hours=3), conversion=dt.timedelta(hours=4), lateness=dt.timedelta(hours=2))
TIMES = {"event_time": TIME, "received_time": TIME}
PAIR = {"user_id": pl.String, "item_id": pl.String}
IMPRESSION: dict[str, Any] = {"impression_id": pl.String, **PAIR, **TIMES, "date": pl.Date, "surface": pl.String}
CLICK: dict[str, Any] = {"event_id": pl.String, "impression_id": pl.String, **PAIR, **TIMES}
CONVERSION = {**CLICK, "value": pl.Float64}
SCHEMAS = (IMPRESSION, CLICK, CONVERSION)
Row = dict[str, Any]
World = tuple[list[Row], list[Row], list[Row]]

HOURS = st.integers(0, 9)
DELAYS = st.sampled_from([0, 0, 1, 2, 5, 9])
USERS = st.sampled_from(["u", "v"])
ITEMS = st.sampled_from(["i", "j"])


def times(hour: int, delay: int) -> Row:
    return {"event_time": START + dt.timedelta(hours=hour), "received_time": START + dt.timedelta(hours=hour + delay)}


@st.composite
def impression(draw: st.DrawFn) -> Row:
    hour = draw(HOURS)
    date = dt.date(2026, 1, 1 + hour // 5)
    return {"user_id": draw(USERS), "item_id": draw(ITEMS), **times(hour, draw(DELAYS)), "date": date, "surface": "s"}


@st.composite
def event(draw: st.DrawFn) -> Row:
    named = draw(st.booleans())
    row = {
        "impression_id": f"m{draw(st.integers(0, 6))}" if named else None,
        "user_id": draw(st.sampled_from([None, "u", "v"] if named else ["u", "u", "v", None])),
        "item_id": draw(st.sampled_from([None, "i", "j"] if named else ["i", "i", "j", None])),
        "value": draw(st.sampled_from([None, 0.1, 0.2, 0.3])),
    }
    return row | times(draw(HOURS) + 1, draw(DELAYS))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    shown = draw(st.lists(impression(), max_size=6))
    clicks, conversions = draw(st.lists(event(), max_size=6)), draw(st.lists(event(), max_size=6))
    order = draw(st.permutations(range(6)))
    return (
        [row | {"impression_id": f"m{order[n]}"} for n, row in enumerate(shown)],
        [row | {"event_id": f"c{order[n]}"} for n, row in enumerate(clicks)],
        [row | {"event_id": f"o{order[n]}"} for n, row in enumerate(conversions)],
    )


def frames(world: World) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    made = [
        pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)
        for rows, schema in zip(world, SCHEMAS, strict=True)
    ]
    return made[0], made[1], made[2]


def attributed(shown: pl.DataFrame, clicks: pl.DataFrame, conversions: pl.DataFrame) -> list[pl.DataFrame]:
    """Return attributed clicks, attributed conversions and labelled impressions."""
    by_click = attribute_clicks(clicks, shown, WINDOWS.click)
    by_conversion = attribute_conversions(conversions, by_click, WINDOWS.conversion)
    return [by_click, by_conversion, label_impressions(shown, by_click, by_conversion, WINDOWS)]


def as_cause(row: Row) -> Row:
    """Return an impression in the shape of an attributed click."""
    known = (row["impression_id"], row["date"], row["received_time"])
    names = ("to_impression", "to_date", "known_at"), ("counted_impression", "counted_date", "counted_at")
    return (
        row | {"event_id": row["impression_id"]} | {n: v for group in names for n, v in zip(group, known, strict=True)}
    )


def matching(event: Row, causes: list[Row], impression: str) -> list[Row]:
    """Return the causes that the event may belong to but for time, first to last."""
    attributed = [cause for cause in causes if cause[impression] is not None]
    if event["impression_id"] is not None:
        found = [cause for cause in attributed if cause[impression] == event["impression_id"]]
    else:
        pair = (event["user_id"], event["item_id"])
        found = [cause for cause in attributed if (cause["user_id"], cause["item_id"]) == pair]
    return sorted(found, key=lambda cause: (cause["event_time"], cause["event_id"]))


def reference(event: Row, causes: list[Row], window: dt.timedelta, reasons: tuple[str, str, str, str]) -> Row:
    def in_window(cause: Row) -> bool:
        elapsed: dt.timedelta = event["event_time"] - cause["event_time"]
        return dt.timedelta(0) < elapsed <= window

    final = matching(event, causes, "to_impression")
    names = ("to_impression", "to_date", "known_at", "counted_impression", "counted_date", "counted_at", "reason")
    result: Row = event | dict.fromkeys(names)
    if any(in_window(cause) for cause in final):
        last = [cause for cause in final if in_window(cause)][-1]
        result |= {name: last[name] for name in ("to_impression", "to_date")}
        result |= {name: event[name] or last[name] for name in PAIR}
        result["known_at"] = max(event["received_time"], last["known_at"])
    elif event["impression_id"] is None:
        result["reason"] = reasons[3]
    elif not final:
        result["reason"] = reasons[0]
    else:
        late = any(cause["event_time"] < event["event_time"] for cause in final)
        result["reason"] = reasons[2] if late else reasons[1]
    moments = [
        (max(event["received_time"], cause["counted_at"]), cause)
        for cause in matching(event, causes, "counted_impression")
        if in_window(cause)
    ]
    if moments:
        first = min(moment for moment, _ in moments)
        cause = [cause for moment, cause in moments if moment <= first][-1]
        result |= {name: cause[name] for name in ("counted_impression", "counted_date")} | {"counted_at": first}
    return result


CLICK_REASONS = (
    "no impression with its id",
    "not after its impression",
    "after the click window",
    "no impression of its user and item in the click window",
)
CONVERSION_REASONS = (
    "no click on its impression",
    "not after a click on its impression",
    "after the conversion window",
    "no click of its user and item in the conversion window",
)


def reference_labels(shown: list[Row], clicks: list[Row], conversions: list[Row]) -> list[Row]:
    def first(events: list[Row], impression: str, owner: str, time: str) -> dt.datetime | None:
        return min((event[time] for event in events if event[owner] == impression), default=None)

    labelled = []
    for row in shown:
        name = row["impression_id"]
        ordered = sorted(conversions, key=lambda event: (event["event_time"], event["event_id"]))
        values = [e["value"] for e in ordered if e["to_impression"] == name and e["value"] is not None]
        known = {
            "click_known_at": first(clicks, name, "to_impression", "known_at"),
            "conversion_known_at": first(conversions, name, "to_impression", "known_at"),
            "click_counted_at": first(clicks, name, "counted_impression", "counted_at"),
            "conversion_counted_at": first(conversions, name, "counted_impression", "counted_at"),
        }
        labels = {
            "click": known["click_known_at"] is not None,
            "conversion": known["conversion_known_at"] is not None,
            "label_matures_at": row["event_time"] + dt.timedelta(hours=9),
            "value": sum(values) if values else None,
        }
        labelled.append(row | known | labels)
    return labelled


def rows_of(frame: pl.DataFrame, like: list[Row]) -> list[Row]:
    """Return what the reference says of the frame's columns."""
    return [{name: row[name] for name in frame.columns} for row in like]


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_attribution_equals_a_naive_reference(world: World) -> None:
    clicks, conversions, labelled = attributed(*frames(world))
    causes = [as_cause(row) for row in world[0]]
    naive_clicks = [reference(row, causes, WINDOWS.click, CLICK_REASONS) for row in world[1]]
    naive_conversions = [reference(row, naive_clicks, WINDOWS.conversion, CONVERSION_REASONS) for row in world[2]]
    assert clicks.to_dicts() == rows_of(clicks, naive_clicks)
    assert conversions.to_dicts() == rows_of(conversions, naive_conversions)
    assert labelled.to_dicts() == rows_of(labelled, reference_labels(world[0], naive_clicks, naive_conversions))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HOURS, DELAYS), max_size=40), st.lists(st.tuples(HOURS, DELAYS), max_size=10))
def test_a_busy_user_and_item_equal_the_naive_reference(
    shown: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    pair: Row = {"user_id": "u", "item_id": "i"}
    more = {**pair, "date": dt.date(2026, 1, 1), "surface": "s"}
    impressions = [more | times(*at) | {"impression_id": f"m{n}"} for n, at in enumerate(shown)]
    clicks = [pair | times(*at) | {"event_id": f"c{n}", "impression_id": None} for n, at in enumerate(done)]
    found, _, _ = attributed(*frames((impressions, clicks, [])))
    causes = [as_cause(row) for row in impressions]
    assert found.to_dicts() == rows_of(found, [reference(row, causes, WINDOWS.click, CLICK_REASONS) for row in clicks])


def counts_before(world: World, moment: dt.datetime) -> set[tuple[str, str, dt.datetime]]:
    """Return (impression, kind, counted_at) of what is counted before the moment."""
    clicks, conversions, labelled = attributed(*frames(world))
    events = {
        (row["counted_impression"], kind, row["counted_at"])
        for kind, frame in (("a click", clicks), ("a conversion", conversions))
        for row in frame.drop_nulls("counted_at").to_dicts()
    }
    firsts = {
        (row["impression_id"], name, row[name])
        for row in labelled.to_dicts()
        for name in ("click_counted_at", "conversion_counted_at")
        if row[name] is not None
    }
    return {count for count in events | firsts if count[2] < moment}


@settings(max_examples=80, deadline=None)
@given(worlds(), st.integers(0, 16))
def test_what_is_counted_before_a_moment_needs_only_what_was_received_before_it(world: World, hour: int) -> None:
    moment = START + dt.timedelta(hours=hour)
    received = [[row for row in rows if row["received_time"] < moment] for rows in world]
    assert counts_before((received[0], received[1], received[2]), moment) == counts_before(world, moment)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing_but_the_order_of_the_result(world: World, seed: int) -> None:
    made = frames(world)
    shuffled = [frame.sample(fraction=1.0, shuffle=True, seed=seed) for frame in made]
    expected, found = attributed(*made), attributed(shuffled[0], shuffled[1], shuffled[2])
    for id_column, one, other in zip(("event_id", "event_id", "impression_id"), expected, found, strict=True):
        assert one.sort(id_column).equals(other.sort(id_column))
