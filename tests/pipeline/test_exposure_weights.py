"""Logged propensities: read with the impression, kept to training, and there the inverse weight of its losses."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.losses import Targets
from models.ranker import Ranker, RankerSpec, predict
from pipeline import tables
from pipeline.calibrate import calibrate, fit_calibration
from pipeline.config import Config
from pipeline.dataset import Examples, examples_from
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.fit import fit_of, fit_ranker, loss_weights, validation_losses
from pipeline.ingest import ingest
from pipeline.maturity import Maturity, exposure_weights
from pipeline.objective import step_losses
from pipeline.register import register
from pipeline.scoring import load_run_bundle
from pipeline.source_record import contract_record
from pipeline.study_data import Study
from pipeline.train import train
from pipeline.workspace import Workspace, read_json

CLIP = 5.0
CUTOFF = dt.datetime(2026, 1, 9, tzinfo=dt.UTC)
SPEC = RankerSpec(
    body="linear",
    categorical_cardinalities={"group": 5},
    numeric=[],
    bins=4,
    pooled={},
    single=["group"],
    context=[],
    context_numeric=[],
)


def _maturity(clip: float | None) -> Maturity:
    return Maturity(
        immature="keep",
        cutoff=CUTOFF,
        conversion_window=dt.timedelta(0),
        min_known_share=0.1,
        delays_us=np.zeros(0, np.int64),
        propensity_clip=clip,
    )


def test_weights_are_clipped_inverse_propensities_that_sum_to_the_rows() -> None:
    found = exposure_weights(pl.Series([1.0, 0.5, 0.01, None]), CLIP)
    np.testing.assert_allclose(found, np.array([1, 2, 5, 1]) * 4 / 9, rtol=1e-6)
    assert exposure_weights(pl.Series([], dtype=pl.Float64), CLIP).tolist() == []


def test_the_rows_of_each_block_sum_to_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 3)
    found = exposure_weights(pl.Series([1.0, 0.5, 0.25, 0.25, 0.5]), CLIP)
    np.testing.assert_allclose(found, [3 / 7, 6 / 7, 12 / 7, 4 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("loss", ["esmm", "click_only", "dcmt"])
def test_the_gradient_is_the_weighted_sum_of_those_of_single_impressions(loss: str, small_study: Study) -> None:
    changed = small_study.config.training.model_copy(update={"conversion_loss": loss, "self_normalised": False})
    study = replace(small_study, config=small_study.config.model_copy(update={"training": changed}))
    spec, fit = study.spec("mmoe", 1), fit_of(study.config)
    weights, day = loss_weights(spec, fit, {}), study.training[0]
    rows = torch.arange(40)
    inverse = exposure_weights(pl.Series(np.random.default_rng(0).uniform(0.05, 1, 40)), CLIP)

    def gradient(chosen: torch.Tensor, weight: NDArray[np.float32] | None) -> torch.Tensor:
        ranker = Ranker(spec).train()
        targets = day.supervision.targets.select(chosen, torch.device("cpu"))
        targets = replace(targets, conversion_mask_B=torch.ones(len(chosen)), click_mask_B=torch.ones(len(chosen)))
        if weight is not None:
            weighed = torch.from_numpy(weight)
            targets = replace(targets, click_mask_B=weighed, conversion_mask_B=weighed)
        losses, _ = step_losses(ranker, fit.propensity, (day.features.slice(chosen), targets), weights)
        torch.stack(list(losses.values())).sum().backward()
        parts = [parameter.grad for parameter in ranker.parameters() if parameter.grad is not None]
        return torch.cat([part.to_dense().flatten() for part in parts])

    naive = sum(float(weight) * gradient(rows[n : n + 1], None) for n, weight in enumerate(inverse)) / len(rows)
    assert isinstance(naive, torch.Tensor)
    torch.testing.assert_close(gradient(rows, inverse), naive, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient(rows, None), naive, rtol=1e-2, atol=1e-4)


def _shown(rows: int, seed: int, *, uniform: bool) -> pl.DataFrame:
    """Return impressions of a policy that favours good items, or of none; the model does not see which are good.

    Items lie in two groups, half of each is good: clicked with 0.5 or 0.6 and converted with 0.4, the others with 0.1
    or 0.2, and 0.1. The policy shows 9 good ones in 10.
    """
    generator = np.random.default_rng(seed)
    group, good = generator.integers(3, 5, rows), generator.random(rows) < (0.5 if uniform else 0.9)
    click = generator.random(rows) < np.where(good, 0.5, 0.1) + 0.1 * (group == 4)
    conversion = click & (generator.random(rows) < np.where(good, 0.4, 0.1))
    time = pl.Series(np.arange(rows)).cast(pl.Duration("us")) + (CUTOFF - dt.timedelta(days=2))
    return pl.DataFrame(
        {
            "event_time": time,
            "received_time": time,
            "label_matures_at": time,
            "impression_id": pl.Series(np.arange(rows)).cast(pl.String),
            "user_id": "u",
            "item_id": "i",
            "click": click,
            "conversion": conversion,
            "propensity": np.where(good, 0.9, 0.1),
            "group_code": group,
        }
    ).with_columns(
        pl.when(label).then(pl.col("event_time")).alias(f"{label}_known_at") for label in ("click", "conversion")
    )


def test_weighting_brings_back_the_rates_that_a_biased_policy_hides(make_config: Callable[..., Config]) -> None:
    settings = {"epochs": 3, "batch_size": 256, "learning_rate": 0.01, "embedding_learning_rate": 0.01}
    fit = fit_of(make_config(training=settings))
    every_pair = examples_from(_shown(20_000, 3, uniform=True), SPEC, _maturity(None))
    errors = {}
    for clip in (None, 20.0):
        training, validation = (
            examples_from(_shown(20_000, seed, uniform=False), SPEC, _maturity(clip)) for seed in (1, 2)
        )
        ranker, curve = fit_ranker(SPEC, fit, [training], [validation])
        pcoc = _pcoc(ranker, every_pair)
        errors[clip] = pcoc
        # calibration on the same policy's impressions must not take the correction back
        calibration = fit_calibration(ranker, [validation], "platt", 20)
        own = predict(ranker, every_pair.features, 4096)
        calibrated = calibration.apply(own, SPEC)[:, 0].sum() / every_pair.clicks.sum().item()
        assert calibrated == pytest.approx(pcoc[0], abs=0.06)
        assert curve[-1]["click"] == pytest.approx(validation_losses(ranker, [validation])["click"], rel=0.05)
    assert min(errors[None]) > 1.3
    np.testing.assert_allclose(errors[20.0], 1, atol=0.06)


def _pcoc(ranker: Ranker, day: Examples) -> tuple[float, float]:
    """Return predicted over observed clicks, and clicks with a conversion."""
    predicted = predict(ranker, day.features, 4096).sum(axis=0)
    both = (day.clicks * day.conversions).sum().item()
    return float(predicted[0] / day.clicks.sum().item()), float(predicted[2] / both)


def test_the_validation_loss_weighs_impressions_as_training_does(small_study: Study) -> None:
    ranker, day = Ranker(small_study.spec("linear", 1)).eval(), small_study.training[0]
    targets, ones = day.supervision.targets, torch.ones(len(day.clicks))
    weights = torch.linspace(0.5, 2, len(day.clicks))

    def loss(mask: torch.Tensor, rows: slice = slice(None)) -> float:
        told = Targets(targets.clicks_B[rows], targets.conversions_B[rows], mask[rows], mask[rows], dict(targets.extra))
        supervision = replace(day.supervision, targets=told)
        part = Examples(day.features.slice(rows), day.clicks[rows], day.conversions[rows], day.frame[rows], supervision)
        return validation_losses(ranker, [part])["click"]

    single = [loss(ones, slice(n, n + 1)) for n in range(50)]
    head = slice(0, 50)
    expected = np.average(single, weights=weights[head])
    assert loss(weights, head) == pytest.approx(expected, rel=1e-6)
    assert loss(ones, head) == pytest.approx(np.mean(single), rel=1e-6)


@pytest.fixture(scope="module")
def weighed_source(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small simulated log with a propensity, lower for later positions, unknown on the first."""
    source = tmp_path_factory.mktemp("weighed")
    for path in simulated_source.rglob("*"):
        if path.is_file():
            copy = source / path.relative_to(simulated_source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for path in (source / "impressions").glob("*.parquet"):
        place = pl.col("position").cast(pl.Int64)
        pl.read_parquet(path).with_columns(shown_with=pl.when(place > 1).then(1 / place)).write_parquet(path)
    return source


def _weighed(config: Config, clip: float | None) -> Config:
    columns = config.source.columns.model_copy(update={"propensity": "shown_with"})
    training = config.training.model_copy(update={"propensity_clip": clip})
    source = config.source.model_copy(update={"columns": columns})
    evaluation = config.evaluation.model_copy(update={"importance": False, "replicates": 20})
    return config.model_copy(update={"source": source, "training": training, "evaluation": evaluation})


@pytest.fixture(scope="module")
def weighed_workspace(
    simulated_config: Config, weighed_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    workspace, config = Workspace(tmp_path_factory.mktemp("workspace")), _weighed(simulated_config, CLIP)
    ingest(config, workspace, weighed_source)
    featurize(config, workspace, days_of(config, workspace, None))
    return workspace


def test_a_propensity_comes_with_its_impression_to_the_examples_and_is_no_feature(
    simulated_config: Config, weighed_workspace: Workspace
) -> None:
    config = _weighed(simulated_config, CLIP)
    days = days_of(config, weighed_workspace, None)
    interactions = tables.scan(weighed_workspace.table("interactions")).collect()
    place = interactions["position"].cast(pl.Int64)
    expected = pl.select(pl.when(place > 1).then(1 / place)).to_series()
    assert interactions["propensity"].equals(expected)
    version = table_versions(run_folder(config, weighed_workspace, days))["examples"]
    examples = tables.scan(weighed_workspace.table("examples"), version).collect()
    both = examples.select("impression_id", "propensity").join(interactions, on="impression_id")
    assert both.height == examples.height
    assert both["propensity"].equals(both["propensity_right"])
    assert not [name for name in examples.columns if name.startswith("propensity") and name != "propensity"]


def test_a_run_trains_calibrates_and_is_gated_on_weighted_impressions(
    simulated_config: Config, weighed_source: Path, weighed_workspace: Workspace
) -> None:
    config = _weighed(simulated_config, CLIP)
    days = days_of(config, weighed_workspace, None)
    train(config, weighed_workspace, days)
    assert calibrate(config, weighed_workspace, days).rows_in > 300
    evaluate(config, weighed_workspace, days, weighed_source)
    register(config, weighed_workspace, days)
    folder = run_folder(config, weighed_workspace, days)
    assert read_json(folder / "register.json", "register")["version"] == "1"
    weighed = load_run_bundle(folder).ranker
    alike = _weighed(simulated_config, None)
    featurize(alike, weighed_workspace, days)
    train(alike, weighed_workspace, days)
    calibrate(alike, weighed_workspace, days)
    unweighed = load_run_bundle(run_folder(alike, weighed_workspace, days)).ranker
    assert not torch.equal(weighed.state_dict()["bias_T"], unweighed.state_dict()["bias_T"])


def test_rows_whose_propensity_is_no_probability_are_quarantined(
    make_config: Callable[..., Config], write_log: Callable[..., Path], log_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    given = ["0.5", "", "1", "0", "-0.1", "1.2", "high", "1e-3", "0.5", "0.5", "0.5", "0.5"]
    rows = [row | {"shown_with": value} for row, value in zip(log_rows, given, strict=True)]
    config = make_config(source={"columns": {"propensity": "shown_with"}, "max_quarantine_share": 1})
    workspace = Workspace(tmp_path / "workspace")
    ingest(config, workspace, write_log("log.csv", rows))
    found = tables.scan(workspace.table("interactions")).collect().sort("event_time")
    assert found["propensity"].to_list()[:4] == [0.5, None, 1.0, 0.001]
    reasons = tables.scan(workspace.table("quarantine")).collect()["reason"].to_list()
    assert reasons == ["propensity is no probability above 0"] * 4


def test_a_clip_without_a_column_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValidationError, match=r"training.propensity_clip = 3.0 needs source.columns.propensity"):
        make_config(training={"propensity_clip": 3.0})
    with pytest.raises(ValidationError, match=r"propensity_clip\n.*greater than or equal to 1"):
        make_config(training={"propensity_clip": 0.5})


def test_the_contract_of_tables_without_a_propensity_stays_what_it_was(make_config: Callable[..., Config]) -> None:
    without = contract_record(make_config())
    assert "propensity" not in without["source"]["columns"]
    declared = contract_record(make_config(source={"columns": {"propensity": "p"}}))
    assert declared["source"]["columns"]["propensity"] == "p"
