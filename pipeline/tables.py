"""Delta Lake tables: the only file that imports deltalake.

A write is one atomic commit; a reader sees the table before it or after it. Days are the partitions, and a
write replaces the days that it names and leaves the others as they are.
"""

import datetime as dt
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake

ROW_GROUP_ROWS = 131_072


def exists(path: Path) -> bool:
    """Return whether a table was committed at this path."""
    return DeltaTable.is_deltatable(str(path))


def version(path: Path) -> int:
    """Return the number of the table's latest commit."""
    return DeltaTable(path).version()


def metadata(path: Path) -> dict[str, str]:
    """Return what the latest commit says of itself, such as its data set and configuration."""
    latest = DeltaTable(path).history(1)[0]
    return {key: value for key, value in latest.items() if isinstance(value, str)}


def scan(path: Path, version_number: int | None = None) -> pl.LazyFrame:
    """Scan a table lazily, at a version or at its latest.

    Raises:
        ValueError: nothing was committed there.
    """
    if not exists(path):
        raise ValueError(f"table {path} does not exist: run the stage that writes it first (counterpoise --help)")
    return pl.scan_delta(str(path), version=version_number)


def days(path: Path, column: str = "date") -> list[dt.date]:
    """Return the days that have rows, in order."""
    if not exists(path):
        return []
    return sorted(dt.date.fromisoformat(part[column]) for part in DeltaTable(path).partitions())


def write_days(
    path: Path,
    frames: Iterable[pl.DataFrame],
    dates: list[dt.date],
    *,
    column: str = "date",
    note: dict[str, str],
) -> int:
    """Replace whole days by the frames' rows in one commit and return the rows written.

    Frames are pulled one by one, so memory holds one of them. The first frame's columns are the schema; it
    may differ from the table's only where no other day stays.

    Raises:
        ValueError: other days stay and have other columns.
    """
    rows = 0
    whole = set(days(path, column)) <= set(dates)

    def batches(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for frame in _chain(first, rest):
            assert set(frame[column].unique()) <= set(dates), "a frame holds days that the write does not replace"
            rows += frame.height
            yield from frame.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()

    iterator = iter(frames)
    first = next(iterator)
    schema = first.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    if not whole and (kept := set(scan(path).collect_schema().names())) != set(first.columns):
        different = sorted(kept ^ set(first.columns))
        raise ValueError(f"table {path} keeps other days with other columns ({different}): use a new --workspace")
    listed = ", ".join(f"'{date}'" for date in dates)
    write_deltalake(
        str(path),
        pa.RecordBatchReader.from_batches(schema, batches(first, iterator)),
        mode="overwrite",
        predicate=None if whole else f"{column} IN ({listed})",
        schema_mode="overwrite" if whole else None,
        partition_by=[column],
        commit_properties=CommitProperties(custom_metadata=note),
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=ROW_GROUP_ROWS),
    )
    return rows


def write_all(path: Path, frame: pl.DataFrame, note: dict[str, str]) -> None:
    """Replace a whole small table in one commit."""
    write_deltalake(
        str(path),
        frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
        mode="overwrite",
        schema_mode="overwrite",
        commit_properties=CommitProperties(custom_metadata=note),
    )


def digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of a frame's rows, order and types included."""
    buffer = io.BytesIO()
    frame.rechunk().write_ipc(buffer, compat_level=pl.CompatLevel.oldest())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _chain(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield first
    yield from rest
