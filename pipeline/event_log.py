"""The log of raw events by day: those that earlier runs took in, and those that this run merged with them."""

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from features.business_days import day_after, day_before
from features.events import TIMES, EventContract, event_schema, parse_events, repeat_an_impression
from features.schema import ORIGIN, PROPENSITY, timestamp
from pipeline import tables
from pipeline.config import Config
from pipeline.day_files import scan_day
from pipeline.engine import Engine
from pipeline.intake import Intake, Reading, read_all
from pipeline.sections import Stream
from pipeline.source_files import SourceFile

REPEATS = "repeats an event with other values"
DAY_ORDER = ("kind", "event_time", "event_id")


@dataclass(frozen=True)
class DayEvents:
    """Where the events of a day are, for a task on any machine; `known_before` leaves out what came later."""

    day: dt.date
    files: tuple[Path, ...]
    schema: pl.Schema
    known_before: dt.datetime | None = None

    def scan(self, kind: str | None = None) -> pl.LazyFrame:
        """Scan the events of one kind or of all."""
        rows = scan_day(self.files, self.day, self.schema)
        if self.known_before is not None:
            rows = rows.filter(pl.col("received_time") < self.known_before)
        return rows if kind is None else rows.filter(pl.col("kind") == kind)

    def read(self, columns: list[str], kind: str | None = None) -> pl.DataFrame:
        """Return columns of the events of one kind or of all, in the order of the day."""
        return self.scan(kind).select(columns).collect()


@dataclass
class EventLog:
    """Events by day.

    Attributes:
        stored: the table's files by day.
        schema: columns of an event.
        time_zone: of the business day.
        replaced: copies that earlier runs put aside, since another one stays.
        known_before: the moment before which an event must have been received to count; None for all.
        merged: the file of each day that this run merged.
        changed: merged days that differ from the table.
        replaced_on: days of copies that were put aside, of events that came again: a run that was killed may have
            taken them from the table without what follows from it.
    """

    stored: dict[dt.date, list[Path]]
    schema: pl.Schema
    time_zone: str
    replaced: pl.DataFrame
    known_before: dt.datetime | None = None
    merged: dict[dt.date, Path] = field(default_factory=dict)
    changed: set[dt.date] = field(default_factory=set)
    replaced_on: set[dt.date] = field(default_factory=set)

    def touched(self) -> set[dt.date]:
        """Return the days on which events may have come or gone since interactions were last labelled."""
        return {*self.merged, *self.replaced_on}

    def days(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Return the days in a range that have events, or have lost their last ones, in order."""
        known = self.stored.keys() | self.merged.keys() | self.replaced_on
        return sorted(day for day in known if first <= day <= last)

    def of(self, day: dt.date) -> DayEvents:
        """Return a day as it is now."""
        files = [self.merged[day]] if day in self.merged else self.stored.get(day, [])
        return DayEvents(day, tuple(files), self.schema, self.known_before)

    def of_table(self, day: dt.date) -> DayEvents:
        """Return a day as the table has it."""
        return DayEvents(day, tuple(self.stored.get(day, [])), self.schema)


def open_log(config: Config, table: Path, quarantine: Path) -> EventLog:
    """Return the log as earlier runs left it."""
    schema = config_schema(config)
    return EventLog(tables.day_files(table), schema, config.source.time_zone, _replaced(quarantine, schema))


def config_schema(config: Config) -> pl.Schema:
    """Return the columns of tables/events that a configuration asks for."""
    propensity = config.source.has_propensity()
    return event_schema(tuple(config.context.columns), hour=config.context.hour is not None, propensity=propensity)


def read_streams(
    config: Config, engine: Engine, files: list[tuple[Stream, SourceFile]], spill: Path, latest: dt.datetime
) -> Intake:
    """Read, type and check files of raw events into parts of days.

    Args:
        config: what the streams mean.
        engine: reads the files.
        files: the files to read, each with its stream.
        spill: an empty folder.
        latest: the moment from which a time lies in the future.
    """
    readings: list[Reading] = [
        (file, _wanted(config, stream), partial(parse_events, contract=event_contract(config, stream, latest)))
        for stream, file in files
    ]
    return read_all(engine, readings, spill)


def event_contract(config: Config, stream: Stream, latest: dt.datetime) -> EventContract:
    """Return the contract that the configuration asks of a stream."""
    return EventContract(
        kind=stream.kind,
        names={name: kind for kind, names in stream.names.items() for name in names},
        context=tuple(config.context.columns),
        hour=config.context.hour is not None,
        time_unit=config.source.time_unit,
        time_zone=config.source.time_zone,
        latest=latest,
        propensity=config.source.has_propensity(),
    )


def _wanted(config: Config, stream: Stream) -> dict[str, list[str]]:
    shown = stream.kind in {None, "impression"}
    pairs = [
        (stream.event_id, "event_id"),
        (stream.event_time, "event_time"),
        (stream.received_time, "received_time"),
        (stream.user, "user_id"),
        (stream.item, "item_id"),
        (stream.impression, "impression_id"),
        (stream.request, "request_id"),
        (stream.value, "value"),
        *([(stream.type, "kind")] if stream.kind is None else []),
        *([(stream.propensity, PROPENSITY)] if shown else []),
        *((name, name) for name in config.context.columns if shown),
    ]
    wanted: dict[str, list[str]] = {}
    for column, name in pairs:
        if column is not None:
            wanted.setdefault(column, []).append(name)
    return wanted


def _replaced(quarantine: Path, schema: pl.Schema) -> pl.DataFrame:
    """Return the copies that earlier runs put aside as repeats with other values."""
    if not tables.exists(quarantine):
        return schema.to_frame()
    rows = tables.scan(quarantine).filter(pl.col("reason") == REPEATS).collect()
    texts = pl.Struct({name: pl.String() for name in schema if name not in ORIGIN})
    fields = rows.select("file", "row", pl.col("record").str.json_decode(texts)).unnest("record")
    times = [timestamp(pl.col(name), pl.String(), "us") for name in TIMES]
    numbers = [pl.col(name).cast(pl.Float64) for name in ("value", PROPENSITY) if name in schema]
    typed = fields.with_columns(*times, *numbers, pl.col("date").str.to_date("%Y-%m-%d"))
    return typed.select(schema.names())


def days_around(log: EventLog, days: Iterable[dt.date], span: dt.timedelta) -> set[dt.date]:
    """Return the days that have events within a span of any of the given days."""
    near: set[dt.date] = set()
    for day in days:
        near.update(log.days(day_before(day, span, log.time_zone), day_after(day, span, log.time_zone)))
    return near


def shared_between_days(
    ids: Iterable[tuple[dt.date, pl.Series]], reach_days: int, touched: set[dt.date] | None = None
) -> pl.Series:
    """Return the hashed ids that two days have, at most so many days apart; memory holds the ids of that window.

    Args:
        ids: hashed ids by day, in order of days.
        reach_days: how far apart the two days may lie.
        touched: if given, one of the two days must be one of these.
    """
    window: dict[dt.date, pl.Series] = {}
    shared = [pl.Series(dtype=pl.UInt64)]
    for day, hashed in ids:
        window = {other: kept for other, kept in window.items() if (day - other).days <= reach_days}
        others = [kept for other, kept in window.items() if touched is None or touched & {day, other}]
        if others:
            # Building a set costs more than looking things up in it.
            few, many = sorted((hashed, pl.concat(others)), key=len)
            shared.append(many.filter(many.is_in(few.implode())))
        window[day] = hashed
    return pl.concat(shared).unique()


def repeated_impressions(
    engine: Engine, log: EventLog, first: dt.date, last: dt.date, span: dt.timedelta
) -> pl.DataFrame:
    """Return event_id and date of the impressions in a range whose id an earlier received event nearby has.

    Args:
        engine: reads the days.
        log: the events.
        first: first day of the range.
        last: its last day.
        span: time between two impressions within which one id is one impression.
    """
    days = [
        log.of(day) for day in log.days(day_before(first, span, log.time_zone), day_after(last, span, log.time_zone))
    ]
    reach = -(-span // dt.timedelta(days=1))
    twice: list[pl.Series] = []

    def on_each_day() -> Iterator[tuple[dt.date, pl.Series]]:
        for day, (ids, of_one_day) in zip(days, engine.map(_impression_ids, days, "ingest: impressions"), strict=True):
            twice.append(of_one_day)
            yield day.day, ids

    shared = pl.concat([shared_between_days(on_each_day(), reach), *twice]).unique()
    if shared.is_empty():
        return pl.DataFrame(schema={"event_id": pl.String, "date": pl.Date})
    found = engine.map(_impressions_of, [(day, shared) for day in days], "ingest: repeated impressions")
    return repeat_an_impression(pl.concat(found), reach).filter(pl.col("date").is_between(first, last))


def _impression_ids(day: DayEvents) -> tuple[pl.Series, pl.Series]:
    """Return the hashed impression ids of a day, and those that it has twice."""
    ids = day.scan("impression").select(pl.col("impression_id").hash()).collect().to_series()
    return ids, ids.filter(ids.is_duplicated()) if ids.n_unique() < len(ids) else ids.clear()


def _impressions_of(task: tuple[DayEvents, pl.Series]) -> pl.DataFrame:
    day, ids = task
    rows = day.scan("impression").filter(pl.col("impression_id").hash().is_in(ids.implode()))
    return rows.select("event_id", "impression_id", pl.col("received_time").alias("place"), "date").collect()
