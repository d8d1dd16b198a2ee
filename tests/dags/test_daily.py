"""The DAG in a real Airflow: it loads, hands on the right day, and runs the simulated pipeline to the end.

`make test-dag` runs this in an environment of its own; elsewhere Airflow is not installed and the module is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Not importorskip: an Airflow that is there but broken has to fail, and importing it here would use the caller's home.
if importlib.util.find_spec("airflow") is None:
    pytest.skip("Airflow lives in an environment of its own: make test-dag", allow_module_level=True)

ROOT = Path(__file__).parent.parent.parent
STAGES = ["ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an Airflow home of its own with SQLite, no examples and no usage statistics."""
    home = tmp_path_factory.mktemp("airflow")
    # A developer's AIRFLOW__DATABASE__SQL_ALCHEMY_CONN would have the test migrate a database that is not its own.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "COUNTERPOISE"))}
    values = {
        **outside,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "SCARF_NO_ANALYTICS": "true",
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=values, check=True, capture_output=True)
    return values


@pytest.fixture(scope="module")
def structure(environment: dict[str, str]) -> dict[str, object]:
    """Load the folder as the DAG processor does, in a process that has this Airflow home."""
    script = (
        "import json\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "bag = DagBag()\n"
        "dag = bag.dags.get('counterpoise_daily')\n"
        "tasks = {} if dag is None else {t.task_id: {'downstream': sorted(t.downstream_task_ids), 'retries': t.retries,"
        " 'command': t.bash_command, 'env': t.env} for t in dag.tasks}\n"
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
    assert sorted(tasks) == sorted(STAGES)
    for stage, following in zip(STAGES, [*STAGES[1:], None], strict=True):
        assert tasks[stage]["downstream"] == ([] if following is None else [following])
        assert f'" {stage} --config' in tasks[stage]["command"]
        assert tasks[stage]["retries"] == 2


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
        "text = dag.get_task('ingest').env['COUNTERPOISE_DATE']\n"
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
        "text = Template(dag.get_task('ingest').env['COUNTERPOISE_DATE'], undefined=StrictUndefined)\n"
        "for clock in ('01:59', '02:00', '23:59'):\n"
        "    triggered = SimpleNamespace(run_after=dt.datetime.fromisoformat('2026-01-06T' + clock + '+00:00'))\n"
        "    print('RESULT', clock, text.render(dag=dag, dag_run=triggered, macros=macros))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    expected = [["01:59", "2026-01-04"], ["02:00", "2026-01-05"], ["23:59", "2026-01-05"]]
    assert found == expected, done.stdout + done.stderr


@pytest.mark.parametrize("workspace", ["", "a/relative/one"])
def test_a_missing_or_relative_path_stops_the_task_with_its_name(
    structure: dict[str, object], tmp_path: Path, workspace: str
) -> None:
    tasks = structure["tasks"]
    assert isinstance(tasks, dict)
    values = {
        "PATH": os.environ["PATH"],
        "COUNTERPOISE_COMMAND": "true",
        "COUNTERPOISE_CONFIG": str(tmp_path),
        "COUNTERPOISE_SOURCE": str(tmp_path),
        "COUNTERPOISE_DATE": "2026-01-05",
    }
    command = ["/bin/bash", "-c", tasks["ingest"]["command"]]
    right = subprocess.run(command, env={**values, "COUNTERPOISE_WORKSPACE": str(tmp_path)}, check=False)
    assert right.returncode == 0
    given = {"COUNTERPOISE_WORKSPACE": workspace} if workspace else {}
    done = subprocess.run(command, env={**values, **given}, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == f"COUNTERPOISE_WORKSPACE='{workspace}': workers need an absolute path\n"


def test_the_simulated_pipeline_runs_to_the_end(environment: dict[str, str], tmp_path: Path) -> None:
    command = os.environ.get("COUNTERPOISE_COMMAND")
    if command is None:
        pytest.skip("COUNTERPOISE_COMMAND names the pipeline's own environment: make test-dag sets it")
    source, workspace = tmp_path / "a source", tmp_path / "workspace"
    small = ["--users", "200", "--items", "120", "--days", "6", "--requests-per-day", "300"]
    rates = ["--set", "click_rate=0.15", "--set", "conversion_rate=0.3"]
    subprocess.run([command, "simulate", "--output", str(source), *small, *rates], check=True, cwd=ROOT)
    values = {
        **environment,
        "COUNTERPOISE_COMMAND": command,
        "COUNTERPOISE_CONFIG": str(ROOT / "examples" / "simulated.toml"),
        "COUNTERPOISE_SOURCE": str(source),
        "COUNTERPOISE_WORKSPACE": str(workspace),
    }
    # The run of a logical date covers the interval that ended before it: 6 January runs the data of 5 January.
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "test", "counterpoise_daily", "2026-01-06T02:00:00+00:00"],
        env=values,
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-5000:]
    runs = sorted(path.name for path in (workspace / "runs").iterdir())
    assert [name[:10] for name in runs] == ["2026-01-05"], printed[-5000:]
    assert (workspace / "runs" / runs[0] / "register.json").is_file(), printed[-5000:]
    assert list((workspace / "tables" / "candidates" / "_delta_log").glob("*.json"))
    served = sorted(path.name for path in (workspace / "tables" / "candidates").iterdir() if "=" in path.name)
    assert served == ["scored_for=2026-01-06"]
