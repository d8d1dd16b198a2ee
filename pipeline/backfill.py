"""Backfill: a range of days made again from the stored events, and compared with what was there."""

import datetime as dt

from pipeline import tables
from pipeline.config import Config
from pipeline.feature_store import FeatureStore, open_store, raw_day, update
from pipeline.relabel import relabel
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace


def backfill(config: Config, workspace: Workspace, days: Days, first: dt.date, last: dt.date) -> Outcome:
    """Make labels, partial counts, states and raw features of a range of days again.

    Labels are attributed again from tables/events where the source is raw events. Row for row the result equals what
    the nightly runs had made; the days on which it does not are told.

    Args:
        config: the configuration.
        workspace: holds the tables.
        days: days of the run, whose states are kept.
        first: first day of the range.
        last: last day of it.

    Raises:
        ValueError: the range holds no day with rows.
    """
    present = [day for day in tables.days(workspace.table("interactions")) if first <= day <= last]
    if not present:
        held = tables.days(workspace.table("interactions"))
        raise ValueError(
            f"--from {first} --to {last} holds no day with rows: the table holds "
            f"{f'{held[0]} to {held[-1]}' if held else 'none, run `counterpoise ingest` first'}"
        )
    relabelled = relabel(config, workspace, present) if config.source.streams else []
    store = open_store(config, workspace)
    wanted = _featurized(store, first)
    before = {day: _digest(store, day) for day in wanted}
    updated = update(store, sorted({*wanted, *present}), {*days.test, days.scored_for}, (first, last))
    changed = [str(day) for day in wanted if before[day] != _digest(store, day)]
    notes = {
        "days_counted": len(updated.counted),
        "days_featurized": len(updated.featurized),
        "labels_changed": ", ".join(map(str, relabelled)) or "none",
        "features_changed": ", ".join(changed) or "none",
    }
    return Outcome(len(present), updated.rows, notes)


def _featurized(store: FeatureStore, first: dt.date) -> list[dt.date]:
    """Return the days from one on that have raw features: what is made again changes them, or none."""
    return [day for day in tables.days(store.table("raw")) if day >= first]


def _digest(store: FeatureStore, day: dt.date) -> str:
    return tables.digest(raw_day(store, day))
