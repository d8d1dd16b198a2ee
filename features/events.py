"""The contract of a raw event: typed columns, a reason for each row that breaks it, and which of its copies counts.

A raw frame holds the mapped source columns under the contract's names, as text or as the types that Parquet
kept, and `file` and `row` (1-based) of each row's origin.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from features.schema import EARLIEST, NO_PROBABILITY, ORIGIN, PROPENSITY, TIMESTAMP, number, probability, read_times

KINDS = ("impression", "click", "conversion")
EVENT_KEY = ("kind", "event_id")
MAX_ID_CHARACTERS = 512
IDS = ("event_id", "user_id", "item_id", "impression_id", "request_id")
TIMES = ("event_time", "received_time")


@dataclass(frozen=True, kw_only=True)
class EventContract:
    """What a raw frame must hold: `kind` of every row, or else the names of the kinds in its column `kind`.

    `latest` is the moment from which a time lies in the future.
    """

    kind: str | None
    names: Mapping[str, str]
    context: tuple[str, ...]
    hour: bool
    time_unit: str
    time_zone: str
    latest: dt.datetime
    propensity: bool = False
    """Whether events have a column for the probability with which an impression was shown."""


def event_schema(context: tuple[str, ...], *, hour: bool, propensity: bool = False) -> pl.Schema:
    """Return the columns of tables/events."""
    text = dict.fromkeys(["user_id", "item_id", "impression_id"], pl.String())
    more = dict.fromkeys([*context, *(["hour"] if hour else [])], pl.String())
    return pl.Schema(
        {
            "event_id": pl.String(),
            "kind": pl.String(),
            **dict.fromkeys(TIMES, TIMESTAMP),
            **text,
            "value": pl.Float64(),
            **({PROPENSITY: pl.Float64()} if propensity else {}),
            **more,
            "file": pl.String(),
            "row": pl.Int64(),
            "date": pl.Date(),
        }
    )


def parse_events(raw: pl.DataFrame, contract: EventContract) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split raw rows into typed events and rejected rows.

    An event belongs to the impression that it names, or else to `request|item`; an impression with neither is
    named `user|item|microseconds`.

    Returns:
        Events as `event_schema`, and the rejected raw rows with a `reason`. Every raw row is in exactly one of them.
    """
    typed = _typed(raw, contract)
    rules = _rules(typed, contract)
    broken = typed.select(pl.any_horizontal(rule.fill_null(value=False) for _, rule in rules)).to_series()
    if not broken.any():
        return _events(typed, contract), raw.clear().with_columns(pl.lit(None, pl.String).alias("reason"))
    reasons = typed.filter(broken).select(
        pl.coalesce(pl.when(rule).then(pl.lit(reason)) for reason, rule in rules).alias("reason")
    )
    return _events(typed.filter(~broken), contract), raw.filter(broken).hstack(reasons)


def _typed(raw: pl.DataFrame, contract: EventContract) -> pl.DataFrame:
    columns = set(raw.columns)
    empty = [pl.lit(None, pl.String).alias(name) for name in ("impression_id", "request_id") if name not in columns]
    absent = [pl.lit(None, pl.String).alias(name) for name in contract.context if name not in columns]
    given = [_text(raw[name]) for name in (*IDS, *contract.context) if name in columns]
    kind = pl.lit(contract.kind) if contract.kind is not None else _kind(raw["kind"], contract.names)
    value = raw["value"] if "value" in columns else pl.Series("value", [None], pl.Float64).new_from_index(0, raw.height)
    numbers = [number(pl.lit(value)).alias("value")]
    if contract.propensity:
        shown = pl.col(PROPENSITY) if PROPENSITY in columns else pl.lit(None, pl.Float64)
        numbers.append(probability(shown).alias(PROPENSITY))
    typed = raw.select(*ORIGIN, *given, *empty, *absent, kind.alias("kind"), *numbers)
    times = [read_times(raw[name], contract.time_unit) for name in TIMES if name in columns]
    unread = [_unread(raw["received_time"], times[1])] if len(times) == len(TIMES) else []
    if contract.propensity and PROPENSITY in columns:
        unread.append(_unread(raw[PROPENSITY], typed[PROPENSITY]))
    return typed.hstack([*times, *unread, _unread(value, typed["value"])])


def _text(given: pl.Series) -> pl.Series:
    """Return values as text without the white space around it, null where nothing is left."""
    text = given.cast(pl.String)
    if given.dtype.is_numeric() or given.dtype.is_temporal() or given.dtype == pl.Boolean:
        return text
    stripped = text.str.strip_chars()
    # Most columns hold no empty text, and the choice costs as much as all that comes before it.
    if not (stripped.str.len_bytes() == 0).any():
        return stripped
    return stripped.to_frame().select(pl.when(pl.all() != "").then(pl.all())).to_series()


def _kind(given: pl.Series, names: Mapping[str, str]) -> pl.Expr:
    """Return the kind that each name stands for, null where it is none; only the names that occur are looked up."""
    texts = given.cast(pl.String)
    found = pl.DataFrame({"given": texts.unique()}).with_columns(pl.col("given").str.strip_chars().alias("name"))
    known = {text: names[name] for text, name in found.filter(pl.col("name").is_in(list(names))).iter_rows()}
    return pl.lit(texts).replace_strict(known, default=None, return_dtype=pl.String)


def _unread(given: pl.Series, read: pl.Series) -> pl.Series:
    """Return where a time or a number is given and cannot be read."""
    if read.null_count() == given.null_count():
        return pl.Series(f"{given.name}:unread", [False]).new_from_index(0, given.len())
    return (_text(given).is_not_null() & read.is_null()).alias(f"{given.name}:unread")


def _rules(typed: pl.DataFrame, contract: EventContract) -> list[tuple[str, pl.Expr]]:
    """Return what an event may break, the first of which is its reason."""
    kind, time, user, item = (pl.col(name) for name in ("kind", "event_time", "user_id", "item_id"))
    shown, pairless = kind == "impression", pl.col("user_id").is_null() | pl.col("item_id").is_null()
    unnamed = pl.col("impression_id").is_null() & (pl.col("request_id").is_null() | item.is_null())
    unit = f"is source.time_unit = '{contract.time_unit}' right?"
    received = [
        ("received_time is no time", pl.col("received_time:unread")),
        ("received_time is in the future", pl.col("received_time") >= contract.latest),
        ("received_time is before event_time", pl.col("received_time") < time),
    ]
    unlikely = pl.col(f"{PROPENSITY}:unread")
    return [
        ("event_id is empty", pl.col("event_id").is_null()),
        ("kind is unknown", kind.is_null()),
        ("event_time is empty or no time", time.is_null()),
        (f"event_time is before {EARLIEST.year}: {unit}", time < EARLIEST),
        ("event_time is in the future", time >= contract.latest),
        *(received if "received_time" in typed.columns else []),
        ("user_id is empty", shown & user.is_null()),
        ("item_id is empty", shown & item.is_null()),
        ("names neither an impression nor a user and an item", ~shown & pairless & unnamed),
        *(
            (f"{name} is longer than {MAX_ID_CHARACTERS} characters", pl.col(name).str.len_chars() > MAX_ID_CHARACTERS)
            for name in IDS
            if (typed[name].str.len_bytes() > MAX_ID_CHARACTERS).any()
        ),
        ("value is no number", (kind == "conversion") & pl.col("value:unread")),
        *([(NO_PROBABILITY, shown & unlikely)] if f"{PROPENSITY}:unread" in typed.columns else []),
    ]


def _events(typed: pl.DataFrame, contract: EventContract) -> pl.DataFrame:
    local = pl.col("event_time").dt.convert_time_zone(contract.time_zone)
    received = pl.coalesce("received_time", "event_time") if "received_time" in typed.columns else pl.col("event_time")
    hour = [local.dt.hour().cast(pl.String).alias("hour")] if contract.hour else []
    return typed.select(
        "event_id",
        "kind",
        "event_time",
        received.alias("received_time"),
        "user_id",
        "item_id",
        _impression_id() if typed["impression_id"].null_count() else pl.col("impression_id"),
        pl.when(pl.col("kind") == "conversion").then("value").alias("value"),
        *([pl.when(pl.col("kind") == "impression").then(PROPENSITY).alias(PROPENSITY)] if contract.propensity else []),
        *contract.context,
        *hour,
        *ORIGIN,
        local.dt.date().alias("date"),
    )


def _impression_id() -> pl.Expr:
    of_request = pl.concat_str("request_id", "item_id", separator="|")
    made = pl.concat_str("user_id", "item_id", pl.col("event_time").dt.epoch("us"), separator="|")
    return pl.coalesce("impression_id", of_request, pl.when(pl.col("kind") == "impression").then(made))


def value_columns(events: pl.DataFrame) -> list[str]:
    """Return the columns in which copies of an event must agree: not when and where each copy was received."""
    return [name for name in events.columns if name not in {"received_time", "is_stored", *ORIGIN}]


def merge_copies(events: pl.DataFrame) -> tuple[pl.DataFrame, int, pl.DataFrame]:
    """Keep one copy of each event of a day: the earliest received, of equal times the least by its values.

    The result depends on the set of copies only, never on their order.

    Args:
        events: as `event_schema`, of one day.

    Returns:
        The kept events by kind, event_time and event_id; the number of duplicates (equal in all but when and where
        they were received); and the copies with other values than the kept one.
    """
    keys = events.select(pl.struct(EVENT_KEY).hash()).to_series()
    if keys.n_unique() == events.height:
        return in_order(events), 0, events.clear()
    mask = keys.is_duplicated()
    values = value_columns(events)
    others = [name for name in values if name not in EVENT_KEY]
    copies = events.filter(mask).sort(*EVENT_KEY, "received_time", *others, *ORIGIN)
    distinct = copies.unique(values, keep="first", maintain_order=True)
    kept = distinct.unique(EVENT_KEY, keep="first", maintain_order=True)
    repeats = distinct.join(kept, on=values, how="anti", nulls_equal=True)
    return in_order(pl.concat([events.filter(~mask), kept])), copies.height - distinct.height, repeats


def order_key() -> pl.Expr:
    """Return a number that does not decrease in the order of a day's events: their kind and their time."""
    # One number for both halves the cost. Microseconds stay below 2**59, so that kinds come first.
    kind = pl.sum_horizontal((pl.col("kind") > name).cast(pl.Int64) * 2**60 for name in KINDS)
    return kind + pl.col("event_time").cast(pl.Int64)


def in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Sort events by kind, event_time and event_id."""
    return events.sort(order_key(), "event_id")


def lose_to_a_copy(copies: pl.DataFrame, reach_days: int) -> pl.DataFrame:
    """Return the copies that an earlier received one replaces, of equal times one that is less by its values.

    A copy that was itself replaced still replaces others: which copies stay depends on all that ever came, not on
    the order in which they did.

    Args:
        copies: as `event_schema`, and `is_stored`.
        reach_days: days between event times within which one id is one event.
    """
    others = [name for name in value_columns(copies) if name not in EVENT_KEY]
    ranked = copies.sort(*EVENT_KEY, "received_time", *others, *ORIGIN).with_row_index("rank")
    first = ranked.unique([*EVENT_KEY, "date"], keep="first", maintain_order=True)
    pairs = ranked.join(first, on=list(EVENT_KEY), suffix=":other").filter(
        pl.col("rank:other") < pl.col("rank"),
        (pl.col("date") - pl.col("date:other")).abs() <= pl.duration(days=reach_days),
    )
    return ranked.join(pairs, on="rank", how="semi").drop("rank")


def repeat_an_impression(impressions: pl.DataFrame, reach_days: int) -> pl.DataFrame:
    """Return event_id and date of the impressions whose id one nearby has that comes first.

    Args:
        impressions: event_id, impression_id, place (what comes first), date.
        reach_days: days between event times within which one impression_id is one impression.
    """
    ranked = impressions.sort("impression_id", "place", "date", "event_id").with_row_index("rank")
    first = ranked.unique(["impression_id", "date"], keep="first", maintain_order=True)
    pairs = ranked.join(first, on="impression_id", suffix=":other").filter(
        pl.col("rank:other") < pl.col("rank"),
        (pl.col("date") - pl.col("date:other")).abs() <= pl.duration(days=reach_days),
    )
    return pairs.select("event_id", "date").unique(maintain_order=True)
