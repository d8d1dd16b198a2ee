"""Claims about reading files: every format alike, every row numbered, every corrupt file named."""

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline import readers, text_lines
from pipeline.readers import read_chunks
from pipeline.source_files import SourceFile, find_files

FORMATS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "parquet")
Rows = list[dict[str, str]]
Writer = Callable[[str, Rows], Path]
WANTED = {"user_id": ["user_id"], "click": ["click"], "event_time": ["event_time", "received_time"]}


def file_at(path: Path) -> SourceFile:
    (file,) = find_files(path.parent, path.name)
    return file


def read(path: Path, wanted: dict[str, list[str]] | None = None) -> pl.DataFrame:
    return pl.concat(list(read_chunks(file_at(path), wanted or WANTED)), how="vertical_relaxed")


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
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", 200)
    monkeypatch.setattr(readers, "CHUNK_ROWS", 5)
    path = write_log(f"log.{kind}", log_rows) / f"log.{kind}"
    chunks = list(read_chunks(file_at(path), WANTED))
    assert len(chunks) >= 3
    assert pl.concat(chunks)["row"].to_list() == list(range(1, 13))
    assert pl.concat(chunks)["user_id"].to_list() == [row["user_id"] for row in log_rows]


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


def test_a_gzip_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.csv\.gz: cannot be read"):
        read(put(tmp_path, "log.csv.gz", b"user_id,click\n"))


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "jsonl.zst"])
def test_a_file_cut_at_any_byte_is_named(write_log: Writer, log_rows: Rows, kind: str) -> None:
    path = write_log(f"log.{kind}", log_rows) / f"log.{kind}"
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"log\.{kind}: (cannot be read after row 0|the file is empty)"):
            read(path)


def test_a_line_that_is_too_long_is_named_with_the_row_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", 64)
    wanted = {"a": ["a"]}
    line = b'{"a": "%b"}\n'
    path = put(tmp_path, "log.jsonl", b'{"a": 1}\n' + line % (b"x" * 990))
    assert read(path, wanted)["a"].str.len_chars().to_list() == [1, 990]
    path = put(tmp_path, "log.jsonl", b'{"a": 1}\n' + line % (b"x" * 1000))
    with pytest.raises(ValueError, match=r"log\.jsonl: cannot be read after row 1: a line is longer than 1000 bytes"):
        read(path, wanted)
    path = put(tmp_path, "log.csv", b"a\n1\n" + b"x" * 1001)
    with pytest.raises(ValueError, match=r"log\.csv: cannot be read after row 1: a line is longer than 1000 bytes"):
        read(path, wanted)


@pytest.mark.parametrize("chunk_bytes", [1000, text_lines.CHUNK_BYTES])
@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_lines_of_ten_megabytes_are_rows(
    tmp_path: Path, name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", chunk_bytes)
    text = b"x" * 10_000_000
    lines = (
        [b"a", b"1", text, b"2", text] if name == "log.csv" else [b'{"a": "%b"}' % a for a in (b"1", text, b"2", text)]
    )
    frame = read(put(tmp_path, name, b"\n".join(lines)), {"a": ["a"]})
    assert frame["a"].str.len_bytes().to_list() == [1, 10_000_000, 1, 10_000_000]


@pytest.mark.parametrize("values", [[["a"], ["b"]], [{"x": "a"}, {"x": "b"}]], ids=["lists", "structs"])
def test_a_nested_parquet_column_is_named(tmp_path: Path, values: list[object]) -> None:
    pl.DataFrame({"a": [1, 2], "b": values}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log\.parquet: column 'b' holds .*, expected text, numbers or times"):
        read(tmp_path / "log.parquet", {"a": ["a"], "b": ["b"]})
    assert read(tmp_path / "log.parquet", {"a": ["a"]}).height == 2, "a nested column that is not wanted does no harm"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_id_that_is_a_number_in_one_file_and_text_in_the_other_is_the_same_text(tmp_path: Path, kind: str) -> None:
    texts = []
    for name, ids in (("a", [7, 12]), ("b", ["7", "12"])):
        path, frame = tmp_path / f"{name}.{kind}", pl.DataFrame({"user_id": ids})
        {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
        texts.append(read(path, {"user_id": ["user_id"]})["user_id"].cast(pl.String).to_list())
    assert texts == [["7", "12"], ["7", "12"]]


def test_a_source_column_may_be_called_broken(tmp_path: Path) -> None:
    content = b"user_id,click,event_time,broken\nu,1,2,no\n"
    assert read(put(tmp_path, "log.csv", content))["broken"].to_list() == [None]


def test_a_disk_that_fails_is_not_called_a_corrupt_file(tmp_path: Path) -> None:
    file = file_at(put(tmp_path, "gone.csv", b"a\n"))
    (tmp_path / "gone.csv").unlink()
    with pytest.raises(FileNotFoundError):
        list(read_chunks(file, WANTED))
