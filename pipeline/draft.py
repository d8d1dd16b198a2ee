"""What an ingest is going to commit: the days that differ from the tables, from either kind of source."""

import datetime as dt
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from features.attribution import Windows
from features.events import KINDS
from features.schema import PROPENSITY, TIMESTAMP
from pipeline import tables
from pipeline.attribute import LABELS, ORDER, SHOWN, UNATTRIBUTED, Rules, attribute
from pipeline.config import Config
from pipeline.day_files import Work, count_rows, scan_day, slices_of, within
from pipeline.engine import Engine
from pipeline.event_log import DAY_ORDER, config_schema, open_log, read_streams
from pipeline.intake import Intake, check_quarantine
from pipeline.labelled_log import check_no_day_shrinks, read_log, task_labels
from pipeline.merge_days import merge
from pipeline.sections import Stream
from pipeline.source_files import SourceFile
from pipeline.workspace import Workspace


@dataclass
class Draft:
    """Files of whole days that differ from the tables, and what the run has to say.

    Attributes:
        intake: what was read.
        rows_out: rows that the source added.
        interactions: files by impression day.
        events: files by event day, for raw events.
        unattributed: likewise.
        notes: of the outcome.
    """

    intake: Intake
    rows_out: int = 0
    interactions: dict[dt.date, Path] = field(default_factory=dict)
    events: dict[dt.date, Path] = field(default_factory=dict)
    unattributed: dict[dt.date, Path] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def draft_of(
    config: Config,
    workspace: Workspace,
    files: list[tuple[Stream | None, SourceFile]],
    work: Work,
    latest: dt.datetime,
) -> Draft:
    """Read files of either kind of source and find what differs from the tables.

    Args:
        config: what the files mean.
        workspace: the tables.
        files: all files of a labelled log, or those of raw events that are to be read, each with its stream.
        work: the engine, and where the files of days go.
        latest: the moment from which a time lies in the future.

    Raises:
        ValueError: see `read_log` and `read_streams`; a day shrinks, or days are missing.
    """
    if config.source.interactions is not None:
        return _draft_of_log(config, workspace, [file for _, file in files], work, latest)
    return _draft_of_events(config, workspace, [(stream, file) for stream, file in files if stream], work, latest)


def _draft_of_log(
    config: Config, workspace: Workspace, files: list[SourceFile], work: Work, latest: dt.datetime
) -> Draft:
    table = workspace.table("interactions")
    intake = read_log(config, work, files, latest, table)
    check_no_day_shrinks(config, table, intake)
    _check_gaps(config, table, set(intake.parts))
    by_day = {day: parts[0] for day, parts in sorted(intake.parts.items())}
    rows = count_rows(by_day.values())
    assert rows + intake.quarantined() + intake.duplicates == intake.rows, "a row is kept, quarantined or a duplicate"
    changed = differing_days(work.engine, table, by_day, table_schemas(config)["interactions"], ORDER)
    return Draft(
        intake,
        rows,
        changed,
        notes={"labels_changed": _changed_labels(table, changed)},
    )


def _draft_of_events(
    config: Config, workspace: Workspace, files: list[tuple[Stream, SourceFile]], work: Work, latest: dt.datetime
) -> Draft:
    """Merge raw events with the log and label anew the days that they may have changed."""
    labels, schemas, table = config.labels, table_schemas(config), workspace.table("interactions")
    columns = schemas["interactions"].names()
    intake = read_streams(config, work.engine, files, work.folder, latest)
    log = open_log(config, workspace.table("events"), workspace.table("quarantine"))
    new = merge(log, intake, work, window=labels.conversion_window, lateness=labels.lateness)
    check_quarantine(config, intake, ", ".join(stream.files for stream in config.source.streams))
    windows = Windows(click=labels.click_window, conversion=labels.conversion_window, lateness=labels.lateness)
    # A killed run may have written events and not what follows from them: days without a new event count too.
    context, left_out = columns[len(SHOWN) + len(LABELS) :], workspace.table("unattributed")
    found = attribute(log, log.touched(), Rules(windows, context), work, days_of_repeats(left_out))
    changed = differing_days(work.engine, table, found.interactions, schemas["interactions"], ORDER)
    _check_gaps(config, table, set(changed) - set(tables.days(table)))
    return Draft(
        intake,
        sum(new[kind] for kind in KINDS),
        changed,
        {day: log.merged[day] for day in sorted(log.changed)},
        differing_days(work.engine, left_out, found.unattributed, schemas["unattributed"], DAY_ORDER),
        {
            **{f"new_{kind}s": new[kind] for kind in KINDS},
            "late": new["late"],
            "unattributed": _reasons(found.unattributed),
            "labels_changed": _changed_labels(table, changed),
        },
    )


def days_of_repeats(unattributed: Path) -> list[dt.date]:
    """Return the days of which impressions were left out."""
    if not tables.exists(unattributed):
        return []
    rows = tables.scan(unattributed).filter(pl.col("kind") == "impression")
    return rows.select(pl.col("date").unique()).collect().to_series().to_list()


def table_schemas(config: Config) -> dict[str, pl.Schema]:
    """Return the columns of the tables that are written by day."""
    context = dict.fromkeys([*config.context.columns, *([] if config.context.hour is None else ["hour"])], pl.String())
    labels = {
        name: pl.Float64() if name == "value" else pl.Boolean() if name in {"click", "conversion"} else TIMESTAMP
        for name in LABELS
    }
    tasks = {task.column: pl.Float64() for task in task_labels(config)}
    events = config_schema(config)
    shown = {name: events[name] for name in SHOWN}
    propensity = {PROPENSITY: pl.Float64()} if config.source.has_propensity() else {}
    reasons = {"reason": pl.String(), **events}
    return {
        "events": events,
        "unattributed": pl.Schema({name: reasons[name] for name in UNATTRIBUTED}),
        "interactions": pl.Schema({**shown, **labels, **tasks, **propensity, **context}),
    }


@dataclass(frozen=True)
class _Compared:
    """A day's new file and the files that the table holds of it."""

    day: dt.date
    new: Path
    stored: list[Path]
    schema: pl.Schema
    order: tuple[str, ...]


def differing_days(
    engine: Engine, table: Path, files: dict[dt.date, Path], schema: pl.Schema, order: tuple[str, ...]
) -> dict[dt.date, Path]:
    """Return the files whose rows are not those that the table holds for their day."""
    stored = tables.day_files(table)
    tasks = [_Compared(day, path, stored.get(day, []), schema, order) for day, path in sorted(files.items())]
    found = zip(tasks, engine.map(_differs, tasks, "ingest: compare"), strict=True)
    return {task.day: task.new for task, differs in found if differs}


def _differs(task: _Compared) -> bool:
    if not task.stored:
        return count_rows([task.new]) > 0
    if count_rows([task.new]) != count_rows(task.stored):
        return True
    new = scan_day([task.new], task.day, task.schema)
    before = pl.scan_parquet(task.stored, hive_partitioning=False).with_columns(pl.lit(task.day).alias("date"))
    if set(before.collect_schema()) != set(task.schema):
        return True
    time = pl.col("event_time").cast(pl.Int64)
    for limit in slices_of([new], time):
        of_slice = within(time, limit)
        rows = new.filter(of_slice).collect()
        if not before.filter(of_slice).select(task.schema.names()).collect().sort(task.order).equals(rows):
            return True
    return False


def _changed_labels(table: Path, files: dict[dt.date, Path]) -> dict[str, int]:
    """Count by day the impressions that the table holds with another label or value."""
    known = set(tables.days(table)) & set(files)
    counts: dict[str, int] = {}
    for day in sorted(known):
        columns = ["impression_id", "click", "conversion", "value"]
        before = tables.scan(table).filter(pl.col("date") == day).select(columns)
        pairs = (
            pl.scan_parquet(files[day], hive_partitioning=False)
            .select(columns)
            .join(before, on="impression_id", suffix=":before")
        )
        differs = [pl.col(name).ne_missing(pl.col(f"{name}:before")) for name in columns[1:]]
        number = int(pairs.filter(pl.any_horizontal(differs)).select(pl.len()).collect().item())
        if number:
            counts[str(day)] = number
    return counts


def _reasons(files: dict[dt.date, Path]) -> dict[str, int]:
    """Count the unattributed events of the days that were attributed anew, by kind and reason."""
    if not files:
        return {}
    rows = pl.scan_parquet(list(files.values())).group_by("kind", "reason").len().sort("kind", "reason").collect()
    return {f"{kind}: {reason}": number for kind, reason, number in rows.iter_rows()}


def _check_gaps(config: Config, table: Path, new: set[dt.date]) -> None:
    """Refuse days without rows beside the new ones, whether the days around them are new or stored."""
    accepted = set(config.source.accepted_empty_days)
    empty: list[dt.date] = []
    for day, following in pairwise(sorted(new | set(tables.days(table)))):
        if {day, following} & new:
            between = (day + dt.timedelta(days=n) for n in range(1, (following - day).days))
            empty += [missing for missing in between if missing not in accepted]
    if empty:
        raise ValueError(
            f"source has no rows on {', '.join(map(str, empty[:5]))} ({len(empty)} days between "
            f"{empty[0] - dt.timedelta(days=1)} and {empty[-1] + dt.timedelta(days=1)}): restore them or list them in "
            "source.accepted_empty_days"
        )
