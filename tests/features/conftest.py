"""Interactions of three users and four items, and a plan with counters at every level."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from features.plan import CounterPlan, FeaturePlan, SidePlan

DAY = dt.date(2026, 1, 1)
TIMES = ("event_time", "received_time", "click_known_at", "conversion_known_at")
TIMESTAMP = pl.Datetime("us", "UTC")
SCHEMA = {
    "impression_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    **dict.fromkeys(TIMES, TIMESTAMP),
    "surface": pl.String,
}


@pytest.fixture(scope="session")
def make_rows() -> Callable[[list[dict[str, Any]], str], pl.DataFrame]:
    """Return a maker of interactions: times in hours since the first day began, `date` from event_time."""

    def make(rows: list[dict[str, Any]], time_zone: str) -> pl.DataFrame:
        start = dt.datetime.combine(DAY, dt.time(), tzinfo=dt.UTC)
        defaults = {"user_id": "u1", "item_id": "i1", "surface": "home"}
        timed = [
            {
                "impression_id": f"m{n}",
                **defaults,
                "received_time": row["event_time"],
                **row,
            }
            for n, row in enumerate(rows)
        ]
        for row in timed:
            for name in TIMES:
                hours = row.get(name)
                row[name] = None if hours is None else start + dt.timedelta(hours=hours)
        local = pl.col("event_time").dt.convert_time_zone(time_zone).dt.date()
        counted = [pl.col(f"{kind}_known_at").alias(f"{kind}_counted_at") for kind in ("click", "conversion")]
        return pl.DataFrame(timed, schema=SCHEMA).with_columns(local.alias("date"), *counted)

    return make


@pytest.fixture(scope="session")
def plan() -> FeaturePlan:
    """Return a plan with user, item, pair and context counters, sequences and the item's age."""
    keys = (
        ("user_id",),
        ("item_id",),
        ("brand",),
        ("segment", "brand"),
        ("user_id", "surface"),
        ("first_tags",),
    )
    return FeaturePlan(
        users=SidePlan(categorical=("segment",), numeric=("income",)),
        items=SidePlan(categorical=("brand",), numeric=("price",), multi=("tags",)),
        context=("surface",),
        counters=tuple(
            CounterPlan(keys=key, half_lives_days=(1.0, 7.0), smoothing=2.0, recency=len(key) == 1) for key in keys
        ),
        sequence_length=3,
        item_age=True,
        time_zone="UTC",
    )


@pytest.fixture(scope="session")
def users() -> pl.DataFrame:
    """Return u1 to u3, the last without a segment."""
    columns = {"user_id": ["u1", "u2", "u3"], "segment": ["a", "b", None], "income": [1.0, None, 3.0]}
    return pl.DataFrame(columns)


@pytest.fixture(scope="session")
def items() -> pl.DataFrame:
    """Return i1 to i4 of two brands, the last without any side value."""
    return pl.DataFrame(
        {
            "item_id": ["i1", "i2", "i3", "i4"],
            "brand": ["x", "x", "y", None],
            "price": [1.0, 2.0, 3.0, None],
            "tags": [["t", "v"], ["v"], [], None],
            "first_tags": ["t", "v", None, None],
            "available_from": [DAY, DAY, None, None],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )


@pytest.fixture(scope="session")
def sides(users: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both side tables."""
    return users, items
