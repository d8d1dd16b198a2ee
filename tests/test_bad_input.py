"""What a user can fix ends with one line and exit code 2; committed tables stay, and the next run works."""

import datetime as dt
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import polars.selectors as cs
import pytest

from pipeline import tables, threads
from pipeline.config import load_config
from pipeline.ingest import ingest
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, **threads.SETTINGS}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "source"
    simulate(SimulatorConfig(users=80, items=60, days=4, requests_per_day=150, click_rate=0.2), folder)
    return folder


@pytest.fixture
def source(healthy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(healthy, tmp_path / "source")


def _arguments(command: str, source: Path, workspace: Path, *extra: str) -> list[str]:
    place = ["--config", "examples/simulated.toml", "--source", str(source), "--workspace", str(workspace)]
    return [sys.executable, "-m", "pipeline", command, *place, *extra]


def _call(command: str, source: Path, workspace: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _arguments(command, source, workspace, *extra),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=ENVIRONMENT,
    )


def _day(source: Path, place: int) -> Path:
    return sorted((source / "impressions").glob("*.parquet"))[place]


def _rewrite(source: Path, place: int, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_parquet(_day(source, place))).write_parquet(_day(source, place))


def _drop_column(source: Path) -> str:
    _rewrite(source, 1, lambda rows: rows.drop("position"))
    return f"{_day(source, 1).name}: column 'position' is missing"


def _unparsable(source: Path) -> str:
    _day(source, 1).write_bytes(b"this is no Parquet file")
    return f"{_day(source, 1).name}: cannot be read"


def _label_without_click(source: Path) -> str:
    _rewrite(source, 1, lambda rows: rows.with_columns(click=pl.lit(value=False), conversion=pl.lit(value=True)))
    return "conversion without a click"


def _day_without_rows(source: Path) -> str:
    _rewrite(source, 3, lambda rows: rows.with_columns(cs.datetime() + dt.timedelta(days=9)))
    return "source has no rows on 2026-01-05"


def _empty_source(source: Path) -> str:
    for place in range(4):
        _rewrite(source, place, lambda rows: rows.head(0))
    return "has no rows"


def _no_files(source: Path) -> str:
    shutil.rmtree(source / "impressions")
    return "has no file impressions/*.parquet"


def _repeated_user(source: Path) -> str:
    path = source / "users.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[3]]) + "\n")
    return "users.csv: user_id 'u000002' stands in rows 3 and 81"


def _one_class(source: Path) -> str:
    for place in range(4):
        _rewrite(source, place, lambda rows: rows.with_columns(conversion=pl.lit(value=False)))
    return "labels.conversion = 'conversion' is true on 0 of 6000 rows"


def _not_finite(value: str) -> Callable[[Path], str]:
    def change(source: Path) -> str:
        path = source / "items.csv"
        items = pl.read_csv(path).with_columns(pl.col("price").cast(pl.String))
        items[4, "price"] = value
        items.write_csv(path)
        return f"items.csv: row 5: price = '{value}' is no finite number"

    return change


BROKEN = {
    "missing column": _drop_column,
    "unparsable file": _unparsable,
    "label without a click": _label_without_click,
    "day without rows": _day_without_rows,
    "empty source": _empty_source,
    "no files": _no_files,
    "repeated id": _repeated_user,
    "one-class labels": _one_class,
    "NaN": _not_finite("NaN"),
    "infinite": _not_finite("inf"),
}


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN.keys())
def test_bad_input_ends_with_one_line_and_exit_code_2(
    break_it: Callable[[Path], str], healthy: Path, source: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    config = load_config(ROOT / "examples" / "simulated.toml", {})
    ingest(config, workspace, healthy)
    names = ("interactions", "quarantine", "users", "items")
    before = {name: tables.version(workspace.table(name)) for name in names}
    expected = break_it(source)
    done = _call("ingest", source, workspace.root)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert {name: tables.version(workspace.table(name)) for name in names} == before
    assert ingest(config, workspace, healthy).notes["unchanged"] == 4


def test_a_corrupt_gzip_is_named(healthy: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "impressions").mkdir(parents=True)
    for name in ("users.csv", "items.csv"):
        shutil.copy(healthy / name, source / name)
    text = pl.read_parquet(healthy / "impressions" / "*.parquet").write_csv()
    whole = gzip.compress(text.encode())
    (source / "impressions" / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    glob = ["--set", "source.interactions=impressions/*.csv.gz"]
    done = _call("ingest", source, tmp_path / "workspace", *glob)
    assert done.returncode == 2
    assert "log.csv.gz: cannot be read after row" in done.stderr
    (source / "impressions" / "log.csv.gz").write_bytes(whole)
    assert _call("ingest", source, tmp_path / "workspace", *glob).returncode == 0


def test_an_unknown_key_and_a_wrong_value_are_told_at_once(source: Path) -> None:
    wrong = ["--set", "training.epochs=0", "--set", "model.bodies=ple"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "check", "--source", str(source), *wrong],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    assert "training.epochs = 0" in done.stderr
    assert "unknown key model.bodies" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def _on_a_full_disk(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a stage that may write no file above 16 KiB, which fails as a full disk does."""
    limited = ["bash", "-c", 'ulimit -f 16; exec "$@"', "limited", *arguments]
    return subprocess.run(limited, capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT)


@pytest.mark.parametrize(("stage", "table"), [("ingest", "interactions"), ("featurize", "examples")])
def test_a_full_disk_leaves_earlier_tables_and_the_next_run_works(
    stage: str, table: str, source: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    for earlier in ("ingest", "featurize")[: 1 if stage == "ingest" else 2]:
        assert _call(earlier, source, workspace).returncode == 0
    before = tables.version(workspace / "tables" / table)
    rows = tables.scan(workspace / "tables" / table).collect().height
    _rewrite(source, 1, lambda log: log.with_columns(surface=pl.lit("home")))  # else there is nothing to ingest
    force = [] if stage == "ingest" else ["--force"]  # else it is skipped, as nothing was ingested
    done = _on_a_full_disk(_arguments(stage, source, workspace, *force))
    assert done.returncode == 2, done.stderr
    assert "no space left to write" in done.stderr
    assert tables.version(workspace / "tables" / table) == before
    assert tables.scan(workspace / "tables" / table).collect().height == rows
    assert _call(stage, source, workspace, *force).returncode == 0


def test_ctrl_c_in_the_middle_of_a_stage_leaves_earlier_outputs_and_the_next_run_works(
    source: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    assert _call("ingest", source, workspace).returncode == 0
    assert _call("featurize", source, workspace).returncode == 0
    before = tables.version(workspace / "tables" / "examples")
    long_one = _arguments("train", source, workspace, "--set", "retriever.epochs=4")
    process = subprocess.Popen(long_one, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not list(workspace.glob("runs/*/.model.draft")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 2, printed
    assert "interrupted" in printed
    assert not list(workspace.glob("runs/*/model"))
    assert not list(workspace.glob("runs/*/.model.draft"))
    assert tables.version(workspace / "tables" / "examples") == before
    assert _call("train", source, workspace).returncode == 0


def test_a_stage_before_its_predecessor_says_what_to_run(source: Path, tmp_path: Path) -> None:
    done = _call("train", source, tmp_path / "workspace")
    assert done.returncode == 2
    assert "run `counterpoise ingest` first" in done.stderr


def test_a_day_that_is_no_day_and_a_folder_that_is_not_there_are_told(source: Path, tmp_path: Path) -> None:
    done = _call("run", source, tmp_path / "workspace", "--date", "yesterday")
    assert done.returncode == 2
    assert "--date yesterday: expected a day such as 2026-01-14" in done.stderr
    done = _call("run", source, tmp_path / "workspace", "--summary", str(tmp_path / "nowhere" / "s.json"))
    assert done.returncode == 2
    assert "does not exist; make it first" in done.stderr


def test_a_date_without_rows_names_the_days_there_are(source: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    assert _call("ingest", source, workspace).returncode == 0
    done = _call("featurize", source, workspace, "--date", "2027-01-01")
    assert done.returncode == 2
    assert "--date 2027-01-01 has no rows: the table holds 2026-01-01 to 2026-01-04" in done.stderr
    assert dt.date(2026, 1, 4) in tables.days(workspace / "tables" / "interactions")
