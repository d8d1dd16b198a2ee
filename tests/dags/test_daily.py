"""The DAG in a real Airflow: it loads, hands on the right day, and runs the simulated pipeline to the end.

`make test-dag` runs this in an environment of its own; elsewhere Airflow is not installed and the module is skipped.
"""

import importlib.util
import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

# Not importorskip: an Airflow that is there but broken has to fail, and importing it here would use the caller's home.
if importlib.util.find_spec("airflow") is None:
    pytest.skip("Airflow lives in an environment of its own: make test-dag", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
STAGES = ["ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish"]


@pytest.fixture(scope="module")
def structure(environment: dict[str, str]) -> dict[str, object]:
    """Load the folder as the DAG processor does, in a process that has this Airflow home."""
    script = (
        "import json\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "bag = DagBag()\n"
        "dag = bag.dags.get('counterpoise_daily')\n"
        "tasks = {} if dag is None else {t.task_id: {'downstream': sorted(t.downstream_task_ids), 'retries': t.retries,"
        " 'outlets': [a.uri for a in t.outlets], 'rule': t.trigger_rule} for t in dag.tasks}\n"
        "print('RESULT' + json.dumps({'errors': {k: str(v) for k, v in bag.import_errors.items()}, 'tasks': tasks,"
        " 'catchup': dag.catchup, 'active': dag.max_active_runs, 'timetable': type(dag.timetable).__name__}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    found: dict[str, object] = json.loads(line.removeprefix("RESULT"))
    return found


def test_the_folder_has_no_import_error(structure: dict[str, object]) -> None:
    assert structure["errors"] == {}


def test_one_task_a_stage_in_the_pipelines_order(structure: dict[str, object]) -> None:
    tasks = structure["tasks"]
    assert isinstance(tasks, dict)
    assert sorted(tasks) == sorted([*STAGES, "watch", "night"])
    for stage, following in pairwise(STAGES):
        assert tasks[stage]["downstream"] == [following]
        assert tasks[stage]["retries"] == (4 if stage == "ingest" else 2)


def test_watch_runs_however_the_night_ended_and_does_not_hide_a_failure(structure: dict[str, object]) -> None:
    tasks = structure["tasks"]
    assert isinstance(tasks, dict)
    assert tasks["publish"]["downstream"] == ["night", "watch"]
    assert tasks["watch"]["downstream"] == ["night"]
    assert (tasks["watch"]["rule"], tasks["night"]["rule"]) == ("all_done", "all_success")


def test_each_table_and_the_feed_is_an_asset(structure: dict[str, object]) -> None:
    tasks = structure["tasks"]
    assert isinstance(tasks, dict)
    found = {stage: task["outlets"] for stage, task in tasks.items() if task["outlets"]}
    assert found == {
        "ingest": ["x-counterpoise://interactions"],
        "featurize": ["x-counterpoise://examples"],
        "rank": ["x-counterpoise://candidates"],
        "publish": ["x-counterpoise://feed"],
    }


def test_a_run_covers_a_day_and_runs_never_overlap(structure: dict[str, object]) -> None:
    assert structure["timetable"] == "CronDataIntervalTimetable"
    assert structure["catchup"] is False
    assert structure["active"] == 1


def test_the_file_imports_nothing_of_the_project() -> None:
    text = (ROOT / "dags" / "daily.py").read_text(encoding="utf-8")
    imported = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imported if line.split()[1].split(".")[0] in {"pipeline", "features", "models"}]


def test_the_day_that_ended_is_a_day_of_the_business_time_zone(environment: dict[str, str]) -> None:
    script = (
        "import datetime as dt\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "from jinja2 import Template\n"
        "dag = DagBag().dags['counterpoise_daily']\n"
        "start = dt.datetime(2026, 1, 4, 18, tzinfo=dt.UTC)\n"
        "text = dag.get_task('ingest').date\n"
        "print('RESULT' + Template(text).render(dag=dag, data_interval_start=start))\n"
    )
    values = {**environment, "COUNTERPOISE_TIME_ZONE": "Asia/Shanghai"}
    done = subprocess.run([sys.executable, "-c", script], env=values, check=False, capture_output=True, text=True)
    assert "RESULT2026-01-05" in done.stdout, done.stdout + done.stderr


def test_a_run_without_a_data_interval_takes_the_last_complete_one(environment: dict[str, str]) -> None:
    script = (
        "import datetime as dt\n"
        "from types import SimpleNamespace\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "from airflow.sdk.execution_time import macros\n"
        "from jinja2 import StrictUndefined, Template\n"
        "dag = DagBag().dags['counterpoise_daily']\n"
        "text = Template(dag.get_task('ingest').date, undefined=StrictUndefined)\n"
        "for clock in ('01:59', '02:00', '23:59'):\n"
        "    triggered = SimpleNamespace(run_after=dt.datetime.fromisoformat('2026-01-06T' + clock + '+00:00'))\n"
        "    print('RESULT', clock, text.render(dag=dag, dag_run=triggered, macros=macros))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    expected = [["01:59", "2026-01-04"], ["02:00", "2026-01-05"], ["23:59", "2026-01-05"]]
    assert found == expected, done.stdout + done.stderr


def _ask(environment: dict[str, str], script: str, *arguments: str, **values: str) -> Any:
    """Run lines of Python beside the DAG file, as a worker would, and return what they put into `found`."""
    text = (
        "import importlib.util, json, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('daily', {str(ROOT / 'dags' / 'daily.py')!r})\n"
        "daily = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(daily)\n"
        f"{script}\n"
        "print('RESULT' + json.dumps(found))\n"
    )
    command = [sys.executable, "-c", text, *arguments]
    done = subprocess.run(command, env={**environment, **values}, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[6:])


COMMANDS = "found = [daily.command_line('train', day, os.environ) for day in sys.argv[1:]]"
PLACES = {
    "COUNTERPOISE_CONFIG": "/c.toml",
    "COUNTERPOISE_SOURCE": "s3://logs",
    "COUNTERPOISE_WORKSPACE": "/a workspace",
}


def test_nights_begin_from_the_champion_but_for_a_weekday_that_trains_from_scratch(environment: dict[str, str]) -> None:
    sunday, monday = _ask(environment, COMMANDS, "2026-01-04", "2026-01-05", **PLACES)
    places = ["--config", "/c.toml", "--source", "s3://logs", "--workspace", "/a workspace"]
    assert sunday == ["counterpoise", "train", *places, "--date", "2026-01-04"]
    assert monday == ["counterpoise", "train", *places, "--date", "2026-01-05", "--warm-start"]
    for chosen, warm in (("Monday", [True, False]), ("always", [False, False])):
        found = _ask(
            environment, COMMANDS, "2026-01-04", "2026-01-05", **PLACES, COUNTERPOISE_FULL_RETRAIN_WEEKDAY=chosen
        )
        assert [command[-1] == "--warm-start" for command in found] == warm


def test_an_unknown_weekday_is_an_import_error_that_names_the_known_ones(environment: dict[str, str]) -> None:
    script = "from airflow.dag_processing.dagbag import DagBag\nprint(DagBag().import_errors)"
    values = {**environment, "COUNTERPOISE_FULL_RETRAIN_WEEKDAY": "never"}
    done = subprocess.run([sys.executable, "-c", script], env=values, check=False, capture_output=True, text=True)
    assert "COUNTERPOISE_FULL_RETRAIN_WEEKDAY='never': expected one of" in done.stdout.replace("\\", "")


@pytest.mark.parametrize("workspace", ["", "a/relative/one"])
def test_a_missing_or_relative_path_stops_the_task_with_its_name(environment: dict[str, str], workspace: str) -> None:
    script = (
        "try:\n    daily.command_line('train', '2026-01-05', os.environ)\n"
        "except daily.AirflowFailException as error:\n    found = str(error)"
    )
    found = _ask(environment, script, **{**PLACES, "COUNTERPOISE_WORKSPACE": workspace})
    assert found == f"COUNTERPOISE_WORKSPACE={workspace!r}: workers need an absolute path"


@pytest.mark.parametrize(
    ("stage", "code", "attempt", "final"),
    [
        ("train", 2, 1, False),
        ("train", 2, 2, True),
        ("train", 137, 2, False),
        ("ingest", 2, 4, False),
        ("ingest", 2, 5, True),
    ],
)
def test_what_a_user_can_fix_is_tried_once_more_and_a_late_log_for_an_hour(
    environment: dict[str, str], tmp_path: Path, stage: str, code: int, attempt: int, *, final: bool
) -> None:
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\necho counterpoise: why >&2\nexit {code}\n")
    command.chmod(0o755)
    script = (
        "from types import SimpleNamespace\n"
        f"task = daily.dag.get_task({stage!r})\n"
        "task.date = '2026-01-05'\n"
        f"context = {{'ti': SimpleNamespace(try_number={attempt})}}\n"
        "try:\n    daily.Stage.execute.__wrapped__(task, context)\n"  # Airflow wraps it, for calls of its own only
        "except daily.AirflowException as error:\n    found = [type(error).__name__, str(error)]"
    )
    found = _ask(environment, script, **PLACES, COUNTERPOISE_COMMAND=str(command))
    assert found == ["AirflowFailException" if final else "AirflowException", f"exit code {code}: counterpoise: why"]


def test_a_night_that_took_too_long_is_told_and_a_failed_task_not_twice(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "from types import SimpleNamespace\n"
        "for reason in ('task_failure', 'timed_out'):\n"
        "    daily.alert_of_timeout({'dag_run': SimpleNamespace(run_id='scheduled__1'), 'reason': reason})\n"
        "found = None"
    )
    heard = tmp_path / "told by alert"
    _ask(environment, script, COUNTERPOISE_ALERT_COMMAND=f"tee -a {shlex.quote(str(heard))}")
    told = json.loads(heard.read_text())
    assert (told["dag_run"], told["error"], told["task"]) == ("scheduled__1", "timed_out", None)
