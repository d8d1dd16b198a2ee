"""Features, candidates and lists are the same rows, byte for byte, wherever the engine runs and whatever it divides."""

import gc
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import feature_tasks, tables, tracking, user_ranges
from pipeline.calibrate import calibrate
from pipeline.config import Config, load_config
from pipeline.engine import open_engine
from pipeline.evaluate import evaluate
from pipeline.feature_store import open_store
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.pair_scorer import PairScorer
from pipeline.register import register
from pipeline.retrieve import Retrieval
from pipeline.serve_lists import rank, retrieve
from pipeline.train import train
from pipeline.user_ranges import Serving, UserRange, forget, rank_range, retrieve_range
from pipeline.workspace import Workspace, read_json

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
SMALL = {
    "source.time_zone": "Asia/Shanghai",
    "training.epochs": 1,
    "retriever.epochs": 1,
    "model.hidden": [8],
    "model.tower": [4],
    "retrieval.candidates": 20,
    "ranking.list_length": 10,
    "ranking.rerank.diversity": 0.3,
    "ranking.rerank.likeness": ["vectors", "category"],
    "ranking.rerank.caps": [{"column": "brand", "most": 2, "within": 5}],
    "ranking.rerank.exploration": 0.2,
    "ranking.rerank.exploration_within": 5,
    "evaluation.ks": [10],
    "evaluation.replicates": 20,
    "evaluation.importance": False,
}
ENGINES = {"processes": ("local", 2), "dask 2": ("dask", 2), "dask 3": ("dask", 3)}


def configured(kind: str, workers: int) -> Config:
    return load_config(EXAMPLE, {**SMALL, "engine.kind": kind, "engine.workers": workers})


@dataclass(frozen=True)
class Run:
    """A workspace after all stages, and what is compared."""

    workspace: Workspace
    digests: dict[str, str]


def digests(config: Config, workspace: Workspace) -> dict[str, str]:
    """Return a digest of each table's day and of each file that featurize, retrieve and rank make."""
    days = days_of(config, workspace, None)
    folder, store = run_folder(config, workspace, days), open_store(config, workspace)
    found = {}
    for table in (store.table("partials"), store.table("actions"), store.table("raw"), workspace.table("examples")):
        frame = tables.scan(table)
        found |= {
            f"{table.name} {day}": tables.digest(frame.filter(pl.col("date") == day).collect())
            for day in tables.days(table)
        }
    for path in sorted([*folder.glob("features/**/*"), *folder.glob("index/*"), *store.states.glob("**/*")]):
        if path.suffix == ".parquet":
            found[f"{path.relative_to(workspace.root)}"] = tables.digest(pl.read_parquet(path))
        elif path.name == "encoder.json":
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    lists = tables.scan(workspace.table("candidates")).drop("model_version").collect()
    return found | {"lists": tables.digest(lists)}


@pytest.fixture(scope="module")
def expected(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages in this process; users in ranges of 16, and each day in one bucket."""
    workspace = Workspace(tmp_path_factory.mktemp("serial") / "workspace")
    config = configured("local", 1)
    workspace.root.mkdir()
    ingest(config, workspace, simulated_source, None)
    days = days_of(config, workspace, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_ranges, "RANGE_USERS", 16)
        for stage in (featurize, train, calibrate):
            stage(config, workspace, days)
        evaluate(config, workspace, days, simulated_source)
        register(config, workspace, days)
        # so small a model need not pass the gates of a champion
        tracking.connect(config, workspace).set_registered_model_alias(config.tracking.model, tracking.CHAMPION, "1")
        for stage in (retrieve, rank):
            stage(config, workspace, days)
    return Run(workspace, digests(config, workspace))


def copied(run: Run, folder: Path, config: Config) -> Workspace:
    """Copy a workspace without what featurize, retrieve and rank made of it."""
    workspace = Workspace(folder / "workspace")
    shutil.copytree(run.workspace.root, workspace.root)
    made = run_folder(config, workspace, days_of(config, workspace, None))
    for path in (
        workspace.root / "features",
        workspace.table("examples"),
        workspace.table("candidates"),
        made / "features",
        made / "index",
    ):
        shutil.rmtree(path)
    return workspace


def again(run: Run, folder: Path, config: Config) -> dict[str, str]:
    """Featurize, retrieve and rank anew, and kill a worker in each of them."""
    workspace = copied(run, folder, config)
    days = days_of(config, workspace, None)
    with open_engine(config) as engine:
        assert list(engine.map(os.path.basename, ["warm", "up"], "start")) == ["warm", "up"]
        for stage in (featurize, retrieve, rank):
            with worker_killed():
                stage(config, workspace, days)
    return digests(config, workspace)


@contextmanager
def worker_killed() -> Iterator[None]:
    """Kill one worker of this process with -9 while the block runs."""
    killed = []

    def kill() -> None:
        time.sleep(0.2)
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert killed


def workers() -> list[int]:
    """Return the worker processes of this one."""
    threads = Path(f"/proc/{os.getpid()}/task")
    children = [int(child) for thread in threads.iterdir() for child in read(thread / "children").split()]
    return [pid for pid in children if "spawn_main" in read(Path(f"/proc/{pid}/cmdline"))]


def read(path: Path) -> str:
    """Read a file of /proc, empty where its process or thread has ended."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_same_bytes_though_a_worker_is_killed_in_each_stage(
    name: str, expected: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_ranges, "RANGE_USERS", 16)
    assert again(expected, tmp_path, configured(*ENGINES[name])) == expected.digests


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_a_day_divided_into_buckets_of_users_gives_the_same_rows_and_trains(
    name: str, expected: Run, simulated_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_tasks, "ROWS_PER_BUCKET", 100)
    config = configured(*{**ENGINES, "serial": ("local", 1)}[name])
    workspace = copied(expected, tmp_path, config)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    stores = [open_store(config, each) for each in (workspace, expected.workspace)]
    paths = [(workspace.table("examples"), expected.workspace.table("examples"))]
    paths += [(stores[0].table(part), stores[1].table(part)) for part in ("partials", "actions", "raw")]
    for mine, theirs in paths:
        divided, whole = (tables.scan(path).collect() for path in (mine, theirs))
        order = [column for column, kind in whole.schema.items() if not kind.is_nested()]
        assert divided.sort(order).equals(whole.sort(order)), mine
    files = tables.day_files(workspace.table("examples"))
    assert all(len(parts) > 1 for parts in files.values())
    if name == "serial":
        labels = _labels(run_folder(config, workspace, days))
        train(config, workspace, days)
        assert _labels(run_folder(config, workspace, days)) == labels
        calibrate(config, workspace, days)
        assert evaluate(config, workspace, days, simulated_source).rows_in > 0


def _labels(run: Path) -> dict[str, Any]:
    """Return what training.json says of the rows that trained each task."""
    labels: dict[str, Any] = read_json(run / "model" / "training.json", "train")["labels"]
    return labels


def test_a_worker_gives_up_what_one_stage_loaded_when_the_next_one_begins(expected: Run, tmp_path: Path) -> None:
    config, workspace = configured("local", 1), expected.workspace
    days = days_of(config, workspace, None)
    run = run_folder(config, workspace, days)

    def serving(stage: str) -> Serving:
        folders = {name: run / name for name in ("features", "model", "index")}
        return Serving(stage, config, workspace, version="1", day=days.scored_for, **folders)

    retrieve_range(UserRange(serving("retrieve"), 0, 4, tmp_path / "candidates.parquet"))
    assert _held(Retrieval) == 1
    rank_range(UserRange(serving("rank"), 0, 4, tmp_path / "lists.parquet"))
    assert (_held(Retrieval), _held(PairScorer)) == (0, 1)
    forget()
    assert _held(PairScorer) == 0


def _held(kind: type) -> int:
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())
