"""Claims about sequences: the last N items of each user in the order in which they became known."""

import datetime as dt
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sequences import advance_sequences

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "kind": pl.String, "known_at": pl.Datetime("us", "UTC")}
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
Event = tuple[str, str, str, int]


def known(events: list[Event]) -> pl.DataFrame:
    rows = [(user, item, kind, START + dt.timedelta(hours=hour)) for user, item, kind, hour in events]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def as_dict(frame: pl.DataFrame) -> dict[str, tuple[list[str], list[str]]]:
    return {user: (clicked, converted) for user, clicked, converted in frame.rows()}


def test_the_last_items_stay_newest_last() -> None:
    first = advance_sequences(None, known([("u", "c", "click", 3), ("u", "a", "click", 1), ("u", "b", "click", 2)]), 3)
    assert as_dict(first) == {"u": (["a", "b", "c"], [])}
    second = advance_sequences(first, known([("u", "d", "click", 30), ("v", "a", "conversion", 25)]), 3)
    assert as_dict(second) == {"u": (["b", "c", "d"], []), "v": ([], ["a"])}
    assert as_dict(advance_sequences(second, known([]), 3)) == as_dict(second)


def test_an_impression_is_no_action() -> None:
    assert as_dict(advance_sequences(None, known([("u", "a", "impression", 1)]), 3)) == {}


def test_items_known_at_one_moment_are_in_the_order_of_their_ids() -> None:
    events: list[Event] = [("u", item, "click", 5) for item in "cab"]
    assert as_dict(advance_sequences(None, known(events), 2)) == {"u": (["b", "c"], [])}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.sampled_from("abcdef"),
        st.sampled_from(["click", "conversion"]),
        st.integers(0, 95),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, length=st.integers(1, 5))
def test_day_by_day_gives_what_the_whole_history_gives(events: list[Event], length: int) -> None:
    state: Any = None
    for day in range(4):
        state = advance_sequences(state, known([e for e in events if e[3] // 24 == day]), length)
    expected: dict[str, tuple[list[str], list[str]]] = {}
    for user, item, kind, _ in sorted(events, key=lambda event: (event[3], event[1])):
        expected.setdefault(user, ([], []))[kind == "conversion"].append(item)
    assert as_dict(state) == {user: (a[-length:], b[-length:]) for user, (a, b) in expected.items()}
    assert state["user_id"].is_sorted()
