"""The feature store: daily partial counts, states as of days and raw features, kept so that a night costs its day.

One store a feature plan, in `features/<digest>/` of the workspace:

    partials    Delta, by day of impression: what became known of it, by day of knowledge, for each counter's keys
    actions     Delta, by day of impression: clicks and conversions by day of knowledge, for the sequences
    raw         Delta, by day of impression: raw features as of that day, without labels
    states/     state as of some days: the last ones, one a week, and those that a run asked for
    ledger.json which version of each day of tables/interactions the above were made from

A late event rewrites its day of tables/interactions; the day's partial counts are then made again and compared with
the stored ones. Only features and states as of days after the first day of knowledge that differs are made again.
"""

import datetime as dt
import hashlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from features.asof import (
    ACTIONS,
    ENTITIES,
    KNOWN_ON,
    Partials,
    advance_state,
    day_partials,
    example_features,
    initial_state,
)
from features.counters import MEASURES, TIMES
from features.plan import ITEM, USER, FeaturePlan
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of, side_frame
from pipeline.ledger import Ledger, read_ledger, write_ledger
from pipeline.side_changes import keep_sides, side_change
from pipeline.stage import progress
from pipeline.states import nearest_state, prune_states, save_state, state_folder
from pipeline.workspace import Workspace, write_parquet

ORDER = ("event_time", USER, ITEM, "impression_id")
SHOWN = ("impression_id", USER, ITEM, "event_time", "date")
KEY = "key_"
KEPT_STATES = 8
Window = tuple[dt.date, dt.date]


@dataclass(frozen=True)
class FeatureStore:
    """A store with the tables that it is made from."""

    root: Path
    interactions: Path
    plan: FeaturePlan
    users: pl.DataFrame | None
    items: pl.DataFrame | None

    def table(self, name: str) -> Path:
        """Return the folder of one of its Delta tables."""
        return self.root / name

    @property
    def ledger(self) -> Path:
        """Return the file of its ledger."""
        return self.root / "ledger.json"

    @property
    def states(self) -> Path:
        """Return the folder of its states."""
        return self.root / "states"


@dataclass(frozen=True)
class Updated:
    """What an update did: days whose partial counts, whose raw features, and how many rows of features."""

    counted: list[dt.date]
    featurized: list[dt.date]
    rows: int


def open_store(config: Config, workspace: Workspace) -> FeatureStore:
    """Return the store of a configuration's feature plan; another plan has a store of its own."""
    plan = plan_of(config)
    sides = [table.model_dump(exclude={"file"}) for table in (config.users, config.items)]
    declared = f"{asdict(plan)} {sides}"
    root = workspace.root / "features" / hashlib.sha256(declared.encode()).hexdigest()[:8]
    users, items = side_frame(workspace, "users", config.users), side_frame(workspace, "items", config.items)
    return FeatureStore(root, workspace.table("interactions"), plan, users, items)


def update(store: FeatureStore, wanted: list[dt.date], snapshots: set[dt.date], rebuild: Window | None) -> Updated:
    """Bring the store up to date with tables/interactions.

    Args:
        store: the store.
        wanted: days whose raw features are asked for.
        snapshots: days as of which a state is asked for.
        rebuild: first and last day that are made again even where nothing changed.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    ledger = read_ledger(store.ledger)
    counted = _update_partials(store, ledger, rebuild)
    missing = [day for day in wanted if ledger.features.get(day) != ledger.shown[day]]
    rows = _walk(store, ledger, missing, snapshots)
    return Updated(counted, missing, rows)


def raw_features(store: FeatureStore) -> pl.LazyFrame:
    """Scan the raw features: impression_id, ids, event_time, date, context and plan columns, without labels."""
    return tables.scan(store.table("raw"))


def raw_day(store: FeatureStore, day: dt.date) -> pl.DataFrame:
    """Read a day's raw features in the order of `read_day`."""
    return raw_features(store).filter(pl.col("date") == day).collect().sort(ORDER)


def read_day(store: FeatureStore, day: dt.date) -> pl.DataFrame:
    """Read a day of tables/interactions in the order of its features."""
    return tables.scan(store.interactions).filter(pl.col("date") == day).collect().sort(ORDER)


def _update_partials(store: FeatureStore, ledger: Ledger, rebuild: Window | None) -> list[dt.date]:
    """Make the partial counts of changed days again, after all that depends on a difference is given up."""
    found = tables.fingerprints(store.interactions)
    changed = side_change(store.root, store.interactions, {USER: store.users, ITEM: store.items})
    if changed is not None:
        rebuild = (min(changed, rebuild[0] if rebuild else changed), max(found))
    gone = ledger.source.keys() - found.keys()
    stale = sorted({*gone, *(day for day in found if ledger.source.get(day) != found[day] or _within(day, rebuild))})
    if not stale:
        return []
    scratch = store.root / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    differs: list[dt.date] = []
    for day in progress(stale, "count", len(stale)):
        rows = read_day(store, day)
        partials = day_partials(rows, store.users, store.items, store.plan)
        for name, frame in (("partials", _long(partials, store.plan)), ("actions", partials[ACTIONS])):
            differs += _changed_days(_stored(store, name, day), frame)
            write_parquet(frame.with_columns(pl.lit(day).alias("date")), scratch / f"{name}-{day}.parquet")
        ledger.shown[day] = _shown_digest(rows, store.plan)
        ledger.last_known[day] = _last_known(partials, day)
    _give_up(store, ledger, min(differs, default=None), rebuild)
    write_ledger(store.ledger, ledger)  # before the counts: a kill between must leave nothing that only seems current
    for name in ("partials", "actions"):
        frames = (pl.read_parquet(scratch / f"{name}-{day}.parquet") for day in stale)
        tables.write_days(store.table(name), frames, stale, note={"part": name})
    ledger.source = {day: found.get(day, "") for day in {*ledger.source, *stale} - gone}
    write_ledger(store.ledger, ledger)
    keep_sides(store.root, {USER: store.users, ITEM: store.items})
    shutil.rmtree(scratch)
    return stale


def _last_known(partials: Partials, day: dt.date) -> dt.date:
    last = pl.concat([partials[ENTITIES].select(KNOWN_ON), partials[ACTIONS].select(KNOWN_ON)])[KNOWN_ON].max()
    assert last is None or isinstance(last, dt.date), "a day of knowledge is a date"
    return last or day


def _give_up(store: FeatureStore, ledger: Ledger, known_from: dt.date | None, rebuild: Window | None) -> None:
    """Forget states and features that what became known from a day on has changed."""
    if known_from is None and rebuild is None:
        return
    first = min(day for day in (known_from, rebuild[0] if rebuild else None) if day is not None)
    for day in [day for day in ledger.features if day > first or _within(day, rebuild)]:
        del ledger.features[day]
    prune_states(store.states, lambda day: day <= first)


def _walk(store: FeatureStore, ledger: Ledger, missing: list[dt.date], snapshots: set[dt.date]) -> int:
    """Advance a state over the days, from the latest stored one that serves all that is missing."""
    needed = {*missing, *(day for day in snapshots if not state_folder(store.states, day).is_dir())}
    if not needed:
        return 0
    first, last = min(needed), max(needed)
    state = nearest_state(store.states, first) or initial_state(min(ledger.source))
    scratch = store.root / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    counts = {name: tables.scan(store.table(name)) for name in ("partials", "actions")}
    days = [state.as_of + dt.timedelta(days=n) for n in range((last - state.as_of).days + 1)]
    for day in progress(days, "featurize", len(days)):
        if day in missing:
            shown = read_day(store, day).select(*SHOWN, *store.plan.context)
            frame = example_features(state, shown, store.users, store.items, store.plan)
            write_parquet(frame, scratch / f"{day}.parquet")
        if (day in snapshots or _is_kept(day, last)) and not state_folder(store.states, day).is_dir():
            save_state(state, store.states)
        if day < last:
            state = advance_state(state, _known_on(counts, ledger, day, store.plan), store.plan)
    rows = 0
    if missing:
        frames = (pl.read_parquet(scratch / f"{day}.parquet") for day in missing)
        rows = tables.write_days(store.table("raw"), frames, missing, note={"part": "raw"})
        ledger.features |= {day: ledger.shown[day] for day in missing}
        write_ledger(store.ledger, ledger)
    shutil.rmtree(scratch)
    prune_states(store.states, lambda day: _is_kept(day, last) or day in snapshots)
    return rows


def _is_kept(day: dt.date, last: dt.date) -> bool:
    """Return whether the state of a day stays: of the last days, which late impressions need, and one a week."""
    return (last - day).days < KEPT_STATES or day.toordinal() % 7 == 0


def _known_on(counts: dict[str, pl.LazyFrame], ledger: Ledger, day: dt.date, plan: FeaturePlan) -> Partials:
    """Read what became known on a day, from the days of impressions of which something then could."""
    dates = [date for date, last in ledger.last_known.items() if date <= day <= last]
    rule = pl.col("date").is_in(dates) & (pl.col(KNOWN_ON) == day)
    long = counts["partials"].filter(rule).drop("date").collect()
    actions = counts["actions"].filter(rule).drop("date").collect()
    return {**_by_counter(long, plan), ACTIONS: actions.sort("known_at", USER, ITEM, "kind")}


def _long(partials: Partials, plan: FeaturePlan) -> pl.DataFrame:
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


def _by_counter(long: pl.DataFrame, plan: FeaturePlan) -> Partials:
    """Undo `_long`."""
    found: Partials = {}
    for counter in plan.counters:
        keys = [pl.col(f"{KEY}{n}").alias(key) for n, key in enumerate(counter.keys)]
        rows = long.filter(pl.col("counter") == counter.name)
        found[counter.name] = rows.select(KNOWN_ON, *keys, *MEASURES, *TIMES)
    entities = long.filter(pl.col("counter") == ENTITIES)
    found[ENTITIES] = entities.select(KNOWN_ON, pl.col(f"{KEY}0").alias("kind"), pl.col(f"{KEY}1").alias("id"))
    return found


def _stored(store: FeatureStore, name: str, day: dt.date) -> pl.DataFrame | None:
    if not tables.exists(store.table(name)):
        return None
    return tables.scan(store.table(name)).filter(pl.col("date") == day).drop("date").collect()


def _changed_days(before: pl.DataFrame | None, after: pl.DataFrame) -> list[dt.date]:
    """Return the days of knowledge on which two frames differ, rows counted."""
    if before is None or before.is_empty():
        return after[KNOWN_ON].unique().to_list()
    columns = [before.with_columns(sign=pl.lit(-1)), after.select(before.columns).with_columns(sign=pl.lit(1))]
    signed = pl.concat(columns)
    sums = signed.group_by(before.columns).agg(pl.col("sign").sum())
    return sums.filter(pl.col("sign") != 0)[KNOWN_ON].unique().to_list()


def _shown_digest(rows: pl.DataFrame, plan: FeaturePlan) -> str:
    return tables.digest(rows.select(*SHOWN, *plan.context))


def _within(day: dt.date, window: Window | None) -> bool:
    return window is not None and window[0] <= day <= window[1]
