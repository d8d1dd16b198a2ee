"""Faults of the simulated event log: late, repeated, disordered and malformed lines, each one recorded."""

import re

import numpy as np
import polars as pl

from pipeline.population import DAY_US, FIRST_FAULT_STREAM, UTC_TIME, Integers, SimulatorConfig, day_start_us, stream

FAULTS = ("late", "duplicate", "disorder", "malformed")
DUPLICATES = ("copy", "redelivered")
SAME_DAY_SHARE = 0.5  # copies that lie in the file of their first delivery
DAMAGES = ("cut", "invalid_utf8", "event_time_word", "event_time_1970", "times_2099", "no_ids")
DELIVERY_COLUMNS = pl.Schema({"delivered_time": UTC_TIME, "damage": pl.String()})
INJECTED_SCHEMA = pl.Schema(
    {
        "event_id": pl.String(),
        "event": pl.String(),
        "impression_id": pl.String(),
        "fault": pl.String(),
        "detail": pl.String(),
        "received_time": UTC_TIME,
    }
)
EVENT_TIME = re.compile(rb'"event_time":"[^"]*"')
BOTH_TIMES = re.compile(rb'"(event|received)_time":"[^"]*"')
IDS = re.compile(rb'"(?:user|item|impression)_id":"[^"]*",')


def inject_faults(config: SimulatorConfig, day: int, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Draw the faults of the events of a simulated day, at most one an event.

    Returns the deliveries, one row a line to write: the events' columns, `delivered_time` (whose day has the file,
    and which orders its lines) and `damage` (null: the line is whole). And one row a faulty event, as
    INJECTED_SCHEMA: `received_time` is that of its first delivery, of a malformed one what it would have been.
    With all shares 0 the deliveries are the events, and no event is faulty.
    """
    rng = stream(config, FIRST_FAULT_STREAM + day)
    shares = [config.late_share, config.duplicate_share, config.disorder_share, config.malformed_share]
    drawn = np.searchsorted(np.cumsum(shares), rng.random(events.height), side="right")
    nothing = pl.lit(None, pl.String)
    whole = events.with_columns(nothing.alias("detail"), delivered_time="received_time", damage=nothing)
    late, duplicate, disorder, malformed, clean = (whole.filter(drawn == code) for code in range(len(FAULTS) + 1))
    late = _late(config, rng, day, late)
    duplicate = duplicate.with_columns(_drawn_of(rng, DUPLICATES, duplicate.height))
    disorder = _disordered(config, rng, day, disorder)
    malformed = malformed.with_columns(_drawn_of(rng, DAMAGES, malformed.height)).with_columns(damage="detail")
    faulty = [late, duplicate, disorder, malformed]
    deliveries = pl.concat([clean, *faulty, _again(config, rng, day, duplicate)]).drop("detail")
    named = [rows.with_columns(fault=pl.lit(fault)) for fault, rows in zip(FAULTS, faulty, strict=True)]
    return deliveries, pl.concat(named).select(INJECTED_SCHEMA.names())


def damage_lines(lines: bytes, damages: pl.Series) -> bytes:
    """Break the lines that have a damage; the others keep their bytes."""
    broken = damages.is_not_null().arg_true()
    if broken.is_empty():
        return lines
    parts = lines.split(b"\n")
    assert len(parts) == len(damages) + 1, "one damage a line, and nothing after the last"
    for place, damage in zip(broken, damages.gather(broken), strict=True):
        parts[place] = _damaged(parts[place], damage)
    return b"\n".join(parts)


def _damaged(line: bytes, damage: str) -> bytes:
    half = len(line) // 2
    match damage:
        case "cut":
            return line[:half]
        case "invalid_utf8":
            return line[:half] + b"\xff" + line[half:]
        case "event_time_word":
            return EVENT_TIME.sub(b'"event_time":"yesterday"', line)
        case "event_time_1970":
            return EVENT_TIME.sub(b'"event_time":"1970-01-01T00:00:00.000000Z"', line)
        case "times_2099":
            return BOTH_TIMES.sub(rb'"\1_time":"2099-01-01T00:00:00.000000Z"', line)
    assert damage == "no_ids", damage
    return IDS.sub(b"", line)


def _late(config: SimulatorConfig, rng: np.random.Generator, day: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Delay rows exponentially, given that the delay outlasts the day: memoryless, it starts anew at its end."""
    _, ends_us = _days_us(config, day, rows)
    later = _times(ends_us + _delays_us(config, rng, rows.height))
    return rows.with_columns(received_time=later, delivered_time=later)


def _disordered(config: SimulatorConfig, rng: np.random.Generator, day: int, rows: pl.DataFrame) -> pl.DataFrame:
    starts_us, ends_us = _days_us(config, day, rows)
    return rows.with_columns(delivered_time=_times(_between_us(rng, starts_us, ends_us)))


def _again(config: SimulatorConfig, rng: np.random.Generator, day: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Second deliveries: copies later in the same file or in a later day's, or with a later time of receipt."""
    received_us, (_, ends_us) = rows["received_time"].to_physical().to_numpy(), _days_us(config, day, rows)
    delays_us = _delays_us(config, rng, rows.height)
    same_day_us = _between_us(rng, received_us, ends_us)
    copied_us = np.where(rng.random(rows.height) < SAME_DAY_SHARE, same_day_us, ends_us + delays_us)
    copied, redelivered = pl.col("detail") == "copy", _times(received_us + delays_us)
    return rows.with_columns(
        received_time=pl.when(copied).then("received_time").otherwise(redelivered),
        delivered_time=pl.when(copied).then(_times(copied_us)).otherwise(redelivered),
    )


def _days_us(config: SimulatorConfig, day: int, rows: pl.DataFrame) -> tuple[Integers, Integers]:
    """Start and end of the day of receipt of each row; none was received before the given day."""
    received_us: Integers = rows["received_time"].to_physical().to_numpy()
    first_us = day_start_us(config, day)
    elapsed_days = int(received_us.max(initial=first_us) - first_us) // DAY_US
    days = range(day, day + elapsed_days + 4)  # more than needed: days of 23 hours
    starts_us = np.array([day_start_us(config, number) for number in days], dtype=np.int64)
    following = np.searchsorted(starts_us, received_us, side="right")
    return starts_us[following - 1], starts_us[following]


def _between_us(rng: np.random.Generator, starts_us: Integers, ends_us: Integers) -> Integers:
    """Even draws from the starts on and before the ends."""
    offsets: Integers = np.floor(rng.random(starts_us.size) * (ends_us - starts_us)).astype(np.int64)
    return starts_us + offsets


def _delays_us(config: SimulatorConfig, rng: np.random.Generator, size: int) -> Integers:
    mean_us = config.late_hours_mean * DAY_US / 24
    delays: Integers = np.ceil(rng.standard_exponential(size) * mean_us).astype(np.int64)
    return np.maximum(delays, 1)


def _times(times_us: Integers) -> pl.Series:
    return pl.Series(times_us, dtype=pl.Int64).cast(UTC_TIME)


def _drawn_of(rng: np.random.Generator, names: tuple[str, ...], size: int) -> pl.Series:
    return pl.Series("detail", names).gather(rng.integers(len(names), size=size))
