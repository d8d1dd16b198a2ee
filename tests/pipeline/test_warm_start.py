"""Claims about runs that begin from the champion: what they take over, and what they add."""

import datetime as dt
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from features.encoding import Encoder, Vocabulary, encode, load_encoder
from models.ranker import Ranker, load_ranker, predict
from models.retriever import load_retriever
from pipeline import registry, tables, tracking
from pipeline.__main__ import app
from pipeline.config import Config, load_config
from pipeline.dataset import tensors
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.train import train
from pipeline.warm_start import known_ids, read_beginnings
from pipeline.workspace import Workspace, read_json

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
STAGES = ("ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "run")
SMALL = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [8],
    "retriever.epochs": 1,
    "features.min_count": 4,
    "labels.immature": "keep",  # the source is shorter than the conversion window
}
# So small a step that no weight moves: what comes out is what training began from.
STILL = {
    "training.learning_rate": 1e-30,
    "training.embedding_learning_rate": 1e-30,
    "training.baseline_learning_rate": 1e-30,
    "retriever.learning_rate": 1e-30,
    "retriever.embedding_learning_rate": 1e-30,
}


def settings(**changes: object) -> Config:
    return load_config(EXAMPLE, {**SMALL, **changes})


@dataclass(frozen=True)
class Runs:
    """A workspace with a champion of the day before and a run of the last day that began from it."""

    workspace: Workspace
    base: Path
    warm: Path
    config: Config


def made(config: Config, workspace: Workspace, date: dt.date) -> Path:
    """Featurize and train for a day and return the run's folder."""
    days = days_of(config, workspace, date)
    featurize(config, workspace, days)
    train(config, workspace, days)
    return run_folder(config, workspace, days)


@pytest.fixture(scope="module")
def runs(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    workspace, config = Workspace(tmp_path_factory.mktemp("warm")), settings()
    ingest(config, workspace, simulated_source)
    last = tables.days(workspace.table("interactions"))[-1]
    base = made(config, workspace, last - dt.timedelta(days=1))
    client = tracking.connect(config, workspace)
    model = base / "model"
    sign = tracking.signature(load_ranker(model / "ranker").spec, load_encoder(model / "encoder.json"))
    version = tracking.log_version(config, model=model, sign=sign, metrics={}, record={"run": base.name}, files=[])
    registry.set_alias(config, client, tracking.CHAMPION, version)
    warm = settings(**STILL, **{"training.warm_start": True})
    return Runs(workspace, base, made(warm, workspace, last), warm)


def test_the_run_records_the_champion_and_counts_known_and_new_ids(runs: Runs) -> None:
    record = read_json(runs.warm / "model" / "training.json", "train")["warm_start"]
    base, warm = (load_encoder(folder / "model" / "encoder.json").vocabularies for folder in (runs.base, runs.warm))
    assert record["base_version"] == "1"
    assert record["known_ids"] == {name: len(held.ids) for name, held in base.items()}
    assert record["new_ids"] == {name: len(held.ids) - len(base[name].ids) for name, held in warm.items()}
    assert record["new_ids"]["user_id"] > 0
    assert read_json(runs.base / "model" / "training.json", "train")["warm_start"] is None


def predictions(folder: Path, model: str, raw: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    ranker = load_ranker(folder / "model" / model)
    codes = encode(raw, load_encoder(folder / "model" / "encoder.json"))
    spec = ranker.spec
    features = tensors(codes, single=spec.single, numeric=spec.numeric, pooled=list(spec.pooled))
    return codes, predict(ranker, features, 256)


@pytest.mark.parametrize("model", ["ranker", "logistic_regression"])
def test_before_any_step_rows_of_known_ids_are_predicted_as_by_the_champion(runs: Runs, model: str) -> None:
    raw = pl.read_parquet(next((runs.warm / "features").glob("raw-*.parquet")))
    before, theirs = predictions(runs.base, model, raw)
    after, ours = predictions(runs.warm, model, raw)
    same = pl.DataFrame([before[name] == after[name] for name in before.columns])
    known = same.select(pl.all_horizontal(pl.all())).to_series().to_numpy()
    assert 0.2 < known.mean() < 1, "some ids are new, many are not"
    np.testing.assert_allclose(ours[known], theirs[known], rtol=1e-6)
    assert not np.allclose(ours[~known], theirs[~known], rtol=1e-6)


def test_the_retriever_s_towers_are_the_champion_s(runs: Runs) -> None:
    base, warm = (load_retriever(folder / "model" / "retriever").state_dict() for folder in (runs.base, runs.warm))
    assert set(base) == set(warm)
    grown = {name for name in base if base[name].shape != warm[name].shape}
    assert grown == {"table.table.weight"}
    assert all(torch.allclose(base[name], warm[name], atol=1e-20, rtol=0) for name in set(base) - grown)


def test_new_ids_begin_where_the_configuration_says(runs: Runs) -> None:
    spec = load_ranker(runs.warm / "model" / "ranker").spec
    features = runs.warm / "features"
    encoder = load_encoder(features / "encoder.json")
    new = set(encoder.vocabularies["user_id"].ids) - set(
        load_encoder(features / "base" / "encoder.json").vocabularies["user_id"].ids
    )
    rows = {}
    for new_ids in ("mean", "seed"):
        fresh = Ranker(spec)
        begin = read_beginnings(
            settings(**{"training.warm_start": True, "training.new_ids": new_ids}), features, encoder
        )
        assert begin.ranker is not None
        begin.ranker(fresh)
        field = torch.tensor([list(spec.categorical_cardinalities).index("user_id")])
        rows[new_ids] = fresh.scorer.table(torch.tensor(sorted(new)).unsqueeze(1), fields=field).detach()
    assert torch.equal(rows["mean"], rows["mean"][:1].expand_as(rows["mean"]))
    assert len(new) > 1
    assert not torch.allclose(rows["seed"][0], rows["seed"][1])


def test_a_champion_without_a_baseline_leaves_the_baseline_to_its_seed(runs: Runs, tmp_path: Path) -> None:
    features = Path(shutil.copytree(runs.warm / "features", tmp_path / "features"))
    shutil.rmtree(features / "base" / "logistic_regression")
    begin = read_beginnings(runs.config, features, load_encoder(features / "encoder.json"))
    assert begin.baseline is None
    assert begin.ranker is not None


def test_a_warm_start_without_what_featurize_recorded_is_refused(runs: Runs, tmp_path: Path) -> None:
    encoder = load_encoder(runs.warm / "features" / "encoder.json")
    with pytest.raises(ValueError, match=r"base\.json does not exist: run `counterpoise featurize` first"):
        read_beginnings(runs.config, tmp_path, encoder)


def test_a_rerun_begins_from_the_base_that_it_had(runs: Runs) -> None:
    client = tracking.connect(runs.config, runs.workspace)
    model = runs.warm / "model"
    sign = tracking.signature(load_ranker(model / "ranker").spec, load_encoder(model / "encoder.json"))
    version = tracking.log_version(runs.config, model=model, sign=sign, metrics={}, record={"run": "own"}, files=[])
    before = (runs.warm / "features" / "base.json").read_bytes()
    champion = json.loads(before)["base_version"]
    assert version != champion
    registry.set_alias(runs.config, client, tracking.CHAMPION, version)
    try:
        days = days_of(runs.config, runs.workspace, None)
        featurize(runs.config, runs.workspace, days)
        assert (runs.warm / "features" / "base.json").read_bytes() == before
    finally:
        registry.set_alias(runs.config, client, tracking.CHAMPION, champion)


def test_a_champion_of_another_width_is_refused(runs: Runs) -> None:
    config = settings(**{"training.warm_start": True, "model.embedding_width": 5})
    days = days_of(config, runs.workspace, None)
    featurize(config, runs.workspace, days)
    with pytest.raises(ValueError, match=r"differs in embedding_width \(here 5, there 16\): undo the change"):
        train(config, runs.workspace, days)


def held(**changes: object) -> Encoder:
    values = {"values": ["a", "b"], "ids": [3, 5], "first_bucket": 0, "buckets": 0, **changes}
    return Encoder(vocabularies={"f": Vocabulary(**values)}, knots={}, lists={}, bins=1)


@pytest.mark.parametrize(
    ("ours", "theirs", "known"),
    [
        ({}, {}, [3, 5]),
        ({"values": ["a", "c", "b"], "ids": [3, 4, 5]}, {}, [3, 5]),
        ({"first_bucket": 6, "buckets": 2}, {}, [3, 5]),
        ({"first_bucket": 6, "buckets": 2}, {"first_bucket": 6, "buckets": 2}, [3, 5, 6, 7]),
        ({"first_bucket": 6, "buckets": 3}, {"first_bucket": 6, "buckets": 2}, [3, 5]),
        ({}, {"first_bucket": 6, "buckets": 2}, [3, 5]),
    ],
)
def test_buckets_are_known_only_where_the_champion_had_the_same(
    ours: dict[str, object], theirs: dict[str, object], known: list[int]
) -> None:
    assert known_ids(held(**ours), held(**theirs))["f"].tolist() == known


def test_every_stage_takes_the_flag() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in STAGES:
        assert "warm_start" in {option.name for option in commands[name].params}, name


@pytest.mark.parametrize("command", ["featurize", "run"])
def test_the_flag_without_a_champion_says_to_train_once_without(
    command: str, simulated_source: Path, runs: Runs
) -> None:
    place = ["--config", str(EXAMPLE), "--workspace", str(runs.workspace.root), "--source", str(simulated_source)]
    sets = ["--set", "source.time_zone=Asia/Shanghai", "--set", "tracking.model=other"]
    ended = CliRunner().invoke(app, [command, "--warm-start", *place, *sets])
    assert isinstance(ended.exception, ValueError)
    assert "needs a champion of 'other': train and register once without" in str(ended.exception)
