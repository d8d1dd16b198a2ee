"""Claims about reading files: every format alike, every row numbered, every corrupt file named."""

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline import readers
from pipeline.readers import find_files, read_chunks

FORMATS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "parquet")
Rows = list[dict[str, str]]
Writer = Callable[[str, Rows], Path]
WANTED = {"user_id": ["user_id"], "click": ["click"], "event_time": ["event_time", "received_time"]}


def read(path: Path, wanted: dict[str, list[str]] | None = None) -> pl.DataFrame:
    return pl.concat(list(read_chunks(path, wanted or WANTED)), how="vertical_relaxed")


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_numbered_rows(write_log: Writer, log_rows: Rows, kind: str) -> None:
    frame = read(write_log(f"log.{kind}", log_rows) / f"log.{kind}")
    assert frame.columns == ["user_id", "click", "event_time", "received_time", "broken", "file", "row"]
    assert frame["user_id"].to_list() == [row["user_id"] for row in log_rows]
    assert frame["click"].cast(pl.String).to_list() == [row["click"] for row in log_rows]
    assert frame["row"].to_list() == list(range(1, 13))
    assert frame["file"].unique().to_list() == [f"log.{kind}"]
    assert frame["broken"].null_count() == 12
    assert frame["event_time"].equals(frame["received_time"]), "one column serves two names"


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
def test_rows_are_numbered_through_all_chunks(
    write_log: Writer, log_rows: Rows, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 200)
    monkeypatch.setattr(readers, "CHUNK_ROWS", 5)
    path = write_log(f"log.{kind}", log_rows) / f"log.{kind}"
    chunks = list(read_chunks(path, WANTED))
    assert len(chunks) >= 3
    assert pl.concat(chunks)["row"].to_list() == list(range(1, 13))
    assert pl.concat(chunks)["user_id"].to_list() == [row["user_id"] for row in log_rows]


def test_a_broken_json_line_keeps_its_number_and_its_text(tmp_path: Path) -> None:
    lines = [
        b'{"a": 1, "b": true}',
        b'{"a": 2, "b"',
        b"[1, 2]",
        b"null",
        b'{"a": "\xff"}',
        b"",
        b'{"a": 2.5}',
    ]
    frame = read(put(tmp_path, "log.jsonl", b"\n".join(lines)), {"a": ["a"], "b": ["b"]})
    assert frame.select("a", "b", "row").rows() == [
        ("1", "true", 1),
        (None, None, 2),
        (None, None, 3),
        (None, None, 4),
        (None, None, 5),
        ("2.5", None, 6),
    ], "an empty line is no row"
    assert frame["broken"].to_list() == [None, '{"a": 2, "b"', "[1, 2]", "null", '{"a": "\ufffd"}', None]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "jsonl.zst", "parquet"])
def test_a_missing_column_is_named_with_the_ones_found(write_log: Writer, log_rows: Rows, kind: str) -> None:
    path = write_log(f"log.{kind}", log_rows) / f"log.{kind}"
    with pytest.raises(ValueError, match=rf"log\.{kind}: column 'clicked' is missing \(found: click, conv"):
        read(path, {"user_id": ["user_id"], "clicked": ["click"]})


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet", "log.csv.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        read(put(tmp_path, name, b""))


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.csv.gz"])
def test_a_file_without_rows_gives_an_empty_frame(write_log: Writer, log_rows: Rows, name: str) -> None:
    source = write_log("full.parquet", log_rows)
    empty = pl.read_parquet(source / "full.parquet").clear()
    content = empty.write_csv().encode()
    if name.endswith("parquet"):
        empty.write_parquet(source / name)
    else:
        put(source, name, gzip.compress(content) if name.endswith("gz") else content)
    assert read(source / name).height == 0


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_truncated_file_is_named(write_log: Writer, log_rows: Rows, kind: str) -> None:
    path = write_log(f"log.{kind}", log_rows) / f"log.{kind}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"log\.{kind}: cannot be read after row 0: .*; restore the file"):
        read(path)


def test_a_parquet_file_with_damaged_pages_is_named(write_log: Writer, log_rows: Rows) -> None:
    path = write_log("log.parquet", log_rows) / "log.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.parquet: cannot be read"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"user_id,click,event_time\nu\xff,1,2\n",
        b"user_id,click,event_time\nu,1,2,3,4\n",
        b"user_id,click\xff\n",
    ],
    ids=["invalid UTF-8", "more fields than the header", "invalid header"],
)
def test_a_csv_file_that_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"log\.csv: c"):
        read(put(tmp_path, "log.csv", content))


def test_a_gzip_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.csv\.gz: cannot be read"):
        read(put(tmp_path, "log.csv.gz", b"user_id,click\n"))


def test_a_byte_order_mark_and_windows_line_ends_are_no_data(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfuser_id,click,event_time\r\nu,1,2\r\n"
    assert read(put(tmp_path, "log.csv", content)).row(0)[:3] == ("u", "1", "2")


def test_a_source_column_may_be_called_broken(tmp_path: Path) -> None:
    content = b"user_id,click,event_time,broken\nu,1,2,no\n"
    assert read(put(tmp_path, "log.csv", content))["broken"].to_list() == [None]


def test_files_are_found_sorted_and_must_exist(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv.gz", "c.txt"):
        put(tmp_path, name, b"x")
    assert [path.name for path in find_files(tmp_path, "[ab].csv*")] == ["a.csv.gz", "b.csv"]
    with pytest.raises(ValueError, match=r"has no file log\.csv"):
        find_files(tmp_path, "log.csv")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        find_files(tmp_path / "nowhere", "*.csv")
    with pytest.raises(ValueError, match=r"c\.txt: expected a file that ends in one of \.csv"):
        find_files(tmp_path, "*")


def test_a_disk_that_fails_is_not_called_a_corrupt_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "gone.csv")
