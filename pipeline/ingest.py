"""Ingest: logs and side tables into Delta tables, one row an impression, nothing lost uncounted."""

import datetime as dt
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.schema import TIMESTAMP
from pipeline import tables
from pipeline.config import Config
from pipeline.day_files import Work, scan_day
from pipeline.draft import Draft, draft_of, table_schemas
from pipeline.engine import open_engine
from pipeline.gates import HISTORY_DAYS, check_days, check_freshness, day_counts
from pipeline.intake import Intake, quarantine_reasons, quarantine_table
from pipeline.sections import SideTable, Stream
from pipeline.side_tables import read_side_table
from pipeline.source_files import SourceFile, find_files
from pipeline.source_record import Survey, check_contract, file_digests, side_digest, survey, table_note
from pipeline.stage import LOG, Outcome, uninterrupted
from pipeline.workspace import Workspace

WRITTEN = ("quarantine", "events", "unattributed", "users", "items", "interactions")
CLOCK_TOLERANCE = dt.timedelta(days=1)


@dataclass(frozen=True)
class _Job:
    """One ingest: what it reads, what of it is new, and the versions of the tables that it is computed from."""

    config: Config
    workspace: Workspace
    source: str | Path
    survey: Survey
    bases: dict[str, tables.Basis]

    def table(self, name: str) -> Path:
        return self.workspace.table(name)


def ingest(
    config: Config,
    workspace: Workspace,
    source: str | Path,
    date: dt.date | None = None,
    now: dt.datetime | None = None,
) -> Outcome:
    """Write tables/interactions and what belongs to it from a labelled log or from raw events.

    Text is read in chunks and spilled by business day, so memory holds a day, or the days of an attribution window.
    Nothing is committed before all of the source has been read and checked. tables/interactions, written last,
    records the files: raw events are read from new and changed files only, a labelled log where any file is.

    Args:
        config: the whole configuration.
        workspace: where the tables are.
        source: folder or URI of the files.
        date: the last day that is to be used: its log must have arrived.
        now: the moment of ingest, by default the clock; what lies a day after it is an error of the source.

    Raises:
        ValueError: the source breaks the contract beyond source.max_quarantine_share, or as a whole; a gate stops it;
            the workspace holds something else, or another run writes it.
    """
    check_contract(config, workspace)
    bases = {name: tables.basis(workspace.table(name)) for name in WRITTEN}
    files = source_files(config, source)
    sides = side_files(config, source)
    digests = file_digests(file for _, file in files)
    digests |= {f"side:{name}": side_digest(found, table) for name, (table, found) in sides.items()}
    job = _Job(config, workspace, source, survey(workspace, digests), bases)
    stale = [name for name in sides if f"side:{name}" in job.survey.fresh() or not tables.exists(job.table(name))]
    with _work(config, workspace) as work:
        draft = _draft(job, files, work, (now or dt.datetime.now(dt.UTC)) + CLOCK_TOLERANCE)
        check_gates(config, workspace, draft.interactions, date)
        frames = {name: read_side(config, source, name) for name in stale}
        if job.survey.fresh() or frames:
            with uninterrupted():
                _commit(job, draft, frames, work)
    return _outcome(job, draft, len(files))


def source_files(config: Config, source: str | Path) -> list[tuple[Stream | None, SourceFile]]:
    """Return the files of the log, raw events with the stream that each belongs to.

    Raises:
        ValueError: there are none, or a file belongs to two streams.
    """
    if config.source.interactions is not None:
        return [(None, file) for file in find_files(source, config.source.interactions)]
    found = [(stream, file) for stream in config.source.streams for file in find_files(source, stream.files)]
    names = [file.name for _, file in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"source.streams: {twice[0]} belongs to two streams: give each stream files of its own")
    return list(found)


def read_side(config: Config, source: str | Path, name: str) -> pl.DataFrame:
    """Read users or items, see `read_side_table`."""
    table, key = {"users": (config.users, "user_id"), "items": (config.items, "item_id")}[name]
    return read_side_table(source, table, key, config.source.time_unit, config.source.time_zone)


def side_files(config: Config, source: str | Path) -> dict[str, tuple[SideTable, list[SourceFile]]]:
    """Return the side tables that the configuration has, with the files that each one's pattern finds."""
    sides = {"users": config.users, "items": config.items}
    return {name: (table, find_files(source, table.file)) for name, table in sides.items() if table.file is not None}


@contextmanager
def _work(config: Config, workspace: Workspace) -> Iterator[Work]:
    with _spill(workspace) as spill, open_engine(config) as engine:
        work = Work(engine, spill, workspace.root / "tables")
        try:
            yield work
        finally:
            work.clear()


@contextmanager
def _spill(workspace: Workspace) -> Iterator[Path]:
    """Give this process a folder of its own, since another may write at once; those of killed ones go."""
    spill = workspace.table(f".spill-{os.getpid()}")
    for left in spill.parent.glob(".spill-*"):
        if left == spill or not _is_running(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    spill.mkdir(parents=True)
    try:
        yield spill
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # it belongs to another user
    return True


def _draft(job: _Job, files: list[tuple[Stream | None, SourceFile]], work: Work, latest: dt.datetime) -> Draft:
    fresh = {name for name in job.survey.fresh() if name.startswith("file:")}
    if not fresh:
        return Draft(Intake(work.folder))
    # A day of a labelled log may lie in several files and is replaced as a whole, so that all of them are read.
    read = [(stream, file) for stream, file in files if stream is None or f"file:{file.name}" in fresh]
    return draft_of(job.config, job.workspace, read, work, latest)


def check_gates(config: Config, workspace: Workspace, changed: dict[dt.date, Path], date: dt.date | None) -> None:
    """Compare the changed days with the days before them, and the newest row with the day that is to be used.

    Raises:
        ValueError: a day is too unusual, or the log too old.
    """
    table, zone = workspace.table("interactions"), config.source.time_zone
    days = sorted(set(tables.days(table)) | set(changed))
    if changed:
        span = config.labels.click_window + config.labels.conversion_window
        first = min(changed) - dt.timedelta(days=HISTORY_DAYS) - span
        check_days(config.gates, day_counts(_to_be(table, changed, first), zone), changed)
    if date is not None and days:
        newest = _to_be(table, changed, days[-1] - dt.timedelta(days=1)).select(pl.col("received_time").max()).collect()
        check_freshness(config.gates, newest.item(), date, zone)


def _to_be(table: Path, changed: dict[dt.date, Path], first: dt.date) -> pl.LazyFrame:
    """Return the interactions from a day on as they are after the commit."""
    columns = ["date", "received_time", "click_known_at", "conversion_known_at"]
    schema = pl.Schema({name: pl.Date() if name == "date" else TIMESTAMP for name in columns})
    parts = [scan_day([path], day, schema) for day, path in changed.items() if day >= first]
    if tables.exists(table):
        stored = tables.scan(table).filter(pl.col("date") >= first, ~pl.col("date").is_in(list(changed)))
        parts.append(stored.select(columns))
    return pl.concat(parts)


def _commit(job: _Job, draft: Draft, sides: dict[str, pl.DataFrame], work: Work) -> None:
    """Write the tables; interactions come last, since they record that the files need not be read again."""
    fresh = job.survey.fresh()
    files = json.dumps({name: job.survey.digests[name] for name in sorted(fresh)})
    note = {**table_note(job.config), "files": files}
    quarantine = job.table("quarantine")
    rows = quarantine_table(job.workspace, draft.intake)
    if not tables.exists(quarantine) or not rows.equals(tables.scan(quarantine).collect().sort(rows.columns)):
        tables.write_all(quarantine, rows, note, job.bases["quarantine"])
    schemas = table_schemas(job.config)
    for name, days in (("events", draft.events), ("unattributed", draft.unattributed)):
        if days:
            work.commits(days.values())
            tables.commit_files(job.table(name), days, schemas[name], note=note, since=job.bases[name])
    for name, frame in sides.items():
        tables.write_all(job.table(name), frame, note, job.bases[name])
    records = {name: job.survey.records[name] for name in fresh}
    since = tables.Basis(job.bases["interactions"].version, records)
    work.commits(draft.interactions.values())
    tables.commit_files(job.table("interactions"), draft.interactions, schemas["interactions"], note=note, since=since)


def _outcome(job: _Job, draft: Draft, files: int) -> Outcome:
    fresh = [name for name in job.survey.fresh() if name.startswith("file:")]
    changed = sorted(name.partition(":")[2] for name in job.survey.changed)
    for name in changed:
        LOG.warning("ingest: %s changed since it was read, and was read again", name)
    intake = draft.intake
    return Outcome(
        rows_in=intake.rows,
        rows_out=draft.rows_out,
        notes={
            "files": files,
            "unchanged": files - len(fresh),
            "changed": len(changed),
            **({"changed_files": changed} if changed else {}),
            "duplicates": intake.duplicates,
            "quarantined": intake.quarantined(),
            "reasons": quarantine_reasons(intake),
            **draft.notes,
        },
    )
