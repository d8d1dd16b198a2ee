"""Partial counts in the form of their table: those of all counters under one another; and buckets of them combined."""

import polars as pl

from features.asof import ACTIONS, ENTITIES, KNOWN_ON, Partials
from features.counters import MEASURES, TIMES
from features.plan import ITEM, USER, FeaturePlan

KEY = "key_"
ACTION_ORDER = ("known_at", USER, ITEM, "kind")


def long_partials(partials: Partials, plan: FeaturePlan) -> pl.DataFrame:
    """Put the partial counts of all counters, and the entities, under one another with keys as key_0, key_1 ..."""
    width = max((len(counter.keys) for counter in plan.counters), default=1)
    names = {counter.name: list(counter.keys) for counter in plan.counters} | {ENTITIES: ["kind", "id"]}
    empty = {name: pl.lit(None, dtype=pl.Float64).alias(name) for name in MEASURES} | {
        name: pl.lit(None, dtype=pl.Datetime("us", "UTC")).alias(name) for name in TIMES
    }
    frames = []
    for name, keys in names.items():
        frame = partials[name]
        frames.append(
            frame.select(
                KNOWN_ON,
                pl.lit(name).alias("counter"),
                *(pl.col(key).cast(pl.String).alias(f"{KEY}{n}") for n, key in enumerate(keys)),
                *(pl.lit(None, dtype=pl.String).alias(f"{KEY}{n}") for n in range(len(keys), max(width, 2))),
                *(pl.col(column) if column in frame.columns else blank for column, blank in empty.items()),
            )
        )
    return pl.concat(frames)


def by_counter(long: pl.DataFrame, plan: FeaturePlan) -> Partials:
    """Undo `long_partials`."""
    found: Partials = {}
    for counter in plan.counters:
        keys = [pl.col(f"{KEY}{n}").alias(key) for n, key in enumerate(counter.keys)]
        rows = long.filter(pl.col("counter") == counter.name)
        found[counter.name] = rows.select(KNOWN_ON, *keys, *MEASURES, *TIMES)
    entities = long.filter(pl.col("counter") == ENTITIES)
    found[ENTITIES] = entities.select(KNOWN_ON, pl.col(f"{KEY}0").alias("kind"), pl.col(f"{KEY}1").alias("id"))
    return found


def combined(name: str, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the partial counts, or the actions, of a day from those of its buckets, each key once.

    Counts are whole numbers, so their sums do not depend on the buckets; a single bucket is returned as it is.
    """
    rows = pl.concat(parts)
    if len(parts) == 1:
        return rows
    if name == ACTIONS:
        return rows.sort(ACTION_ORDER)
    keys = [column for column in rows.columns if column not in {*MEASURES, *TIMES}]
    summed = rows.group_by(keys).agg(pl.col(MEASURES).sum(), pl.col(TIMES).max()).sort(keys)
    # an entity has no counts, and the sum of none would be 0
    counts = [pl.when(pl.col("counter") != ENTITIES).then(measure).alias(measure) for measure in MEASURES]
    return summed.with_columns(counts).select(rows.columns)
