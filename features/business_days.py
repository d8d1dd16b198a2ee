"""Business days that a span of time reaches, in a time zone whose days may have 23 or 25 hours."""

import datetime as dt
from zoneinfo import ZoneInfo


def day_before(day: dt.date, span: dt.timedelta, time_zone: str) -> dt.date:
    """Return the day on which the span before a day's first moment begins."""
    return (_start(day, time_zone) - span).astimezone(ZoneInfo(time_zone)).date()


def day_after(day: dt.date, span: dt.timedelta, time_zone: str) -> dt.date:
    """Return the day on which the span after a day's last moment ends."""
    last = _start(day + dt.timedelta(days=1), time_zone) - dt.timedelta(microseconds=1)
    return (last + span).astimezone(ZoneInfo(time_zone)).date()


def end_of_day(day: dt.date, time_zone: str) -> dt.datetime:
    """Return the moment in UTC at which a day is over."""
    return _start(day + dt.timedelta(days=1), time_zone)


def _start(day: dt.date, time_zone: str) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), ZoneInfo(time_zone)).astimezone(dt.UTC)
