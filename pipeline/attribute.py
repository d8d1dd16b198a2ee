"""Attribute a log's events day by day, each with the days of its windows, and label the days that may have changed."""

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from features.attribution import Windows, attribute_clicks, attribute_conversions, label_impressions
from features.business_days import day_after, day_before
from features.schema import by_time
from pipeline.day_files import Work, slices_of, within, write_file, write_slices
from pipeline.event_log import DayEvents, EventLog, days_around, repeated_impressions
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


@dataclass(frozen=True)
class Rules:
    """The windows of attribution, and the columns of an impression that interactions keep."""

    windows: Windows
    context: list[str]


@dataclass(frozen=True)
class _Shown:
    """Impressions of a day, without those that repeat another one."""

    events: DayEvents
    repeated: pl.DataFrame

    def scan(self, columns: list[str]) -> pl.LazyFrame:
        rows = self.events.scan("impression")
        if self.repeated.height:
            rows = rows.filter(~pl.col("event_id").is_in(self.repeated["event_id"].implode()))
        return rows.select(columns)


@dataclass(frozen=True)
class _Clicks:
    """Attribute a day's clicks to the impressions of the days before it."""

    day: DayEvents
    shown: list[_Shown]
    window: dt.timedelta
    file: Path


@dataclass(frozen=True)
class _Conversions:
    """Attribute a day's conversions to the attributed clicks of the days before it; tell what is left over."""

    day: DayEvents
    clicks: list[Path]
    window: dt.timedelta
    repeated: pl.DataFrame
    file: Path
    unattributed: Path


@dataclass(frozen=True)
class _Labels:
    """Label a day's impressions by the attributed events of the days after it."""

    shown: _Shown
    clicks: list[Path]
    conversions: list[Path]
    rules: Rules
    file: Path


@dataclass(frozen=True)
class _Pass:
    """One range of impression days: the log, the rules, and where the results go."""

    log: EventLog
    rules: Rules
    repeated: pl.DataFrame
    work: Work
    first: dt.date
    last: dt.date

    def before(self, day: dt.date, span: dt.timedelta) -> dt.date:
        return day_before(day, span, self.log.time_zone)

    def after(self, day: dt.date, span: dt.timedelta) -> dt.date:
        return day_after(day, span, self.log.time_zone)

    def repeated_on(self, day: dt.date) -> pl.DataFrame:
        return self.repeated.filter(pl.col("date") == day)

    def shown(self, day: dt.date) -> _Shown:
        return _Shown(self.log.of(day), self.repeated_on(day))

    def file(self, kind: str, day: dt.date) -> Path:
        return self.work.folder / f"{kind}-{self.first}-{day}.arrow"


def attribute(
    log: EventLog,
    touched: Iterable[dt.date],
    rules: Rules,
    work: Work,
    were_repeated: Collection[dt.date] = (),
) -> Attributed:
    """Write the interactions and the unattributed events that touched days may have changed.

    Days are worked on one by one: their clicks, then their conversions, then their labels. Memory holds the clicks of
    a day and the impressions that they may belong to, or the attributed events of the windows around a day.

    Args:
        log: all events.
        touched: days on which events came or went.
        rules: of attribution.
        work: runs the days, and where the files go, one a day.
        were_repeated: days of which earlier runs left impressions out, since they repeated another one.
    """
    found = Attributed()
    windows = rules.windows
    whole = windows.click + windows.conversion
    touched = set(touched)
    near = days_around(log, touched, whole)
    repeated = {days: _repeated(log, work, *days, whole) for days in _ranges(log, touched, windows)}
    # A touched day may make an impression nearby the first of its id, or no longer the first.
    again = near & {*were_repeated, *(day for rows in repeated.values() for day in rows["date"])}
    for days in _ranges(log, touched | again, windows):
        rows = repeated[days] if days in repeated else _repeated(log, work, *days, whole)
        _attribute_range(_Pass(log, rules, rows, work, *days), found)
    return found


def _repeated(log: EventLog, work: Work, first: dt.date, last: dt.date, span: dt.timedelta) -> pl.DataFrame:
    start, end = day_before(first, span, log.time_zone), day_after(last, span, log.time_zone)
    return repeated_impressions(work.engine, log, start, end, span)


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


def _attribute_range(task: _Pass, found: Attributed) -> None:
    windows, engine = task.rules.windows, task.work.engine
    days = task.log.days(task.before(task.first, windows.conversion), task.after(task.last, _whole(task)))
    clicks = [
        _Clicks(task.log.of(day), _shown_before(task, day), windows.click, task.file("clicks", day)) for day in days
    ]
    clicked = dict(zip(days, engine.map(_attribute_clicks, clicks, "ingest: clicks"), strict=True))
    conversions = [_conversions(task, day, clicked) for day in days if day >= task.first]
    converted: dict[dt.date, Path] = {}
    for each, file in zip(
        conversions, engine.map(_attribute_conversions, conversions, "ingest: conversions"), strict=True
    ):
        converted[each.day.day] = file
        found.unattributed[each.day.day] = each.unattributed
    labels = [_labels(task, day, clicked, converted) for day in task.log.days(task.first, task.last)]
    for label, _ in zip(labels, engine.map(_label, labels, "ingest: labels"), strict=True):
        found.interactions[label.shown.events.day] = label.file


def _whole(task: _Pass) -> dt.timedelta:
    return task.rules.windows.click + task.rules.windows.conversion


def _shown_before(task: _Pass, day: dt.date) -> list[_Shown]:
    return [task.shown(past) for past in task.log.days(task.before(day, task.rules.windows.click), day)]


def _conversions(task: _Pass, day: dt.date, clicked: dict[dt.date, Path]) -> _Conversions:
    window = task.rules.windows.conversion
    since = task.before(day, window)
    return _Conversions(
        day=task.log.of(day),
        clicks=[file for past, file in clicked.items() if since <= past <= day],
        window=window,
        repeated=task.repeated_on(day),
        file=task.file("conversions", day),
        unattributed=task.work.new_file("unattributed", day),
    )


def _labels(task: _Pass, day: dt.date, clicked: dict[dt.date, Path], converted: dict[dt.date, Path]) -> _Labels:
    last_click, last = task.after(day, task.rules.windows.click), task.after(day, _whole(task))
    return _Labels(
        shown=task.shown(day),
        clicks=[file for other, file in clicked.items() if day <= other <= last_click],
        conversions=[file for other, file in converted.items() if day <= other <= last],
        rules=task.rules,
        file=task.work.new_file("interactions", day),
    )


def _attribute_clicks(task: _Clicks) -> Path:
    clicks = task.day.read(EVENT, "click")
    write_spill(attribute_clicks(clicks, _related(task.shown, clicks), task.window), task.file)
    return task.file


def _related(shown: list[_Shown], clicks: pl.DataFrame) -> pl.DataFrame:
    """Return the impressions that clicks name, or that have the user and item of one that names none."""
    pair = ["user_id", "item_id"]
    named = clicks.select("impression_id").drop_nulls().unique().lazy()
    unnamed = clicks.filter(pl.col("impression_id").is_null()).select(pair).unique()
    parts = [shown[-1].scan(SHOWN).head(0).collect()] if shown else []
    for day in shown if clicks.height else []:
        rows = day.scan(SHOWN)
        for limit in slices_of([rows], pl.col("event_time").cast(pl.Int64)):
            of_slice = rows.filter(within(pl.col("event_time").cast(pl.Int64), limit)).collect()
            parts.append(of_slice.lazy().join(named, on="impression_id", how="semi").collect())
            if unnamed.height:
                parts.append(of_slice.join(unnamed, on=pair, how="semi"))
    related = pl.concat(parts)
    return related.unique("impression_id") if unnamed.height else related


def _attribute_conversions(task: _Conversions) -> Path:
    conversions = task.day.read([*EVENT, "value"], "conversion")
    causes = pl.concat(pl.read_ipc(file) for file in task.clicks)
    attributed = attribute_conversions(conversions, causes, task.window)
    write_spill(attributed, task.file)
    clicks = task.day.read(EVENT, "click")
    of_day = pl.read_ipc(task.clicks[-1])
    parts = [_unattributed(clicks, of_day, "click"), _unattributed(conversions, attributed, "conversion")]
    if task.repeated.height:
        rows = task.day.read(EVENT, "impression").join(task.repeated, on="event_id", how="semi")
        named = rows.with_columns(pl.lit("impression").alias("kind"), pl.lit(REPEATED).alias("reason"))
        parts.append(named.select(UNATTRIBUTED[:-1]))
    left_over = pl.concat(parts).with_columns(pl.lit(task.day.day).alias("date"))
    write_file(left_over.sort("kind", "event_time", "event_id"), task.unattributed)
    return task.file


def _unattributed(events: pl.DataFrame, attributed: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return the events that belong to nothing, as they named themselves."""
    reason = attributed["reason"]
    rows = events.with_columns(reason, pl.lit(kind).alias("kind")).filter(reason.is_not_null())
    return rows.select(UNATTRIBUTED[:-1])


def _label(task: _Labels) -> None:
    day = task.shown.events.day
    belongs = (pl.col("to_date") == day) | (pl.col("counted_date") == day)
    clicks, conversions = (
        pl.concat(pl.scan_ipc(file).filter(belongs) for file in files).collect()
        for files in (task.clicks, task.conversions)
    )
    impressions = task.shown.scan([*SHOWN, *task.rules.context])
    time = pl.col("event_time").cast(pl.Int64)
    slices = (impressions.filter(within(time, limit)).collect() for limit in slices_of([impressions], time))
    labelled = (label_impressions(rows, clicks, conversions, task.rules.windows) for rows in slices)
    columns = [*SHOWN, *LABELS, *task.rules.context]
    write_slices((by_time(rows.select(columns)) for rows in labelled), task.file)
