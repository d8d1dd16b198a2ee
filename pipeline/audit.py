"""Audit: raw features made again from a log cut off at their day, and compared bit by bit with the stored ones."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.asof import KNOWN_FROM, Partials, day_partials, example_features, replay
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_store import FeatureStore, open_store, raw_day, read_day
from pipeline.feature_tasks import SHOWN
from pipeline.ledger import read_ledger
from pipeline.relabel import labels_known_before
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Sample:
    """Days and rows that an audit looks at."""

    days: list[dt.date]
    rows: int
    seed: int


def audit(config: Config, workspace: Workspace, days: Days, *, sampled_days: int, rows: int, seed: int) -> Outcome:
    """Recompute a sample of raw features from what had happened and was known before their day, and compare.

    The log is cut before anything else is made of it: events received at or after the start of the day do not take
    part in attribution, counts or states. Nothing stored is used but the log and the side tables.

    Args:
        config: the run's configuration.
        workspace: holds the store that `featurize` wrote.
        days: days of the run; the sampled ones are drawn among them, the last test day always.
        sampled_days: days to recompute; each costs a pass over the log before it.
        rows: examples to compare on each of them.
        seed: of the draws.

    Raises:
        ValueError: a feature differs; names it, its impression and both values. Or the store is not up to date.
    """
    store = open_store(config, workspace)
    _check_current(store, days)
    sample = _draw(days, sampled_days, rows, seed)
    compared = 0
    for day in sample.days:
        stored = _pick(raw_day(store, day), sample)
        compared += _compare(day, _recomputed(config, workspace, store, day, stored), stored)
    return Outcome(compared, compared, {"days": ", ".join(map(str, sample.days)), "features": stored.width})


def _check_current(store: FeatureStore, days: Days) -> None:
    ledger, found = read_ledger(store.ledger), tables.fingerprints(store.interactions)
    late = [day for day in found if ledger.source.get(day) != found[day]]
    late += [day for day in days.all() if ledger.features.get(day, "") != ledger.shown.get(day)]
    if late:
        raise ValueError(
            f"the features of {min(late)} were not made from the interactions that are there now: run "
            "`counterpoise featurize` first with the same options"
        )


def _draw(days: Days, count: int, rows: int, seed: int) -> Sample:
    others = days.all()[:-1]
    drawn = np.random.default_rng(seed).permutation(len(others))[: count - 1]
    return Sample(sorted({days.test[-1], *(others[place] for place in drawn)}), rows, seed)


def _pick(raw: pl.DataFrame, sample: Sample) -> pl.DataFrame:
    places = np.random.default_rng(sample.seed).permutation(raw.height)[: sample.rows]
    return raw[np.sort(places)]


def _recomputed(
    config: Config, workspace: Workspace, store: FeatureStore, day: dt.date, stored: pl.DataFrame
) -> pl.DataFrame:
    """Make the features of stored rows from the log as it was known when their day began."""
    cutoff = store.plan.start_of(day)
    days = tables.days(store.interactions)
    nothing = read_day(store, days[0]).clear()
    with _known_days(config, workspace, [date for date in days if date < day], cutoff) as files:

        def partials_of(date: dt.date) -> Partials:
            rows = _known_rows(store, date, cutoff, files) if date in days else nothing
            return day_partials(rows, store.users, store.items, store.plan)

        state = replay(partials_of, days[0], day, store.plan)
    shown = read_day(store, day).select(*SHOWN, *store.plan.context)
    shown = shown.join(stored.select("impression_id"), on="impression_id", how="semi", maintain_order="left")
    return example_features(state, shown, store.users, store.items, store.plan)


@contextmanager
def _known_days(
    config: Config, workspace: Workspace, days: list[dt.date], cutoff: dt.datetime
) -> Iterator[dict[dt.date, Path]]:
    """Give the files of days that were attributed from raw events; none for a labelled log."""
    if config.source.streams:
        with labels_known_before(config, workspace, days, cutoff) as files:
            yield files
    else:
        yield {}


def _known_rows(store: FeatureStore, date: dt.date, cutoff: dt.datetime, files: dict[dt.date, Path]) -> pl.DataFrame:
    """Return a day's interactions as they were known at a moment."""
    if files:
        return pl.read_parquet(files[date], hive_partitioning=False).with_columns(pl.lit(date).alias("date"))
    rows = read_day(store, date).filter(pl.col("received_time") < cutoff)
    return rows.with_columns(
        pl.when(pl.col(name) < cutoff).then(pl.col(name)).alias(name) for name in KNOWN_FROM.values()
    )


def _compare(day: dt.date, made: pl.DataFrame, stored: pl.DataFrame) -> int:
    """Refuse the first feature that differs by a bit.

    Raises:
        ValueError: see `audit`.
    """
    assert made["impression_id"].equals(stored["impression_id"]), "the same rows in the same order"
    for name in stored.columns:
        differs = ~made[name].eq_missing(stored[name])
        if differs.any():
            place = int(differs.arg_max() or 0)
            raise ValueError(
                f"leakage audit: feature '{name}' of impression {stored['impression_id'][place]!r} on {day} is "
                f"{stored[name][place]!r} in the store and {made[name][place]!r} from the log as known before that day "
                f"({differs.sum()} of {len(differs)} rows differ): find what it knew, then run `counterpoise backfill`"
            )
    return made.height
