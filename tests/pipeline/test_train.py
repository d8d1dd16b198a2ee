"""What train does with labels that may still change, and what evaluate says of them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from features.encoding import load_encoder
from pipeline.calibrate import calibrate
from pipeline.config import Config
from pipeline.dataset import Examples, ranker_spec, read_examples
from pipeline.evaluate import evaluate
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.fit import Fit, fit_of, fit_ranker
from pipeline.ingest import ingest
from pipeline.report import write_report
from pipeline.sections import Labels
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.train import train
from pipeline.workspace import Workspace


def _with_labels(config: Config, **labels: object) -> Config:
    changed = Labels.model_validate({**config.labels.model_dump(), **labels})
    training = config.training.model_copy(update={"epochs": 2, "learning_rate": 1e-2})
    retriever = config.retriever.model_copy(update={"epochs": 1})
    return config.model_copy(update={"labels": changed, "training": training, "retriever": retriever})


def _trained(config: Config, source: Path, root: Path) -> tuple[Outcome, dict[str, Any], Path]:
    workspace = Workspace(root)
    ingest(config, workspace, source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    outcome = train(config, workspace, days)
    folder = run_folder(config, workspace, days)
    return outcome, json.loads((folder / "model" / "training.json").read_text(encoding="utf-8")), folder


@pytest.fixture(scope="module")
def dropped(
    simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("drop") / "workspace"
    return _trained(_with_labels(simulated_config, immature="drop"), simulated_source, root)


def test_drop_records_what_it_leaves_out_and_selects_the_epoch_by_clicks_alone(
    dropped: tuple[Outcome, dict[str, Any], Path],
) -> None:
    outcome, record, _ = dropped
    labels = record["labels"]
    assert labels["immature"] == "drop"
    assert labels["epoch_selected_by"] == outcome.notes["epoch_selected_by"] == "click"
    for part, rows in (("training", 3 * 400), ("validation", 400)):
        for task in ("click", "click_and_conversion"):
            counts = labels[part][task]
            assert counts["rows"] + sum(counts["left_out"].values()) == rows
            assert counts["target_sum"] == counts["positives"]
    assert labels["validation"]["click_and_conversion"]["rows"] == 0
    left_out = labels["training"]["click_and_conversion"]["left_out"]
    assert 2 * 400 <= sum(left_out.values()) == outcome.notes["left_out_of_conversion_loss"] < 3 * 400
    for model in ("ranker", "logistic_regression"):
        for point in record[model]:
            assert point["validation"] == point["click"]
            assert "click_and_conversion" not in point


HALF_A_DAY = {"immature": "weight", "conversion_window": "12h", "min_known_share": 0.2}


@pytest.fixture(scope="module")
def weighted(
    simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("weight") / "workspace"
    return _trained(_with_labels(simulated_config, **HALF_A_DAY), simulated_source, root)


def test_weight_trains_on_the_days_that_drop_leaves_out(weighted: tuple[Outcome, dict[str, Any], Path]) -> None:
    outcome, record, _ = weighted
    labels = record["labels"]
    assert labels["delay_conversions"] >= 50
    assert labels["delay_quantiles_hours"]["0.1"] < labels["delay_quantiles_hours"]["0.9"]
    counts = labels["validation"]["click_and_conversion"]
    assert 0 < counts["rows"] < 400
    assert counts["positives"] < counts["target_sum"] < 5 * counts["positives"]
    assert outcome.notes["epoch_selected_by"] == "click + click_and_conversion"


def test_weight_without_enough_mature_conversions_stops_train(
    simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"labels\.immature = 'weight' fits the delay .* at least 50 expected"):
        _trained(_with_labels(simulated_config, immature="weight"), simulated_source, tmp_path)


def test_evaluate_tells_which_test_labels_may_still_change_after_the_last_event_received(
    weighted: tuple[Outcome, dict[str, Any], Path], simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    folder, config = weighted[2], _with_labels(simulated_config, **HALF_A_DAY)
    workspace, days = Workspace(folder.parent.parent), _days(config, folder)
    calibrate(config, workspace, days)
    evaluate(config, workspace, days, simulated_source)
    result = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    received = ("received_time", "click_received_time", "conversion_received_time")
    log = pl.read_parquet(simulated_source / "impressions" / "*.parquet")
    newest = log.select(pl.max_horizontal(pl.col(name).max() for name in received)).item()
    matures = pl.read_parquet(folder / "evaluation" / "predictions.parquet")["label_matures_at"]
    assert 0 < result["counts"]["immature"] == (matures > newest).sum() < 400
    assert result["counts"]["immature_until"] == str(matures.max())
    said = f"{result['counts']['immature']} of 400 test labels may still change until {matures.max()}"
    assert said in (folder / "evaluation" / "report.md").read_text(encoding="utf-8")
    result["counts"] |= {"immature": 0, "immature_until": None}
    write_report(tmp_path / "report.md", config, _days(config, folder), result)
    assert "may still change" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def _days(config: Config, folder: Path) -> Days:
    return days_of(config, Workspace(folder.parent.parent), None)


def _fit(
    config: Config, folder: Path, training: list[Examples], validation: list[Examples]
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    plan, encoder = plan_of(config), load_encoder(folder / "features" / "encoder.json")
    fit: Fit = fit_of(config)
    ranker, curve = fit_ranker(ranker_spec(config, plan, encoder, "linear", 1), fit, training, validation)
    return ranker.state_dict(), curve


def test_without_a_mature_validation_row_the_last_epoch_stays(
    dropped: tuple[Outcome, dict[str, Any], Path], simulated_config: Config
) -> None:
    _, _, folder = dropped
    workspace = Workspace(folder.parent.parent)
    config = _with_labels(simulated_config, immature="drop")
    days, plan = days_of(config, workspace, None), plan_of(config)
    spec = ranker_spec(config, plan, load_encoder(folder / "features" / "encoder.json"), "linear", 1)
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    mature = [read_examples(table, version, day, spec, None) for day in days.train]
    weights, curve = _fit(config, folder, mature, [])
    assert [set(point) for point in curve] == [{"training"}] * 2
    one_epoch = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})})
    first, _ = _fit(one_epoch, folder, mature, [])
    assert any(not torch.equal(weights[name], first[name]) for name in weights)
