"""Nights in a real Airflow on a simulated source: two in a row, the first again, and one that fails.

`make test-dag` runs this in an environment of its own; elsewhere Airflow is not installed and the module is skipped.
"""

import hashlib
import importlib.util
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

# Not importorskip: an Airflow that is there but broken has to fail, and importing it here would use the caller's home.
if importlib.util.find_spec("airflow") is None:
    pytest.skip("Airflow lives in an environment of its own: make test-dag", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
STAGES = ["ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish"]
NIGHT = (
    "import datetime as dt, json, sys\n"
    "from airflow.dag_processing.dagbag import DagBag\n"
    "dag = DagBag().dags['counterpoise_daily']\n"
    "for task in dag.tasks:\n    task.retries = 0\n"  # a try more would come after minutes
    "run = dag.test(logical_date=dt.datetime.fromisoformat(sys.argv[1]))\n"
    "states = {one.task_id: str(one.state) for one in run.get_task_instances()}\n"
    "print('RESULT' + json.dumps({'state': str(run.state), **states}))\n"
)
MODEL = ["--set", "click_rate=0.15", "--set", "conversion_rate=0.3"]
LENIENT = """pcoc = [0.1, 10.0]
blocking_alarms = []
[gate.tolerance]
log_loss = 1.0
gauc = 1.0
recall = 1.0
coverage = 1.0
"""
"""A night's model on so few rows is sometimes worse than the one before, or than popularity."""


@dataclass(frozen=True)
class Place:
    """A workspace that nights are run on, in an Airflow of its own."""

    environment: dict[str, str]
    root: Path

    def night(self, logical_date: str, **values: str) -> tuple[dict[str, str], str]:
        """Run the DAG for a logical date; return the states of the night and its tasks, and what was printed."""
        command = [sys.executable, "-c", NIGHT, f"{logical_date}T02:00:00+00:00"]
        done = subprocess.run(
            command, env={**self.environment, **values}, check=False, capture_output=True, text=True, cwd=self.root
        )
        printed = done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert lines, printed[-5000:]
        return json.loads(lines[-1].removeprefix("RESULT")), printed

    def kept(self) -> dict[str, str]:
        """Return the digests of what a rerun must not change: tables, models, registered versions, published lists."""
        workspace = self.root / "workspace"
        patterns = ("tables/**/*", "runs/*/model/**/*", "runs/*/register.json", "published/**/*", "feed/**/*")
        files = sorted(path for pattern in patterns for path in workspace.glob(pattern) if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def published(self) -> list[str]:
        """Return the days of the lists that were published."""
        return sorted(path.name[:10] for path in (self.root / "workspace" / "published").iterdir())


@pytest.fixture(scope="module")
def place(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    command = os.environ.get("COUNTERPOISE_COMMAND")
    if command is None:
        pytest.skip("COUNTERPOISE_COMMAND names the pipeline's own environment: make test-dag sets it")
    root = tmp_path_factory.mktemp("nights")
    source, config = root / "a source", root / "night.toml"
    small = ["--users", "200", "--items", "120", "--days", "7", "--requests-per-day", "300"]
    subprocess.run([command, "simulate", "--output", str(source), *small, *MODEL], check=True, cwd=ROOT)
    example = (ROOT / "examples" / "simulated.toml").read_text(encoding="utf-8")
    strict = "pcoc = [0.7, 1.4]"
    assert example.count(strict) == 1
    config.write_text(example.replace(strict, LENIENT))
    values = {
        "COUNTERPOISE_COMMAND": command,
        "COUNTERPOISE_CONFIG": str(config),
        "COUNTERPOISE_SOURCE": str(source),
        "COUNTERPOISE_WORKSPACE": str(root / "workspace"),
        "COUNTERPOISE_FULL_RETRAIN_WEEKDAY": "monday",  # 5 January is one
    }
    return Place({**environment, **values}, root)


def test_two_nights_publish_their_lists_and_a_rerun_of_the_first_changes_nothing(place: Place) -> None:
    # The run of a logical date covers the interval that ended before it: 6 January runs the data of 5 January.
    first, printed = place.night("2026-01-06")
    assert set(first.values()) == {"success"}, printed[-5000:]
    assert place.published() == ["2026-01-06"], printed[-5000:]
    second, printed = place.night("2026-01-07")
    assert set(second.values()) == {"success"}, printed[-5000:]
    assert place.published() == ["2026-01-06", "2026-01-07"], printed[-5000:]
    runs = sorted(path.name for path in (place.root / "workspace" / "runs").iterdir())
    assert [name[:10] for name in runs] == ["2026-01-05", "2026-01-06"]
    assert (place.root / "workspace" / "runs" / runs[1] / "features" / "base.json").exists(), "a warm start"
    before = place.kept()
    again, printed = place.night("2026-01-06")
    assert set(again.values()) == {"success"}, printed[-5000:]
    assert printed.count("skipped: it ended at") == len(STAGES) - 2, printed[-5000:]  # ingest keeps a record of its own
    assert "lists for 2026-01-07 are published, these are for 2026-01-06; they stay" in printed
    assert place.kept() == before


def test_the_nights_tell_what_they_made_to_who_waits_for_it(place: Place) -> None:
    with closing(sqlite3.connect(Path(place.environment["AIRFLOW_HOME"]) / "airflow.db")) as base:
        found = base.execute(
            "SELECT asset.uri, asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
        ).fetchall()
    told = {(uri, json.loads(extra)["date"]) for uri, extra in found}
    names = ("interactions", "examples", "candidates", "feed")
    assert told == {(f"x-counterpoise://{name}", day) for name in names for day in ("2026-01-05", "2026-01-06")}


def test_a_night_that_fails_is_told_is_watched_and_is_no_success(place: Place) -> None:
    command, heard = place.root / "fails at calibrate", place.root / "told by alert"
    real = shlex.quote(place.environment["COUNTERPOISE_COMMAND"])
    fails = 'echo "counterpoise: too few positives" >&2; exit 2;'
    command.write_text(f'#!/bin/sh\n[ "$1" = calibrate ] && {{ {fails} }}\nexec {real} "$@"\n')
    command.chmod(0o755)
    published = place.published()
    values = {
        "COUNTERPOISE_COMMAND": str(command),
        "COUNTERPOISE_ALERT_COMMAND": f"tee -a {shlex.quote(str(heard))}",
    }
    states, printed = place.night("2026-01-08", **values)
    expected = {"calibrate": "failed", "evaluate": "upstream_failed", "publish": "upstream_failed", "watch": "success"}
    assert {name: states[name] for name in expected} == expected, printed[-5000:]
    assert (states["state"], states["train"]) == ("failed", "success"), printed[-5000:]
    (line,) = heard.read_text().splitlines()
    told = json.loads(line)
    assert (told["task"], told["date"], told["try"]) == ("calibrate", "2026-01-07", 1)
    assert told["error"] == "exit code 2: counterpoise: too few positives"
    assert place.published() == published
