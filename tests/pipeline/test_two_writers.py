"""Two writers at once lose and double no row, with the lock or without it."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import tables, threads
from pipeline.config import load_config
from pipeline.ingest import ingest
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

ROOT = Path(__file__).parent.parent.parent
EVENTS = ROOT / "examples" / "events.toml"
# Waits for the other writer, so that both begin at one moment with their imports done.
WRITE = """
import os, sys, time
from pathlib import Path
from pipeline.__main__ import _fail
from pipeline.config import load_config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

config_file, source, workspace, ready = map(Path, sys.argv[1:])
config = load_config(config_file, {})
(ready / str(os.getpid())).touch()
while len(list(ready.iterdir())) < 2:
    time.sleep(0.001)
try:
    ingest(config, Workspace(workspace), source)
except ValueError as error:
    _fail(str(error))
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources of the same days, with every other line of each file of events."""
    folder = tmp_path_factory.mktemp("two")
    world = SimulatorConfig(users=60, items=50, days=4, requests_per_day=80, slots=5, click_rate=0.2)
    simulate(world, folder / "whole")
    sources = [folder / "a", folder / "b"]
    for place, source in enumerate(sources):
        (source / "events").mkdir(parents=True)
        for name in ("users.csv", "items.csv"):
            (source / name).write_bytes((folder / "whole" / name).read_bytes())
        for file in sorted((folder / "whole" / "events").iterdir()):
            lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
            (source / "events" / f"{source.name}-{file.name}").write_bytes(gzip.compress(b"".join(lines[place::2])))
    return sources


@pytest.fixture(scope="module")
def one_after_the_other(halves: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _both(Workspace(tmp_path_factory.mktemp("alone")), halves)


def _both(workspace: Workspace, sources: list[Path]) -> dict[str, str]:
    """Ingest one source after the other and return the digests of the tables."""
    for source in sources:
        ingest(load_config(EVENTS, {}), workspace, source)
    found = {}
    for name, key in (("interactions", "impression_id"), ("events", "event_id"), ("unattributed", "event_id")):
        rows = tables.scan(workspace.table(name)).collect().sort("date", key)
        found[name] = tables.digest(rows.drop("file", "row", strict=False))
    return found


def _library(source: Path, workspace: Path) -> list[str]:
    ready = workspace.with_name("ready")
    ready.mkdir(exist_ok=True)
    return [sys.executable, "-c", WRITE, str(EVENTS), str(source), str(workspace), str(ready)]


def _command(source: Path, workspace: Path) -> list[str]:
    options = ["--config", str(EVENTS), "--source", str(source), "--workspace", str(workspace)]
    return [sys.executable, "-m", "pipeline", "ingest", *options]


def _at_once(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Start two writers and return their exit codes and what they said."""
    environment = {**os.environ, **threads.SETTINGS}
    writers = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for command in commands
    ]
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    return [(writer.returncode, text) for writer, text in zip(writers, said, strict=True)]


@pytest.mark.parametrize(
    ("command", "message"),
    [(_library, "at the same time: run the same command again"), (_command, "is being written by")],
    ids=["without the lock", "with the lock"],
)
def test_one_of_two_writers_commits_and_a_rerun_of_both_loses_and_doubles_no_row(
    command: Callable[[Path, Path], list[str]],
    message: str,
    halves: list[Path],
    one_after_the_other: dict[str, str],
    tmp_path: Path,
) -> None:
    workspace = tmp_path / "workspace"
    ended = _at_once([command(source, workspace) for source in halves])
    assert 0 in [code for code, _ in ended]
    for code, said in ended:
        assert code == 0 or (code == 2 and message in said), said
    assert _both(Workspace(workspace), halves) == one_after_the_other


def test_a_spill_of_a_killed_ingest_goes_and_that_of_a_running_one_stays(halves: list[Path], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    ended = subprocess.Popen([sys.executable, "--version"], stdout=subprocess.DEVNULL)
    ended.wait()
    for process in (ended.pid, os.getppid(), 1):
        workspace.table(f".spill-{process}").mkdir(parents=True)
    ingest(load_config(EVENTS, {}), workspace, halves[0])
    assert {path.name for path in (tmp_path / "tables").glob(".spill*")} == {".spill-1", f".spill-{os.getppid()}"}
