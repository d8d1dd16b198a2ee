"""Claims about the figures that an evaluation adds to its metrics, on a small run with two test days."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.ranker import load_ranker
from pipeline import tables
from pipeline.calibrate import calibrate
from pipeline.config import Config, load_config
from pipeline.evaluate import TASKS, evaluate
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.split import Days
from pipeline.train import train
from pipeline.workspace import Workspace, read_json

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TEST_DAYS = ["2026-01-04", "2026-01-05"]
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "split.train": ["2026-01-01", "2026-01-02"],
    "split.validation": ["2026-01-03", "2026-01-03"],
    "split.test": TEST_DAYS,
    "model.hidden": [8],
    "retriever.epochs": 1,
    "evaluation.ks": [5, 10],
    "evaluation.replicates": 20,
    "evaluation.importance_rows": 300,
    "evaluation.importance_repeats": 1,
}


@dataclass(frozen=True)
class Evaluated:
    """A run that was evaluated."""

    config: Config
    workspace: Workspace
    days: Days

    @property
    def file(self) -> Path:
        """Return evaluation.json."""
        return run_folder(self.config, self.workspace, self.days) / "evaluation" / "evaluation.json"

    @property
    def result(self) -> dict[str, Any]:
        """Return what it holds."""
        found: dict[str, Any] = read_json(self.file, "evaluate")
        return found


@pytest.fixture(scope="module")
def run(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    config = load_config(EXAMPLES / "simulated.toml", SETTINGS)
    workspace = Workspace(tmp_path_factory.mktemp("figures"))
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    train(config, workspace, days)
    calibrate(config, workspace, days)
    evaluate(config, workspace, days, simulated_source)
    return Evaluated(config, workspace, days)


def test_every_task_has_curves_of_its_own_space_and_the_file_stays_small(run: Evaluated) -> None:
    result, counts = run.result, run.result["counts"]
    rows = {
        "click": counts["impressions"],
        "click_and_conversion": counts["impressions"],
        "conversion": counts["clicks"],
    }
    for task in TASKS:
        assert sum(decile["rows"] for decile in result["curves"][task]["calibration"]) == rows[task]
        assert all(len(result["curves"][task][name]) <= 201 for name in ("roc", "precision_recall", "lift"))
    assert run.file.stat().st_size < 1 << 20


def test_each_test_day_has_its_calibration(run: Evaluated) -> None:
    assert [row["day"] for row in run.result["calibration_by_day"]["click"]] == TEST_DAYS


def test_the_values_of_a_segment_hold_every_test_impression_once(run: Evaluated) -> None:
    rows = pl.DataFrame([{key: row[key] for key in ("segment", "value", "rows")} for row in run.result["segments"]])
    sums = rows.group_by("segment").agg(pl.col("rows").sum())
    assert set(sums["segment"]) == {
        *("activity decile", "new users", "item popularity decile", "new items"),
        *(f"surface: {name}" for name in run.config.context.references()),
    }
    assert set(sums["rows"]) == {run.result["counts"]["impressions"]}
    assert rows.select("segment", "value").is_unique().all()


def test_every_feature_of_the_model_has_an_importance_for_every_task(run: Evaluated) -> None:
    spec = load_ranker(run.file.parent.parent / "model" / "ranker").spec
    for task in TASKS:
        names = {row["feature"] for row in run.result["importance"][task]}
        assert {*spec.single, *spec.pooled} <= names
        assert {f"{'_x_'.join(counter.keys)} counter" for counter in run.config.features.counters} <= names
        increases = [row["log_loss_increase"]["value"] for row in run.result["importance"][task]]
        assert increases == sorted(increases, reverse=True)


def test_recall_by_popularity_adds_up_to_the_recall_of_all_clicks(run: Evaluated) -> None:
    by_decile = run.result["retrieval_by_popularity"]
    for k, recall in run.result["retrieval"]["recall"]["click"].items():
        parts = sum(row["share"] * row["recall"][k]["value"] for row in by_decile)
        assert parts == pytest.approx(recall["value"])
    clicks = tables.scan(run.workspace.table("interactions")).filter(
        pl.col("click"), pl.col("date") == run.days.test[1]
    )
    pairs = clicks.select("user_id", "item_id").unique().collect().height
    assert sum(row["pairs"] for row in by_decile) == pairs


def test_exposure_is_drawn_with_the_coverage_and_gini_of_the_lists(run: Evaluated) -> None:
    exposure, lists = run.result["exposure"], run.result["lists"]
    assert (exposure["coverage"], exposure["gini"]) == (lists["coverage"], lists["gini"])
    assert exposure["lorenz"][0] == [0, 0]
    assert exposure["lorenz"][-1] == [1, 1]


def test_the_days_of_every_part_are_counted(run: Evaluated) -> None:
    days = run.result["data"]["days"]
    assert [day["part"] for day in days] == ["train", "train", "validation", "test", "test"]
    assert sum(day["clicks"] for day in days[3:]) == run.result["counts"]["clicks"]


def test_importance_can_be_switched_off(run: Evaluated, simulated_source: Path) -> None:
    config = load_config(EXAMPLES / "simulated.toml", {**SETTINGS, "evaluation.importance": False})
    other = Evaluated(config, run.workspace, run.days)
    shutil.copytree(run.file.parent.parent, run_folder(config, run.workspace, run.days))
    evaluate(config, run.workspace, run.days, simulated_source)
    assert set(run.result) - set(other.result) == {"importance"}
