"""Attribute a log's events in a window that slides over its days, and label exactly the days that may have changed."""

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from features.attribution import Windows, attribute_clicks, attribute_conversions, label_impressions
from features.business_days import day_after, day_before
from pipeline.event_log import EventLog, days_around, repeated_impressions
from pipeline.intake import write_spill

REPEATED = "repeats the impression of another event"
SHOWN = ["impression_id", "user_id", "item_id", "event_time", "received_time", "date"]
EVENT = ["event_id", "impression_id", "user_id", "item_id", "event_time", "received_time"]
LABELS = (
    "click",
    "conversion",
    "click_known_at",
    "conversion_known_at",
    "label_matures_at",
    "click_counted_at",
    "conversion_counted_at",
    "value",
)
ORDER = ("event_time", "user_id", "item_id", "impression_id")
UNATTRIBUTED = (
    "event_id",
    "kind",
    "reason",
    "event_time",
    "received_time",
    "user_id",
    "item_id",
    "impression_id",
    "date",
)


@dataclass
class Attributed:
    """Files of what was attributed anew: interactions by impression day, unattributed events by event day."""

    interactions: dict[dt.date, Path] = field(default_factory=dict)
    unattributed: dict[dt.date, Path] = field(default_factory=dict)


@dataclass
class _Window:
    """What the days before need to be told of, by event day."""

    impressions: dict[dt.date, pl.DataFrame] = field(default_factory=dict)
    clicks: dict[dt.date, pl.DataFrame] = field(default_factory=dict)
    conversions: dict[dt.date, pl.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pass:
    """One range of impression days: the log, the rules, and where the results go."""

    log: EventLog
    windows: Windows
    context: list[str]
    repeated: pl.DataFrame
    folder: Path
    found: Attributed

    def before(self, day: dt.date, span: dt.timedelta) -> dt.date:
        return day_before(day, span, self.log.time_zone)

    def after(self, day: dt.date, span: dt.timedelta) -> dt.date:
        return day_after(day, span, self.log.time_zone)


def attribute(
    log: EventLog,
    touched: Iterable[dt.date],
    windows: Windows,
    context: list[str],
    folder: Path,
    were_repeated: Collection[dt.date] = (),
) -> Attributed:
    """Write the interactions and the unattributed events that touched days may have changed.

    Memory holds the impressions' keys of a click window of days, and the clicks of a conversion window.

    Args:
        log: all events.
        touched: days on which events came or went.
        windows: of attribution.
        context: columns of an impression that interactions keep.
        folder: where the files go, one a day.
        were_repeated: days of which earlier runs left impressions out, since they repeated another one.
    """
    found = Attributed()
    whole = windows.click + windows.conversion
    touched = set(touched)
    near = days_around(log, touched, whole)
    repeated = {days: _repeated(log, *days, whole) for days in _ranges(log, touched, windows)}
    # A touched day may make an impression nearby the first of its id, or no longer the first.
    again = near & {*were_repeated, *(day for rows in repeated.values() for day in rows["date"])}
    for days in _ranges(log, touched | again, windows):
        rows = repeated[days] if days in repeated else _repeated(log, *days, whole)
        _attribute_range(_Pass(log, windows, context, rows, folder, found), *days)
    return found


def _repeated(log: EventLog, first: dt.date, last: dt.date, span: dt.timedelta) -> pl.DataFrame:
    start, end = day_before(first, span, log.time_zone), day_after(last, span, log.time_zone)
    return repeated_impressions(log, start, end, span)


def _ranges(log: EventLog, touched: Iterable[dt.date], windows: Windows) -> list[tuple[dt.date, dt.date]]:
    """Return ranges of impression days whose labels the touched days may change.

    An event on day t gives a label to an impression before it, or takes it from one that is a click window and a
    conversion window before it at most. A new impression on t may make a click count that lies a click window
    later, which takes a conversion from another click: of an impression after t.
    """
    whole = windows.click + windows.conversion
    ranges: list[tuple[dt.date, dt.date]] = []
    for day in sorted(touched):
        first, last = day_before(day, whole, log.time_zone), day_after(day, windows.click, log.time_zone)
        if ranges and first <= day_after(ranges[-1][1], whole, log.time_zone):
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return ranges


def _attribute_range(task: _Pass, first: dt.date, last: dt.date) -> None:
    """Go through the event days once, and label an impression day when no later event can belong to it."""
    click, conversion = task.windows.click, task.windows.conversion
    window = _Window()
    waiting = task.log.days(first, last)
    for day in task.log.days(task.before(first, conversion), task.after(last, click + conversion)):
        while waiting and task.after(waiting[0], click + conversion) < day:
            _label_day(task, window, waiting.pop(0))
        _attribute_day(task, window, day, attributes_conversions=day >= first)
        oldest = task.before(day, click + conversion)
        for kept in (window.clicks, window.conversions):
            for past in [other for other in kept if other < oldest and (not waiting or other < waiting[0])]:
                del kept[past]
    for day in waiting:
        _label_day(task, window, day)


def _attribute_day(task: _Pass, window: _Window, day: dt.date, *, attributes_conversions: bool) -> None:
    clicks = task.log.read(day, EVENT, "click")
    window.impressions = {
        past: rows for past, rows in window.impressions.items() if past >= task.before(day, task.windows.click)
    }
    if clicks.height:
        for past in task.log.days(task.before(day, task.windows.click), day):
            if past not in window.impressions:
                window.impressions[past] = _impressions(task, past, SHOWN)
    shown = pl.concat(window.impressions.values()) if window.impressions else _impressions(task, day, SHOWN).clear()
    window.clicks[day] = attribute_clicks(clicks, _related(shown, clicks), task.windows.click)
    if not attributes_conversions:
        return
    conversions = task.log.read(day, [*EVENT, "value"], "conversion")
    since = task.before(day, task.windows.conversion)
    causes = pl.concat([rows for past, rows in window.clicks.items() if past >= since])
    window.conversions[day] = attribute_conversions(conversions, causes, task.windows.conversion)
    _write_unattributed(task, day, window, clicks, conversions)


def _impressions(task: _Pass, day: dt.date, columns: list[str]) -> pl.DataFrame:
    repeated = task.repeated.filter(pl.col("date") == day)
    if repeated.is_empty():
        return task.log.read(day, columns, "impression")
    rows = task.log.read(day, [*columns, "event_id"], "impression")
    return rows.join(repeated, on="event_id", how="anti", maintain_order="left").select(columns)


def _related(shown: pl.DataFrame, clicks: pl.DataFrame) -> pl.DataFrame:
    """Return the impressions that clicks name, or that have the user and item of one that names none."""
    pair = ["user_id", "item_id"]
    named = shown.join(clicks.select("impression_id").drop_nulls().unique(), on="impression_id", how="semi")
    unnamed = clicks.filter(pl.col("impression_id").is_null()).select(pair).unique()
    if unnamed.is_empty():
        return named
    return pl.concat([named, shown.join(unnamed, on=pair, how="semi")]).unique("impression_id")


def _write_unattributed(
    task: _Pass, day: dt.date, window: _Window, clicks: pl.DataFrame, conversions: pl.DataFrame
) -> None:
    parts = [
        _unattributed(clicks, window.clicks[day], "click"),
        _unattributed(conversions, window.conversions[day], "conversion"),
    ]
    repeated = task.repeated.filter(pl.col("date") == day)
    if repeated.height:
        rows = task.log.read(day, EVENT, "impression").join(repeated, on="event_id", how="semi")
        named = rows.with_columns(pl.lit("impression").alias("kind"), pl.lit(REPEATED).alias("reason"))
        parts.append(named.select(UNATTRIBUTED[:-1]))
    found = pl.concat(parts).with_columns(pl.lit(day).alias("date")).sort("kind", "event_time", "event_id")
    path = task.folder / f"unattributed-{day}.parquet"
    write_spill(found, path)
    task.found.unattributed[day] = path


def _unattributed(events: pl.DataFrame, attributed: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return the events that belong to nothing, as they named themselves."""
    reason = attributed["reason"]
    rows = events.with_columns(reason, pl.lit(kind).alias("kind")).filter(reason.is_not_null())
    return rows.select(UNATTRIBUTED[:-1])


def _label_day(task: _Pass, window: _Window, day: dt.date) -> None:
    impressions = _impressions(task, day, [*SHOWN, *task.context])

    def of_day(events: dict[dt.date, pl.DataFrame], until: dt.date) -> pl.DataFrame:
        belongs = (pl.col("to_date") == day) | (pl.col("counted_date") == day)
        return pl.concat([rows.filter(belongs) for past, rows in events.items() if day <= past <= until])

    last_click = task.after(day, task.windows.click)
    clicks = of_day(window.clicks, last_click)
    conversions = of_day(window.conversions, task.after(day, task.windows.click + task.windows.conversion))
    labelled = label_impressions(impressions, clicks, conversions, task.windows)
    path = task.folder / f"interactions-{day}.parquet"
    write_spill(labelled.select(*SHOWN, *LABELS, *task.context).sort(ORDER), path)
    task.found.interactions[day] = path
