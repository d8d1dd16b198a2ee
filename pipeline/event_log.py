"""The log of raw events: one copy of each, merged with those that earlier runs took in, a day at a time."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from features.business_days import day_after, day_before
from features.events import (
    EVENT_KEY,
    KINDS,
    TIMES,
    EventContract,
    event_schema,
    lose_to_a_copy,
    merge_copies,
    parse_events,
    repeat_an_impression,
    value_columns,
)
from features.schema import ORIGIN, timestamp
from pipeline import tables
from pipeline.config import Config
from pipeline.intake import Intake, spill_waiting, take, write_spill
from pipeline.readers import read_chunks
from pipeline.sections import Stream
from pipeline.source_files import SourceFile
from pipeline.stage import progress

REPEATS = "repeats an event with other values"
DAY_ORDER = ("kind", "event_time", "event_id")


@dataclass
class EventLog:
    """Events by day: those of merged days lie on disk, all others in the table.

    Attributes:
        stored: the table, None where there is none yet.
        stored_days: its days.
        schema: columns of an event.
        time_zone: of the business day.
        replaced: copies that earlier runs put aside, since another one stays.
        merged: files of the days that this run merged.
        changed: merged days that differ from the table.
        replaced_on: days of copies that were put aside, of events that came again: a run that was killed may have
            taken them from the table without what follows from it.
    """

    stored: pl.LazyFrame | None
    stored_days: frozenset[dt.date]
    schema: pl.Schema
    time_zone: str
    replaced: pl.DataFrame
    merged: dict[dt.date, Path] = field(default_factory=dict)
    changed: set[dt.date] = field(default_factory=set)
    replaced_on: set[dt.date] = field(default_factory=set)

    def touched(self) -> set[dt.date]:
        """Return the days on which events may have come or gone since interactions were last labelled."""
        return {*self.merged, *self.replaced_on}

    def days(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Return the days in a range that have events, in order."""
        return sorted(day for day in self.stored_days | set(self.merged) if first <= day <= last)

    def read(self, day: dt.date, columns: list[str], kind: str | None = None) -> pl.DataFrame:
        """Return columns of a day's events, of one kind or of all."""
        rows = self._scan(day)
        return (rows if kind is None else rows.filter(pl.col("kind") == kind)).select(columns).collect()

    def _scan(self, day: dt.date) -> pl.LazyFrame:
        if day in self.merged:
            return pl.scan_parquet(self.merged[day])
        return self.stored_rows(day).lazy() if day not in self.stored_days else self._stored(day)

    def _stored(self, day: dt.date) -> pl.LazyFrame:
        assert self.stored is not None, "a day of the table"
        return self.stored.filter(pl.col("date") == day)

    def stored_rows(self, day: dt.date) -> pl.DataFrame:
        """Return the table's events of a day, none where it has none."""
        if day not in self.stored_days:
            return pl.DataFrame(schema=self.schema)
        return self._stored(day).select(self.schema.names()).collect().sort(DAY_ORDER)


def open_log(config: Config, table: Path, quarantine: Path) -> EventLog:
    """Return the log as earlier runs left it."""
    schema = event_schema(tuple(config.context.columns), hour=config.context.hour is not None)
    zone = config.source.time_zone
    replaced = _replaced(quarantine, schema)
    if not tables.exists(table):
        return EventLog(None, frozenset(), schema, zone, replaced)
    return EventLog(tables.scan(table), frozenset(tables.days(table)), schema, zone, replaced)


def read_streams(config: Config, files: list[tuple[Stream, SourceFile]], spill: Path, latest: dt.datetime) -> Intake:
    """Read, type and check files of raw events into Parquet files by day.

    Args:
        config: what the streams mean.
        files: the files to read, each with its stream.
        spill: an empty folder.
        latest: the moment from which a time lies in the future.
    """
    intake = Intake(spill)
    for stream, file in progress(files, "ingest"):
        intake.files.add(file.name)
        parse = partial(parse_events, contract=event_contract(config, stream, latest))
        for chunk in read_chunks(file, _wanted(config, stream)):
            take(chunk, parse, intake)
    spill_waiting(intake)
    return intake


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
        *((name, name) for name in config.context.columns if shown),
    ]
    wanted: dict[str, list[str]] = {}
    for column, name in pairs:
        if column is not None:
            wanted.setdefault(column, []).append(name)
    return wanted


def merge(log: EventLog, intake: Intake, window: dt.timedelta, lateness: dt.timedelta) -> Counter[str]:
    """Merge what was read into the log, one copy an event; count the new events by kind, and those that were late.

    Copies are found on the same day and on days within the window of it. Duplicates are counted and repeats with
    other values rejected in the intake.
    """
    new: Counter[str] = Counter()
    read, rejected = 0, intake.quarantined()
    for day in sorted(intake.parts):
        stored = log.stored_rows(day)
        rows = pl.concat([pl.read_parquet(part) for part in intake.parts[day]])
        read += rows.height
        kept, duplicates, repeats = merge_copies(pl.concat([stored, rows]) if stored.height else rows)
        intake.duplicates += duplicates
        _reject_repeats(intake, repeats)
        new.update(_tally(kept, lateness))
        new.subtract(_tally(stored, lateness))
        _put(log, day, kept, intake.spill, same=kept.height == stored.height and kept.equals(stored))
        for part in intake.parts[day]:
            part.unlink()
    for lost in _drop_copies_nearby(log, intake, window):
        new.subtract(_tally(lost, lateness))
    counted = sum(new[kind] for kind in KINDS) + intake.duplicates + intake.quarantined() - rejected
    assert read == counted, "every event that was read is new, a duplicate or quarantined"
    return new


def _tally(events: pl.DataFrame, lateness: dt.timedelta) -> dict[str, int]:
    late = (pl.col("received_time") - pl.col("event_time") > lateness).sum()
    counts = events.group_by("kind").agg(pl.len(), late.alias("late"))
    return {**dict(zip(counts["kind"], counts["len"], strict=True)), "late": int(counts["late"].sum())}


def _put(log: EventLog, day: dt.date, rows: pl.DataFrame, spill: Path, *, same: bool) -> None:
    path = spill / f"events-{day}.parquet"
    write_spill(rows, path)
    log.merged[day] = path
    if not same:
        log.changed.add(day)


def _drop_copies_nearby(log: EventLog, intake: Intake, window: dt.timedelta) -> list[pl.DataFrame]:
    """Drop events of which an earlier received copy lies on another day, and return them."""
    touched = sorted(log.merged)
    reach = -(-window // dt.timedelta(days=1))
    hashed = pl.struct(EVENT_KEY).hash()
    replaced = log.replaced.select(hashed).to_series()
    again = [pl.Series(dtype=pl.UInt64)]

    def on_each_day() -> Iterator[tuple[dt.date, pl.Series]]:
        for day in days:
            ids = log.read(day, list(EVENT_KEY)).select(hashed).to_series()
            if replaced.len() and day in log.merged:
                again.append(ids.filter(ids.is_in(replaced.implode())))
            yield day, ids

    days = sorted(days_around(log, touched, window))
    shared = pl.concat([shared_between_days(on_each_day(), reach, set(touched)), *again]).unique()
    if shared.is_empty():
        return []
    is_shared = hashed.is_in(shared.implode())
    log.replaced_on.update(log.replaced.filter(is_shared)["date"])
    stored = pl.concat([log.read(day, log.schema.names()).filter(is_shared) for day in days])
    known = log.replaced.filter(is_shared).join(
        stored, on=[*value_columns(stored), "received_time"], how="anti", nulls_equal=True
    )
    flagged = [rows.with_columns(pl.lit(flag).alias("is_stored")) for rows, flag in ((stored, True), (known, False))]
    losers = lose_to_a_copy(pl.concat(flagged), reach).filter("is_stored").drop("is_stored")
    for (day,), lost in losers.partition_by("date", as_dict=True).items():
        rows = log.read(day, log.schema.names())
        kept = rows.join(lost, on=EVENT_KEY, how="anti", maintain_order="left")
        _put(log, day, kept, intake.spill, same=False)
        _reject_repeats(intake, lost)
    return [losers]


def _reject_repeats(intake: Intake, rows: pl.DataFrame) -> None:
    """Put copies aside as they were typed, so that `_replaced` reads them again."""
    intake.reject(rows.with_columns(pl.col(TIMES).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")), REPEATS)


def _replaced(quarantine: Path, schema: pl.Schema) -> pl.DataFrame:
    """Return the copies that earlier runs put aside as repeats with other values."""
    if not tables.exists(quarantine):
        return schema.to_frame()
    rows = tables.scan(quarantine).filter(pl.col("reason") == REPEATS).collect()
    texts = pl.Struct({name: pl.String() for name in schema if name not in ORIGIN})
    fields = rows.select("file", "row", pl.col("record").str.json_decode(texts)).unnest("record")
    times = [timestamp(pl.col(name), pl.String(), "us") for name in TIMES]
    typed = fields.with_columns(*times, pl.col("value").cast(pl.Float64), pl.col("date").str.to_date("%Y-%m-%d"))
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


def repeated_impressions(log: EventLog, first: dt.date, last: dt.date, span: dt.timedelta) -> pl.DataFrame:
    """Return event_id and date of the impressions in a range whose id an earlier received event nearby has.

    Args:
        log: the events.
        first: first day of the range.
        last: its last day.
        span: time between two impressions within which one id is one impression.
    """
    days = log.days(day_before(first, span, log.time_zone), day_after(last, span, log.time_zone))
    reach = -(-span // dt.timedelta(days=1))
    columns = ["event_id", "impression_id", "received_time", "date"]
    hashed = pl.col("impression_id").hash()
    twice: list[pl.Series] = []

    def on_each_day() -> Iterator[tuple[dt.date, pl.Series]]:
        for day in days:
            ids = log.read(day, ["impression_id"], "impression").select(hashed).to_series()
            if ids.n_unique() < len(ids):
                twice.append(ids.filter(ids.is_duplicated()))
            yield day, ids

    shared = pl.concat([shared_between_days(on_each_day(), reach), *twice]).unique()
    if shared.is_empty():
        return pl.DataFrame(schema={"event_id": pl.String, "date": pl.Date})
    is_shared = hashed.is_in(shared.implode())
    rows = pl.concat([log.read(day, columns, "impression").filter(is_shared) for day in days])
    return repeat_an_impression(rows.rename({"received_time": "place"}), reach).filter(
        pl.col("date").is_between(first, last)
    )
