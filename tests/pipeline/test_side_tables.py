"""Claims about side tables: typed, one row an id, and every wrong cell named by file, row and column."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pipeline.sections import SideTable
from pipeline.side_tables import read_side_table

ITEMS = SideTable(
    file="items.csv",
    id="id",
    categorical=["brand"],
    numeric=["price"],
    multi={"tags": ","},
    available_from="born",
)
HEADER = "id,brand,price,tags,born"


def read(tmp_path: Path, *lines: str, table: SideTable = ITEMS) -> list[dict[str, object]]:
    (tmp_path / "items.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return read_side_table(tmp_path, table, "item_id", "us", "UTC").to_dicts()


def test_cells_are_typed_and_empty_text_is_missing(tmp_path: Path) -> None:
    rows = read(tmp_path, 'b, acme ,1e3,"x, y,,z",2026-01-02', 'a,"", ,,', "c,other,-2.5,x,20260103")
    empty = dict.fromkeys(("brand", "price", "tags", "first_tags", "available_from"))
    assert rows[0] == {"item_id": "a", **empty}, "sorted by id"
    assert rows[1] == {
        "item_id": "b",
        "brand": "acme",
        "price": 1000.0,
        "tags": ["x", "y", "z"],
        "first_tags": "x",
        "available_from": dt.date(2026, 1, 2),
    }
    assert rows[2]["price"] == -2.5


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "Infinity", "cheap", "1,5", "0x10"])
def test_a_number_that_is_none_is_named_by_file_row_and_column(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=rf"items\.csv: row 2: price = '{value}' is no finite number \(2 such"):
        read(tmp_path, "a,x,1,t,", f'b,x,"{value}",t,', f'c,x,"{value}",t,')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parquet_number_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    pl.DataFrame({"id": [1, 2], "price": [3.0, value]}).write_parquet(tmp_path / "items.parquet")
    table = SideTable(file="items.parquet", id="id", numeric=["price"])
    with pytest.raises(ValueError, match=r"items\.parquet: row 2: price = (nan|inf) is no finite number"):
        read_side_table(tmp_path, table, "item_id", "us", "UTC")


def test_repeated_ids_are_named_with_their_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"items\.csv: item_id 'a' stands in rows 1 and 3 \(1 ids are repeated\)"):
        read(tmp_path, "a,x,1,t,", "b,x,1,t,", " a ,x,1,t,")


def test_an_empty_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"items\.csv: row 2: item_id is empty"):
        read(tmp_path, "a,x,1,t,", " ,x,1,t,")


def test_a_date_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"items\.csv: row 1: available_from = 'soon' is no date"):
        read(tmp_path, "a,x,1,t,soon")


def test_a_missing_column_and_a_missing_file_are_named(tmp_path: Path) -> None:
    table = SideTable(file="items.csv", id="id", numeric=["weight"])
    with pytest.raises(ValueError, match=r"items\.csv: column 'weight' is missing"):
        read(tmp_path, "a,x,1,t,", table=table)
    with pytest.raises(ValueError, match=r"has no file users\.csv"):
        read_side_table(tmp_path, SideTable(file="users.csv", id="id"), "user_id", "us", "UTC")


def test_a_json_line_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(ValueError, match=r"items\.jsonl: row 2 cannot be read"):
        read_side_table(tmp_path, SideTable(file="items.jsonl", id="id"), "item_id", "us", "UTC")


def test_a_table_without_rows_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_a_column_may_serve_twice(tmp_path: Path) -> None:
    table = SideTable(file="items.csv", id="id", categorical=["brand", "id"], available_from="born")
    assert read(tmp_path, "a,x,1,t,2026-01-01", table=table)[0]["id"] == "a"


HISTORY = SideTable(file="users.csv", id="id", categorical=["plan"], valid_from="since")


def history(tmp_path: Path, *rows: str) -> list[tuple[object, ...]]:
    (tmp_path / "users.csv").write_text("\n".join(["id,since,plan", *rows]) + "\n")
    return read_side_table(tmp_path, HISTORY, "user_id", "us", "UTC").select("user_id", "valid_from", "plan").rows()


def test_a_table_with_history_may_hold_an_id_often_each_time_from_another_moment(tmp_path: Path) -> None:
    rows = history(tmp_path, "u1,2026-02-01T10:00:00Z,gold", "u1,2026-01-01,free", "u0,2026-01-01,free")
    first = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    later = dt.datetime(2026, 2, 1, 10, tzinfo=dt.UTC)
    assert rows == [("u0", first, "free"), ("u1", first, "free"), ("u1", later, "gold")]


def test_two_rows_of_an_id_from_the_same_moment_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'u1' stands in rows 1 and 2 .* keep one row an id and valid_from"):
        history(tmp_path, "u1,2026-01-01,gold", "u1,2026-01-01,free")


def test_a_row_without_its_moment_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"users\.csv: row 2: valid_from = '.*' is no time"):
        history(tmp_path, "u1,2026-01-01,gold", "u2,soon,free")
