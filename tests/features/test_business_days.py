"""Claims about business days: spans reach by the clock, also where a day has 23 or 25 hours."""

import datetime as dt

import pytest

from features.business_days import day_after, day_before, end_of_day

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)


@pytest.mark.parametrize(
    ("day", "span", "zone", "expected"),
    [
        (10, DAY, "UTC", 9),
        (10, DAY + SECOND, "UTC", 8),
        (10, dt.timedelta(), "UTC", 10),
        (10, SECOND, "UTC", 9),
        (29, DAY, "Europe/Berlin", 28),
        (30, DAY, "Europe/Berlin", 28),  # the 29th has 23 hours
    ],
)
def test_a_span_before_a_day_begins_on_a_day(day: int, span: dt.timedelta, zone: str, expected: int) -> None:
    assert day_before(dt.date(2026, 3, day), span, zone) == dt.date(2026, 3, expected)


@pytest.mark.parametrize(
    ("day", "span", "zone", "expected"),
    [
        (10, DAY, "UTC", 11),
        (10, dt.timedelta(), "UTC", 10),
        (10, SECOND, "UTC", 11),
        (28, DAY, "Europe/Berlin", 30),  # the 29th has 23 hours
        (28, DAY, "UTC", 29),
    ],
)
def test_a_span_after_a_day_ends_on_a_day(day: int, span: dt.timedelta, zone: str, expected: int) -> None:
    assert day_after(dt.date(2026, 3, day), span, zone) == dt.date(2026, 3, expected)


def test_a_day_ends_at_midnight_of_its_zone() -> None:
    assert end_of_day(dt.date(2026, 3, 29), "Europe/Berlin") == dt.datetime(2026, 3, 29, 22, tzinfo=dt.UTC)
