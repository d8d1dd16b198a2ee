"""Features as of the start of a day: one state, advanced day by day, serves training and scoring alike.

For day D only what happened and was known before D began enters: an impression counts from the day on which it was
received, a click and a conversion from the day on which they could first be attributed. What became known on a day
is kept as partial counts of that day, so a state advances by the new day's counts, whatever the history's length.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

from features.counters import advance, counter_features, partial_counts
from features.plan import ITEM, USER, FeaturePlan
from features.sequences import advance_sequences

KNOWN_FROM = {"impression": "received_time", "click": "click_counted_at", "conversion": "conversion_counted_at"}
ACTIONS, ENTITIES, KNOWN_ON = "actions", "entities", "known_on"
Partials = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class FeatureState:
    """What is known before the day `as_of` begins.

    Attributes:
        as_of: the day.
        counters: state of each counter by name, see features/counters.py.
        sequences: last items of each user, or None without any.
        entities: kind ('user' or 'item') and id of all that had an impression, or None without any.
        totals: sums of the columns of each counter over all keys, where the state holds some users' keys only.
    """

    as_of: dt.date
    counters: dict[str, pl.DataFrame]
    sequences: pl.DataFrame | None
    entities: pl.DataFrame | None
    totals: dict[str, dict[str, float]] = field(default_factory=dict)

    def ids(self, kind: str) -> pl.Series:
        """Return the ids of the users or items that had an impression, sorted."""
        if self.entities is None:
            return pl.Series("id", [], dtype=pl.String)
        return self.entities.filter(pl.col("kind") == kind)["id"].sort()


def initial_state(first_day: dt.date) -> FeatureState:
    """Return the state before anything is known."""
    return FeatureState(first_day, {}, None, None)


def day_partials(
    rows: pl.DataFrame, users: pl.DataFrame | None, items: pl.DataFrame | None, plan: FeaturePlan
) -> Partials:
    """Count what became known of one day's impressions, by the day on which it did.

    Args:
        rows: interactions of a day: user_id, item_id, context, received_time, *_counted_at.
        users: side table, for the counters keyed by its columns; with `valid_from`, as of the day of knowledge.
        items: likewise.
        plan: the features.

    Returns:
        Frames with `known_on`: the partial counts of each counter by its name, `actions` (clicks and conversions
        with known_at, for the sequences) and `entities` (users and items with an impression).
    """
    known = known_events(rows, plan)
    assert known.is_empty() or known[KNOWN_ON].min() >= rows["date"].min(), "nothing is known before it happened"  # type: ignore[operator]
    keyed = _with_keys(known, users, items, plan)
    counts = {counter.name: partial_counts(keyed, counter) for counter in plan.counters}
    shown = known.filter(pl.col("kind") == "impression")
    entities = pl.concat(
        shown.select(KNOWN_ON, pl.lit(kind).alias("kind"), pl.col(key).alias("id")).unique()
        for kind, key in (("user", USER), ("item", ITEM))
    ).sort(KNOWN_ON, "kind", "id")
    actions = known.filter(pl.col("kind") != "impression").select(USER, ITEM, "kind", "known_at", KNOWN_ON)
    return {**counts, ACTIONS: actions.sort("known_at", USER, ITEM, "kind"), ENTITIES: entities}


def advance_state(state: FeatureState, partials: Partials, plan: FeaturePlan) -> FeatureState:
    """Take in what became known on the state's day and return the state as of the next day.

    Args:
        state: as of a day.
        partials: see `day_partials`, of that day of knowledge and of any days of impressions.
        plan: the features.
    """
    assert not state.totals, "a state of some users cannot go on"
    for name, frame in partials.items():
        assert frame[KNOWN_ON].unique().to_list() in ([], [state.as_of]), f"{name}: what became known on the day only"
    counters = {
        counter.name: advance(state.counters.get(counter.name), partials[counter.name], counter)
        for counter in plan.counters
    }
    sequences = None
    if plan.sequence_length:
        sequences = advance_sequences(state.sequences, partials[ACTIONS], plan.sequence_length)
    fresh = partials[ENTITIES].select("kind", "id")
    entities = fresh if state.entities is None else pl.concat([state.entities, fresh])
    return FeatureState(state.as_of + dt.timedelta(days=1), counters, sequences, entities.unique().sort("kind", "id"))


def replay(
    partials_of: Callable[[dt.date], Partials], first: dt.date, as_of: dt.date, plan: FeaturePlan
) -> FeatureState:
    """Return the state as of a day from the impressions of every day since the first, without any stored state.

    Args:
        partials_of: gives `day_partials` of a day's impressions.
        first: first day with impressions.
        as_of: the day.
        plan: the features.
    """
    state = initial_state(first)
    waiting: Partials = {}
    for day in (first + dt.timedelta(days=n) for n in range((as_of - first).days)):
        fresh = partials_of(day)
        waiting = {name: pl.concat([waiting[name], frame]) for name, frame in fresh.items()} if waiting else fresh
        known = {name: frame.filter(pl.col(KNOWN_ON) == day) for name, frame in waiting.items()}
        waiting = {name: frame.filter(pl.col(KNOWN_ON) > day) for name, frame in waiting.items()}
        state = advance_state(state, known, plan)
    return state


def known_events(rows: pl.DataFrame, plan: FeaturePlan) -> pl.DataFrame:
    """Return one row for each impression, click and conversion that features count, with the moment and the day."""
    frames = [
        rows.filter(pl.col(time).is_not_null()).select(
            USER,
            ITEM,
            *plan.context,
            pl.lit(kind).alias("kind"),
            pl.col(time).alias("known_at"),
            pl.col(time).dt.convert_time_zone(plan.time_zone).dt.date().alias(KNOWN_ON),
        )
        for kind, time in KNOWN_FROM.items()
    ]
    return pl.concat(frames)


def side_as_of(side: pl.DataFrame | None, key: str, moment: dt.datetime) -> pl.DataFrame | None:
    """Return one row an id: the last whose `valid_from` is not after a moment; a static table as it is."""
    if side is None or "valid_from" not in side.columns:
        return side
    held = side.filter(pl.col("valid_from") <= moment).sort(key, "valid_from")
    return held.unique(key, keep="last", maintain_order=True).drop("valid_from")


def _with_keys(
    rows: pl.DataFrame, users: pl.DataFrame | None, items: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    for key, level, side in ((USER, "user", users), (ITEM, "item", items)):
        columns = sorted(plan.key_columns(level) - set(rows.columns))
        if columns:
            assert side is not None, "counters are keyed by declared columns only"
            rows = _joined(rows, side, key, columns, plan)
    return rows


def _joined(rows: pl.DataFrame, side: pl.DataFrame, key: str, columns: list[str], plan: FeaturePlan) -> pl.DataFrame:
    if "valid_from" not in side.columns:
        return rows.join(side.select(key, *columns), on=key, how="left", maintain_order="left")
    starts = rows.select(KNOWN_ON).unique()
    moments = pl.Series(":start", [plan.start_of(day) for day in starts[KNOWN_ON]], dtype=pl.Datetime("us", "UTC"))
    dated = rows.join(starts.with_columns(moments), on=KNOWN_ON, how="left").sort(":start", "known_at", USER, ITEM)
    history = side.select(key, "valid_from", *columns).sort("valid_from", key)
    return dated.join_asof(
        history, left_on=":start", right_on="valid_from", by=key, strategy="backward", check_sortedness=False
    ).drop(":start", "valid_from")


def user_features(
    state: FeatureState, ids: pl.DataFrame, users: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    """Return one row an id with plan.user_columns() and the columns that pair counters are keyed by.

    Args:
        state: as of the day.
        ids: user_id, each once.
        users: side table; ids without a row as of the day have missing side features.
        plan: the features.
    """
    frame = _side(ids, USER, users, state, plan)
    frame = _counted(frame, "user", state, plan)
    if plan.sequence_length:
        nothing = pl.lit([], dtype=pl.List(pl.String))
        if state.sequences is None:
            return frame.with_columns(nothing.alias(name) for name in plan.sequences())
        frame = frame.join(state.sequences, on=USER, how="left", maintain_order="left")
        frame = frame.with_columns(pl.col(name).fill_null(nothing) for name in plan.sequences())
    return frame


def item_features(
    state: FeatureState, ids: pl.DataFrame, items: pl.DataFrame | None, plan: FeaturePlan
) -> pl.DataFrame:
    """Return one row an id with plan.item_columns() and the keys of pair counters; see `user_features`."""
    frame = _side(ids, ITEM, items, state, plan)
    if plan.item_age:
        age = pl.lit(state.as_of) - pl.col("available_from")
        frame = frame.with_columns(age.dt.total_days().cast(pl.Float32).alias("item_age_days"))
    return _counted(frame, "item", state, plan)


def _side(
    ids: pl.DataFrame, key: str, side: pl.DataFrame | None, state: FeatureState, plan: FeaturePlan
) -> pl.DataFrame:
    held = side_as_of(side, key, plan.start_of(state.as_of))
    return ids.select(key) if held is None else ids.select(key).join(held, on=key, how="left", maintain_order="left")


def _counted(frame: pl.DataFrame, level: str, state: FeatureState, plan: FeaturePlan) -> pl.DataFrame:
    start = plan.start_of(state.as_of)
    blocks = [
        counter_features(frame, state.counters.get(counter.name), counter, start, state.totals.get(counter.name))
        for counter in plan.at_level(level)
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
