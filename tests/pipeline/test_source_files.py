"""Claims about a source: a folder or a URI, the same files under the same names, and errors that say what to do."""

import hashlib
from pathlib import Path

import polars as pl
import pyarrow.fs as pafs
import pytest

from pipeline.readers import read_chunks
from pipeline.source_files import SourceFile, find_files, list_files, local_folder
from pipeline.uris import shown, without_credentials

LINE = b'{"a": 1}\n'
NAMES = (
    "a/part.jsonl",
    "a/b/part.jsonl",
    "b/part.jsonl",
    "top.jsonl",
    "a-b/part.jsonl",
    "a/other.csv",
    ".hidden.jsonl",
)
PATTERNS = (
    "*.jsonl",
    "a/*.jsonl",
    "*/part.jsonl",
    "**/*.jsonl",
    "a/**/*.jsonl",
    "**/part.jsonl",
    "top.jsonl",
    "a/b/part.jsonl",
    "[ab]/part.jsonl",
    "?/part.jsonl",
    "**/a/*.csv",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(LINE)
    return tmp_path / "source"


def in_process() -> pafs.FileSystem:
    """Return a store in this process that holds the same files."""
    store, _ = pafs.FileSystem.from_uri("mock:///")
    for name in NAMES:
        store.create_dir(f"bucket/source/{name}".rpartition("/")[0], recursive=True)
        with store.open_output_stream(f"bucket/source/{name}") as stream:
            stream.write(LINE)
    return store


def names(files: list[SourceFile]) -> list[str]:
    return [file.name for file in files]


def texts(file: SourceFile) -> list[str]:
    return pl.concat(list(read_chunks(file, {"a": ["a"]})))["a"].to_list()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_kind_of_source_gives_the_files_that_a_glob_gives(source: Path, pattern: str) -> None:
    found = sorted(path.relative_to(source).parts for path in source.glob(pattern))
    expected = ["/".join(parts) for parts in found]
    assert names(find_files(source, pattern)) == expected
    assert names(find_files(f"file://{source}", pattern)) == expected
    sub = pafs.SubTreeFileSystem(str(source), pafs.LocalFileSystem())
    assert names(list_files(sub, "", pattern, "sub")) == expected
    store = in_process()
    assert names(list_files(store, "bucket/source", pattern, "store")) == expected
    assert names(list_files(store, "bucket/source/", pattern, "store")) == expected


def test_a_relative_source_gives_the_same_names(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    assert names(find_files(".", "*.jsonl")) == [".hidden.jsonl", "top.jsonl"]
    assert names(find_files("a", "*.jsonl")) == ["part.jsonl"]


def test_files_of_a_store_are_read_and_told_apart_by_their_folders(source: Path) -> None:
    sub = pafs.SubTreeFileSystem(str(source), pafs.LocalFileSystem())
    for files in (
        list_files(sub, "", "*/part.jsonl", "sub"),
        list_files(in_process(), "bucket/source", "*/part.jsonl", "store"),
        find_files(f"file://{source}", "*/part.jsonl"),
    ):
        rows = pl.concat([chunk for file in files for chunk in read_chunks(file, {"a": ["a"]})])
        assert rows["file"].to_list() == ["a/part.jsonl", "a-b/part.jsonl", "b/part.jsonl"]
        assert rows["a"].to_list() == ["1", "1", "1"]


def test_a_compressed_and_a_parquet_file_of_a_store_are_read(source: Path) -> None:
    with pafs.LocalFileSystem().open_output_stream(f"{source}/z.jsonl.gz", compression="gzip") as stream:
        stream.write(LINE)
    pl.DataFrame({"a": ["1"]}).write_parquet(source / "z.parquet")
    sub = pafs.SubTreeFileSystem(str(source), pafs.LocalFileSystem())
    for file in list_files(sub, "", "z.*", "sub"):
        assert texts(file) == ["1"], file


def test_a_digest_is_of_the_stored_bytes(source: Path) -> None:
    path = source / "z.jsonl.gz"
    with pafs.LocalFileSystem().open_output_stream(str(path), compression="gzip") as stream:
        stream.write(LINE)
    (file,) = find_files(source, "z.jsonl.gz")
    assert file.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.size_bytes == path.stat().st_size
    assert file.open_input_stream().read() == LINE


def test_files_are_sorted_and_must_exist(source: Path) -> None:
    (source / "c.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has no file log\.csv"):
        find_files(source, "log.csv")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        find_files(source / "nowhere", "*.csv")
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        find_files(f"file://{source}/nowhere", "*.csv")
    with pytest.raises(ValueError, match=r"store is not a folder"):
        list_files(in_process(), "bucket/nowhere", "*.csv", "store")
    with pytest.raises(ValueError, match=r"c\.txt: expected a file that ends in one of \.csv"):
        find_files(source, "*.txt")
    (source / "broken.csv").symlink_to(source / "nowhere.csv")
    with pytest.raises(ValueError, match=r"has no file broken\.csv"):
        find_files(source, "broken.csv")


@pytest.mark.parametrize("pattern", ["", "/etc/*.csv"])
def test_a_pattern_that_is_not_relative_is_refused(source: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match="expected a glob relative to --source"):
        find_files(source, pattern)


def test_a_folder_that_is_named_as_a_file_is_refused(source: Path) -> None:
    (source / "day.parquet").mkdir()
    with pytest.raises(ValueError, match=r"day\.parquet is a folder, not a file: name the files in it"):
        find_files(source, "*.parquet")
    assert names(find_files(source, "*.jsonl")) == [".hidden.jsonl", "top.jsonl"]


@pytest.mark.parametrize("source", ["nowhere://bucket/x", "file://host/x"])
def test_a_source_that_cannot_be_opened_is_one_clear_error(source: str) -> None:
    with pytest.raises(ValueError, match=f"^source {source} cannot be opened: [^\n]*; correct --source, or give"):
        find_files(source, "*.csv")


def test_credentials_in_a_uri_are_not_told() -> None:
    source = "nowhere://key:secret@bucket/prefix?endpoint_override=host&token=hidden"
    assert shown(source) == "nowhere://bucket/prefix"
    with pytest.raises(ValueError, match="nowhere://bucket/prefix") as raised:
        find_files(source, "*.csv")
    assert not any(word in str(raised.value) for word in ("secret", "hidden"))


def test_what_is_read_from_a_disk_only_refuses_a_uri() -> None:
    assert local_folder("some/folder", "evaluation.world") == Path("some/folder")
    with pytest.raises(
        ValueError, match=r"evaluation\.world is read from a local folder only, and the source is s3://b"
    ):
        local_folder("s3://key:secret@b", "evaluation.world")


def test_a_slash_in_a_password_does_not_show_it() -> None:
    assert shown("s3://key:se/cret@bucket/a@b") == "s3://b"
    assert shown("s3://bucket/a@b?token=hidden#x") == "s3://bucket/a@b"
    assert without_credentials("cannot parse 's3://key:se/cret@bucket/x'") == "cannot parse 's3://bucket/x'"
