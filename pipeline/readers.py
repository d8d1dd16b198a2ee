"""Raw rows of CSV, JSONL and Parquet files in bounded chunks, each row with its file and its number."""

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.csv_rows import read_csv_rows
from pipeline.json_lines import read_json_lines
from pipeline.source_files import SourceFile, missing_column
from pipeline.text_lines import BROKEN, LineTooLongError

CHUNK_ROWS = 262_144
# polars panics on some damaged pages of Parquet.
UNREADABLE = (
    EOFError,
    LineTooLongError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
    UnicodeError,
)


def read_chunks(file: SourceFile, columns: dict[str, list[str]]) -> Iterator[pl.DataFrame]:
    """Yield a file's rows in chunks, under the names that each source column is mapped to.

    Args:
        file: the file.
        columns: source column to the names that it is wanted under.

    Yields:
        At least one frame, each with the wanted names, `broken` (the beginning of a line that could not be read,
        else null), `file` and `row` (1-based). Text from CSV and JSONL; Parquet keeps its types. Every line that is
        not blank is in one row, a row of CSV may span lines.

    Raises:
        ValueError: the file is corrupt, has a line above 64 MiB, lacks a column or has one of lists or structs in
            place of text; the message names the file and the row that was reached.
    """
    row = 0
    try:
        for chunk in _chunks(file, list(columns)):
            yield _numbered(file, chunk, columns, row)
            row += chunk.height
        if row == 0:
            yield _numbered(file, pl.DataFrame(schema=dict.fromkeys((*columns, BROKEN), pl.String)), columns, row)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        local = isinstance(file.filesystem, pafs.LocalFileSystem)
        fix = "restore the file or remove it" if local else "restore the file, or the connection to its store"
        raise ValueError(f"{file.name}: cannot be read after row {row}: {reason}; {fix}") from error


def _numbered(file: SourceFile, chunk: pl.DataFrame, columns: dict[str, list[str]], row: int) -> pl.DataFrame:
    return chunk.select(
        *(pl.col(name).alias(wanted) for name, all_wanted in columns.items() for wanted in all_wanted),
        pl.col(BROKEN).alias("broken"),
        pl.lit(file.name).alias("file"),
        pl.int_range(row + 1, row + 1 + pl.len(), dtype=pl.Int64).alias("row"),
    )


def _chunks(file: SourceFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    if file.size_bytes == 0:
        raise ValueError(f"{file.name}: the file is empty; restore it or remove it")
    with _corrupt_is_eof():
        if file.name.endswith(".parquet"):
            yield from _parquet(file, columns)
        elif file.name.endswith((".csv", ".csv.gz")):
            yield from read_csv_rows(file, columns)
        else:
            yield from read_json_lines(file, columns)


def _parquet(file: SourceFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    with file.open_input_file() as stream, pq.ParquetFile(stream) as table:
        schema = table.schema_arrow
        for name in columns:
            if name not in schema.names:
                raise missing_column(file, name, set(schema.names))
            if pa.types.is_nested(schema.field(name).type):
                raise ValueError(
                    f"{file.name}: column {name!r} holds {schema.field(name).type}, expected text, numbers or times: "
                    "write one value a row, or correct the column mapping"
                )
        for rows in _batches(file, table, columns):
            yield rows.with_columns(pl.lit(None, pl.String).alias(BROKEN))


def _batches(file: SourceFile, table: pq.ParquetFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield rows in chunks: by polars where it gives the types that arrow gives, which takes a third of the time."""
    groups = [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]
    if isinstance(file.filesystem, pafs.LocalFileSystem) and max(groups, default=0) <= CHUNK_ROWS:
        rows = pl.scan_parquet(file.path, glob=False, hive_partitioning=False).select(columns)
        expected = pl.from_arrow(table.schema_arrow.empty_table().select(columns))
        assert isinstance(expected, pl.DataFrame)
        if rows.collect_schema() == expected.schema:
            for start, height in _together(groups):
                yield rows.slice(start, height).collect()
            return
    for batch in table.iter_batches(batch_size=CHUNK_ROWS, columns=columns):
        found = pl.from_arrow(batch)
        assert isinstance(found, pl.DataFrame)
        yield found


def _together(groups: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the rows of successive row groups that make a chunk."""
    start = height = 0
    for rows in groups:
        if height and height + rows > CHUNK_ROWS:
            yield start, height
            start, height = start + height, 0
        height += rows
    if height:
        yield start, height


@contextmanager
def _corrupt_is_eof() -> Iterator[None]:
    """Tell a corrupt file, an OSError without a number in arrow, from a disk or a permission that fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise EOFError(str(error)) from error
