"""Simulate: a world with known truth, and the labelled log, raw events and side tables that it would leave.

Days are handled one after the other, so memory holds one day and the events that are still on their way.
"""

import datetime as dt
import gzip
import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipeline.event_faults import DELIVERY_COLUMNS, INJECTED_SCHEMA, damage_lines, inject_faults
from pipeline.logging_policy import SURFACES, LoggingPolicy, Requests
from pipeline.population import (
    AGE_BANDS,
    DAY_US,
    FIRST_DAY_STREAM,
    PRICE_SENSITIVITY_BANDS,
    UTC_TIME,
    Floats,
    Integers,
    SimulatorConfig,
    day_start_us,
    entity_ids,
    stream,
    title_text,
)
from pipeline.world import World, create_world, save_world

RECEIPT_DELAY_S = 20.0
CLICK_DELAY_S = 9.0
PARTS = ("impressions", "events", "users.csv", "items.csv", "truth.parquet", "injected.parquet", "world.safetensors")
ISO_FORMAT = "%Y-%m-%dT%H:%M:%S%.6fZ"
CLICK_TIMES = ("click_time", "click_received_time")
CONVERSION_TIMES = ("conversion_time", "conversion_received_time")
TRUTH_SCHEMA = pl.Schema({"impression_id": pl.String, "p_click": pl.Float64, "p_conversion": pl.Float64})
EVENT_SCHEMA = pl.Schema(
    {
        "event_id": pl.String(),
        "event": pl.String(),
        "event_time": UTC_TIME,
        "received_time": UTC_TIME,
        "impression_id": pl.String(),
        "request_id": pl.String(),
        "user_id": pl.String(),
        "item_id": pl.String(),
        "position": pl.Int64(),
        "surface": pl.String(),
        "value": pl.Float64(),
    }
)

logger = logging.getLogger(__name__)


def simulate(config: SimulatorConfig, output: Path) -> dict[str, int | float]:
    """Simulate into a folder, whole or not at all, and return the log's counts and rates.

    Writes `impressions/DAY.parquet` (final labels), `events/DAY.jsonl.gz` (by day of delivery, with faults),
    `injected.parquet` (the faults), `users.csv`, `items.csv`, `truth.parquet` and `world.safetensors`: same
    configuration, same bytes. An earlier simulation is replaced.

    Raises:
        ValueError: the output is a file, or a folder with something that no simulation wrote.
    """
    _refuse_foreign(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        counts = _write(config, fresh)
        if output.exists():
            output.rename(Path(scratch) / "replaced")
        fresh.rename(output)
    logger.info("simulate: %(impressions)d impressions, %(clicks)d clicks, %(conversions)d conversions", counts)
    return counts


def _refuse_foreign(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"output {output} is a file: give a folder")
    found = {path.name for path in output.iterdir()}
    foreign = sorted(found - set(PARTS)) or sorted(found if "world.safetensors" not in found else ())
    if foreign:
        raise ValueError(f"output {output} holds {foreign[0]!r}, no simulation wrote it: give another folder")


def _write(config: SimulatorConfig, folder: Path) -> dict[str, int | float]:
    for name in ("impressions", "events"):
        (folder / name).mkdir(parents=True)
    world = create_world(config)
    save_world(world, folder / "world.safetensors")
    _user_table(world).write_csv(folder / "users.csv", datetime_format=ISO_FORMAT)
    _item_table(world).write_csv(folder / "items.csv", datetime_format=ISO_FORMAT)
    return _write_logs(world, folder)


def _write_logs(world: World, folder: Path) -> dict[str, int | float]:
    """Write logs, truth and faults day by day, then the events delivered after the last day."""
    config = world.config
    totals = {"impressions": 0, "clicks": 0, "conversions": 0}
    pending = pl.Schema({**EVENT_SCHEMA, **DELIVERY_COLUMNS}).to_frame()
    with (
        _parquet_writer(folder / "truth.parquet", TRUTH_SCHEMA) as truth,
        _parquet_writer(folder / "injected.parquet", INJECTED_SCHEMA) as injected,
    ):
        for day in range(config.days):
            log = _day_log(world, day)
            truth.write_table(log.select(TRUTH_SCHEMA.names()).to_arrow())
            log = log.drop("p_click", "p_conversion")
            log.write_parquet(folder / "impressions" / f"{_date(config, day)}.parquet")
            totals["impressions"] += log.height
            totals["clicks"] += int(log["click"].sum())
            totals["conversions"] += int(log["conversion"].sum())
            deliveries, faulty = inject_faults(config, day, _events(log))
            injected.write_table(faulty.to_arrow())
            pending = _write_delivered(config, day, pl.concat([pending, deliveries]), folder)
    day = config.days
    while pending.height:
        pending = _write_delivered(config, day, pending, folder)
        day += 1
    return {
        **totals,
        "click_rate": totals["clicks"] / totals["impressions"],
        "conversion_rate": totals["conversions"] / max(totals["clicks"], 1),
    }


def _parquet_writer(path: Path, schema: pl.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema.to_frame().to_arrow().schema)


def _date(config: SimulatorConfig, day: int) -> dt.date:
    return config.first_day + dt.timedelta(days=day)


def _day_log(world: World, day: int) -> pl.DataFrame:
    """Labelled impressions of a day in order of time, with their true probabilities."""
    config = world.config
    rng = stream(config, FIRST_DAY_STREAM + day)
    policy = LoggingPolicy(config, world.users, world.items)
    requests = policy.draw_requests(rng, day=day, count=config.requests_per_day)
    times_us = np.repeat(requests.times_us, config.slots)
    click, conversion = world.probabilities(
        users=np.repeat(requests.users, config.slots),
        items=requests.items.ravel(),
        times_us=times_us,
        positions=np.tile(np.arange(1, config.slots + 1), config.requests_per_day),
        surfaces=np.repeat(requests.surfaces, config.slots),
        hours=world.hours(times_us),
    )
    return pl.concat(
        [
            _shown(world, day, requests),
            _outcomes(config, rng, times_us=times_us, click=click, conversion=conversion),
            pl.DataFrame({"value": world.items.price[requests.items.ravel()]}),
        ],
        how="horizontal",
    ).select(
        "impression_id",
        "request_id",
        "user_id",
        "item_id",
        "event_time",
        "received_time",
        "position",
        "surface",
        "click",
        *(pl.when("click").then(pl.col(name).cast(UTC_TIME)).alias(name) for name in CLICK_TIMES),
        "conversion",
        *(pl.when("conversion").then(pl.col(name).cast(UTC_TIME)).alias(name) for name in CONVERSION_TIMES),
        pl.when("conversion").then((pl.col("value") * pl.col("discount")).round(2)).alias("value"),
        "p_click",
        "p_conversion",
    )


def _shown(world: World, day: int, requests: Requests) -> pl.DataFrame:
    """Impressions of requests, one row an item shown, without labels."""
    count, slots = requests.items.shape
    number = pl.Series(np.arange(count)).cast(pl.String).str.zfill(7)
    request_ids = (f"r{day:04d}" + number).gather(np.repeat(np.arange(count), slots))
    positions = pl.Series(np.tile(np.arange(1, slots + 1), count))
    return pl.DataFrame(
        {
            "impression_id": request_ids + "-" + positions.cast(pl.String).str.zfill(2),
            "request_id": request_ids,
            "user_id": world.user_ids(np.arange(world.config.users)).gather(np.repeat(requests.users, slots)),
            "item_id": world.item_ids(np.arange(world.config.items)).gather(requests.items.ravel()),
            "event_time": pl.Series(np.repeat(requests.times_us, slots)).cast(UTC_TIME),
            "position": positions,
            "surface": pl.Series(SURFACES).gather(np.repeat(requests.surfaces, slots)),
        }
    )


def _outcomes(
    config: SimulatorConfig,
    rng: np.random.Generator,
    *,
    times_us: Integers,
    click: Floats,
    conversion: Floats,
) -> pl.DataFrame:
    """Labels drawn from the probabilities, and the times that they would have in microseconds."""
    size = times_us.size
    clicked = rng.random(size) < click
    converted = clicked & (rng.random(size) < conversion)
    click_us = times_us + _delay_us(rng, size, CLICK_DELAY_S)
    conversion_us = click_us + _conversion_delay_us(config, rng, size)
    return pl.DataFrame(
        {
            "received_time": pl.Series(times_us + _delay_us(rng, size, RECEIPT_DELAY_S)).cast(UTC_TIME),
            "click": clicked,
            "click_time": click_us,
            "click_received_time": click_us + _delay_us(rng, size, RECEIPT_DELAY_S),
            "conversion": converted,
            "conversion_time": conversion_us,
            "conversion_received_time": conversion_us + _delay_us(rng, size, RECEIPT_DELAY_S),
            "discount": rng.uniform(0.85, 1.0, size),
            "p_click": click,
            "p_conversion": conversion,
        }
    )


def _delay_us(rng: np.random.Generator, size: int, mean_seconds: float) -> Integers:
    delay: Integers = np.ceil(rng.standard_exponential(size) * (mean_seconds * 1e6)).astype(np.int64)
    return delay


def _conversion_delay_us(config: SimulatorConfig, rng: np.random.Generator, size: int) -> Integers:
    """Exponential delays given that they fall within the window, by the inverse distribution."""
    mean_us = config.conversion_delay_hours_mean * DAY_US / 24
    window_us = config.conversion_window_days * DAY_US
    within = -np.expm1(-window_us / mean_us)
    delay: Floats = -mean_us * np.log1p(-rng.random(size) * within)
    return np.clip(delay, 1, window_us).astype(np.int64)


def _events(log: pl.DataFrame) -> pl.DataFrame:
    """One row an impression, click and conversion."""
    return pl.concat(
        [
            _events_of(log, "impression", ("event_time", "received_time")),
            _events_of(log.filter("click"), "click", CLICK_TIMES),
            _events_of(log.filter("conversion"), "conversion", CONVERSION_TIMES),
        ]
    )


def _events_of(rows: pl.DataFrame, event: str, times: tuple[str, str]) -> pl.DataFrame:
    named = rows.with_columns(
        pl.concat_str("impression_id", pl.lit(f"-{event}")).alias("event_id"),
        pl.lit(event).alias("event"),
        pl.col(times[0]).alias("event_time"),
        pl.col(times[1]).alias("received_time"),
        (pl.col("value") if event == "conversion" else pl.lit(None, pl.Float64)).alias("value"),
    )
    return named.select(EVENT_SCHEMA.names())


def _write_delivered(config: SimulatorConfig, day: int, events: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Write the events delivered by the end of a day and return those still on their way."""
    end = pl.lit(day_start_us(config, day + 1)).cast(UTC_TIME)
    delivered = events.filter(pl.col("delivered_time") < end).sort("delivered_time", "event_id")
    lines = delivered.select(EVENT_SCHEMA.names())
    buffer = io.BytesIO()
    lines.with_columns(pl.col("event_time", "received_time").dt.strftime(ISO_FORMAT)).write_ndjson(buffer)
    # the time of writing in a gzip header would make every run's bytes differ
    packed = gzip.compress(damage_lines(buffer.getvalue(), delivered["damage"]), compresslevel=1, mtime=0)
    (folder / "events" / f"{_date(config, day)}.jsonl.gz").write_bytes(packed)
    return events.filter(pl.col("delivered_time") >= end)


def _user_table(world: World) -> pl.DataFrame:
    users = world.users
    return pl.DataFrame(
        {
            "user_id": world.user_ids(np.arange(world.config.users)),
            "registered_at": pl.Series(users.registered_us).cast(UTC_TIME),
            "segment": entity_ids("segment", "s", 2, users.segment),
            "age_band": pl.Series(AGE_BANDS).gather(users.age_band),
            "price_sensitivity_band": pl.Series(PRICE_SENSITIVITY_BANDS).gather(users.price_sensitivity_band),
        }
    )


def _item_table(world: World) -> pl.DataFrame:
    items = world.items
    return pl.DataFrame(
        {
            "item_id": world.item_ids(np.arange(world.config.items)),
            "available_from": pl.Series(items.available_us).cast(UTC_TIME),
            "category": entity_ids("category", "c", 2, items.category),
            "brand": entity_ids("brand", "b", 3, items.brand),
            "price": items.price,
            "title": title_text(items.words),
        }
    )
