"""Exponentially decayed counters per entity: daily partial counts, and a state that they advance.

A state as of day D holds what was known before D began: a count of day d weighs 2^(-(D - 1 - d) / half-life).
Advancing by a day costs a join of the state with that day's keys, whatever the length of the history.
"""

import datetime as dt

import polars as pl

from features.plan import CounterPlan

MEASURES = ("impressions", "clicks", "conversions")
TIMES = ("last_impression_at", "last_click_at")


def partial_counts(known: pl.DataFrame, counter: CounterPlan) -> pl.DataFrame:
    """Count what became known per key and day of knowledge.

    Args:
        known: rows with the key columns, `kind` (impression, click, conversion), `known_at` and `known_on`.
        counter: the keys; rows with a missing key are left out, since a missing value is no entity.

    Returns:
        known_on, keys, impressions, clicks, conversions (Float64), last_impression_at, last_click_at, sorted.
    """
    kinds = dict(zip(MEASURES, ("impression", "click", "conversion"), strict=True))
    return (
        known.drop_nulls(list(counter.keys))
        .group_by("known_on", *counter.keys)
        .agg(
            *((pl.col("kind") == kind).sum().cast(pl.Float64).alias(name) for name, kind in kinds.items()),
            pl.col("known_at").filter(pl.col("kind") == "impression").max().alias("last_impression_at"),
            pl.col("known_at").filter(pl.col("kind") == "click").max().alias("last_click_at"),
        )
        .sort("known_on", *counter.keys)
    )


def advance(state: pl.DataFrame | None, partials: pl.DataFrame, counter: CounterPlan) -> pl.DataFrame:
    """Return the state as of the day after the day of knowledge of some partial counts.

    Args:
        state: keys, `<measure>@<half-life>` and times as of that day, or None.
        partials: what became known on the day, see `partial_counts`; a key may stand in it for several days of
            impressions.
        counter: keys and half-lives.
    """
    keys = list(counter.keys)
    day = partials.group_by(keys).agg(pl.col(MEASURES).sum(), pl.col(TIMES).max())
    spread = day.select(
        *keys,
        *(pl.col(name).alias(f"{name}@{h:g}") for h in counter.half_lives_days for name in MEASURES),
        *TIMES,
    )
    if state is None:
        return spread.sort(keys)
    joined = state.join(spread, on=keys, how="full", coalesce=True, suffix=":new")
    sums = [
        (pl.col(f"{name}@{h:g}").fill_null(0.0) * 0.5 ** (1 / h) + pl.col(f"{name}@{h:g}:new").fill_null(0.0)).alias(
            f"{name}@{h:g}"
        )
        for h in counter.half_lives_days
        for name in MEASURES
    ]
    times = [pl.max_horizontal(name, f"{name}:new").alias(name) for name in TIMES]
    return joined.select(*keys, *sums, *times).sort(keys)


def total(counts: pl.Series) -> float:
    """Return the sum of a state's column: as one chunk, so that from disk and from memory it adds up alike."""
    return float(counts.rechunk().sum())


def priors(
    state: pl.DataFrame | None, counter: CounterPlan, totals: dict[str, float] | None = None
) -> dict[str, float]:
    """Return the rates over all keys per half-life: click, conversion (per click), click-and-conversion.

    Without any impression all rates are 0: nothing is known yet.

    Args:
        state: the counter's state.
        counter: the counter.
        totals: sums of its columns over all keys, where the state holds some of the keys only.
    """
    found: dict[str, float] = {}
    for h in counter.half_lives_days:
        sums = dict.fromkeys(MEASURES, 0.0)
        if totals is not None:
            sums = {name: totals[f"{name}@{h:g}"] for name in MEASURES}
        elif state is not None:
            sums = {name: total(state[f"{name}@{h:g}"]) for name in MEASURES}
        found[f"click@{h:g}"] = sums["clicks"] / sums["impressions"] if sums["impressions"] else 0.0
        found[f"conversion@{h:g}"] = sums["conversions"] / sums["clicks"] if sums["clicks"] else 0.0
        both = sums["conversions"] / sums["impressions"] if sums["impressions"] else 0.0
        found[f"click_and_conversion@{h:g}"] = both
    return found


def counter_features(
    rows: pl.DataFrame,
    state: pl.DataFrame | None,
    counter: CounterPlan,
    start: dt.datetime,
    totals: dict[str, float] | None = None,
) -> pl.DataFrame:
    """Compute a counter's features for rows with its key columns, in the rows' order.

    Rates are smoothed towards the prior: (clicks + s * prior) / (impressions + s). An entity that was never
    seen has 0 impressions and the prior rates; a missing key has missing features. Counts are log(1 + n).

    Args:
        rows: frame with the key columns.
        state: the counter's state as of the day.
        counter: the counter.
        start: first moment of the day, for the hours since the last impression and click.
        totals: see `priors`.
    """
    keys = list(counter.keys)
    prior = priors(state, counter, totals)
    if state is None:
        empty = [pl.lit(0.0).alias(f"{name}@{h:g}") for h in counter.half_lives_days for name in MEASURES]
        joined = rows.select(keys).with_columns(
            *empty, *(pl.lit(None, pl.Datetime("us", "UTC")).alias(t) for t in TIMES)
        )
    else:
        joined = rows.select(keys).join(state, on=keys, how="left", maintain_order="left")
    known = pl.all_horizontal(pl.col(key).is_not_null() for key in keys)
    columns = [
        pl.when(known).then(value).cast(pl.Float32).alias(name)
        for name, value in zip(counter.features(), _values(counter, prior, start), strict=True)
    ]
    return joined.select(columns)


def _values(counter: CounterPlan, prior: dict[str, float], start: dt.datetime) -> list[pl.Expr]:
    values: list[pl.Expr] = []
    for h in counter.half_lives_days:
        impressions, clicks, conversions = (pl.col(f"{name}@{h:g}").fill_null(0.0) for name in MEASURES)
        s = counter.smoothing
        values += [
            impressions.log1p(),
            (clicks + s * prior[f"click@{h:g}"]) / (impressions + s),
            (conversions + s * prior[f"conversion@{h:g}"]) / (clicks + s),
            (conversions + s * prior[f"click_and_conversion@{h:g}"]) / (impressions + s),
        ]
    if counter.recency:
        values += [(pl.lit(start) - pl.col(name)).dt.total_seconds() / 3600 for name in TIMES]
    return values
