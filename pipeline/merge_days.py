"""Merge what was read with the log of raw events: one copy of each event, day by day."""

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from features.events import (
    EVENT_KEY,
    KINDS,
    TIMES,
    in_order,
    lose_to_a_copy,
    merge_copies,
    order_key,
    value_columns,
)
from pipeline.day_files import Bounds, Work, slices_of, within, write_slices
from pipeline.event_log import DAY_ORDER, REPEATS, DayEvents, EventLog, days_around, shared_between_days
from pipeline.intake import Intake

HASHED = pl.struct(EVENT_KEY).hash()


@dataclass(frozen=True)
class _Task:
    """A day to merge, or one without new parts of which the ids are asked only."""

    stored: DayEvents
    parts: tuple[Path, ...]
    lateness: dt.timedelta
    file: Path | None


@dataclass
class _Merged:
    """What became of a day: hashed ids of its events, and counts of what was read."""

    ids: pl.Series
    read: int = 0
    duplicates: int = 0
    repeats: pl.DataFrame = field(default_factory=pl.DataFrame)
    new: Counter[str] = field(default_factory=Counter)
    same: bool = True


def merge(log: EventLog, intake: Intake, work: Work, *, window: dt.timedelta, lateness: dt.timedelta) -> Counter[str]:
    """Merge what was read into the log, one copy an event; count the new events by kind, and those that were late.

    Copies are found on the same day and on days within the window of it. Duplicates are counted and repeats with
    other values rejected in the intake.

    Args:
        log: the events of earlier runs; takes in the merged days.
        intake: what was read.
        work: merges the days, and where they are written.
        window: between two events within which one id is one event.
        lateness: from event to receipt, from which on an event counts as late.
    """
    new: Counter[str] = Counter()
    read, rejected = 0, intake.quarantined()
    parts = {day: tuple(paths) for day, paths in intake.parts.items()}
    # A day's file is named before it is there, so that the log knows all of its days.
    files = {day: work.new_file("events", day) for day in sorted(parts)}
    days = sorted({*parts, *days_around(log, parts, window)})
    tasks = [_Task(log.of_table(day), parts.get(day, ()), lateness, files.get(day)) for day in days]
    found = zip(days, work.engine.map(merge_day, tasks, "ingest: merge"), strict=True)

    def ids_of_days() -> Iterator[tuple[dt.date, pl.Series]]:
        nonlocal read
        for day, merged in found:
            if day in parts:
                read += merged.read
                intake.duplicates += merged.duplicates
                _reject_repeats(intake, merged.repeats)
                new.update(merged.new)
                log.merged[day] = files[day]
                log.changed |= set() if merged.same else {day}
                for part in parts[day]:
                    part.unlink()
            yield day, merged.ids

    for lost in _drop_copies_nearby(log, intake, work, ids_of_days(), window):
        new.subtract(_tally(lost, lateness))
    counted = sum(new[kind] for kind in KINDS) + intake.duplicates + intake.quarantined() - rejected
    assert read == counted, "every event that was read is new, a duplicate or quarantined"
    return new


def merge_day(task: _Task) -> _Merged:
    """Merge a day's parts with what the table holds of it, and write the day's file."""
    if task.file is None:
        return _Merged(_ids(task.stored.scan()))
    scans = [task.stored.scan(), *(pl.scan_ipc(part) for part in task.parts)]
    merged = _Merged(pl.Series(dtype=pl.UInt64))
    write_slices(_kept_slices(task, scans, merged), task.file)
    return merged


def _kept_slices(task: _Task, scans: list[pl.LazyFrame], merged: _Merged) -> Iterator[pl.DataFrame]:
    """Yield the events that stay in order, and count in `merged` what became of all."""
    limits = slices_of(scans, order_key())
    ids: list[pl.Series] = []
    stored_rows = 0
    for limit, kept in zip(limits, _merged_slices(scans, limits, merged), strict=True):
        stored = task.stored.scan().filter(within(order_key(), limit)).collect().sort(DAY_ORDER)
        merged.same &= kept.height == stored.height and kept.equals(stored)
        merged.new.update(_tally(kept, task.lateness))
        merged.new.subtract(_tally(stored, task.lateness))
        ids.append(kept.select(HASHED).to_series())
        stored_rows += stored.height
        yield kept
    merged.ids = pl.concat(ids)
    merged.read = sum(scan.select(pl.len()).collect().item() for scan in scans) - stored_rows


def _merged_slices(scans: list[pl.LazyFrame], limits: list[Bounds], merged: _Merged) -> Iterator[pl.DataFrame]:
    """Yield one copy of each event slice by slice; of a large day only the copies are in memory at once."""
    if len(limits) == 1:
        kept, merged.duplicates, merged.repeats = merge_copies(pl.concat(scan.collect() for scan in scans))
        yield kept
        return
    ids = pl.concat(_ids(scan) for scan in scans)
    is_copy = HASHED.is_in(ids.filter(ids.is_duplicated()).unique().implode())
    copies = pl.concat(scan.filter(is_copy).collect() for scan in scans)
    kept, merged.duplicates, merged.repeats = merge_copies(copies)
    for limit in limits:
        of_slice = within(order_key(), limit)
        rows = [scan.filter(of_slice, ~is_copy).collect() for scan in scans]
        yield in_order(pl.concat([*rows, kept.filter(of_slice)]))


def _ids(events: pl.LazyFrame) -> pl.Series:
    return events.select(HASHED).collect().to_series()


def _tally(events: pl.DataFrame, lateness: dt.timedelta) -> dict[str, int]:
    late = (pl.col("received_time") - pl.col("event_time") > lateness).sum()
    counts = events.group_by("kind").agg(pl.len(), late.alias("late"))
    return {**dict(zip(counts["kind"], counts["len"], strict=True)), "late": int(counts["late"].sum())}


def _drop_copies_nearby(
    log: EventLog,
    intake: Intake,
    work: Work,
    ids_of_days: Iterator[tuple[dt.date, pl.Series]],
    window: dt.timedelta,
) -> list[pl.DataFrame]:
    """Drop events of which an earlier received copy lies on another day, and return them."""
    reach = -(-window // dt.timedelta(days=1))
    replaced = log.replaced.select(HASHED).to_series()
    again = [pl.Series(dtype=pl.UInt64)]
    touched = set(intake.parts)

    def seen() -> Iterator[tuple[dt.date, pl.Series]]:
        for day, ids in ids_of_days:
            if replaced.len() and day in touched:
                again.append(ids.filter(ids.is_in(replaced.implode())))
            yield day, ids

    shared = pl.concat([shared_between_days(seen(), reach, touched), *again]).unique()
    if shared.is_empty():
        return []
    is_shared = HASHED.is_in(shared.implode())
    log.replaced_on.update(log.replaced.filter(is_shared)["date"])
    near = [log.of(day) for day in sorted({*touched, *days_around(log, touched, window)})]
    stored = pl.concat(work.engine.map(_events_of, [(day, shared) for day in near], "ingest: copies"))
    known = log.replaced.filter(is_shared).join(
        stored, on=[*value_columns(stored), "received_time"], how="anti", nulls_equal=True
    )
    flagged = [rows.with_columns(pl.lit(flag).alias("is_stored")) for rows, flag in ((stored, True), (known, False))]
    losers = lose_to_a_copy(pl.concat(flagged), reach).filter("is_stored").drop("is_stored")
    _drop(log, work, losers)
    _reject_repeats(intake, losers)
    return [losers]


def _events_of(task: tuple[DayEvents, pl.Series]) -> pl.DataFrame:
    """Return the events of a day that have one of some hashed ids."""
    day, ids = task
    return day.scan().filter(HASHED.is_in(ids.implode())).collect()


def _drop(log: EventLog, work: Work, losers: pl.DataFrame) -> None:
    tasks = [
        (log.of(day), lost, work.new_file("events", day))
        for (day,), lost in losers.partition_by("date", as_dict=True).items()
    ]
    for (day, _, file), _ in zip(tasks, work.engine.map(_write_without, tasks, "ingest: drop copies"), strict=True):
        log.merged[day.day] = file
        log.changed.add(day.day)


def _write_without(task: tuple[DayEvents, pl.DataFrame, Path]) -> None:
    """Write a day without the events that lost to a copy."""
    day, lost, file = task
    rows = day.scan()
    write_slices(
        (
            rows.filter(within(order_key(), limit))
            .collect()
            .join(lost, on=EVENT_KEY, how="anti", maintain_order="left")
            for limit in slices_of([rows], order_key())
        ),
        file,
    )


def _reject_repeats(intake: Intake, rows: pl.DataFrame) -> None:
    """Put copies aside as they were typed, so that the log reads them again."""
    if rows.height:
        intake.reject(rows.with_columns(pl.col(TIMES).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")), REPEATS)
