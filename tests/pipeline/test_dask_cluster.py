"""An existing Dask cluster: started by hand, found by its address, and only used where it runs the same code."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.code_version import code_digest
from pipeline.dask_engine import open_dask

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def cluster(folder: Path, packages: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Start a scheduler and one worker that finds its packages in a folder, as docs/operations.md says."""
    address = f"tcp://127.0.0.1:{free_port()}"
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{HERE}"}
    place = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = (
        ["scheduler", *place, "--port", address.rpartition(":")[2]],
        ["worker", address, *place, "--nthreads", "1", "--local-directory", str(folder)],
    )
    with (folder / "cluster.log").open("wb") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *command], cwd=folder, env=environment, stdout=log, stderr=log
            )
            for command in commands
        ]
        try:
            yield address, started[0]
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait()


def test_a_cluster_is_found_by_its_address_and_a_lost_scheduler_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import engine_tasks  # type: ignore[import-not-found]

    monkeypatch.setattr("pipeline.dask_engine.PATIENCE_SECONDS", 30)
    with cluster(tmp_path, ROOT) as (address, scheduler), open_dask(5, address) as engine:
        assert engine.workers == 1
        assert list(engine.map(engine_tasks.squared, range(5), "square")) == [0, 1, 4, 9, 16]
        results = engine.map(engine_tasks.slept, range(5), "sleep")
        assert next(results) == 0
        scheduler.kill()
        with pytest.raises(ValueError, match="sleep: the cluster's scheduler was lost"):
            list(results)


def test_workers_of_other_code_are_refused(tmp_path: Path) -> None:
    for package in ("pipeline", "features", "models"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "features" / "plan.py").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    with (
        cluster(tmp_path, tmp_path) as (address, _),
        pytest.raises(ValueError, match=f"workers run other code.*{code_digest()}.*install the same version"),
        open_dask(1, address),
    ):
        pass
