"""The main job on a small world: one run, a second of the same seed, and a worse model after it."""

import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from pipeline import tables, threads
from pipeline.feed import Feed
from pipeline.simulate import simulate
from pipeline.world import SimulatorConfig

ROOT = Path(__file__).parent.parent
SMALL = [
    "model.hidden=[32,16]",
    "retriever.epochs=2",
    "retrieval.candidates=40",
    "ranking.list_length=20",
    "evaluation.ks=[5,20]",
    "evaluation.replicates=30",
    "training.batch_size=128",
]
USERS, ITEMS = 250, 120


@dataclass(frozen=True)
class Ran:
    """A finished run: its summary, its workspace and what it printed."""

    summary: dict[str, Any]
    workspace: Path
    source: Path
    printed: str
    logged: str

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return self.workspace / "runs" / self.summary["run"]

    def lists(self) -> pl.DataFrame:
        """Return the lists, in order."""
        return tables.scan(self.workspace / "tables" / "candidates").collect().sort("user_id", "rank")


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **threads.SETTINGS}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def _run(source: Path, workspace: Path, *extra: str) -> Ran:
    summary = workspace.parent / f"{workspace.name}-{len(extra)}.json"
    sets = [part for text in SMALL for part in ("--set", text)]
    place = ["--source", str(source), "--workspace", str(workspace), "--summary", str(summary)]
    done = _command("run", "--config", "examples/simulated.toml", *place, *sets, *extra)
    assert done.returncode == 0, done.stderr
    return Ran(json.loads(summary.read_text()), workspace, source, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "source"
    world = SimulatorConfig(
        users=USERS, items=ITEMS, days=6, requests_per_day=500, click_rate=0.15, conversion_rate=0.3
    )
    simulate(world, folder)
    return folder


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return _run(source, tmp_path_factory.mktemp("first") / "workspace")


@pytest.fixture(scope="module")
def second(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return _run(source, tmp_path_factory.mktemp("second") / "workspace")


def test_two_runs_of_one_seed_give_identical_tables_and_weights(first: Ran, second: Ran) -> None:
    assert first.summary["digest"] == second.summary["digest"]
    assert first.lists().equals(second.lists())
    assert first.summary["digest"] in first.printed


def test_a_run_that_is_repeated_skips_all_stages_and_registers_no_second_version(first: Ran) -> None:
    again = _run(first.source, first.workspace)
    assert again.logged.count("skipped: it ended at") == 8
    assert (again.summary["registered_version"], again.summary["digest"]) == ("1", first.summary["digest"])
    listed = _command("runs", "--workspace", str(first.workspace))
    assert f"{first.summary['run']}" in listed.stdout
    assert "all" in listed.stdout


def test_a_run_is_shown_back_to_the_files_of_its_source(first: Ran) -> None:
    shown = _command("show", first.summary["run"], "--workspace", str(first.workspace)).stdout
    assert f"lists for {first.summary['candidates']['scored_for']}: {USERS * 20:,} rows of {USERS} users" in shown
    assert f"model: version 1, made by run {first.summary['run']}" in shown
    file = first.source / "impressions" / "2026-01-01.parquet"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"source file impressions/2026-01-01.parquet: sha256 {digest}" in shown
    none = _command("show", "2025", "--workspace", str(first.workspace))
    assert none.returncode == 2
    assert "run '2025' is none of ['2026" in none.stderr


def test_another_seed_gives_another_digest(first: Ran, tmp_path: Path) -> None:
    other = _run(first.source, tmp_path / "workspace", "--seed", "7")
    assert other.summary["digest"] != first.summary["digest"]


def test_every_user_gets_a_full_list_of_distinct_items(first: Ran) -> None:
    lists = first.lists()
    per_user = lists.group_by("user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("items"), pl.col("rank"))
    users = pl.read_csv(first.source / "users.csv")
    assert per_user.height == users.height == USERS
    assert per_user["len"].unique().to_list() == [20]
    assert per_user["items"].unique().to_list() == [20]
    assert all(sorted(ranks) == list(range(1, 21)) for ranks in per_user["rank"].to_list())


def test_lists_are_ordered_by_score_and_the_product_holds(first: Ran) -> None:
    lists = first.lists()
    falls = lists.select(pl.col("score").diff().over("user_id").fill_null(0.0).max()).item()
    assert falls <= 0
    product = lists["p_click"] * lists["p_conversion"]
    np.testing.assert_allclose(lists["p_click_and_conversion"], product, rtol=1e-4)
    np.testing.assert_allclose(lists["score"], lists["p_click_and_conversion"], rtol=1e-6)


def test_lists_hold_no_clicked_and_no_unborn_item(first: Ran) -> None:
    day = dt.date.fromisoformat(first.summary["candidates"]["scored_for"])
    log = pl.read_parquet(first.source / "impressions" / "*.parquet")
    start = dt.datetime.combine(day, dt.time(), tzinfo=dt.UTC)
    clicked = log.filter(pl.col("click") & (pl.col("click_received_time") < start)).select("user_id", "item_id")
    lists = first.lists()
    assert clicked.height > 1000
    assert lists.join(clicked, on=["user_id", "item_id"], how="semi").height == 0
    items = pl.read_csv(first.source / "items.csv").select("item_id", pl.col("available_from").str.slice(0, 10))
    assert lists.join(items, on="item_id").filter(pl.col("available_from") > str(day)).height == 0


def test_a_backend_reads_the_lists_that_were_ranked(first: Ran) -> None:
    feed = Feed.open("lmdb:feed", first.workspace)
    published = first.summary["published"]
    assert (feed.version.name, feed.version.run, published["kept"]) == (published["version"], first.summary["run"], "")
    assert f"published: lmdb:feed has version {feed.version.name}" in first.printed
    assert f"lmdb:feed has version {feed.version.name}" in (first.folder / "evaluation" / "report.html").read_text()
    for (user,), ranked in first.lists().head(100).partition_by("user_id", as_dict=True).items():
        (found,) = feed.lists([user])
        assert found.items == ranked["item_id"].to_list()
        assert found.outputs["score"] == pytest.approx(ranked["score"].to_list(), rel=2**-11)


def test_a_published_version_is_shown_back_to_the_files_of_its_source(first: Ran) -> None:
    version = first.summary["published"]["version"]
    shown = _command("show", version, "--workspace", str(first.workspace)).stdout
    assert f"run {first.summary['run']}" in shown
    assert f"published: version {version} to lmdb:feed at 20" in shown
    assert "from table candidates version 0, model version 1" in shown
    assert "source file impressions/2026-01-01.parquet: sha256 " in shown


def test_after_a_failure_readers_are_watched_and_the_failure_is_told(first: Ran) -> None:
    watched = first.folder / "watch.json"
    watched.unlink()
    sets = [part for text in (*SMALL, 'feed.fields=["nope"]') for part in ("--set", text)]
    place = ["--source", str(first.source), "--workspace", str(first.workspace)]
    done = _command("run", "--config", "examples/simulated.toml", *place, *sets)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("counterpoise: feed.fields names ['nope'], no numbers of the lists")
    assert watched.exists()


def test_users_without_history_get_popular_items(first: Ran) -> None:
    log = pl.read_parquet(first.source / "impressions" / "*.parquet").select("user_id")
    lists = first.lists()
    strangers = lists.join(log, on="user_id", how="anti")
    assert set(strangers["source"]) == {"popular"}
    known = lists.join(log, on="user_id", how="semi")
    assert known.filter(pl.col("source") == "two_towers").height > 0.5 * known.height


def test_the_summary_keeps_its_stable_surface(first: Ran) -> None:
    stages = ["ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank"]
    stages += ["publish", "watch"]
    assert list(first.summary["stages"]) == sorted(stages) or list(first.summary["stages"]) == stages
    for stage in first.summary["stages"].values():
        assert {"rows_in", "rows_out", "seconds", "peak_mib"} <= set(stage)
    assert first.summary["candidates"]["rows"] == USERS * 20
    assert first.summary["candidates"]["users"] == USERS
    evaluation = first.summary["evaluation"]
    for tasks in (evaluation["tasks"], *(values["tasks"] for values in evaluation["baselines"].values())):
        assert set(tasks) == {"click", "conversion", "click_and_conversion"}
        for metrics in tasks.values():
            assert set(metrics) == {"auc", "gauc", "log_loss", "normalised_entropy", "pcoc", "ece"}
            assert set(metrics["auc"]) == {"value", "low", "high"}
    assert set(evaluation["baselines"]) == {"popularity", "logistic_regression", "oracle", "uncalibrated"}
    assert set(evaluation["retrieval"]["recall"]["click"]) == {"5", "20"}
    assert evaluation["counts"]["impressions"] == 5000


def test_each_stage_logs_one_line(first: Ran) -> None:
    for stage in first.summary["stages"]:
        assert sum(stage in line.split()[1:2] and "rows in" in line for line in first.logged.splitlines()) == 1
    assert first.logged.count("rows in") == 10


def test_json_log_lines_hold_the_stages_figures(first: Ran) -> None:
    sets = [part for text in SMALL for part in ("--set", text)]
    place = ["--source", str(first.source), "--workspace", str(first.workspace)]
    done = _command("--log-format", "json", "ingest", "--config", "examples/simulated.toml", *place, *sets)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["stage"], line["rows_in"]) for line in lines] == [("ingest", 0)]


def test_the_model_learns_and_stays_below_the_truth(first: Ran) -> None:
    tasks, oracle = (
        first.summary["evaluation"]["tasks"],
        first.summary["evaluation"]["baselines"]["oracle"]["tasks"],
    )
    for task in ("click", "click_and_conversion"):
        assert 0.55 < tasks[task]["auc"]["value"] < oracle[task]["auc"]["value"] + 0.01, task
        assert 0.7 < tasks[task]["pcoc"]["value"] < 1.4, task


def test_a_fresh_process_predicts_from_raw_features_what_the_pipeline_predicted(first: Ran, tmp_path: Path) -> None:
    raw = next(iter((first.folder / "features").glob("raw-*.parquet")))
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, mlflow, polars as pl\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/counterpoise@champion')\n"
        "names = [column.name for column in model.metadata.signature.inputs]\n"
        "raw = pl.read_parquet(sys.argv[2])\n"
        "made = pl.from_pandas(model.predict(raw.select(names).to_pandas()))\n"
        "made.with_columns(raw['impression_id']).write_parquet(sys.argv[3])\n"
    )
    out = tmp_path / "made.parquet"
    uri = f"sqlite:///{first.workspace / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, str(script), uri, str(raw), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **threads.SETTINGS},
    )
    assert done.returncode == 0, done.stderr
    expected = pl.read_parquet(first.folder / "evaluation" / "predictions.parquet")
    joined = expected.join(pl.read_parquet(out), on="impression_id", suffix="_loaded")
    assert joined.height == expected.height == 5000
    for name in ("p_click", "p_conversion", "p_click_and_conversion"):
        np.testing.assert_allclose(joined[f"{name}_loaded"], joined[name], rtol=1e-5, atol=1e-7)


def test_a_worse_model_is_registered_but_serves_no_list(second: Ran) -> None:
    spoiled = ["training.learning_rate=1e-7", "training.embedding_learning_rate=1e-7"]
    sets = [part for text in spoiled for part in ("--set", text)]
    worse = _run(second.source, second.workspace, *sets)
    assert worse.summary["registered_version"] == "2"
    assert worse.summary["promoted"] is False
    assert "is worse than" in worse.summary["decision"]
    assert worse.summary["model_version"] == "1"
    kept = worse.summary["published"]
    assert kept["kept"].startswith("the gate refused version 2 (failed: click log-loss")
    assert kept["kept"].endswith(f"; lists for {kept['scored_for']}, 0 days old on {kept['scored_for']}, stay")
    assert f"not published: {kept['kept']}" in worse.printed
    again = _run(second.source, second.workspace, *sets, "--from", "publish")
    assert again.summary["published"] == kept, "to run a stage again is not to override it"
    assert Feed.open("lmdb:feed", second.workspace).version.name == kept["version"]
    again = _run(second.source, second.workspace, "--set", "evaluation.replicates=31")
    assert again.summary["promoted"] is True
    assert "is not worse than" in again.summary["decision"]
    assert again.summary["model_version"] == "3"
    assert Feed.open("lmdb:feed", second.workspace).version.model_version == "3"


def test_candidates_of_another_champion_are_not_ranked(first: Ran) -> None:
    made = first.folder / "index" / "model.json"
    kept = made.read_text()
    made.write_text(json.dumps({**json.loads(kept), "version": "99"}))
    sets = [part for text in SMALL for part in ("--set", text)]
    place = ["--source", str(first.source), "--workspace", str(first.workspace)]
    done = _command("rank", "--config", "examples/simulated.toml", *place, *sets)
    made.write_text(kept)
    assert done.returncode == 2, done.stderr
    assert "the champion is 1: run `counterpoise retrieve` again" in done.stderr
    again = _command("rank", "--config", "examples/simulated.toml", *place, *sets)
    assert again.returncode == 0, again.stderr


def test_nothing_in_the_registered_model_is_a_pickle(first: Ran) -> None:
    files = [path for path in (first.workspace / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in files)
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".joblib"}]
    assert not any(path.read_bytes()[:1] == b"\x80" and path.suffix != ".safetensors" for path in files)


def test_verdicts_are_printed_and_logged_with_the_figures_behind_them(first: Ran) -> None:
    diagnostics = first.summary["evaluation"]["diagnostics"]
    client = MlflowClient(f"sqlite:///{first.workspace / 'mlflow.db'}")
    logged = client.get_run(client.get_model_version_by_alias("counterpoise", "champion").run_id).data
    for verdict in diagnostics["verdicts"]:
        assert verdict["sentence"] in first.printed
        assert logged.tags[f"verdict_{verdict['name']}"] == verdict["sentence"]
        assert first.logged.count(f"evaluate: {verdict['sentence']}") == verdict["alarm"]
    cosine = diagnostics["gradient_cosine"]["dense"]["mean"]
    assert logged.metrics["diagnostics/gradient_cosine/dense/mean"] == pytest.approx(cosine)
    assert (first.folder / "control" / "weights.safetensors").exists()
    assert not list((first.workspace / "mlartifacts").rglob("control"))
