"""Ingest writes the same files, byte for byte, wherever the engine runs and into however many slices a day is cut."""

import datetime as dt
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from pipeline import day_files, intake, tables
from pipeline.config import Config, load_config
from pipeline.engine import open_engine
from pipeline.ingest import ingest
from pipeline.stage import Outcome
from pipeline.workspace import Workspace

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ENGINES = {"processes": ("local", 2), "dask": ("dask", 2)}
WRITTEN = ("events", "unattributed", "interactions")
KINDS = ("events", "simulated")
Files = dict[str, str]


def configured(kind: str, engine: tuple[str, int] = ("local", 1)) -> Config:
    values = {"source.time_zone": "Asia/Shanghai", "source.max_quarantine_share": 0.2, "gates.max_volume_ratio": 100}
    return load_config(EXAMPLES / f"{kind}.toml", {**values, "engine.kind": engine[0], "engine.workers": engine[1]})


def digests(workspace: Workspace) -> Files:
    """Return a digest of each file of a table's day, and of the quarantine's rows."""
    found = {
        f"{name} {day}": " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        for name in WRITTEN
        for day, files in tables.day_files(workspace.table(name)).items()
    }
    return found | {"quarantine": tables.digest(tables.scan(workspace.table("quarantine")).collect())}


@pytest.fixture(scope="module")
def nights(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A source of the first days, and one of all days, in which copies of events come again."""
    early = tmp_path_factory.mktemp("nights") / "early"
    shutil.copytree(simulated_source, early)
    for folder in ("events", "impressions"):
        for file in sorted((early / folder).iterdir())[3:]:
            file.unlink()
    return [early, simulated_source]


def two_nights(config: Config, workspace: Workspace, nights: list[Path]) -> tuple[Files, list[Outcome]]:
    outcomes = [ingest(config, workspace, source, None) for source in nights]
    return digests(workspace), outcomes


@pytest.fixture(scope="module")
def expected(nights: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Files, list[Outcome]]]:
    """Both kinds of source, ingested by this process."""
    return {
        kind: two_nights(configured(kind), Workspace(tmp_path_factory.mktemp(kind) / "workspace"), nights)
        for kind in KINDS
    }


@contextmanager
def worker_killed() -> Iterator[None]:
    """Kill one worker of this process with -9 while the block runs."""
    worker = workers()[0]
    thread = threading.Timer(0.1, lambda: os.kill(worker, signal.SIGKILL))
    thread.start()
    yield
    thread.join()
    assert worker not in workers()


def workers() -> list[int]:
    """Return the worker processes of this one."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(child) for path in children for child in path.read_text(encoding="ascii").split()]
    return [child for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ENGINES)
def test_both_kinds_of_source_become_the_same_files_on_any_engine_though_a_worker_is_killed(
    name: str, nights: list[Path], expected: dict[str, tuple[Files, list[Outcome]]], tmp_path: Path
) -> None:
    with open_engine(configured("events", ENGINES[name])) as engine:
        assert list(engine.map(os.path.basename, ["warm", "up"], "start")) == ["warm", "up"]
        for kind in KINDS:
            config = configured(kind, ENGINES[name])
            with worker_killed():
                found = two_nights(config, Workspace(tmp_path / kind), nights)
            assert found == expected[kind]
    assert sum(outcome.notes["duplicates"] for outcome in expected["events"][1]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_day_that_is_cut_into_slices_becomes_the_same_file(
    kind: str,
    nights: list[Path],
    expected: dict[str, tuple[Files, list[Outcome]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(day_files, "LARGE_DAY_ROWS", 60)
    monkeypatch.setattr(intake, "BUFFERED_ROWS", 40)
    monkeypatch.setattr(intake, "TASK_BYTES", 1)
    assert two_nights(configured(kind), Workspace(tmp_path / "workspace"), nights) == expected[kind]


def test_a_refused_ingest_leaves_no_file(nights: list[Path], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(ValueError, match="max_staleness"):
        ingest(configured("events"), workspace, nights[0], dt.date(2026, 3, 1))
    assert [path for path in workspace.root.rglob("*") if path.is_file()] == []


def test_slices_follow_each_other_and_hold_every_key() -> None:
    keys = pl.LazyFrame({"key": [5, 1, 1, 9, 3, 7, 7, 2]})
    key = pl.col("key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(day_files, "LARGE_DAY_ROWS", 3)
        limits = day_files.slices_of([keys, keys], key)
    assert len(limits) > 2
    assert (limits[0][0], limits[-1][1]) == (None, None)
    assert [before[1] for before in limits[:-1]] == [after[0] for after in limits[1:]]
    parts = [keys.filter(day_files.within(key, limit)).collect() for limit in limits]
    assert sorted(pl.concat(parts)["key"].to_list()) == [1, 1, 2, 3, 5, 7, 7, 9]
    assert day_files.slices_of([keys], key) == [(None, None)]
