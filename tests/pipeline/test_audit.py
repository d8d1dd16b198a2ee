"""Claims about the audit and the backfill: bit by bit what a log cut off at the day gives, or the feature is named."""

import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.audit import audit
from pipeline.backfill import backfill
from pipeline.config import Config, load_config
from pipeline.feature_store import open_store, raw_day
from pipeline.featurize import days_of, featurize
from pipeline.ingest import ingest
from pipeline.split import Days
from pipeline.workspace import Workspace

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
FIRST = dt.date(2026, 1, 1)


@dataclass(frozen=True)
class Made:
    """A workspace after ingest and featurize."""

    config: Config
    workspace: Workspace
    days: Days

    def raw(self) -> dict[dt.date, str]:
        """Return a digest of the raw features of each day."""
        store = open_store(self.config, self.workspace)
        return {day: tables.digest(raw_day(store, day)) for day in self.days.all()}


def events_config() -> Config:
    """Return the example of raw events for five days in UTC+8; the late rest arrives on later days."""
    split = {"train": ["2026-01-01", "2026-01-03"], "validation": ["2026-01-04"] * 2, "test": ["2026-01-05"] * 2}
    days = {f"split.{name}": value for name, value in split.items()}
    return load_config(EXAMPLES / "events.toml", {"source.time_zone": "Asia/Shanghai", **days})


def make(config: Config, workspace: Workspace, source: Path) -> Made:
    ingest(config, workspace, source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    return Made(config, workspace, days)


@pytest.fixture(scope="module", params=["labelled log", "raw events"])
def made(
    request: pytest.FixtureRequest,
    simulated_source: Path,
    simulated_config: Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    config = simulated_config if request.param == "labelled log" else events_config()
    return make(config, Workspace(tmp_path_factory.mktemp("audit") / "workspace"), simulated_source)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """Return a workspace that a test may damage."""
    shutil.copytree(made.workspace.root, tmp_path / "workspace")
    return Made(made.config, Workspace(tmp_path / "workspace"), made.days)


def audited(made: Made, seed: int = 1) -> int:
    return audit(made.config, made.workspace, made.days, sampled_days=5, rows=200, seed=seed).rows_out


def test_stored_features_are_those_of_the_log_cut_off_at_their_day(made: Made) -> None:
    assert audited(made) > 900, "five days, 200 rows each where a day has as many"


@pytest.mark.parametrize("feature", ["user_id__click_rate_7d", "last_clicked_items", "price"])
def test_a_feature_that_knew_more_is_named(copy: Made, feature: str) -> None:
    store = open_store(copy.config, copy.workspace)
    day = copy.days.test[0]
    raw = raw_day(store, day)
    wrong = raw.with_columns(pl.col(feature).reverse())
    tables.write_days(store.table("raw"), [wrong], [day], note={"part": "raw"})
    with pytest.raises(ValueError, match=rf"leakage audit: feature '{feature}' of impression '\S+' on {day} is"):
        audited(copy)


def test_counts_that_took_in_their_own_day_are_found(copy: Made) -> None:
    store = open_store(copy.config, copy.workspace)
    day = copy.days.test[0]
    state = pl.read_parquet(store.states / f"state-{day}" / "counter-item_id.parquet")
    after = pl.read_parquet(store.states / f"state-{day + dt.timedelta(days=1)}" / "counter-item_id.parquet")
    assert not state.equals(after)
    after.write_parquet(store.states / f"state-{day}" / "counter-item_id.parquet")
    ledger = store.ledger.read_text().replace(f'"{day}"', '"2020-01-01"', 1)
    assert ledger.index("2020-01-01") < ledger.index('"last_known"'), "the day's features are to be made again"
    store.ledger.write_text(ledger)
    featurize(copy.config, copy.workspace, copy.days)
    with pytest.raises(ValueError, match="leakage audit: feature 'item_id__impressions_7d'"):
        audited(copy)


@pytest.mark.parametrize("window", [(0, 4), (1, 2), (4, 4)])
def test_a_backfill_changes_nothing_where_nothing_was_wrong(copy: Made, window: tuple[int, int]) -> None:
    before = copy.raw()
    first, last = (FIRST + dt.timedelta(days=n) for n in window)
    outcome = backfill(copy.config, copy.workspace, copy.days, first, last)
    assert (outcome.notes["labels_changed"], outcome.notes["features_changed"]) == ("none", "none")
    assert outcome.notes["days_counted"] == window[1] - window[0] + 1
    assert copy.raw() == before


def test_a_backfill_mends_features_that_were_wrong_and_says_so(copy: Made) -> None:
    before = copy.raw()
    store = open_store(copy.config, copy.workspace)
    day = FIRST + dt.timedelta(days=3)
    wrong = raw_day(store, day).with_columns(pl.col("user_id__click_rate_7d") + 1)
    tables.write_days(store.table("raw"), [wrong], [day], note={"part": "raw"})
    outcome = backfill(copy.config, copy.workspace, copy.days, day, day)
    assert outcome.notes["features_changed"] == str(day)
    assert copy.raw() == before


def test_a_backfill_of_raw_events_attributes_them_again(simulated_source: Path, tmp_path: Path) -> None:
    made = make(events_config(), Workspace(tmp_path / "workspace"), simulated_source)
    table = made.workspace.table("interactions")
    day = FIRST + dt.timedelta(days=1)
    rows = tables.scan(table).filter(pl.col("date") == day).collect()
    order = ["event_time", "user_id", "item_id", "impression_id"]
    wrong = rows.sort(order).with_columns(
        click=pl.lit(value=False), click_counted_at=pl.lit(None, rows.schema["event_time"])
    )
    tables.write_days(table, [wrong], [day], note={"data_set": "events"})
    outcome = backfill(made.config, made.workspace, made.days, day, day)
    assert outcome.notes["labels_changed"] == str(day)
    with pytest.raises(ValueError, match="conversion_window"):
        ingest(hasty(made.config), made.workspace, simulated_source)
    again = tables.scan(table).filter(pl.col("date") == day).collect()
    assert again.sort(order).equals(rows.select(again.columns).sort(order))


def hasty(config: Config) -> Config:
    """Return another contract, which a table must refuse after a backfill as it did before."""
    labels = config.labels.model_copy(update={"conversion_window": dt.timedelta(days=1)})
    return config.model_copy(update={"labels": labels})


def test_a_range_without_rows_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match=r"--from 2027-01-01 --to 2027-01-02 holds no day with rows: .* 2026-01-01 to"):
        backfill(made.config, made.workspace, made.days, dt.date(2027, 1, 1), dt.date(2027, 1, 2))


def test_nights_of_raw_events_give_what_one_run_gives(simulated_source: Path, tmp_path: Path) -> None:
    made = make(events_config(), Workspace(tmp_path / "at-once"), simulated_source)
    source, workspace = tmp_path / "source", Workspace(tmp_path / "workspace")
    (source / "events").mkdir(parents=True)
    for name in ("users.csv", "items.csv"):
        shutil.copy(simulated_source / name, source / name)
    for place, file in enumerate(sorted((simulated_source / "events").iterdir())):
        shutil.copy(file, source / "events" / file.name)
        ingest(made.config, workspace, source)
        if 2 <= place <= 4:
            night = made.config.model_copy(update={"split": type(made.config.split)()})
            featurize(night, workspace, days_of(night, workspace, None))
    featurize(made.config, workspace, made.days)
    assert Made(made.config, workspace, made.days).raw() == made.raw()
    assert audited(Made(made.config, workspace, made.days), seed=2) > 900
