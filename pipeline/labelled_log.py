"""A labelled log: one row an impression that says whether it was clicked and converted, day by day."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from features.business_days import day_after, day_before
from features.events import repeat_an_impression
from features.schema import ORIGIN, PROPENSITY, TIMESTAMP, Contract, TaskLabel, by_time, deduplicate, parse_interactions
from pipeline import tables
from pipeline.config import Config
from pipeline.day_files import Bounds, Work, count_rows, slices_of, within, write_slices
from pipeline.event_log import shared_between_days
from pipeline.intake import Intake, Reading, check_quarantine, read_all
from pipeline.source_files import SourceFile

VALUE = "value"  # the label that is the value of a conversion, which events carry too
TIME_KEY = pl.col("event_time").cast(pl.Int64)
REPEATS_OF_ANOTHER_DAY = "repeats an impression of another day"


def contract_of(config: Config, latest: dt.datetime) -> Contract:
    """Return the contract that the configuration asks of a log; see `read_log` for `latest`."""
    return Contract(
        click=config.labels.click,
        conversion=config.labels.conversion,
        numeric_labels=tuple(config.labels.numeric),
        context=tuple(config.context.columns),
        hour=config.context.hour is not None,
        time_unit=config.source.time_unit,
        time_zone=config.source.time_zone,
        matures_after=_matures_after(config),
        latest=latest,
        tasks=task_labels(config),
        propensity=config.source.has_propensity(),
    )


def task_labels(config: Config) -> tuple[TaskLabel, ...]:
    """Return the tasks beyond click and conversion whose labels the log's columns give, by name."""
    return tuple(
        TaskLabel(name=name, expression=task.label, number=task.kind == "value")
        for name, task in sorted(config.labels.tasks.items())
        if task.label != VALUE
    )


def _matures_after(config: Config) -> dt.timedelta | None:
    """Return when labels are final: on receipt, unless the log says when each became known."""
    labels = config.labels
    if not config.source.labels_arrive_later():
        return None
    return labels.click_window + labels.conversion_window + labels.lateness


def read_log(
    config: Config, work: Work, files: list[SourceFile], latest: dt.datetime, table: Path | None = None
) -> Intake:
    """Read, type, check and deduplicate interaction files into one file a day, in the format of the table.

    Args:
        config: what the log means.
        work: the engine, and where the files go.
        files: all files of the days that they hold.
        latest: the moment from which a time lies in the future.
        table: tables/interactions, whose other days an impression must not come again from.

    Raises:
        ValueError: the source breaks the contract beyond source.max_quarantine_share, or as a whole.
    """
    contract = contract_of(config, latest)
    columns = _wanted(config, contract)
    readings: list[Reading] = [(file, columns, partial(parse_interactions, contract=contract)) for file in files]
    intake = read_all(work.engine, readings, work.folder)
    log = _Log(config, intake, work, dict(sorted(intake.parts.items())))
    _deduplicate_days(log)
    if config.source.columns.impression is not None:
        _quarantine_ids_of_other_days(log, table)
    for part in (part for parts in log.parts.values() for part in parts):
        part.unlink()
    intake.parts = {date: files for date, files in intake.parts.items() if count_rows(files)}
    check_quarantine(config, intake, str(config.source.interactions))
    _check_labels(config, intake)
    return intake


@dataclass(frozen=True)
class _Log:
    """A log while its days are made: `parts` is what was read of each, the intake has the days' files."""

    config: Config
    intake: Intake
    work: Work
    parts: dict[dt.date, list[Path]]


def _wanted(config: Config, contract: Contract) -> dict[str, list[str]]:
    columns = config.source.columns
    pairs = [
        (columns.user, "user_id"),
        (columns.item, "item_id"),
        (columns.event_time, "event_time"),
        (columns.received_time, "received_time"),
        (columns.impression, "impression_id"),
        (columns.click_known_at, "click_known_at"),
        (columns.conversion_known_at, "conversion_known_at"),
        (columns.value, "value"),
        (columns.propensity, PROPENSITY),
        *((name, name) for name in contract.context),
        *((name, name) for name in contract.label_columns()),
    ]
    wanted: dict[str, list[str]] = {}
    for column, name in pairs:
        if column is not None and name not in wanted.setdefault(column, []):
            wanted[column].append(name)
    return wanted


@dataclass(frozen=True)
class _Task:
    """A day's parts, the day's file, and the impressions to leave out of it."""

    parts: list[Path]
    file: Path
    lost: pl.Series


@dataclass
class _Deduplicated:
    duplicates: int
    repeats: pl.DataFrame
    lost: pl.DataFrame


def _deduplicate_days(log: _Log) -> None:
    none = pl.Series(dtype=pl.String)
    tasks = [_Task(parts, log.work.new_file("interactions", day), none) for day, parts in log.parts.items()]
    results = log.work.engine.map(deduplicate_day, tasks, "ingest: deduplicate")
    for day, task, found in zip(log.parts, tasks, results, strict=True):
        log.intake.duplicates += found.duplicates
        log.intake.reject(found.repeats, "repeats an impression with other values")
        log.intake.parts[day] = [task.file]


def deduplicate_day(task: _Task) -> _Deduplicated:
    """Write one row an impression of a day; of a large day only copies and a slice are in memory at once."""
    scans = [pl.scan_ipc(part) for part in task.parts]
    limits = slices_of(scans, TIME_KEY)
    found = _Deduplicated(0, pl.DataFrame(), pl.DataFrame())
    lost: list[pl.DataFrame] = []

    def slices() -> Iterator[pl.DataFrame]:
        for rows in _kept_slices(scans, limits, found):
            is_lost = pl.col("impression_id").is_in(task.lost.implode())
            lost.append(rows.filter(is_lost))
            yield rows.filter(~is_lost).drop(ORIGIN)

    write_slices(slices(), task.file)
    found.lost = pl.concat(lost)
    return found


def _kept_slices(scans: list[pl.LazyFrame], limits: list[Bounds], found: _Deduplicated) -> Iterator[pl.DataFrame]:
    if len(limits) == 1:
        kept, found.duplicates, found.repeats = deduplicate(pl.concat(scan.collect() for scan in scans))
        yield kept
        return
    hashed = pl.col("impression_id").hash()
    ids = pl.concat(scan.select(hashed).collect().to_series() for scan in scans)
    is_copy = hashed.is_in(ids.filter(ids.is_duplicated()).unique().implode())
    kept, found.duplicates, found.repeats = deduplicate(pl.concat(scan.filter(is_copy).collect() for scan in scans))
    for limit in limits:
        of_slice = within(TIME_KEY, limit)
        rows = [scan.filter(of_slice, ~is_copy).collect() for scan in scans]
        yield by_time(pl.concat([*rows, kept.filter(of_slice)]))


def _quarantine_ids_of_other_days(log: _Log, table: Path | None) -> None:
    """Keep one row of an impression that several days have: what the table keeps of a day not read, or the first."""
    labels, zone = log.config.labels, log.config.source.time_zone
    window, read = labels.click_window + labels.conversion_window, log.intake.parts
    stored = {} if table is None else {day: files for day, files in tables.day_files(table).items() if day not in read}
    near = {
        day for date in read for day in stored if day_before(date, window, zone) <= day <= day_after(date, window, zone)
    }
    days = sorted(near | set(read))
    files = [read[day] if day in read else stored[day] for day in days]
    reach = -(-window // dt.timedelta(days=1))
    ids = log.work.engine.map(_impression_ids, files, "ingest: impressions")
    shared = shared_between_days(zip(days, ids, strict=True), reach, set(read))
    if shared.is_empty():
        return
    tasks = [(day, paths, shared, day in read) for day, paths in zip(days, files, strict=True)]
    named = pl.concat(log.work.engine.map(_impressions_of, tasks, "ingest: repeated impressions"))
    for (day,), lost in sorted(repeat_an_impression(named, reach).partition_by("date", as_dict=True).items()):
        if day in read:
            _move_to_quarantine(day, lost["event_id"], log)


def _impression_ids(files: list[Path]) -> pl.Series:
    return pl.scan_parquet(files, hive_partitioning=False).select(pl.col("impression_id").hash()).collect().to_series()


def _impressions_of(task: tuple[dt.date, list[Path], pl.Series, bool]) -> pl.DataFrame:
    """Return the impressions of some hashed ids; what the table keeps comes first."""
    day, files, ids, is_read = task
    time = pl.col("event_time")
    return (
        pl.scan_parquet(files, hive_partitioning=False)
        .filter(pl.col("impression_id").hash().is_in(ids.implode()))
        .select(
            pl.col("impression_id").alias("event_id"),
            "impression_id",
            (time if is_read else pl.lit(None, TIMESTAMP)).alias("place"),
            pl.lit(day).alias("date"),
        )
        .collect()
    )


def _move_to_quarantine(day: dt.date, impressions: pl.Series, log: _Log) -> None:
    """Make a day's file again without some impressions; only the parts tell where they were read."""
    task = _Task(log.parts[day], log.work.new_file("interactions", day), impressions)
    (found,) = log.work.engine.map(deduplicate_day, [task], "ingest: repeated impressions")
    log.intake.reject(found.lost, REPEATS_OF_ANOTHER_DAY)
    log.intake.parts[day] = [task.file]


def _check_labels(config: Config, intake: Intake) -> None:
    paths = [path for paths in intake.parts.values() for path in paths]
    labels = pl.scan_parquet(paths, hive_partitioning=False)
    counts = labels.select(pl.len().alias("rows"), pl.col("click", "conversion").sum()).collect().row(0, named=True)
    for label, rule in (("click", config.labels.click), ("conversion", config.labels.conversion)):
        if counts[label] in {0, counts["rows"]}:
            raise ValueError(
                f"labels.{label} = {rule!r} is true on {counts[label]} of {counts['rows']} rows: both "
                "classes are needed; correct the expression or the source"
            )


def check_no_day_shrinks(config: Config, table: Path, intake: Intake) -> None:
    """Refuse a source that holds part of a day that the table holds whole: ingest replaces whole days.

    Raises:
        ValueError: a day has fewer rows than the table and source.accept_fewer_rows does not allow it.
    """
    if config.source.accept_fewer_rows or not tables.exists(table):
        return
    kept = tables.scan(table).group_by("date").len().collect()
    before = dict(zip(kept["date"].to_list(), kept["len"].to_list(), strict=True))
    for date, parts in sorted(intake.parts.items()):
        rows = count_rows(parts)
        if rows < before.get(date, 0):
            raise ValueError(
                f"source holds {rows} rows of {date}, tables/interactions {before[date]}: give all files of that day, "
                "or set source.accept_fewer_rows = true if the day was corrected"
            )
