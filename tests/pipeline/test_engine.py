"""The engine gives the results of the tasks in their order, wherever they run and whatever is killed."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.config import Config, load_config
from pipeline.dask_engine import open_dask
from pipeline.engine import ATTEMPTS, Engine, ProcessEngine, SerialEngine, open_engine, start

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENGINES = {
    "serial": {"kind": "local", "workers": 1},
    "processes": {"kind": "local", "workers": 2},
    "dask": {"kind": "dask", "workers": 2},
}
SEVERAL = ["processes", "dask"]


@pytest.fixture(scope="module")
def tasks() -> Iterator[ModuleType]:
    """Import the tasks by a name that worker processes find too: they are given this process's search path."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("engine_tasks")
    sys.path.remove(str(HERE))


def configured(engine: dict[str, Any]) -> Config:
    values = {f"engine.{key}": value for key, value in engine.items()}
    return load_config(ROOT / "examples" / "simulated.toml", values)


@pytest.fixture(scope="module")
def engine_of() -> Iterator[Callable[[str], Engine]]:
    """Open each engine once for the whole file, none inside another."""
    with ExitStack() as stack:
        opened: dict[str, Engine] = {}

        def given(name: str) -> Engine:
            if name not in opened:
                opened[name] = stack.enter_context(start(configured(ENGINES[name]).engine))
            return opened[name]

        yield given


@pytest.mark.parametrize("name", ENGINES)
def test_results_come_in_the_order_of_the_tasks(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType
) -> None:
    assert list(engine_of(name).map(tasks.squared, range(20), "square")) == [n * n for n in range(20)]
    assert list(engine_of(name).map(tasks.squared, [], "nothing")) == []


@pytest.mark.parametrize("name", ENGINES)
def test_tasks_are_taken_only_as_they_are_needed(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType
) -> None:
    taken = []
    results = engine_of(name).map(tasks.squared, (taken.append(n) or n for n in range(100)), "square")
    assert next(results) == 0
    assert len(taken) <= 5
    results.close()


@pytest.mark.parametrize("name", ENGINES)
def test_a_value_error_of_a_task_arrives_as_it_is(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType
) -> None:
    with pytest.raises(ValueError, match=r"^day 3 has no rows: ingest it again$"):
        list(engine_of(name).map(tasks.refused, range(6), "try"))
    with pytest.raises(ZeroDivisionError):
        list(engine_of(name).map(tasks.broken, range(2), "try"))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_task_whose_process_was_killed_runs_again(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType, tmp_path: Path
) -> None:
    found = list(engine_of(name).map(tasks.killed_once, [(n, tmp_path) for n in range(7)], "square"))
    assert found == [n * n for n in range(7)]
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("name", SEVERAL)
def test_a_task_that_is_killed_every_time_is_told(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType
) -> None:
    with pytest.raises(
        ValueError, match=f"^score: the process of one task was killed {ATTEMPTS} times.*engine.workers"
    ):
        list(engine_of(name).map(tasks.killed_always, [1], "score"))
    assert list(engine_of(name).map(tasks.squared, [5], "square")) == [25]


@pytest.mark.parametrize("name", SEVERAL)
def test_a_worker_has_one_thread_and_no_library_that_its_tasks_do_not_need(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType
) -> None:
    before = {key: value for key, value in os.environ.items() if key.endswith("_THREADS")}
    assert list(engine_of(name).map(tasks.threads, [0], "count")) == [(1, [])]
    assert {key: value for key, value in os.environ.items() if key.endswith("_THREADS")} == before


@pytest.mark.parametrize("name", SEVERAL)
def test_after_an_error_no_task_runs_any_more(
    name: str, engine_of: Callable[[str], Engine], tasks: ModuleType, tmp_path: Path
) -> None:
    assert list(engine_of(name).map(tasks.squared, range(4), "start")) == [0, 1, 4, 9]
    with pytest.raises(ValueError, match="day 0 has no rows"):
        list(engine_of(name).map(tasks.refused_first, [(number, tmp_path) for number in range(9)], "try"))
    left = sorted(file.name for file in tmp_path.iterdir())
    begun = [name for name in left if name.startswith("begun")]
    assert [name.replace("begun", "ended") for name in begun] == [name for name in left if name.startswith("ended")]
    assert 0 < len(begun) < 4
    list(engine_of(name).map(tasks.squared, range(9), "next"))
    assert sorted(file.name for file in tmp_path.iterdir()) == left


def test_workers_end_with_a_driver_that_is_killed() -> None:
    code = (
        "import sys, pipeline.engine\n"
        "engine = pipeline.engine.ProcessEngine(2)\n"
        "list(engine.map(abs, range(4), 'start'))\n"
        "print('warm', flush=True)\n"
        "sys.stdin.read()"
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    driver = subprocess.Popen([sys.executable, "-c", code], text=True, cwd=ROOT, **pipes)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "warm\n"
    driver.kill()
    # Workers inherit the driver's output: it ends when the last of them has.
    assert driver.communicate(timeout=60) == ("", None)


def test_an_engine_inside_another_is_the_same() -> None:
    with open_engine(configured(ENGINES["serial"])) as outer:
        assert isinstance(outer, SerialEngine)
        with open_engine(configured(ENGINES["processes"])) as inner:
            assert inner is outer
    with open_engine(configured(ENGINES["processes"])) as later:
        assert isinstance(later, ProcessEngine)


def test_the_engine_is_no_part_of_a_run_s_name() -> None:
    assert configured(ENGINES["dask"]).digest() == configured({}).digest()


def test_an_address_needs_dask() -> None:
    with pytest.raises(ValueError, match=r"engine.address = 'tcp://host:8786' needs engine.kind = 'dask'"):
        configured({"address": "tcp://host:8786"})


def test_an_address_where_nobody_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dask_engine.PATIENCE_SECONDS", 1)
    with (
        pytest.raises(ValueError, match=r"engine.address = 'tcp://127.0.0.1:9': no scheduler .* `dask scheduler`"),
        open_dask(1, "tcp://127.0.0.1:9"),
    ):
        pass


def test_a_cluster_without_workers_is_told_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr("pipeline.dask_engine.PATIENCE_SECONDS", 1)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster:
        with (
            pytest.raises(ValueError, match=r"engine.address = 'tcp://127.0.0.1:.*': no scheduler with workers"),
            open_dask(1, cluster.scheduler_address),
        ):
            pass
        assert not [name for name in cluster.scheduler.clients if name.startswith("Client")]


def test_dask_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'counterpoise\[dask\]'"), open_dask(1, None):
        pass


def test_importing_the_engine_loads_no_numerical_library() -> None:
    code = "import sys, pipeline.engine; print(sorted({'numpy', 'polars', 'torch', 'distributed'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
