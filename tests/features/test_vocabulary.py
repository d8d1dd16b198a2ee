"""Claims about the vocabulary: ids are given once, in a stated order, and never change."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.vocabulary import SCHEMA, extend

TODAY = dt.date(2026, 1, 1)


def counts(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"field": pl.String, "value": pl.String, "rows": pl.Int64}, orient="row")


def ids(vocabulary: pl.DataFrame) -> dict[tuple[str, str], int]:
    return {(field, value): number for field, value, number in vocabulary.select("field", "value", "id").iter_rows()}


def test_ids_begin_at_3_in_each_field_by_falling_rows_then_by_value() -> None:
    seen = counts(
        ("item_id", "i", 5), ("user_id", "b", 2), ("user_id", "c", 2), ("user_id", "a", 1), ("user_id", "d", 9)
    )
    made = extend(None, seen, min_count=2, max_ids=10, added_on=TODAY)
    assert made.rows() == [
        ("item_id", "i", 3, TODAY),
        ("user_id", "d", 3, TODAY),
        ("user_id", "b", 4, TODAY),
        ("user_id", "c", 5, TODAY),
    ]
    assert dict(made.schema) == SCHEMA


def test_new_values_follow_and_bear_the_day_they_were_added() -> None:
    first = extend(None, counts(("f", "a", 1), ("f", "b", 2)), min_count=1, max_ids=10, added_on=TODAY)
    later = TODAY + dt.timedelta(days=1)
    second = extend(first, counts(("f", "z", 9), ("f", "a", 9), ("g", "a", 1)), min_count=1, max_ids=10, added_on=later)
    assert second.rows() == [*first.rows(), ("f", "z", 5, later), ("g", "a", 3, later)]


def test_a_field_stops_at_max_ids_and_the_others_do_not() -> None:
    seen = counts(*(("f", value, 1) for value in "abcd"), ("g", "a", 1))
    full = extend(None, seen, min_count=1, max_ids=3, added_on=TODAY)
    assert ids(full) == {("f", "a"): 3, ("f", "b"): 4, ("f", "c"): 5, ("g", "a"): 3}
    assert extend(full, seen, min_count=1, max_ids=3, added_on=TODAY).equals(full)
    assert ids(extend(full, seen, min_count=1, max_ids=4, added_on=TODAY)) == ids(full) | {("f", "d"): 6}


def test_fewer_max_ids_than_a_field_has_is_refused() -> None:
    full = extend(None, counts(("f", "a", 1), ("f", "b", 1)), min_count=1, max_ids=3, added_on=TODAY)
    with pytest.raises(ValueError, match=r"max_ids = 1 but the vocabulary of f holds 2 values: .* to at least 2, or"):
        extend(full, counts(), min_count=1, max_ids=1, added_on=TODAY)


def test_no_counts_make_an_empty_vocabulary() -> None:
    made = extend(None, counts(), min_count=1, max_ids=3, added_on=TODAY)
    assert made.height == 0
    assert dict(made.schema) == SCHEMA


@pytest.mark.parametrize("damaged", [[3, 3], [3, 5], [4, 5], [2, 3]])
def test_a_vocabulary_whose_ids_are_not_contiguous_is_never_extended(damaged: list[int]) -> None:
    rows = [("f", value, number, TODAY) for value, number in zip("ab", damaged, strict=True)]
    with pytest.raises(AssertionError):
        extend(pl.DataFrame(rows, schema=SCHEMA, orient="row"), counts(), min_count=1, max_ids=9, added_on=TODAY)


DAY = st.dictionaries(st.tuples(st.sampled_from("fgh"), st.sampled_from("abcdefgh")), st.integers(1, 5), max_size=12)


@settings(max_examples=60, deadline=None)
@given(days=st.lists(st.tuples(DAY, st.integers(1, 4)), max_size=6), max_ids=st.integers(1, 8), data=st.data())
def test_ids_never_change_whatever_follows(
    days: list[tuple[dict[tuple[str, str], int], int]], max_ids: int, data: st.DataObject
) -> None:
    vocabulary: pl.DataFrame | None = None
    for number, (seen, min_count) in enumerate(days):
        before = {} if vocabulary is None else ids(vocabulary)
        day = [(field, value, rows) for (field, value), rows in seen.items()]
        added_on = TODAY + dt.timedelta(days=number)
        extended = extend(vocabulary, counts(*day), min_count=min_count, max_ids=max_ids, added_on=added_on)
        shuffled = counts(*data.draw(st.permutations(day)))
        stored = None if vocabulary is None else vocabulary.sample(fraction=1, shuffle=True, seed=number)
        again = extend(stored, shuffled, min_count=min_count, max_ids=max_ids, added_on=added_on)
        assert again.equals(extended), "neither the order of the counts nor that of a stored vocabulary matters"
        assert extend(extended, shuffled, min_count=min_count, max_ids=max_ids, added_on=TODAY).equals(extended)
        after = ids(extended)
        assert before.items() <= after.items()
        for field in "fgh":
            held = [found for (name, _), found in after.items() if name == field]
            frequent = {value for name, value, rows in day if name == field and rows >= min_count}
            known = {value for name, value in before if name == field}
            assert held == list(range(3, 3 + min(max_ids, len(known | frequent))))
        vocabulary = extended
