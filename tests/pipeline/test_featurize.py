"""Claims about featurize: examples of each day from its past alone, an encoder of training days alone."""

import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from features.asof import example_features
from features.encoding import load_encoder
from pipeline import tables
from pipeline.config import Config
from pipeline.example_tasks import KEPT
from pipeline.feature_plan import plan_of, side_frame
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.split import Days
from pipeline.states import load_state
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Featurized:
    """A workspace after featurize."""

    config: Config
    workspace: Workspace
    days: Days

    @property
    def folder(self) -> Path:
        """Return where the run keeps its features."""
        return run_folder(self.config, self.workspace, self.days) / "features"

    def examples(self, *days: dt.date) -> pl.DataFrame:
        """Return the examples of some days in one order."""
        scanned = tables.scan(self.workspace.table("examples"))
        return scanned.filter(pl.col("date").is_in(days)).collect().sort("date", "impression_id")


def featurized(config: Config, source: Path, root: Path) -> Featurized:
    workspace = Workspace(root)
    ingest(config, workspace, source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    return Featurized(config, workspace, days)


@pytest.fixture(scope="module")
def run(simulated_source: Path, simulated_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Featurized:
    return featurized(simulated_config, simulated_source, tmp_path_factory.mktemp("featurize") / "workspace")


def changed(source: Path, copy: Path, day: dt.date) -> Path:
    """Copy a source and change users, items, context and labels of one day."""
    shutil.copytree(source, copy)
    path = copy / "impressions" / f"{day}.parquet"
    frame = pl.read_parquet(path)
    other = pl.lit("u_other")
    frame.with_columns(
        pl.when(pl.col("position") < 3).then(other).otherwise("user_id").alias("user_id"),
        pl.col("item_id").reverse(),
        pl.lit("elsewhere").alias("surface"),
    ).write_parquet(path)
    return copy


def test_every_interaction_of_the_split_is_one_example(run: Featurized) -> None:
    interactions = tables.scan(run.workspace.table("interactions")).collect()
    examples = run.examples(*run.days.all())
    assert examples.height == interactions.height == 5 * 80 * 5
    labels = ["impression_id", "user_id", "item_id", "click", "conversion", "date"]
    ordered = interactions.sort("date", "impression_id")
    assert examples.select(labels).equals(ordered.select(labels))
    assert not examples.drop("click_known_at", "conversion_known_at").null_count().sum_horizontal().item()


def test_a_test_day_changes_neither_the_encoder_nor_an_earlier_example(
    run: Featurized, simulated_source: Path, tmp_path: Path
) -> None:
    test = run.days.test[0]
    other = featurized(run.config, changed(simulated_source, tmp_path / "source", test), tmp_path / "workspace")
    assert (other.folder / "encoder.json").read_bytes() == (run.folder / "encoder.json").read_bytes()
    earlier = [*run.days.train, *run.days.validation]
    assert tables.digest(other.examples(*earlier)) == tables.digest(run.examples(*earlier))
    assert not other.examples(test).equals(run.examples(test))


def test_a_training_day_changes_the_encoder(run: Featurized, simulated_source: Path, tmp_path: Path) -> None:
    first = run.days.train[0]
    other = featurized(run.config, changed(simulated_source, tmp_path / "source", first), tmp_path / "workspace")
    assert load_encoder(other.folder / "encoder.json") != load_encoder(run.folder / "encoder.json")
    assert "elsewhere" in load_encoder(other.folder / "encoder.json").vocabularies["surface"].values


def test_featurize_again_gives_the_same_bytes(run: Featurized) -> None:
    days = run.days.all()
    before = (tables.digest(run.examples(*days)), (run.folder / "encoder.json").read_bytes())
    featurize(run.config, run.workspace, run.days)
    assert (tables.digest(run.examples(*days)), (run.folder / "encoder.json").read_bytes()) == before
    assert not (run.folder / "spill").exists()


def test_the_saved_state_gives_the_test_day_s_raw_features(run: Featurized) -> None:
    day = run.days.test[0]
    plan = plan_of(run.config)
    raw = pl.read_parquet(run.folder / f"raw-{day}.parquet")
    users = side_frame(run.workspace, "users", run.config.users)
    items = side_frame(run.workspace, "items", run.config.items)
    rows = raw.select(*KEPT, *plan.context)
    assert example_features(load_state(run.folder, day), rows, users, items, plan).equals(raw)
    assert load_state(run.folder, run.days.scored_for).as_of == day + dt.timedelta(days=1)


def test_a_state_that_was_not_written_is_named(run: Featurized) -> None:
    with pytest.raises(ValueError, match="state-2020-01-01 does not exist: run `counterpoise featurize` first"):
        load_state(run.folder, dt.date(2020, 1, 1))
