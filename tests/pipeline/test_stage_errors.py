"""What stops a stage after ingest, and what its message says to do."""

import datetime as dt
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encoding import load_encoder
from pipeline import serve_lists, tables, tracking
from pipeline.calibrate import calibrate
from pipeline.check import check
from pipeline.config import Config
from pipeline.dataset import device_of
from pipeline.evaluate import evaluate
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.scoring import load_day
from pipeline.split import Days
from pipeline.states import load_state
from pipeline.train import train
from pipeline.workspace import Workspace, read_json, replaced_folder, write_json


@pytest.fixture(scope="module")
def featurized(simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("stages"))
    ingest(simulated_config, place, simulated_source)
    featurize(simulated_config, place, days_of(simulated_config, place, None))
    return place


@pytest.fixture(scope="module")
def trained(simulated_config: Config, featurized: Workspace) -> Workspace:
    days = days_of(simulated_config, featurized, None)
    train(simulated_config, featurized, days)
    calibrate(simulated_config, featurized, days)
    return featurized


@pytest.fixture
def days(simulated_config: Config, featurized: Workspace) -> Days:
    return days_of(simulated_config, featurized, None)


def _with_labels(workspace: Workspace, target: Path, label: str) -> Workspace:
    place = Workspace(Path(shutil.copytree(workspace.root, target)))
    table = place.table("examples")
    rows = tables.scan(table).collect().with_columns(pl.lit(value=False).alias(label))
    tables.write_days(table, [rows], tables.days(table), note={})
    for versions in place.root.glob("runs/*/features/versions.json"):
        write_json(versions, {**read_json(versions, "featurize"), "examples": tables.version(table)})
    return place


def test_training_days_of_one_class_are_refused(
    simulated_config: Config, featurized: Workspace, days: Days, tmp_path: Path
) -> None:
    place = _with_labels(featurized, tmp_path / "copy", "conversion")
    with pytest.raises(ValueError, match=r"training days .* hold 0 conversions in \d+ rows: both classes are needed"):
        train(simulated_config, place, days)


def test_test_days_of_one_class_are_refused(
    simulated_config: Config, simulated_source: Path, trained: Workspace, days: Days, tmp_path: Path
) -> None:
    place = _with_labels(trained, tmp_path / "copy", "conversion")
    with pytest.raises(ValueError, match="no positive label"):
        evaluate(simulated_config, place, days, simulated_source)


def test_a_truth_of_another_source_is_refused(
    simulated_config: Config, simulated_source: Path, trained: Workspace, days: Days, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(simulated_source, tmp_path / "source"))
    pl.read_parquet(source / "truth.parquet").head(10).write_parquet(source / "truth.parquet")
    with pytest.raises(ValueError, match=r"truth\.parquet lacks \d+ test impressions: is it of this source"):
        evaluate(simulated_config, trained, days, source)


def test_a_missing_world_is_named(
    simulated_config: Config, simulated_source: Path, trained: Workspace, days: Days, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(simulated_source, tmp_path / "source"))
    (source / "world.safetensors").unlink()
    with pytest.raises(ValueError, match=r"world\.safetensors does not exist: simulate again"):
        evaluate(simulated_config, trained, days, source)


def nearly_clicked(seed: int) -> pl.Expr:
    """Return the click, wrong on 3 % of the rows: one such column passes for honest, two together do not."""
    return pl.col("click") ^ (pl.col("impression_id").hash(seed) % 1000 < 30)


def test_features_that_hold_the_label_together_raise_an_alarm(
    simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(simulated_source, tmp_path / "source"))
    for path in (source / "impressions").glob("*.parquet"):
        rows = pl.read_parquet(path).with_columns(
            pl.when(nearly_clicked(1)).then(pl.lit("home")).otherwise(pl.lit("feed")).alias("surface"),
            pl.when(nearly_clicked(2)).then(1).otherwise(2).alias("position"),
        )
        rows.write_parquet(path)
    place = Workspace(tmp_path / "workspace")
    training = simulated_config.training.model_copy(
        update={"epochs": 8, "batch_size": 64, "learning_rate": 1e-2, "embedding_learning_rate": 1e-2}
    )
    config = simulated_config.model_copy(update={"training": training})
    ingest(config, place, source)
    days = days_of(config, place, None)
    featurize(config, place, days)
    train(config, place, days)
    calibrate(config, place, days)
    with pytest.raises(ValueError, match=r"test AUC of click is .*, above 0\.99: a feature holds the label"):
        evaluate(config, place, days, source)


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"training\.device = 'cuda' but no GPU is visible"):
        device_of("cuda")
    assert device_of("auto").type == "cpu"


def test_a_state_of_another_day_is_not_there(simulated_config: Config, featurized: Workspace, days: Days) -> None:
    folder = run_folder(simulated_config, featurized, days) / "features"
    with pytest.raises(ValueError, match="run `counterpoise featurize` first"):
        load_state(folder, dt.date(2030, 1, 1))


def test_a_day_without_available_items_is_told(
    simulated_config: Config, trained: Workspace, days: Days, tmp_path: Path
) -> None:
    place = Workspace(Path(shutil.copytree(trained.root, tmp_path / "copy")))
    items = tables.scan(place.table("items")).collect()
    late = items.with_columns(pl.lit(dt.date(2040, 1, 1)).alias("available_from"))
    tables.write_all(place.table("items"), late, {})
    folder = run_folder(simulated_config, place, days)
    with pytest.raises(ValueError, match="no item is available on"):
        load_day(
            simulated_config,
            place,
            folder / "features",
            days.test[0],
            load_encoder(folder / "model" / "encoder.json"),
        )


def test_lists_need_a_champion(simulated_config: Config, trained: Workspace, days: Days) -> None:
    told = r"no version of 'counterpoise' is champion: run `counterpoise register` .* `counterpoise promote VERSION"
    with pytest.raises(ValueError, match=told):
        serve_lists.retrieve(simulated_config, trained, days)


def test_a_tracking_store_that_does_not_answer_is_named(
    simulated_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    unreachable = simulated_config.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})
    config = simulated_config.model_copy(update={"tracking": unreachable})
    with pytest.raises(ValueError, match=r"tracking store http://127\.0\.0\.1:9 does not answer"):
        tracking.connect(config, Workspace(tmp_path))


def test_a_tracking_database_that_is_none_is_named(simulated_config: Config, tmp_path: Path) -> None:
    (tmp_path / "none.db").write_bytes(b"no database" * 1000)
    broken = simulated_config.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path / 'none.db'}"})
    config = simulated_config.model_copy(update={"tracking": broken})
    with pytest.raises(
        ValueError, match=r"(?s)tracking store sqlite:.*none.db does not answer: .*; correct tracking.uri"
    ):
        tracking.connect(config, Workspace(tmp_path))


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `counterpoise evaluate` first"):
        read_json(tmp_path / "evaluation.json", "evaluate")


def _break_off(folder: Path) -> None:
    with replaced_folder(folder) as draft:
        write_json(draft / "two.json", [2])
        raise RuntimeError("broken off")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replaced_folder(folder) as draft:
        write_json(draft / "one.json", [1])
    with pytest.raises(RuntimeError, match="broken off"):
        _break_off(folder)
    assert [path.name for path in folder.iterdir()] == ["one.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with replaced_folder(folder) as draft:
        write_json(draft / "two.json", [2])
    assert [path.name for path in folder.iterdir()] == ["two.json"]


def test_check_reports_rows_rates_and_side_tables(simulated_config: Config, simulated_source: Path) -> None:
    log = pl.read_parquet(simulated_source / "impressions" / "*.parquet")
    printed = "\n".join(check(simulated_config, simulated_source))
    assert f"interactions: {log.height:,} rows on 5 days" in printed
    assert f"click rate {log['click'].mean():.4f}" in printed
    assert "users: 60 rows" in printed
    assert "item_ids in the log without a row in the side table: 0" in printed


def test_the_reference_context_changes_the_bias_alone(simulated_config: Config) -> None:
    plan = plan_of(simulated_config)
    assert simulated_config.context.references() == {"position": "1", "surface": "home", "hour": "20"}
    assert not set(plan.context) & {*plan.user_columns(), *plan.item_columns(), *plan.pair_columns()}
    assert np.all([name in plan.categorical() for name in plan.context])
