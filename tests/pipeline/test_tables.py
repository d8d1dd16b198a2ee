"""Claims about Delta tables: a write replaces its days, only them, and all at once."""

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables

NOTE = {"data_set": "small"}


def day(number: int, value: int, **columns: object) -> pl.DataFrame:
    return pl.DataFrame({"date": [dt.date(2026, 1, number)] * 2, "value": [value, -value], **columns})


def write(path: Path, *frames: pl.DataFrame) -> int:
    return tables.write_days(path, frames, [frame["date"][0] for frame in frames], note=NOTE)


def rows(path: Path, version: int | None = None) -> list[tuple[int, int]]:
    frame = tables.scan(path, version).select(pl.col("date").dt.day().cast(pl.Int64), "value").collect()
    return sorted(frame.rows())


def test_a_write_replaces_its_days_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert write(path, day(1, 1), day(2, 2), day(3, 3)) == 6
    assert write(path, day(2, 7)) == 2
    assert rows(path) == [(1, -1), (1, 1), (2, -7), (2, 7), (3, -3), (3, 3)]
    assert tables.days(path) == [dt.date(2026, 1, number) for number in (1, 2, 3)]
    assert (tables.version(path), tables.metadata(path)["data_set"]) == (1, "small")
    assert rows(path, 0) == [(1, -1), (1, 1), (2, -2), (2, 2), (3, -3), (3, 3)], "the past stays readable"


def test_other_columns_are_refused_while_other_days_stay(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write(path, day(1, 1), day(2, 2))
    with pytest.raises(ValueError, match=r"keeps other days with other columns \(\['more'\]\)"):
        write(path, day(2, 2, more=["a", "b"]))
    assert tables.version(path) == 0
    write(path, day(1, 1, more=["a", "b"]), day(2, 2, more=["a", "b"]))
    assert "more" in tables.scan(path).collect_schema().names(), "where no day stays they may change"


def test_lists_may_gain_a_column_that_earlier_days_lack_and_may_not_lose_one(tmp_path: Path) -> None:
    path, days = tmp_path / "table", [dt.date(2026, 1, number) for number in (1, 2)]
    before = day(1, 1).rename({"date": "scored_for"})
    after = day(2, 2, propensity=[1.0, 0.5]).rename({"date": "scored_for"})
    tables.write_days(path, [before], days[:1], column="scored_for", note=NOTE)
    tables.write_days(path, [after], days[1:], column="scored_for", note=NOTE)
    held = tables.scan(path).sort("scored_for").collect()
    assert held["propensity"].to_list() == [None, None, 1.0, 0.5]
    with pytest.raises(ValueError, match=r"keeps other days with other columns \(\['propensity'\]\)"):
        tables.write_days(path, [before], days[:1], column="scored_for", note=NOTE)


def test_a_write_that_breaks_off_commits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write(path, day(1, 1), day(2, 2))

    def frames() -> Iterator[pl.DataFrame]:
        yield day(1, 5)
        raise ValueError("the second day is broken")

    with pytest.raises(Exception, match="the second day is broken"):
        tables.write_days(path, frames(), [dt.date(2026, 1, 1), dt.date(2026, 1, 2)], note=NOTE)
    assert (tables.version(path), len(rows(path))) == (0, 4)


def test_a_frame_of_another_day_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="days that the write does not replace"):
        tables.write_days(tmp_path / "table", [day(2, 1)], [dt.date(2026, 1, 1)], note=NOTE)
    assert not tables.exists(tmp_path / "table")


def test_write_all_replaces_the_rows_and_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "table"
    tables.write_all(path, pl.DataFrame({"a": [1, 2]}), NOTE)
    tables.write_all(path, pl.DataFrame({"b": ["x"]}), NOTE)
    assert tables.scan(path).collect().to_dict(as_series=False) == {"b": ["x"]}


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert not tables.exists(tmp_path / "table")
    assert tables.days(tmp_path / "table") == []
    with pytest.raises(ValueError, match=r"table .* does not exist: run the stage that writes it first"):
        tables.scan(tmp_path / "table")


def test_the_digest_sees_values_order_and_types() -> None:
    frame = pl.DataFrame({"a": [1, 2]})
    others = [frame.reverse(), frame.cast(pl.Int32), frame.rename({"a": "b"}), frame.head(1)]
    assert len({tables.digest(other) for other in [frame, *others]}) == 5
    assert tables.digest(pl.concat([frame.head(1), frame.tail(1)], rechunk=False)) == tables.digest(frame)


def test_a_fingerprint_changes_exactly_when_its_day_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert tables.fingerprints(path) == {}
    write(path, day(1, 1), day(2, 2), day(3, 3))
    before = tables.fingerprints(path)
    write(path, day(2, 2))
    after = tables.fingerprints(path)
    assert list(after) == [dt.date(2026, 1, number) for number in (1, 2, 3)]
    assert [before[date] == after[date] for date in after] == [True, False, True]


def test_a_write_fails_where_another_came_since_its_basis(tmp_path: Path) -> None:
    path, other = tmp_path / "table", tmp_path / "other"
    nothing = tables.basis(path)
    write(path, day(1, 1))
    basis, dates = tables.basis(path), [dt.date(2026, 1, 2)]
    tables.write_days(path, [day(2, 2)], dates, note=NOTE, since=basis)
    message = "another run wrote .* at the same time: run the same command again"
    for late in (basis, nothing):
        with pytest.raises(ValueError, match=message):
            tables.write_days(path, [day(3, 3)], [dt.date(2026, 1, 3)], note=NOTE, since=late)
    nothing = tables.basis(other)
    tables.write_all(other, pl.DataFrame({"a": [1]}), NOTE)
    basis = tables.basis(other)
    tables.write_all(other, pl.DataFrame({"a": [2]}), NOTE, basis)
    for late in (basis, nothing):
        with pytest.raises(ValueError, match=message):
            tables.write_all(other, pl.DataFrame({"a": [3]}), NOTE, late)
    assert (tables.version(path), tables.version(other)) == (1, 1)


def test_of_two_writers_that_create_a_table_at_once_one_is_told_of_the_other(tmp_path: Path) -> None:
    path, dates = tmp_path / "table", {number: dt.date(2026, 1, number) for number in (1, 2, 3, 4)}

    def create(number: int) -> str:
        try:
            tables.write_days(
                path, [day(number, number)], [dt.date(2026, 1, number)], note=NOTE, since=tables.Basis(None)
            )
        except ValueError as error:
            return str(error)
        return "created"

    with ThreadPoolExecutor(4) as writers:
        said = list(writers.map(create, dates))
    assert said.count("created") == 1
    assert all("at the same time: run the same command again" in one for one in said if one != "created")
    assert tables.version(path) == 0
    assert rows(path) == [((first := said.index("created") + 1), -first), (first, first)]


def test_a_commit_records_numbers_for_good_and_may_hold_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert tables.recorded(path, ["file:a"]) == {}
    write(path, day(1, 1))
    before = tables.fingerprints(path)
    for number in (7, 2**60 - 1):
        since = tables.basis(path, {"file:a": number})
        assert tables.write_days(path, [day(1, 1).clear()], [], note={"data_set": "other"}, since=since) == 0
    write(path, day(2, 2))
    assert tables.recorded(path, ["file:a", "file:b"]) == {"file:a": 2**60 - 1}
    assert tables.fingerprints(path) | before == tables.fingerprints(path)
    assert rows(path) == [(1, -1), (1, 1), (2, -2), (2, 2)]
