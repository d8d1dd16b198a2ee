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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import polars as pl

from features.asof import ACTIONS, KNOWN_ON, Partials, advance_state, initial_state
from features.plan import ITEM, USER, FeaturePlan
from pipeline import tables
from pipeline.config import Config
from pipeline.engine import IN_PROCESS, Engine
from pipeline.feature_plan import plan_of, side_frame
from pipeline.feature_tasks import (
    Bucket,
    Counted,
    CountTask,
    FeatureTask,
    Featurized,
    Inputs,
    buckets_of,
    count_bucket,
    featurize_bucket,
    read_bucket,
)
from pipeline.ledger import Ledger, read_ledger, write_ledger
from pipeline.partials import ACTION_ORDER, by_counter, combined
from pipeline.side_changes import keep_sides, side_change
from pipeline.states import nearest_state, prune_states, save_state, state_folder
from pipeline.workspace import Workspace, write_parquet

KEPT_STATES = 8
COUNTS = ("partials", ACTIONS)
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

    @property
    def scratch(self) -> Path:
        """Return the folder of what is not yet committed."""
        return self.root / ".scratch"


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


def update(
    store: FeatureStore,
    wanted: list[dt.date],
    snapshots: set[dt.date],
    rebuild: Window | None,
    engine: Engine = IN_PROCESS,
) -> Updated:
    """Bring the store up to date with tables/interactions.

    Args:
        store: the store.
        wanted: days whose raw features are asked for.
        snapshots: days as of which a state is asked for.
        rebuild: first and last day that are made again even where nothing changed.
        engine: counts and featurizes buckets of days; states are advanced, and tables committed, here.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    ledger = read_ledger(store.ledger)
    counted = _update_partials(store, ledger, rebuild, engine)
    missing = [day for day in wanted if ledger.features.get(day) != ledger.shown[day]]
    rows = _walk(store, ledger, missing, snapshots, engine)
    return Updated(counted, missing, rows)


def raw_features(store: FeatureStore) -> pl.LazyFrame:
    """Scan the raw features: impression_id, ids, event_time, date, context and plan columns, without labels."""
    return tables.scan(store.table("raw"))


def raw_day(store: FeatureStore, day: dt.date) -> pl.DataFrame:
    """Read a day's raw features in the order of `read_day`."""
    return read_bucket(store.table("raw"), Bucket(day))


def read_day(store: FeatureStore, day: dt.date) -> pl.DataFrame:
    """Read a day of tables/interactions in the order of its features."""
    return read_bucket(store.interactions, Bucket(day))


def inputs_of(store: FeatureStore, engine: Engine) -> Inputs:
    """Return what tasks read of a store; other processes find the side tables in its scratch folder."""
    sides: dict[str, pl.DataFrame | Path | None] = {USER: store.users, ITEM: store.items}
    if not engine.in_process:
        for key, side in sides.items():
            if isinstance(side, pl.DataFrame):
                sides[key] = store.scratch / f"{key}.parquet"
                write_parquet(side, store.scratch / f"{key}.parquet")
    return Inputs(store.interactions, store.table("raw"), store.plan, sides[USER], sides[ITEM])


def _update_partials(store: FeatureStore, ledger: Ledger, rebuild: Window | None, engine: Engine) -> list[dt.date]:
    """Make the partial counts of changed days again, after all that depends on a difference is given up."""
    found = tables.fingerprints(store.interactions)
    changed = side_change(store.root, store.interactions, {USER: store.users, ITEM: store.items})
    if changed is not None:
        rebuild = (min(changed, rebuild[0] if rebuild else changed), max(found))
    gone = ledger.source.keys() - found.keys()
    stale = sorted({*gone, *(day for day in found if ledger.source.get(day) != found[day] or _within(day, rebuild))})
    if not stale:
        return []
    _clear(store.scratch)
    differs: list[dt.date] = []
    for day, counted in _count_days(store, stale, engine):
        differs += [date for name in COUNTS for date in _changed_days(_stored(store, name, day), _kept(counted, name))]
        ledger.shown[day] = _joined_digest([part.shown for part in counted])
        ledger.last_known[day] = max(part.last_known for part in counted)
    _give_up(store, ledger, min(differs, default=None), rebuild)
    write_ledger(store.ledger, ledger)  # before the counts: a kill between must leave nothing that only seems current
    for name in COUNTS:
        frames = (pl.read_parquet(store.scratch / f"{name}-{Bucket(day).name}.parquet") for day in stale)
        tables.write_days(store.table(name), frames, stale, note={"part": name})
    ledger.source = {day: found.get(day, "") for day in {*ledger.source, *stale} - gone}
    write_ledger(store.ledger, ledger)
    keep_sides(store.root, {USER: store.users, ITEM: store.items})
    shutil.rmtree(store.scratch)
    return stale


def _count_days(store: FeatureStore, days: list[dt.date], engine: Engine) -> Iterator[tuple[dt.date, list[Counted]]]:
    """Yield the days with what was counted of each of their buckets."""
    inputs, buckets = inputs_of(store, engine), buckets_of(store.interactions, days)
    tasks = [CountTask(inputs, bucket, store.scratch) for day in days for bucket in buckets[day]]
    parts: list[Counted] = []
    for counted in engine.map(count_bucket, tasks, "count"):
        parts.append(counted)
        if len(parts) == counted.task.bucket.of:
            yield counted.task.bucket.day, parts
            parts = []


def _kept(counted: list[Counted], name: str) -> pl.DataFrame:
    """Put the counts of a day's buckets together, into the file of the first, and return them."""
    files = [part.task.file(name) for part in counted]
    whole = combined(name, [pl.read_parquet(file) for file in files])
    if len(files) > 1:
        write_parquet(whole, files[0])
    return whole.drop("date")


def _joined_digest(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _give_up(store: FeatureStore, ledger: Ledger, known_from: dt.date | None, rebuild: Window | None) -> None:
    """Forget states and features that what became known from a day on has changed."""
    if known_from is None and rebuild is None:
        return
    first = min(day for day in (known_from, rebuild[0] if rebuild else None) if day is not None)
    for day in [day for day in ledger.features if day > first or _within(day, rebuild)]:
        del ledger.features[day]
    prune_states(store.states, lambda day: day <= first)


def _walk(store: FeatureStore, ledger: Ledger, missing: list[dt.date], snapshots: set[dt.date], engine: Engine) -> int:
    """Advance a state over the days, from the latest stored one that serves all that is missing."""
    needed = {*missing, *(day for day in snapshots if not state_folder(store.states, day).is_dir())}
    if not needed:
        return 0
    last = max(needed)
    _clear(store.scratch)
    buckets = buckets_of(store.interactions, missing)
    tasks = _feature_tasks(store, ledger, buckets, (min(needed), last), snapshots, engine)
    made: list[Featurized] = []
    for part in engine.map(featurize_bucket, tasks, "featurize", sum(map(len, buckets.values()))):
        made.append(part)
        if part.bucket.number == part.bucket.of - 1:
            shutil.rmtree(state_folder(store.scratch, part.bucket.day), ignore_errors=True)
    if made:
        commit_buckets(store.table("raw"), made, {"part": "raw"})
        ledger.features |= {day: ledger.shown[day] for day in missing}
        write_ledger(store.ledger, ledger)
    shutil.rmtree(store.scratch)
    prune_states(store.states, lambda day: _is_kept(day, last) or day in snapshots)
    return sum(part.rows for part in made)


def commit_buckets(table: Path, made: list[Featurized], note: dict[str, str]) -> None:
    """Replace days of a table by the files of their buckets, in order."""
    files: dict[dt.date, Path | list[Path]] = {
        day: [part.file for part in parts] for day, parts in groupby(made, lambda part: part.bucket.day)
    }
    tables.commit_files(table, files, made[0].schema, note=note)


def _feature_tasks(
    store: FeatureStore,
    ledger: Ledger,
    buckets: dict[dt.date, list[Bucket]],
    span: Window,
    snapshots: set[dt.date],
    engine: Engine,
) -> Iterator[FeatureTask]:
    """Advance the state day by day, save it where it is to stay, and yield the tasks of the days on the way."""
    first, last = span
    inputs = inputs_of(store, engine)
    counts = {name: tables.scan(store.table(name)) for name in COUNTS}
    state = nearest_state(store.states, first) or initial_state(min(ledger.source))
    while True:
        day = state.as_of
        if (day in snapshots or _is_kept(day, last)) and not state_folder(store.states, day).is_dir():
            save_state(state, store.states)
        if day in buckets:
            held = store.states if state_folder(store.states, day).is_dir() else store.scratch
            if not engine.in_process and held == store.scratch:
                save_state(state, held)
            for bucket in buckets[day]:
                file = tables.new_file(store.table("raw"), day, number=bucket.number)
                yield FeatureTask(inputs, bucket, state if engine.in_process else held, file)
        if day == last:
            return
        state = advance_state(state, _known_on(counts, ledger, day, store.plan), store.plan)


def _clear(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()


def _is_kept(day: dt.date, last: dt.date) -> bool:
    """Return whether the state of a day stays: of the last days, which late impressions need, and one a week."""
    return (last - day).days < KEPT_STATES or day.toordinal() % 7 == 0


def _known_on(counts: dict[str, pl.LazyFrame], ledger: Ledger, day: dt.date, plan: FeaturePlan) -> Partials:
    """Read what became known on a day, from the days of impressions of which something then could."""
    dates = [date for date, last in ledger.last_known.items() if date <= day <= last]
    rule = pl.col("date").is_in(dates) & (pl.col(KNOWN_ON) == day)
    long = counts["partials"].filter(rule).drop("date").collect()
    actions = counts["actions"].filter(rule).drop("date").collect()
    return {**by_counter(long, plan), ACTIONS: actions.sort(ACTION_ORDER)}


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


def _within(day: dt.date, window: Window | None) -> bool:
    return window is not None and window[0] <= day <= window[1]
