"""Days of tables/examples that training streams: their blocks are read one at a time, and only the columns it needs."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow.parquet as pq

from features.schema import PROPENSITY
from models.ranker import RankerSpec
from pipeline import tables
from pipeline.dataset import Block, Examples, clicks_by_item, known_labels, ordered_examples
from pipeline.label_sums import LabelSums, sums_of, total
from pipeline.maturity import SUPERVISED, Maturity, supervise


@dataclass(frozen=True)
class StoredDay:
    """A day of tables/examples at a version, with what its labels sum to block by block.

    A block is a row group: 131,072 rows of 100 columns are about 150 MiB while they are decoded. A day of more than
    `feature_tasks.ROWS_PER_BUCKET` rows lies in a file for each bucket of users: its blocks are those of one bucket
    after another, each bucket in the order of time.
    """

    groups: Sequence[tuple[Path, int, int]]
    """File, number of the row group in it, and its rows."""
    sums: Sequence[LabelSums]
    spec: RankerSpec
    maturity: Maturity | None

    def blocks(self) -> list[Block]:
        """Return the day's row groups, file by file."""
        return [
            Block(rows, sums.clicked_rows, partial(read_block, file, number, self.spec, self.maturity))
            for (file, number, rows), sums in zip(self.groups, self.sums, strict=True)
        ]

    def label_sums(self) -> LabelSums:
        """Return what the day's labels sum to."""
        return total(self.sums)

    def item_clicks(self) -> pl.DataFrame:
        """Return the `clicks` of each `item_id` that has some, in no order."""
        columns = ["item_id", *label_columns(self.spec, self.maturity)]
        counted = pl.DataFrame(schema={"item_id": pl.String, "clicks": pl.UInt32})
        for file, number, _ in self.groups:
            of_block = clicks_by_item(known_labels(_read(file, number, columns), self.spec, self.maturity))
            counted = pl.concat([counted, of_block]).group_by("item_id").agg(pl.col("clicks").sum())
        return counted


def stored_day(table: Path, version: int, day: dt.date, spec: RankerSpec, maturity: Maturity | None) -> StoredDay:
    """Find a day's blocks, and read their labels once; arguments are those of `pipeline.dataset.read_examples`."""
    files = tables.row_groups(table, version, day)
    assert files, f"table {table} has no rows of {day} at version {version}"
    groups = [(file, number, rows) for file, counts in files for number, rows in enumerate(counts)]
    sums = [_sums(file, number, spec, maturity) for file, number, _ in groups]
    return StoredDay(groups, sums, spec, maturity)


def read_block(file: Path, number: int, spec: RankerSpec, maturity: Maturity | None) -> Examples:
    """Read one row group as examples; of what describes a row they have the item and the labels alone."""
    codes = [f"{name}_code" for name in (*spec.single, *spec.pooled)]
    positions = [f"{name}_position" for name in spec.numeric]
    frame = _read(file, number, ["item_id", *label_columns(spec, maturity), *codes, *positions])
    assert frame["event_time"].is_sorted(), f"row group {number} of {file} is not in order"
    return ordered_examples(frame, spec, maturity)


def label_columns(spec: RankerSpec, maturity: Maturity | None) -> list[str]:
    """Return the columns that labels and masks are made of; `known_labels` needs no others."""
    weighed = maturity is not None and maturity.propensity_clip is not None
    tasks = [f"label_{name}" for name in (*spec.binary_tasks, *spec.value_tasks)]
    return [*SUPERVISED, *tasks, *([PROPENSITY] if weighed else [])]


def identity(days: Sequence[StoredDay]) -> str:
    """Return a digest of which files the days lie in: a write gives its files new names."""
    names = [f"{file.name} {number} {rows}" for day in days for file, number, rows in day.groups]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _sums(file: Path, number: int, spec: RankerSpec, maturity: Maturity | None) -> LabelSums:
    frame = known_labels(_read(file, number, label_columns(spec, maturity)), spec, maturity)
    return sums_of(supervise(frame, maturity, spec.binary_tasks, spec.value_tasks))


def _read(file: Path, number: int, columns: Sequence[str]) -> pl.DataFrame:
    # pyarrow decodes exactly one row group; a lazy scan would read ahead.
    found = pq.ParquetFile(file).read_row_group(number, columns=list(dict.fromkeys(columns)))
    return cast("pl.DataFrame", pl.from_arrow(found))
