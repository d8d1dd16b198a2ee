"""Claims about the stage calibrate: what it fits, what it leaves alone, and that all that leaves a model has it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.calibration import CALIBRATION_FILE, log_odds
from models.losses import Targets
from models.ranker import predict
from pipeline.calibrate import calibrate, fit_calibration, observe
from pipeline.config import Config, load_config
from pipeline.dataset import Examples, read_examples
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, run_folder, table_versions
from pipeline.maturity import Supervision
from pipeline.register import register
from pipeline.run import run, run_digest
from pipeline.scoring import load_run_bundle
from pipeline.study_data import load_study
from pipeline.workspace import Workspace

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [8],
    "training.control": False,
    "training.batch_size": 128,
    "retriever.epochs": 1,
    "evaluation.ks": [5, 10],
    "evaluation.replicates": 20,
    "evaluation.importance": False,
    "calibration.min_positives": 10,
    "gate.pcoc": (0.01, 100.0),  # the model of a world this small need not be good
    "gate.tolerance": {"log_loss": 9.0, "gauc": 1.0, "recall": 1.0, "coverage": 1.0},
    "gate.blocking_alarms": [],
}


def configured(**calibration: Any) -> Config:
    """Return the small configuration with keys of [calibration] changed."""
    changed = {f"calibration.{name}": value for name, value in calibration.items()}
    return load_config(EXAMPLES / "simulated.toml", {**SETTINGS, **changed})


@pytest.fixture(scope="module")
def workspace(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace where a run with platt has ended."""
    place = Workspace(tmp_path_factory.mktemp("calibrate") / "workspace")
    run(configured(), place, simulated_source)
    return place


@pytest.fixture
def trained(workspace: Workspace, tmp_path: Path) -> Callable[[Config], Path]:
    """Return what copies the workspace, gives another configuration the trained model, and returns its run's folder."""

    def copy(config: Config) -> Path:
        place = Workspace(Path(shutil.copytree(workspace.root, tmp_path / "workspace")))
        folder = _folder(config, place)
        if not folder.exists():
            shutil.copytree(_folder(configured(), place), folder)
        (folder / "model" / CALIBRATION_FILE).unlink()
        return folder

    return copy


def _folder(config: Config, workspace: Workspace) -> Path:
    return run_folder(config, workspace, days_of(config, workspace, None))


def _calibrated(config: Config, folder: Path) -> dict[str, Any]:
    place = Workspace(folder.parent.parent)
    return dict(calibrate(config, place, days_of(config, place, None)).notes)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _validation(folder: Path) -> Examples:
    """Return the validation day with the labels that were known at the cutoff."""
    (day,) = load_study(configured(), Workspace(folder.parent.parent), run=folder.name).validation
    return day


def test_on_the_validation_day_platt_predicts_as_many_clicks_and_conversions_as_came(workspace: Workspace) -> None:
    folder = _folder(configured(), workspace)
    bundle, day = load_run_bundle(folder), _validation(folder)
    targets = day.supervision.targets
    clicks, conversions = targets.clicks_B.numpy(), targets.conversions_B.numpy()
    own, made = predict(bundle.ranker, day.features, 1000), bundle.predict(day.features, 1000)
    assert made[:, 0].sum() == pytest.approx(clicks.sum(), rel=1e-3)
    assert made[clicks > 0, 1].sum() == pytest.approx(conversions.sum(), rel=1e-3)
    fitted = _read(folder / "model" / CALIBRATION_FILE)["fitted_on"]
    assert fitted["click"] == {
        "rows": 400,
        "positives": clicks.sum(),
        "pcoc": pytest.approx(own[:, 0].sum() / clicks.sum(), rel=1e-4),
    }
    assert (fitted["conversion"]["rows"], fitted["conversion"]["positives"]) == (clicks.sum(), conversions.sum())
    assert abs(fitted["click"]["pcoc"] - 1) > 2e-3


def test_everything_that_leaves_the_model_is_calibrated(workspace: Workspace) -> None:
    config, folder = configured(), _folder(configured(), workspace)
    days, bundle = days_of(config, workspace, None), load_run_bundle(folder)
    version = table_versions(folder)["examples"]
    day = read_examples(workspace.table("examples"), version, days.test[0], bundle.ranker.spec, None)
    expected = bundle.calibration.apply(predict(bundle.ranker, day.features, 1000), bundle.ranker.spec)
    made = pl.read_parquet(folder / "evaluation" / "predictions.parquet")
    assert made["impression_id"].equals(day.frame["impression_id"])
    for column, name in enumerate(bundle.ranker.spec.outputs()):
        np.testing.assert_array_equal(made[name].to_numpy(), expected[:, column])
    np.testing.assert_array_equal(expected[:, 2], expected[:, 0] * expected[:, 1])
    evaluation = _read(folder / "evaluation" / "evaluation.json")
    measured = evaluation["tasks"]["click_and_conversion"]["log_loss"]["value"]
    converted, both = day.conversions.numpy() > 0, expected[:, 2].astype(np.float64)
    assert measured == pytest.approx(-np.where(converted, np.log(both), np.log1p(-both)).mean(), rel=1e-6)
    assert evaluation["baselines"]["uncalibrated"]["tasks"]["click_and_conversion"]["log_loss"]["value"] != measured


def test_the_registered_model_and_the_digest_of_a_run_hold_the_calibration(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = _folder(configured(), workspace)
    own = (folder / "model" / CALIBRATION_FILE).read_bytes()
    assert [path.read_bytes() for path in (workspace.root / "mlartifacts").rglob(CALIBRATION_FILE)] == [own]
    copy, days = (
        Workspace(Path(shutil.copytree(workspace.root, tmp_path / "copy"))),
        days_of(configured(), workspace, None),
    )
    folder = _folder(configured(), copy)
    assert run_digest(copy, folder, days) == _read(folder / "summary.json")["digest"]
    (folder / "model" / CALIBRATION_FILE).write_bytes(own.replace(b'"slope": ', b'"slope": 1'))
    assert run_digest(copy, folder, days) != _read(folder / "summary.json")["digest"]


def test_isotonic_keeps_the_order_and_nearly_sums_to_the_clicks(trained: Callable[[Config], Path]) -> None:
    config = configured(method="isotonic")
    folder = trained(config)
    assert _calibrated(config, folder)["click"].endswith("knots")
    bundle, day = load_run_bundle(folder), _validation(folder)
    own, made = predict(bundle.ranker, day.features, 1000)[:, 0], bundle.predict(day.features, 1000)
    assert (np.diff(made[np.argsort(own), 0]) >= 0).all()
    assert made[:, 0].sum() == pytest.approx(float(day.clicks.sum()), rel=0.05)
    np.testing.assert_array_equal(made[:, 2], made[:, 0] * made[:, 1])


def test_none_measures_and_serves_the_models_own_probabilities(
    trained: Callable[[Config], Path], simulated_source: Path
) -> None:
    config = configured(method="none")
    folder = trained(config)
    assert _calibrated(config, folder) == {"method": "none"}
    place = Workspace(folder.parent.parent)
    evaluate(config, place, days_of(config, place, None), simulated_source)
    result = _read(folder / "evaluation" / "evaluation.json")
    assert result["baselines"]["uncalibrated"]["tasks"] == result["tasks"]


def test_a_task_with_few_positives_is_left_as_it_is_and_says_why(trained: Callable[[Config], Path]) -> None:
    config = configured(min_positives=50)
    folder = trained(config)
    notes = _calibrated(config, folder)
    assert notes["click"].startswith("slope ")
    assert notes["conversion"].startswith("left as it is (")
    assert notes["conversion"].endswith(" negatives, fewer than 50 of one of them)")
    record = _read(folder / "model" / CALIBRATION_FILE)
    assert set(record["curves"]) == {"click"}
    assert set(record["left_out"]) == {"conversion"}
    bundle, day = load_run_bundle(folder), _validation(folder)
    own, made = predict(bundle.ranker, day.features, 1000), bundle.predict(day.features, 1000)
    np.testing.assert_array_equal(made[:, 1], own[:, 1])
    assert not np.array_equal(made[:, 0], own[:, 0])


def test_a_model_that_was_not_calibrated_is_neither_measured_nor_registered(
    trained: Callable[[Config], Path], simulated_source: Path
) -> None:
    folder = trained(configured())
    place = Workspace(folder.parent.parent)
    days = days_of(configured(), place, None)
    with pytest.raises(ValueError, match=r"calibration\.json does not exist: run `counterpoise calibrate` first"):
        evaluate(configured(), place, days, simulated_source)
    with pytest.raises(ValueError, match=r"calibration\.json does not exist: run `counterpoise calibrate` first"):
        register(configured(), place, days)


def test_calibrate_before_train_names_train(trained: Callable[[Config], Path]) -> None:
    folder = trained(configured())
    shutil.rmtree(folder / "model")
    with pytest.raises(ValueError, match=r"training\.json does not exist: run `counterpoise train` first"):
        _calibrated(configured(), folder)


def _supervised(day: Examples, **changed: torch.Tensor) -> Examples:
    return replace(day, supervision=Supervision(replace(day.supervision.targets, **changed), {}))


def test_a_task_that_is_ordered_backwards_is_left_as_it_is(workspace: Workspace) -> None:
    folder = _folder(configured(), workspace)
    ranker, day = load_run_bundle(folder).ranker, _validation(folder)
    for weight in ranker.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(0))
    clicks = torch.from_numpy(predict(ranker, day.features, 1000)[:, 0])
    least_likely = _supervised(day, clicks_B=(clicks < clicks.quantile(0.2)).float())
    made = fit_calibration(ranker, [least_likely], "platt", 10)
    assert "click" not in made.curves
    assert made.left_out["click"].startswith("the validation days order it backwards (slope -")
    least_likely = _supervised(day, clicks_B=(clicks < clicks.median()).float())
    made = fit_calibration(ranker, [least_likely], "isotonic", 10)
    assert made.left_out["click"] == "the validation days order it backwards, or by chance (one block)"


def test_delays_that_correct_every_click_to_a_conversion_leave_the_task_as_it_is(workspace: Workspace) -> None:
    folder = _folder(configured(), workspace)
    ranker, day = load_run_bundle(folder).ranker, _validation(folder)
    early = torch.zeros_like(day.clicks)
    early[day.clicks.nonzero().flatten()[::2]] = 2.5
    made = fit_calibration(ranker, [_supervised(day, conversions_B=early)], "platt", 10)
    assert made.left_out["conversion"] == "corrected for their delay, positives are as many as their rows"


def test_rows_that_train_nothing_calibrate_nothing(workspace: Workspace) -> None:
    folder = _folder(configured(), workspace)
    ranker, day = load_run_bundle(folder).ranker, _validation(folder)
    half = (torch.arange(len(day.clicks)) % 2).float()
    found = observe(
        predict(ranker, day.features, 1000),
        _supervised(day, click_mask_B=half, conversion_mask_B=torch.zeros_like(half)).supervision.targets,
        ranker.spec,
    )
    assert len(found["click"].logits) == half.sum()
    assert len(found["conversion"].logits) == 0
    made = fit_calibration(ranker, [_supervised(day, conversion_mask_B=torch.zeros_like(half))], "isotonic", 10)
    assert made.left_out == {"conversion": "0 positives and 0 negatives, fewer than 10 of one of them"}


def test_a_further_task_is_observed_within_its_space_as_often_as_that_counts(workspace: Workspace) -> None:
    spec = load_run_bundle(_folder(configured(), workspace)).ranker.spec
    spec = replace(spec, binary_tasks={"like": "click", "keep": "conversion"})
    clicks, conversions = torch.tensor([1.0, 1, 0, 1]), torch.tensor([2.0, 0, 0, 1])
    ones = torch.ones(4)
    extra = {
        "like": (torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 1, 1, 0])),
        "keep": (torch.tensor([2.0, 0, 0, 0]), ones),
    }
    given = np.tile(np.array([0.5, 0.4, 0.2, 0.3, 0.05], dtype=np.float32), (4, 1))
    found = observe(given, Targets(clicks, conversions, ones, ones, extra), spec)
    assert found["like"].positives.tolist() == [1, 0]
    assert found["like"].trials.tolist() == [1, 1]
    np.testing.assert_allclose(found["like"].logits, log_odds(np.array([0.6, 0.6])), rtol=1e-6)
    assert found["keep"].positives.tolist() == [2, 0]
    assert found["keep"].trials.tolist() == [2, 1]
    np.testing.assert_allclose(found["keep"].logits, log_odds(np.array([0.25, 0.25])), rtol=1e-6)
