"""Featurize, retrieve and rank of one workspace on every engine: the same rows, also where workers are killed.

Runs each stage in this process, in local processes and on 1, 2, 3 and 5 Dask workers, kills one worker of each stage
with -9 in the middle, and prints digests, CPU-seconds of the driver and of its workers, and the seconds to start.

    python -m benchmarks.bench_engine --workspace W --config examples/kuairand.toml [--quick]

The workspace needs a champion; it is copied, not written to.
"""

import argparse
import hashlib
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.config import Config, load_config
from pipeline.engine import open_engine
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.serve_lists import rank, retrieve
from pipeline.split import Days
from pipeline.workspace import Workspace

ENGINES = [("local", 1), ("local", 2), ("dask", 1), ("dask", 2), ("dask", 3), ("dask", 5)]
QUICK = [("local", 1), ("local", 2), ("dask", 2)]
KILL_AFTER_SECONDS = 0.05
STAGES: dict[str, Callable[[Config, Workspace, Days], object]] = {
    "featurize": featurize,
    "retrieve": retrieve,
    "rank": rank,
}


@dataclass(frozen=True)
class Cost:
    """CPU-seconds of this process and of its ended children, and whether a worker was killed."""

    driver: float
    workers: float
    killed: bool


def main() -> None:
    """Print a line for each engine and stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print(f"{'engine':<10}{'stage':<11}{'killed':<8}{'driver s':>9}{'workers s':>10}{'start s':>9}  digest")
    digests: dict[str, set[str]] = {name: set() for name in STAGES}
    for kind, workers in QUICK if options.quick else ENGINES:
        with tempfile.TemporaryDirectory() as scratch:
            workspace = Workspace(Path(scratch) / "workspace")
            shutil.copytree(options.workspace, workspace.root)
            for stage, digest in _measure(options, workspace, kind, workers):
                digests[stage].add(digest)
    equal = all(len(found) == 1 for found in digests.values())
    print("all engines gave the same bytes" if equal else f"DIFFERENT: {digests}")


def _measure(options: argparse.Namespace, workspace: Workspace, kind: str, workers: int) -> list[tuple[str, str]]:
    from pipeline.config import parse_override

    values = dict(parse_override(text) for text in options.set)
    config = load_config(options.config, {**values, "engine.kind": kind, "engine.workers": workers})
    days = days_of(config, workspace, None)
    shutil.rmtree(workspace.root / "features", ignore_errors=True)
    found = []
    start = time.perf_counter()
    with open_engine(config) as engine:
        assert list(engine.map(os.path.basename, ["up"], "start")) == ["up"]
        started = time.perf_counter() - start
        for name, stage in STAGES.items():
            cost = _cost(lambda stage=stage: stage(config, workspace, days), kill=not engine.in_process)  # type: ignore[misc]
            digest = _digest(config, workspace, days, name)
            found.append((name, digest))
            print(
                f"{kind + ' ' + str(workers):<10}{name:<11}{'yes' if cost.killed else 'no':<8}{cost.driver:>9.2f}"
                f"{cost.workers:>10.2f}{started:>9.2f}  {digest}",
                flush=True,
            )
    return found


def _cost(stage: Callable[[], object], *, kill: bool) -> Cost:
    """Run a stage, and kill the worker that has worked most once it has begun."""
    killed = threading.Event()
    done = threading.Event()
    thread = threading.Thread(target=_kill_one, args=(done, killed))
    before, own = _worker_seconds(), time.process_time()
    if kill:
        thread.start()
    stage()
    done.set()
    if kill:
        thread.join()
    return Cost(time.process_time() - own, _worker_seconds() - before, killed.is_set())


def _kill_one(done: threading.Event, killed: threading.Event) -> None:
    """Kill the first worker that has used KILL_AFTER_SECONDS of CPU since the stage began."""
    first = {pid: _seconds(pid) for pid in _workers()}
    while not done.wait(0.02):
        for pid in _workers():
            if _seconds(pid) - first.setdefault(pid, _seconds(pid)) > KILL_AFTER_SECONDS:
                os.kill(pid, signal.SIGKILL)
                killed.set()
                return


def _workers() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    children = [int(pid) for path in tasks.iterdir() for pid in _read(path / "children").split()]
    return [pid for pid in children if b"spawn_main" in _read(Path(f"/proc/{pid}/cmdline"))]


def _read(path: Path) -> bytes:
    """Read a file of /proc, empty where its process or thread has ended."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _seconds(pid: int) -> float:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _worker_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(_seconds(pid) for pid in _workers())


def _digest(config: Config, workspace: Workspace, days: Days, stage: str) -> str:
    """Return one digest of what a stage wrote."""
    digest = hashlib.sha256()
    folder = run_folder(config, workspace, days)
    if stage == "featurize":
        for day in days.all():
            frame = tables.scan(workspace.table("examples")).filter(pl.col("date") == day).collect()
            digest.update(tables.digest(frame).encode())
        digest.update((folder / "features" / "encoder.json").read_bytes())
    elif stage == "retrieve":
        digest.update(tables.digest(pl.read_parquet(folder / "index" / "candidates.parquet")).encode())
    else:
        lists = tables.scan(workspace.table("candidates")).filter(pl.col("scored_for") == days.scored_for)
        digest.update(tables.digest(lists.collect()).encode())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
