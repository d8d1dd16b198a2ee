"""Raw rows of CSV, JSONL and Parquet files in bounded chunks, each row with its file and its number."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 262_144
BROKEN = ":broken"
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet")


def find_files(source: Path, pattern: str) -> list[Path]:
    """Return the files of a glob under a source folder, sorted.

    Raises:
        ValueError: the folder or the files do not exist, or a file's kind is not known.
    """
    if not source.is_dir():
        raise ValueError(f"source {source} is not a folder: give --source the folder that holds {pattern}")
    files = sorted(path for path in source.glob(pattern) if path.is_file())
    if not files:
        raise ValueError(f"source {source} has no file {pattern}: correct --source or the file's name in the config")
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: expected a file that ends in one of {', '.join(SUFFIXES)}")
    return files


def read_chunks(path: Path, columns: dict[str, list[str]]) -> Iterator[pl.DataFrame]:
    """Yield a file's rows in chunks, under the names that each source column is mapped to.

    Args:
        path: the file.
        columns: source column to the names that it is wanted under.

    Yields:
        Frames with the wanted names, `file` and `row` (1-based), and where a line could not be read as JSON a
        row with `broken` set to its beginning.

    Raises:
        ValueError: the file is corrupt, no text, or lacks a column; the message names the file.
    """
    row = 0
    try:
        for chunk in _chunks(path, list(columns)):
            missing = [name for name in columns if name not in chunk.columns]
            if missing:
                found = ", ".join(sorted(set(chunk.columns) - {BROKEN})) or "none"
                raise ValueError(
                    f"{path}: column {missing[0]!r} is missing (found: {found}); correct the column mapping"
                )
            broken = pl.col(BROKEN) if BROKEN in chunk.columns else pl.lit(None, pl.String)
            numbered = chunk.select(
                *(pl.col(name).alias(wanted) for name, all_wanted in columns.items() for wanted in all_wanted),
                broken.alias("broken"),
                pl.lit(path.name).alias("file"),
                pl.int_range(row + 1, row + 1 + pl.len(), dtype=pl.Int64).alias("row"),
            )
            row += chunk.height
            yield numbered
    except (
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        pl.exceptions.PolarsError,
        pa.ArrowException,
        UnicodeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read after row {row}: {reason}; restore the file or remove it") from error


def _chunks(path: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; restore it or remove it")
    if path.name.endswith(".parquet"):
        yield from _parquet(path, columns)
    elif ".csv" in path.suffixes:
        yield from _csv(path)
    else:
        yield from _jsonl(path, columns)


def _parquet(path: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    with _corrupt_is_eof(), pq.ParquetFile(path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        if len(present) < len(columns) or file.metadata.num_rows == 0:
            yield pl.DataFrame({name: [] for name in file.schema_arrow.names})
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=present):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


@contextmanager
def _corrupt_is_eof() -> Iterator[None]:
    """Tell a corrupt file, an OSError without a number in arrow, from a disk or a permission that fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise EOFError(str(error)) from error


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield blocks of whole lines, decompressed as they are read."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    rest = b""
    with _corrupt_is_eof(), pa.input_stream(str(path), compression=compression) as stream:
        while block := stream.read(CHUNK_BYTES):
            block = rest + block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if end:
                yield block[:end]
    if rest:
        yield rest


def _csv(path: Path) -> Iterator[pl.DataFrame]:
    """Parse blocks of lines; a quoted field must not hold a line break where a block ends."""
    header: bytes | None = None
    for block in _blocks(path):
        body = block
        if header is None:
            header, _, body = block.partition(b"\n")
            header += b"\n"
        yield pl.read_csv(io.BytesIO(header + body), infer_schema=False)


def _jsonl(path: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    schema = dict.fromkeys(columns, pl.String)
    known: set[str] = set()
    for block in _blocks(path):
        if not known:
            known = _keys(block)
            if not known.issuperset(columns):
                yield pl.DataFrame({name: [] for name in known})
        try:
            yield pl.read_ndjson(io.BytesIO(block), schema=schema)
        except pl.exceptions.PolarsError:
            yield _line_by_line(block, columns)


def _keys(block: bytes) -> set[str]:
    """Return the keys of a block's first thousand readable lines."""
    keys: set[str] = set()
    for line in block.splitlines()[:1000]:
        values = _object(line)
        keys |= set(values or {})
    return keys


def _object(line: bytes) -> dict[str, object] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _line_by_line(block: bytes, columns: list[str]) -> pl.DataFrame:
    """Read what can be read of a block with broken lines; those carry their first 200 characters."""
    rows: list[dict[str, str | None]] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        values = _object(line)
        if values is None:
            rows.append({BROKEN: line[:200].decode("utf-8", errors="replace")})
        else:
            rows.append({name: _text(values.get(name)) for name in columns})
    return pl.DataFrame(rows, schema={**dict.fromkeys(columns, pl.String), BROKEN: pl.String})


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value)
