"""Claims about splits: by time, globally, every part with rows, none overlapping."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sections import Split
from pipeline.split import resolve_days

FIRST = dt.date(2026, 1, 1)
ANY = Split()


def days(*numbers: int) -> list[dt.date]:
    return [FIRST + dt.timedelta(days=number - 1) for number in numbers]


def between(first: int, last: int) -> tuple[dt.date, dt.date]:
    return days(first)[0], days(last)[0]


@given(numbers=st.sets(st.integers(1, 400), min_size=3, max_size=40))
def test_by_default_the_last_day_tests_and_the_one_before_validates(numbers: set[int]) -> None:
    present = days(*sorted(numbers))
    found = resolve_days(ANY, present, None, None)
    assert found.all() == present, "each day in one part, in order"
    assert (found.validation, found.test) == ([present[-2]], [present[-1]])
    assert found.scored_for == present[-1] + dt.timedelta(days=1)


def test_a_date_cuts_off_all_later_days() -> None:
    found = resolve_days(ANY, days(1, 2, 3, 4, 5), days(4)[0], None)
    assert (found.train, found.validation, found.test) == (days(1, 2), days(3), days(4))


def test_ranges_choose_the_days_that_have_rows() -> None:
    split = Split(train=between(2, 4), validation=between(5, 6), test=between(7, 9))
    found = resolve_days(split, days(1, 2, 3, 6, 7, 8, 11), None, days(8)[0])
    assert (found.train, found.validation, found.test) == (days(2, 3), days(6), days(7, 8))
    assert found.scored_for == days(8)[0]


def test_no_days_and_a_date_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="has no days: run `counterpoise ingest` first"):
        resolve_days(ANY, [], None, None)
    with pytest.raises(ValueError, match="--date 2026-01-09 has no rows: the table holds 2026-01-01 to 2026-01-03"):
        resolve_days(ANY, days(1, 2, 3), days(9)[0], None)


@pytest.mark.parametrize(
    ("split", "present", "part"),
    [
        (ANY, (1,), "validation"),
        (ANY, (1, 2), "train"),
        (Split(test=between(8, 9)), (1, 2, 3), "test"),
        (Split(validation=between(5, 6)), (1, 2, 3), "validation"),
        (Split(train=between(8, 9)), (1, 2, 3), "train"),
        (Split(train=between(1, 1), validation=between(2, 2), test=between(9, 9)), (1, 2, 3), "test"),
    ],
)
def test_a_part_without_rows_is_named(split: Split, present: tuple[int, ...], part: str) -> None:
    with pytest.raises(ValueError, match=rf"split\.{part} has no day with rows: .*at least 3 days"):
        resolve_days(split, days(*present), None, None)


@pytest.mark.parametrize(
    "split",
    [
        Split(train=between(1, 3), validation=between(3, 4)),
        Split(train=between(4, 4), validation=between(3, 3)),
        Split(train=between(1, 1), validation=between(2, 5), test=between(5, 5)),
    ],
)
def test_parts_that_overlap_or_are_out_of_order_are_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="split is out of order"):
        resolve_days(split, days(1, 2, 3, 4, 5), None, None)


@pytest.mark.parametrize("day", [2, 5])
def test_lists_serve_a_test_day_or_the_day_after(day: int) -> None:
    with pytest.raises(ValueError, match=r"ranking\.scored_for = .* is outside 2026-01-03 to the day after"):
        resolve_days(ANY, days(1, 2, 3), None, days(day)[0])
    assert resolve_days(ANY, days(1, 2, 3), None, days(3)[0]).scored_for == days(3)[0]


def test_at_most_so_many_days_train_the_latest() -> None:
    found = resolve_days(Split(train_days=2), days(1, 2, 3, 4, 5, 6, 7), None, None)
    assert (found.train, found.validation) == (days(4, 5), days(6))
