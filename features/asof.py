"""Features as of the start of a day: one state, advanced day by day, serves training and scoring alike.

For day D only what happened and was known before D began enters: an impression counts from the day on which
it was received, a click and a conversion from the day on which they became known.
"""

import datetime as dt
from dataclasses import dataclass

import polars as pl

from features.counters import advance, counter_features, partial_counts
from features.plan import ITEM, USER, FeaturePlan
from features.sequences import advance_sequences

PENDING_COLUMNS = (USER, ITEM, "kind", "known_at", "known_on")


@dataclass(frozen=True)
class FeatureState:
    """What is known before the day `as_of` begins.

    Attributes:
        as_of: the day.
        counters: state of each counter by name, see features/counters.py.
        sequences: last items of each user, or None without any.
        pending: events that happened before and become known on `as_of` or later.
    """

    as_of: dt.date
    counters: dict[str, pl.DataFrame]
    sequences: pl.DataFrame | None
    pending: pl.DataFrame | None


def initial_state(first_day: dt.date) -> FeatureState:
    """Return the state before anything is known."""
    return FeatureState(first_day, {}, None, None)


def advance_state(
    state: FeatureState,
    day_rows: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    plan: FeaturePlan,
) -> FeatureState:
    """Take in the interactions of the state's day and return the state as of the next day.

    Args:
        state: as of the rows' day.
        day_rows: interactions with `date` equal to state.as_of.
        users: side table, for the counters keyed by its columns.
        items: likewise.
        plan: the features.
    """
    assert day_rows.is_empty() or day_rows["date"].unique().to_list() == [state.as_of], "rows of the state's day only"
    events = _events(day_rows, plan)
    if state.pending is not None:
        events = pl.concat([state.pending, events])
    known = events.filter(pl.col("known_on") <= state.as_of)
    keyed = _with_keys(known, users, items, plan)
    counters = {
        counter.name: advance(state.counters.get(counter.name), partial_counts(keyed, counter), counter, 1)
        for counter in plan.counters
    }
    sequences = advance_sequences(state.sequences, known, plan.sequence_length) if plan.sequence_length else None
    pending = events.filter(pl.col("known_on") > state.as_of)
    return FeatureState(state.as_of + dt.timedelta(days=1), counters, sequences, pending)


def _events(rows: pl.DataFrame, plan: FeaturePlan) -> pl.DataFrame:
    times = {"impression": "received_time", "click": "click_known_at", "conversion": "conversion_known_at"}
    frames = [
        rows.filter(pl.col(time).is_not_null()).select(
            USER,
            ITEM,
            *plan.context,
            pl.lit(kind).alias("kind"),
            pl.col(time).alias("known_at"),
            pl.col(time).dt.convert_time_zone(plan.time_zone).dt.date().alias("known_on"),
        )
        for kind, time in times.items()
    ]
    return pl.concat(frames)


def _with_keys(
    rows: pl.DataFrame, users: pl.DataFrame | None, items: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    for key, level, side in ((USER, "user", users), (ITEM, "item", items)):
        columns = sorted(plan.key_columns(level) - set(rows.columns))
        if columns:
            assert side is not None, "counters are keyed by declared columns only"
            rows = rows.join(side.select(key, *columns), on=key, how="left", maintain_order="left")
    return rows


def user_features(
    state: FeatureState, ids: pl.DataFrame, users: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    """Return one row an id with plan.user_columns() and the columns that pair counters are keyed by.

    Args:
        state: as of the day.
        ids: user_id, each once.
        users: side table; ids without a row have missing side features.
        plan: the features.
    """
    frame = _side(ids, USER, users)
    frame = _counted(frame, "user", state, plan)
    if plan.sequence_length:
        names = plan.sequences()
        if state.sequences is None:
            return frame.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias(name) for name in names)
        frame = frame.join(state.sequences, on=USER, how="left", maintain_order="left")
    return frame


def item_features(
    state: FeatureState, ids: pl.DataFrame, items: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    """Return one row an id with plan.item_columns() and the keys of pair counters; see `user_features`."""
    frame = _side(ids, ITEM, items)
    if plan.item_age:
        age = pl.lit(state.as_of) - pl.col("available_from")
        frame = frame.with_columns(age.dt.total_days().cast(pl.Float32).alias("item_age_days"))
    return _counted(frame, "item", state, plan)


def _side(ids: pl.DataFrame, key: str, side: pl.DataFrame | None) -> pl.DataFrame:
    return ids.select(key) if side is None else ids.select(key).join(side, on=key, how="left", maintain_order="left")


def _counted(frame: pl.DataFrame, level: str, state: FeatureState, plan: FeaturePlan) -> pl.DataFrame:
    start = plan.start_of(state.as_of)
    blocks = [
        counter_features(frame, state.counters.get(counter.name), counter, start) for counter in plan.at_level(level)
    ]
    return pl.concat([frame, *blocks], how="horizontal")


def pair_features(state: FeatureState, rows: pl.DataFrame, plan: FeaturePlan) -> pl.DataFrame:
    """Append the features of the pair counters to rows that hold their key columns."""
    return _counted(rows, "pair", state, plan)


def example_features(
    state: FeatureState,
    rows: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    plan: FeaturePlan,
) -> pl.DataFrame:
    """Append all features as of the state's day to interactions of that day, in their order.

    Args:
        state: as of the rows' day.
        rows: user_id, item_id, the context columns and whatever else is to be kept.
        users: side table.
        items: side table.
        plan: the features.
    """
    user_frame = user_features(state, rows.select(USER).unique(maintain_order=True), users, plan)
    item_frame = item_features(state, rows.select(ITEM).unique(maintain_order=True), items, plan)
    user_keep = [USER, *plan.user_columns(), *sorted(plan.key_columns("user") - set(plan.user_columns()))]
    item_keep = [ITEM, *plan.item_columns(), *sorted(plan.key_columns("item") - set(plan.item_columns()))]
    joined = rows.join(user_frame.select(user_keep), on=USER, how="left", maintain_order="left")
    joined = joined.join(item_frame.select(item_keep), on=ITEM, how="left", maintain_order="left")
    extra = (plan.key_columns("user") - set(plan.user_columns())) | (
        plan.key_columns("item") - set(plan.item_columns())
    )
    return pair_features(state, joined, plan).drop(extra)
