"""Files of whole days, written once: in their table's format and folder, no part of it until a commit names them."""

import datetime as dt
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.engine import Engine
from pipeline.workspace import write_parquet

LARGE_DAY_ROWS = 4_000_000
"""A day with more rows is worked on in slices of its order, so that memory holds a slice and not the day."""
SAMPLED_ROWS = 100_000
Bounds = tuple[int | None, int | None]


@dataclass
class Work:
    """What a run works with before it commits.

    Attributes:
        engine: runs the work on a day.
        folder: the run's own, for what no table takes.
        tables: the folder of the tables.
        drafts: files in the folders of tables that no commit takes.
    """

    engine: Engine
    folder: Path
    tables: Path
    drafts: set[Path] = field(default_factory=set)

    def new_file(self, table: str, day: dt.date) -> Path:
        """Return a name for a day's rows of a table."""
        file = tables.new_file(self.tables / table, day)
        self.drafts.add(file)
        return file

    def commits(self, files: Iterable[Path]) -> None:
        """Leave files to a commit: should it fail, only `vacuum` can tell whether a table has them."""
        self.drafts.difference_update(files)

    def clear(self) -> None:
        """Remove the files that no commit took."""
        for file in self.drafts:
            file.unlink(missing_ok=True)
            for folder in (file.parent, file.parent.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        self.drafts.clear()


def write_file(rows: pl.DataFrame, file: Path) -> None:
    """Write a day's rows as a whole or not at all; their `date` is in the folder's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(file)
    write_parquet(rows.drop("date"), draft, row_group_rows=tables.ROW_GROUP_ROWS)
    draft.replace(file)


def write_slices(slices: Iterable[pl.DataFrame], file: Path) -> None:
    """Write a day's rows as `write_file` does, from one frame or from many that follow each other."""
    iterator = iter(slices)
    first = next(iterator)
    second = next(iterator, None)
    if second is None:
        write_file(first, file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(file)
    parts: list[Path] = []
    for rows in chain((first, second), iterator):
        parts.append(draft.with_name(f"{draft.name}-{len(parts)}"))
        rows.drop("date").write_ipc(parts[-1])
    # One writer for all row groups: the bytes are those of a day that is written at once.
    pl.scan_ipc(parts).sink_parquet(
        draft, compression="zstd", compression_level=1, row_group_size=tables.ROW_GROUP_ROWS, maintain_order=True
    )
    draft.replace(file)
    for part in parts:
        part.unlink()


def _draft(file: Path) -> Path:
    # A task may run twice at once; and vacuum passes over names that begin with a dot.
    return file.with_name(f"{file.name}.{uuid.uuid4().hex}.draft")


def scan_day(files: Iterable[Path], day: dt.date, schema: pl.Schema) -> pl.LazyFrame:
    """Scan a day's files of a table, none for none; its columns are those of the schema."""
    paths = list(files)
    if not paths:
        return schema.to_frame().lazy()
    return (
        pl.scan_parquet(paths, hive_partitioning=False).with_columns(pl.lit(day).alias("date")).select(schema.names())
    )


def count_rows(files: Iterable[Path]) -> int:
    """Return how many rows some files hold."""
    return int(pl.scan_parquet(list(files), hive_partitioning=False).select(pl.len()).collect().item())


def slices_of(scans: list[pl.LazyFrame], key: pl.Expr) -> list[Bounds]:
    """Cut a day that is too large for memory into slices by a key that its order follows.

    Returns:
        Slices in order: the first key of each and that of the next, None at the ends; one for a day of usual size.
    """
    rows = sum(int(scan.select(pl.len()).collect().item()) for scan in scans)
    number = -(-2 * rows // LARGE_DAY_ROWS)
    if rows <= LARGE_DAY_ROWS:
        return [(None, None)]
    # Some keys tell where to cut: the cuts decide how much memory is used, not what comes out.
    every = -(-rows // SAMPLED_ROWS)
    keys = pl.concat(scan.select(key).collect().to_series().gather_every(every) for scan in scans).sort()
    cuts = [int(keys[len(keys) * place // number]) for place in range(1, number)]
    edges = [None, *dict.fromkeys(cuts), None]
    return list(pairwise(edges))


def within(key: pl.Expr, limits: Bounds) -> pl.Expr:
    """Return whether a key lies in a slice."""
    first, end = limits
    from_first = pl.lit(value=True) if first is None else key >= first
    return from_first if end is None else from_first & (key < end)
