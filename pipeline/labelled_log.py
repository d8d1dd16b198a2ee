"""A labelled log: one row an impression that says whether it was clicked and converted, day by day."""

import datetime as dt
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import polars as pl

from features.business_days import day_after, day_before
from features.events import repeat_an_impression
from features.schema import Contract, TaskLabel, deduplicate, parse_interactions
from pipeline import tables
from pipeline.config import Config
from pipeline.event_log import shared_between_days
from pipeline.intake import Intake, check_quarantine, spill_waiting, take, write_spill
from pipeline.readers import read_chunks
from pipeline.source_files import SourceFile
from pipeline.stage import progress

VALUE = "value"  # the label that is the value of a conversion, which events carry too
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
    config: Config, files: list[SourceFile], spill: Path, latest: dt.datetime, table: Path | None = None
) -> Intake:
    """Read, type, check and deduplicate interaction files into one Parquet file a day.

    Args:
        config: what the log means.
        files: all files of the days that they hold.
        spill: an empty folder.
        latest: the moment from which a time lies in the future.
        table: tables/interactions, whose other days an impression must not come again from.

    Raises:
        ValueError: the source breaks the contract beyond source.max_quarantine_share, or as a whole.
    """
    contract = contract_of(config, latest)
    columns = _wanted(config, contract)
    intake = Intake(spill)
    parse = partial(parse_interactions, contract=contract)
    for file in progress(files, "ingest"):
        intake.files.add(file.name)
        for chunk in read_chunks(file, columns):
            take(chunk, parse, intake)
    spill_waiting(intake)
    for date in sorted(intake.parts):
        _deduplicate_day(date, intake)
    if config.source.columns.impression is not None:
        _quarantine_ids_of_other_days(config, intake, table)
    intake.parts = {date: parts for date, parts in intake.parts.items() if count_rows(parts)}
    check_quarantine(config, intake, str(config.source.interactions))
    _check_labels(config, intake)
    return intake


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
        *((name, name) for name in contract.context),
        *((name, name) for name in contract.label_columns()),
    ]
    wanted: dict[str, list[str]] = {}
    for column, name in pairs:
        if column is not None and name not in wanted.setdefault(column, []):
            wanted[column].append(name)
    return wanted


def _deduplicate_day(date: dt.date, intake: Intake) -> None:
    kept, duplicates, repeats = deduplicate(pl.concat([pl.read_parquet(part) for part in intake.parts[date]]))
    intake.duplicates += duplicates
    intake.reject(repeats, "repeats an impression with other values")
    for part in intake.parts[date]:
        part.unlink()
    _put(date, kept, intake)


def _put(date: dt.date, rows: pl.DataFrame, intake: Intake) -> None:
    path = intake.spill / f"{date}.parquet"
    write_spill(rows, path)
    intake.parts[date] = [path]


def count_rows(parts: Iterable[Path]) -> int:
    """Return how many rows some files hold."""
    return int(pl.scan_parquet(list(parts)).select(pl.len()).collect().item())


def _quarantine_ids_of_other_days(config: Config, intake: Intake, table: Path | None) -> None:
    """Keep one row of an impression that several days have: what the table keeps of a day not read, or the first."""
    window, zone = config.labels.click_window + config.labels.conversion_window, config.source.time_zone
    kept = set() if table is None else set(tables.days(table)) - set(intake.parts)
    near = {
        day
        for date in intake.parts
        for day in kept
        if day_before(date, window, zone) <= day <= day_after(date, window, zone)
    }
    stored = tables.scan(table) if table is not None and near else None

    def read(day: dt.date) -> pl.DataFrame:
        columns = ["impression_id", "event_time", "date"]
        if day in intake.parts:
            return pl.read_parquet(intake.parts[day][0], columns=columns)
        assert stored is not None, "a day of the table"
        of_table = stored.filter(pl.col("date") == day).select(columns).collect()
        return of_table.with_columns(pl.lit(None, of_table.schema["event_time"]).alias("event_time"))

    def hashed() -> Iterator[tuple[dt.date, pl.Series]]:
        for day in days:
            yield day, read(day)["impression_id"].hash()

    days = sorted(near | set(intake.parts))
    reach = -(-window // dt.timedelta(days=1))
    shared = shared_between_days(hashed(), reach, set(intake.parts))
    if shared.is_empty():
        return
    rows = pl.concat([read(day).filter(pl.col("impression_id").hash().is_in(shared.implode())) for day in days])
    named = rows.select(
        pl.col("impression_id").alias("event_id"), "impression_id", pl.col("event_time").alias("place"), "date"
    )
    for (day,), lost in repeat_an_impression(named, reach).partition_by("date", as_dict=True).items():
        if day in intake.parts:
            _move_to_quarantine(day, lost["event_id"], intake)


def _move_to_quarantine(day: dt.date, impressions: pl.Series, intake: Intake) -> None:
    rows = pl.read_parquet(intake.parts[day][0])
    lost = rows["impression_id"].is_in(impressions.implode())
    intake.reject(rows.filter(lost), REPEATS_OF_ANOTHER_DAY)
    _put(day, rows.filter(~lost), intake)


def _check_labels(config: Config, intake: Intake) -> None:
    labels = pl.scan_parquet([path for paths in intake.parts.values() for path in paths])
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
