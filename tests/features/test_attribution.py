"""Claims about attribution: ties and edges of the windows, what moves a label and what never moves a count."""

import datetime as dt
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features.attribution import Windows, attribute_clicks, attribute_conversions, label_impressions

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DATE = START.date()
TIME = pl.Datetime("us", "UTC")
WINDOWS = Windows(click=dt.timedelta(hours=3), conversion=dt.timedelta(hours=5), lateness=dt.timedelta(hours=2))
MICROSECOND = 1 / 3.6e9
PAIR = {"user_id": pl.String, "item_id": pl.String}
TIMES = {"event_time": TIME, "received_time": TIME}
IMPRESSION = {"impression_id": pl.String, **PAIR, **TIMES, "date": pl.Date, "surface": pl.String}
CLICK = {"event_id": pl.String, "impression_id": pl.String, **PAIR, **TIMES}
CONVERSION = {**CLICK, "value": pl.Float64}
Row = dict[str, Any]


def at(hours: float) -> dt.datetime:
    """Return the moment some hours after START, to the microsecond."""
    return START + dt.timedelta(microseconds=round(hours * 3.6e9))


def shown(name: str, hours: float, received: float | None = None) -> Row:
    """Return an impression of user u and item i, received as it happens where nothing else is said."""
    known = at(hours if received is None else received)
    owner = {"user_id": "u", "item_id": "i", "surface": "home", "date": DATE}
    return {**owner, "impression_id": name, "event_time": at(hours), "received_time": known}


def done(name: str, hours: float, received: float | None = None) -> Row:
    """Return a click or conversion likewise, which names no impression and has no value."""
    return {**shown(name, hours, received), "event_id": name, "impression_id": None, "value": None}


def frame(schema: dict[str, Any], rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame([{column: one[column] for column in schema} for one in rows], schema=schema)


def clicks_of(clicks: list[Row], impressions: list[Row]) -> pl.DataFrame:
    return attribute_clicks(frame(CLICK, clicks), frame(IMPRESSION, impressions), WINDOWS.click)


def conversions_of(conversions: list[Row], clicks: pl.DataFrame) -> pl.DataFrame:
    return attribute_conversions(frame(CONVERSION, conversions), clicks, WINDOWS.conversion)


def labels_of(impressions: list[Row], clicks: list[Row], conversions: list[Row]) -> pl.DataFrame:
    by_click = clicks_of(clicks, impressions)
    by_conversion = conversions_of(conversions, by_click)
    return label_impressions(frame(IMPRESSION, impressions), by_click, by_conversion, WINDOWS)


BY_PAIR = "no impression of its user and item in the click window"
CLICK_TABLE = {
    "without an id the last impression": ([shown("a", 0), shown("b", 1)], done("c", 2), "b", None),
    "of equal times the greater id": ([shown("b", 1), shown("a", 1)], done("c", 2), "b", None),
    "not at the same microsecond": ([shown("a", 1)], done("c", 1), None, BY_PAIR),
    "an earlier one where the last is at the same microsecond": (
        [shown("a", 0), shown("b", 1)],
        done("c", 1),
        "a",
        None,
    ),
    "one microsecond after": ([shown("a", 1)], done("c", 1 + MICROSECOND), "a", None),
    "exactly at the window": ([shown("a", 0)], done("c", 3), "a", None),
    "one microsecond beyond the window": ([shown("a", 0)], done("c", 3 + MICROSECOND), None, BY_PAIR),
    "not of another item": ([shown("a", 0) | {"item_id": "j"}], done("c", 1), None, BY_PAIR),
    "not of another user": ([shown("a", 0) | {"user_id": "v"}], done("c", 1), None, BY_PAIR),
    "not without an item": ([shown("a", 0)], done("c", 1) | {"item_id": None}, None, BY_PAIR),
    "an id before a later impression": (
        [shown("a", 0), shown("b", 1)],
        done("c", 2) | {"impression_id": "a"},
        "a",
        None,
    ),
    "an id, exactly at the window": ([shown("a", 0)], done("c", 3) | {"impression_id": "a"}, "a", None),
    "an unknown id is no guess": (
        [shown("a", 0)],
        done("c", 1) | {"impression_id": "x"},
        None,
        "no impression with its id",
    ),
    "an id, at the same microsecond": (
        [shown("b", 0), shown("a", 1)],
        done("c", 1) | {"impression_id": "a"},
        None,
        "not after its impression",
    ),
    "an id, one microsecond beyond the window": (
        [shown("a", 0), shown("b", 1)],
        done("c", 3 + MICROSECOND) | {"impression_id": "a"},
        None,
        "after the click window",
    ),
}


@pytest.mark.parametrize(("impressions", "click", "owner", "reason"), CLICK_TABLE.values(), ids=CLICK_TABLE)
def test_a_click_belongs_to(impressions: list[Row], click: Row, owner: str | None, reason: str | None) -> None:
    found = clicks_of([click], impressions).row(0, named=True)
    assert (found["to_impression"], found["counted_impression"], found["reason"]) == (owner, owner, reason)
    dates = (found["to_date"], found["counted_date"])
    assert dates == ((DATE, DATE) if owner else (None, None))
    assert (found["known_at"] is None) == (found["counted_at"] is None) == (owner is None)


OF_A, OF_B = done("c1", 1) | {"impression_id": "a"}, done("c2", 2) | {"impression_id": "b"}
NO_CLICK, NO_PAIR = "no click on its impression", "no click of its user and item in the conversion window"
CONVERSION_TABLE = {
    "without an id the last click": ([OF_A, OF_B], done("o", 3), "b", None),
    "of equal times the greater id": (
        [done("c2", 1) | {"impression_id": "a"}, done("c1", 1) | {"impression_id": "b"}],
        done("o", 3),
        "a",
        None,
    ),
    "the named impression before a later click": ([OF_A, OF_B], done("o", 3) | {"impression_id": "a"}, "a", None),
    "not the impression without a click": ([OF_A], done("o", 3) | {"impression_id": "b"}, None, NO_CLICK),
    "not an unknown impression": ([OF_A], done("o", 3) | {"impression_id": "x"}, None, NO_CLICK),
    "exactly at the window": ([OF_A], done("o", 6) | {"impression_id": "a"}, "a", None),
    "an id, one microsecond beyond the window": (
        [OF_A],
        done("o", 6 + MICROSECOND) | {"impression_id": "a"},
        None,
        "after the conversion window",
    ),
    "one microsecond beyond the window": ([OF_A], done("o", 6 + MICROSECOND), None, NO_PAIR),
    "not at the same microsecond": ([OF_A], done("o", 1), None, NO_PAIR),
    "an id, at the same microsecond": (
        [OF_A],
        done("o", 1) | {"impression_id": "a"},
        None,
        "not after a click on its impression",
    ),
    "not a click that is unattributed": ([OF_A, done("c2", 2) | {"impression_id": "x"}], done("o", 3), "a", None),
    "a click that only names its impression": (
        [done("c1", 1) | {"impression_id": "a", "user_id": None, "item_id": None}],
        done("o", 3),
        "a",
        None,
    ),
}


@pytest.mark.parametrize(("clicks", "conversion", "owner", "reason"), CONVERSION_TABLE.values(), ids=CONVERSION_TABLE)
def test_a_conversion_belongs_to(clicks: list[Row], conversion: Row, owner: str | None, reason: str | None) -> None:
    attributed = clicks_of(clicks, [shown("a", 0), shown("b", 0.5)])
    found = conversions_of([conversion], attributed).row(0, named=True)
    assert (found["to_impression"], found["counted_impression"], found["reason"]) == (owner, owner, reason)


def test_user_and_item_come_from_the_impression_where_only_that_is_named() -> None:
    unnamed = {"impression_id": "a", "user_id": None, "item_id": None}
    clicks = clicks_of([done("c", 1) | unnamed], [shown("a", 0)])
    conversions = conversions_of([done("o", 2) | unnamed], clicks)
    assert clicks.select(*PAIR).row(0) == conversions.select(*PAIR).row(0) == ("u", "i")


def test_an_event_is_known_once_everything_it_needs_is_received() -> None:
    clicks = clicks_of([done("c", 1, 2)], [shown("a", 0, 7)])
    conversions = conversions_of([done("o", 3, 4), done("p", 3, 9)], clicks)
    assert clicks["known_at"].to_list() == clicks["counted_at"].to_list() == [at(7)]
    assert conversions["known_at"].to_list() == conversions["counted_at"].to_list() == [at(7), at(9)]


def test_a_late_impression_moves_the_label_but_not_the_count() -> None:
    impressions = [shown("early", 0), shown("late", 1, 20)]
    labels = labels_of(impressions, [done("c", 2)], [done("o", 3) | {"value": 5.0}])
    early, late = labels.to_dicts()
    assert (early["click"], early["conversion"], early["value"]) == (False, False, None)
    assert (early["click_counted_at"], early["conversion_counted_at"]) == (at(2), at(3))
    assert (late["click"], late["conversion"], late["value"]) == (True, True, 5.0)
    assert (late["click_known_at"], late["conversion_known_at"]) == (at(20), at(20))
    assert (late["click_counted_at"], late["conversion_counted_at"]) == (None, None)


def test_a_conversion_that_names_the_impression_its_click_left_stays_counted_there() -> None:
    clicks = clicks_of([done("c", 2)], [shown("early", 0), shown("late", 1, 20)])
    named = [done("o", 3) | {"impression_id": "early"}, done("p", 3) | {"impression_id": "late"}]
    found = conversions_of(named, clicks).select("to_impression", "counted_impression", "reason")
    assert found.rows() == [(None, "early", NO_CLICK), ("late", None, None)]


def test_of_late_impressions_the_last_known_at_the_first_moment_counts() -> None:
    impressions = [shown("a", 0, 6), shown("b", 0.5, 5), shown("c", 1, 5), shown("d", 1.5, 9)]
    found = clicks_of([done("k", 2)], impressions).row(0, named=True)
    assert (found["to_impression"], found["known_at"]) == ("d", at(9))
    assert (found["counted_impression"], found["counted_at"]) == ("c", at(5))


def test_an_impression_out_of_the_window_counts_no_late_click() -> None:
    found = clicks_of([done("k", 3.5)], [shown("old", 0), shown("late", 1, 9)]).row(0, named=True)
    assert (found["counted_impression"], found["counted_at"]) == ("late", at(9))


def test_several_clicks_are_one_label_known_from_the_first_received() -> None:
    (labels,) = labels_of([shown("a", 0)], [done("c", 1, 6), done("d", 2, 4)], []).to_dicts()
    assert (labels["click"], labels["click_known_at"], labels["click_counted_at"]) == (True, at(4), at(4))


def test_values_of_repeated_conversions_are_summed() -> None:
    conversions = [done("o", 2) | {"value": 0.25}, done("p", 3) | {"value": 0.5}, done("q", 4)]
    (labels,) = labels_of([shown("a", 0)], [done("c", 1)], conversions).to_dicts()
    assert (labels["value"], labels["conversion_known_at"]) == (0.75, at(2))


def test_values_are_summed_by_time_whatever_the_order_of_rows() -> None:
    conversions = [done("q", 4) | {"value": 0.3}, done("p", 3) | {"value": 0.2}, done("o", 2) | {"value": 0.1}]
    (labels,) = labels_of([shown("a", 0)], [done("c", 1)], conversions).to_dicts()
    assert labels["value"] == (0.1 + 0.2) + 0.3 != (0.3 + 0.2) + 0.1


def test_a_conversion_without_a_value_has_none_rather_than_zero() -> None:
    (labels,) = labels_of([shown("a", 0)], [done("c", 1)], [done("o", 2)]).to_dicts()
    assert (labels["conversion"], labels["value"]) == (True, None)


def test_every_label_matures_after_the_same_time_whatever_the_outcome() -> None:
    labels = labels_of([shown("a", 0), shown("b", 0) | {"item_id": "j"}], [done("c", 1)], [done("o", 2)])
    assert labels["click"].to_list() == [True, False]
    assert labels["label_matures_at"].to_list() == [at(10), at(10)]


def test_labels_keep_all_columns_and_the_order_and_leave_out_events_of_other_impressions() -> None:
    impressions = frame(IMPRESSION, [shown("b", 0) | {"item_id": "j"}, shown("a", 0)])
    clicks = attribute_clicks(frame(CLICK, [done("c", 1), done("d", 1) | {"item_id": "j"}]), impressions, WINDOWS.click)
    some = impressions.filter(pl.col("impression_id") == "a")
    conversions = conversions_of([], clicks)
    labels = label_impressions(some, clicks, conversions, WINDOWS)
    assert labels["impression_id"].to_list() == ["a"]
    both = label_impressions(impressions, clicks, conversions, WINDOWS)
    assert_frame_equal(both.select(impressions.columns), impressions)


def test_results_have_one_row_an_event_in_order_with_the_columns_in_order() -> None:
    clicks = clicks_of([done("z", 9), done("y", 1), done("x", 1) | {"impression_id": "a"}], [shown("a", 0)])
    assert clicks["event_id"].to_list() == ["z", "y", "x"]
    start, end = ["event_id", *PAIR, *TIMES], ["to_impression", "to_date", "known_at"]
    end += ["counted_impression", "counted_date", "counted_at", "reason"]
    assert clicks.columns == start + end
    assert conversions_of([], clicks).columns == [*start, "value", *end]


@pytest.mark.parametrize("empty", ["impressions", "clicks", "conversions", "all"])
def test_empty_frames_give_the_same_schema(empty: str) -> None:
    rows = {"impressions": [shown("a", 0)], "clicks": [done("c", 1)], "conversions": [done("o", 2) | {"value": 1.0}]}
    full = labels_of(**rows)
    kept = {name: [] if empty in (name, "all") else events for name, events in rows.items()}
    labels = labels_of(**kept)
    assert labels.schema == full.schema
    assert labels["click"].sum() == (empty == "conversions")
    assert labels["conversion"].sum() == 0


def test_labels_refuse_conversions_of_clicks_that_are_left_out() -> None:
    clicks = clicks_of([done("c", 1)], [shown("a", 0)])
    conversions = conversions_of([done("o", 2)], clicks)
    with pytest.raises(AssertionError, match="a conversion has a click that was known before"):
        label_impressions(frame(IMPRESSION, [shown("a", 0)]), clicks.clear(), conversions, WINDOWS)
