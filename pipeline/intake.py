"""What a source holds, by business day on disk, and the rows that break the contract, counted with their reasons."""

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.readers import read_chunks
from pipeline.source_files import SourceFile
from pipeline.stage import LOG
from pipeline.workspace import Workspace

QUARANTINE_SCHEMA = {"reason": pl.String, "file": pl.String, "row": pl.Int64, "record": pl.String}
# Rows that wait in memory, so that a day gets few large files however small a source's blocks are.
BUFFERED_ROWS = 400_000
TASK_BYTES = 16 * 2**20
"""Files are read together up to this size, so that many small ones leave few parts, and large ones run apart."""
Parse = Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.DataFrame]]
Reading = tuple[SourceFile, dict[str, list[str]], Parse]
"""A file, the columns that are wanted of it, and what types and checks them."""


@dataclass
class Intake:
    """What was read so far: good rows by day on disk or waiting for it, rejected rows in memory."""

    spill: Path
    task: int = 0
    rows: int = 0
    duplicates: int = 0
    files: set[str] = field(default_factory=set)
    parts: dict[dt.date, list[Path]] = field(default_factory=dict)
    rejected: list[pl.DataFrame] = field(default_factory=list)
    waiting: list[pl.DataFrame] = field(default_factory=list)

    def reject(self, rows: pl.DataFrame, reason: str | None = None) -> None:
        """Put rows aside for a reason, by default for that in their own column `reason`."""
        if rows.height:
            named = rows if reason is None else rows.with_columns(pl.lit(reason).alias("reason"))
            self.rejected.append(_quarantined(named))

    def add(self, found: "Intake") -> None:
        """Take in what a task read after this."""
        self.rows += found.rows
        self.files |= found.files
        self.rejected += found.rejected
        for day, parts in found.parts.items():
            self.parts.setdefault(day, []).extend(parts)

    def quarantined(self) -> int:
        """Return the number of rejected rows."""
        return sum(frame.height for frame in self.rejected)


@dataclass(frozen=True)
class _Task:
    """Files that one worker reads, in order."""

    number: int
    files: list[Reading]
    spill: Path


def read_all(engine: Engine, files: list[Reading], spill: Path) -> Intake:
    """Read, type and check files into parts of days in a folder.

    Raises:
        ValueError: a file cannot be read.
    """
    intake = Intake(spill)
    tasks = [_Task(number, group, spill) for number, group in enumerate(_groups(files))]
    for found in engine.map(_read, tasks, "ingest: read"):
        intake.add(found)
    return intake


def _groups(files: list[Reading]) -> Iterator[list[Reading]]:
    group: list[Reading] = []
    held = 0
    for reading in files:
        if group and held + reading[0].size_bytes > TASK_BYTES:
            yield group
            group, held = [], 0
        group.append(reading)
        held += reading[0].size_bytes
    if group:
        yield group


def _read(task: _Task) -> Intake:
    intake = Intake(task.spill, task.number)
    for file, columns, parse in task.files:
        intake.files.add(file.name)
        for chunk in read_chunks(file, columns):
            _take(chunk, parse, intake)
    _spill_waiting(intake)
    return intake


def _take(chunk: pl.DataFrame, parse: Parse, intake: Intake) -> None:
    """Sort a chunk's rows into broken, rejected and good ones."""
    intake.rows += chunk.height
    is_broken = chunk["broken"].is_not_null()
    if is_broken.any():
        intake.reject(chunk.filter(is_broken), "no JSON object")
        chunk = chunk.filter(~is_broken)
    good, rejected = parse(chunk.drop("broken"))
    intake.reject(rejected)
    intake.waiting.append(good)
    if sum(frame.height for frame in intake.waiting) >= BUFFERED_ROWS:
        _spill_waiting(intake)


def _spill_waiting(intake: Intake) -> None:
    """Write the waiting rows to a file for each of their days."""
    if not intake.waiting:
        return
    waiting = pl.concat(intake.waiting)
    intake.waiting.clear()
    for date in waiting["date"].unique(maintain_order=True):
        parts = intake.parts.setdefault(date, [])
        part = intake.spill / f"{date}-{intake.task}-{len(parts)}.arrow"
        write_spill(waiting.filter(pl.col("date") == date), part)
        parts.append(part)


def write_spill(rows: pl.DataFrame, file: Path) -> None:
    """Write rows that are read again soon, fast rather than small, as a whole or not at all."""
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.draft")
    rows.write_ipc(draft)
    draft.replace(file)


def _quarantined(rejected: pl.DataFrame) -> pl.DataFrame:
    values = [name for name in rejected.columns if name not in QUARANTINE_SCHEMA]
    record = pl.struct(pl.col(name).cast(pl.String) for name in values).struct.json_encode()
    return rejected.select("reason", "file", "row", record.alias("record"))


def quarantine_reasons(intake: Intake) -> dict[str, int]:
    """Count the rejected rows by reason, most frequent first."""
    counts: Counter[str] = Counter()
    for frame in intake.rejected:
        counts.update(frame["reason"].to_list())
    return dict(counts.most_common())


def check_quarantine(config: Config, intake: Intake, found: str) -> None:
    """Refuse a source of which too much is rejected, and log what is.

    Raises:
        ValueError: no row was read, none is left, or more than source.max_quarantine_share are rejected.
    """
    if intake.rows == 0:
        raise ValueError(f"source {found} has no rows: correct --source or wait for the log")
    rejected = intake.quarantined()
    if rejected == 0:
        return
    first = intake.rejected[0].row(0, named=True)
    reasons = "; ".join(f"{reason}: {count}" for reason, count in quarantine_reasons(intake).items())
    where = f"the first in {first['file']} row {first['row']}"
    # Events of earlier runs that one of this run replaces: a source that replaces many is no better than a broken one.
    replaced = sum(frame.filter(~pl.col("file").is_in(sorted(intake.files))).height for frame in intake.rejected)
    rows = intake.rows + replaced
    message = f"{rejected} of {rows} rows are quarantined ({reasons}), {where}"
    ceiling = config.source.max_quarantine_share
    if not intake.parts:
        raise ValueError(f"{message}: no row is left; correct the source or the column mapping")
    if rejected > ceiling * rows:
        raise ValueError(
            f"{message}: above source.max_quarantine_share = {ceiling}; correct the source or raise the share"
        )
    LOG.warning("ingest: %s; they lie in tables/quarantine", message)


def quarantine_table(workspace: Workspace, intake: Intake) -> pl.DataFrame:
    """Return what tables/quarantine is to hold: the rejected rows, and those of files that were not read this time."""
    found = pl.concat([pl.DataFrame(schema=QUARANTINE_SCHEMA), *intake.rejected])
    table = workspace.table("quarantine")
    if tables.exists(table):
        kept = tables.scan(table).filter(~pl.col("file").is_in(sorted(intake.files))).collect()
        found = pl.concat([kept, found])
    return found.unique().sort("file", "row", "reason", "record")
