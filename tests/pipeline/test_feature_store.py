"""Claims about the feature store: a night costs its day, and gives what a pass over the whole log gives."""

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline import feature_store, feature_tasks, tables
from pipeline.config import Config
from pipeline.feature_store import FeatureStore, Updated, open_store, raw_day, update
from pipeline.ingest import ingest
from pipeline.states import load_state, stored_days
from pipeline.workspace import Workspace

DAYS = [dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(5)]
NOTE = {"data_set": "test"}
Function = Callable[..., object]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="module")
def log(simulated_source: Path, simulated_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace that holds the whole log, ingested at once."""
    workspace = Workspace(tmp_path_factory.mktemp("log") / "workspace")
    ingest(simulated_config, workspace, simulated_source)
    return workspace


def interactions(log: Workspace) -> pl.DataFrame:
    return tables.scan(log.table("interactions")).collect().sort("event_time", "impression_id")


def known_before(rows: pl.DataFrame, cutoff: dt.datetime) -> pl.DataFrame:
    """Return rows as they were known at a moment."""
    kept = rows.filter(pl.col("received_time") < cutoff)
    times = ["click_known_at", "conversion_known_at", "click_counted_at", "conversion_counted_at"]
    kept = kept.with_columns(pl.when(pl.col(name) < cutoff).then(pl.col(name)).alias(name) for name in times)
    return kept.with_columns(
        pl.col(f"{label}_known_at").is_not_null().alias(label) for label in ("click", "conversion")
    )


def write(workspace: Workspace, log: Workspace, rows: pl.DataFrame) -> None:
    """Write the days of rows that differ from what the workspace holds, as ingest does."""
    table = workspace.table("interactions")
    for name in ("users", "items"):
        if not tables.exists(workspace.table(name)):
            tables.write_all(workspace.table(name), tables.scan(log.table(name)).collect(), NOTE)
    for (day,), frame in rows.partition_by("date", as_dict=True, maintain_order=True).items():
        before = tables.scan(table).filter(pl.col("date") == day).collect() if tables.exists(table) else None
        order = ["event_time", "impression_id"]
        if before is None or not before.sort(order).equals(frame.select(before.columns).sort(order)):
            tables.write_days(table, [frame], [day], note=NOTE)


def night(config: Config, workspace: Workspace, log: Workspace, rows: pl.DataFrame, day: dt.date) -> Updated:
    """Run the night after a day: what was received by its end, and features of all days so far."""
    store = open_store(config, log)
    write(workspace, log, known_before(rows, store.plan.start_of(day + dt.timedelta(days=1))))
    mine = open_store(config, workspace)
    present = tables.days(workspace.table("interactions"))
    return update(mine, present, {present[-1], day + dt.timedelta(days=1)}, None)


def content(store: FeatureStore, days: list[dt.date]) -> dict[str, str]:
    """Return digests of raw features, counts and the last state."""
    found = {f"raw {day}": tables.digest(raw_day(store, day)) for day in days}
    for name in ("partials", "actions"):
        frame = tables.scan(store.table(name)).collect()
        found[name] = tables.digest(frame.select(sorted(frame.columns)).sort(sorted(frame.columns)))
    last = load_state(store.states, days[-1] + dt.timedelta(days=1))
    found |= {f"state {name}": tables.digest(frame) for name, frame in last.counters.items()}
    assert last.sequences is not None
    return {**found, "sequences": tables.digest(last.sequences)}


def late(rows: pl.DataFrame) -> pl.DataFrame:
    """Delay some impressions, clicks and conversions by days, as a broken collector would."""
    slow = pl.col("impression_id").hash(3) % 7 == 0
    later = [
        pl.when(slow).then(pl.col(name) + dt.timedelta(hours=31)).otherwise(pl.col(name)).alias(name)
        for name in ("received_time", "click_known_at", "conversion_known_at")
    ]
    counted = [pl.col(f"{label}_known_at").alias(f"{label}_counted_at") for label in ("click", "conversion")]
    return rows.with_columns(later).with_columns(counted)


@pytest.fixture(scope="module")
def at_once(log: Workspace, simulated_config: Config, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Return the store that one pass over the whole late log makes."""
    workspace = Workspace(tmp_path_factory.mktemp("at-once") / "workspace")
    night(simulated_config, workspace, log, late(interactions(log)), DAYS[-1])
    return open_store(simulated_config, workspace)


def test_five_nights_give_row_for_row_what_one_pass_gives(
    at_once: FeatureStore, log: Workspace, workspace: Workspace, simulated_config: Config
) -> None:
    rows = late(interactions(log))
    for day in DAYS:
        night(simulated_config, workspace, log, rows, day)
    found, expected = open_store(simulated_config, workspace), at_once
    assert content(found, DAYS) == content(expected, DAYS)


def test_a_night_without_late_impressions_featurizes_its_day_only(
    log: Workspace, workspace: Workspace, simulated_config: Config
) -> None:
    rows = interactions(log)
    done = [night(simulated_config, workspace, log, rows, day) for day in DAYS]
    again = night(simulated_config, workspace, log, rows, DAYS[-1])
    assert (again.counted, again.featurized, again.rows) == ([], [], 0)
    for day, made in zip(DAYS[1:], done[1:], strict=True):
        assert DAYS[0] not in made.featurized or day == DAYS[1], "late receipts reach a day back at most"
        assert made.featurized[-1] == day
        assert len(made.featurized) <= 2
        assert len(made.counted) >= 2, "conversions of earlier days became known"


def test_a_label_that_arrives_late_changes_the_counts_of_its_day_and_no_earlier_feature(
    log: Workspace, workspace: Workspace, simulated_config: Config
) -> None:
    rows = interactions(log)
    night(simulated_config, workspace, log, rows, DAYS[-1])
    store = open_store(simulated_config, workspace)
    before = content(store, DAYS)
    moment = store.plan.start_of(DAYS[3]) + dt.timedelta(hours=1)
    first = rows.filter((pl.col("date") == DAYS[0]) & ~pl.col("click"))["impression_id"][0]
    clicked = rows.with_columns(
        pl.when(pl.col("impression_id") == first).then(pl.lit(moment)).otherwise(pl.col(name)).alias(name)
        for name in ("click_known_at", "click_counted_at")
    )
    made = night(simulated_config, workspace, log, clicked, DAYS[-1])
    after = content(store, DAYS)
    assert (made.counted, made.featurized) == ([DAYS[0]], [DAYS[4]]), "known on the fourth day, so the fifth knows it"
    assert [name for name in before if before[name] != after[name] and name.startswith("raw")] == [f"raw {DAYS[4]}"]


@pytest.mark.parametrize("window", [(DAYS[0], DAYS[4]), (DAYS[1], DAYS[2]), (DAYS[4], DAYS[4])])
def test_a_rebuilt_range_equals_what_the_nights_made(
    at_once: FeatureStore, simulated_config: Config, tmp_path: Path, window: tuple[dt.date, dt.date]
) -> None:
    copy = tmp_path / "workspace"
    shutil.copytree(at_once.root.parent.parent, copy)
    store = open_store(simulated_config, Workspace(copy))
    made = update(store, DAYS, {DAYS[4], DAYS[4] + dt.timedelta(days=1)}, window)
    assert [day for day in made.counted if window[0] <= day <= window[1]] == made.counted
    assert made.featurized == [day for day in DAYS if day >= window[0]]
    assert content(store, DAYS) == content(at_once, DAYS)


STEPS = [("write_ledger", n) for n in range(3)] + [("write_parquet_whole", n) for n in (0, 1, 3)]
STEPS += [("save_state", 0), ("write_days", 0), ("write_days", 1), ("commit_files", 0)]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_night_that_broke_off_anywhere_is_healed_by_the_next(
    at_once: FeatureStore, log: Workspace, workspace: Workspace, simulated_config: Config, step: tuple[str, int]
) -> None:
    rows = late(interactions(log))
    night(simulated_config, workspace, log, rows, DAYS[3])
    write(workspace, log, rows)
    store = open_store(simulated_config, workspace)
    with pytest.MonkeyPatch.context() as patch:
        _break_off(patch, *step)
        with pytest.raises(KeyboardInterrupt):
            update(store, DAYS, {DAYS[4], DAYS[4] + dt.timedelta(days=1)}, None)
    night(simulated_config, workspace, log, rows, DAYS[4])
    assert content(store, DAYS) == content(at_once, DAYS)


def _break_off(patch: pytest.MonkeyPatch, step: str, calls: int) -> None:
    """Let a function work some times, then break off before it does."""
    owners = {"write_days": tables, "commit_files": tables, "write_parquet_whole": feature_tasks}
    owner = owners.get(step, feature_store)
    real: Function = getattr(owner, step)
    left = iter(range(calls))

    def counted(*arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    patch.setattr(owner, step, counted)


def test_old_states_go_and_the_latest_and_one_a_week_stay(
    log: Workspace, workspace: Workspace, simulated_config: Config
) -> None:
    night(simulated_config, workspace, log, interactions(log), DAYS[4])
    store = open_store(simulated_config, workspace)
    update(store, DAYS, {dt.date(2026, 2, 20)}, None)
    kept = stored_days(store.states)
    assert kept[-8:] == [dt.date(2026, 2, 20) - dt.timedelta(days=n) for n in range(7, -1, -1)]
    assert all(day.toordinal() % 7 == 0 for day in kept[:-8])
    assert len(kept) > 8
