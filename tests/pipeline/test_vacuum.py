"""A vacuum takes what nothing needs any more, and nothing else."""

import datetime as dt
import json
import os
import shutil
import time
from pathlib import Path

import mlflow
import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline import tables, tracking
from pipeline.__main__ import app
from pipeline.config import Config
from pipeline.vacuum import vacuum
from pipeline.workspace import Workspace, write_json

FIRST = dt.date(2026, 1, 1)
DAY = 86_400


def _write(path: Path, value: int) -> None:
    rows = pl.DataFrame({"value": [value], "date": [FIRST]})
    tables.write_days(path, [rows], [FIRST], note={"data_set": "simulated", "value": str(value)})


def _age(path: Path, days: float) -> None:
    """Let a table's commits and files be so many days old."""
    for log in (path / "_delta_log").glob("*.json"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for action in lines:
            for kind, key in (("remove", "deletionTimestamp"), ("commitInfo", "timestamp")):
                if kind in action:
                    action[kind][key] -= int(days * DAY * 1000)
        log.write_text("\n".join(json.dumps(line) for line in lines))
    for file in path.rglob("*.parquet"):
        os.utime(file, (time.time() - days * DAY,) * 2)


def _values(path: Path, version: int | None = None) -> list[int]:
    return tables.scan(path, version).collect()["value"].to_list()


def _files(workspace: Workspace) -> list[Path]:
    return sorted(path for path in workspace.root.rglob("*") if path.is_file() and path.suffix == ".parquet")


def _orphan(path: Path, days: float) -> Path:
    orphan = path / f"date={FIRST}" / f"part-{days}.zstd.parquet"
    orphan.write_bytes(b"what a killed writer left")
    os.utime(orphan, (time.time() - days * DAY,) * 2)
    return orphan


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Ten-day-old versions 0, 1 and 2 of tables/examples."""
    workspace = Workspace(tmp_path / "workspace")
    for value in range(3):
        _write(workspace.table("examples"), value)
    _age(workspace.table("examples"), 10)
    return workspace


def _run(workspace: Workspace, name: str, version: int) -> Path:
    folder = workspace.run(name)
    (folder / "features").mkdir(parents=True)
    write_json(folder / "features" / "versions.json", {"examples": version})
    return folder


def _register(config: Config, workspace: Workspace, run: str, version: int) -> None:
    """Register a version as `register` does, without a model's files."""
    client = tracking.connect(config, workspace)
    with mlflow.start_run(run_name=run) as started:
        mlflow.set_tags({"run": run, "table_examples": str(version), "table_gone": "7"})
    client.create_registered_model(config.tracking.model)
    client.create_model_version(config.tracking.model, str(workspace.root), started.info.run_id)


def test_old_versions_and_orphans_go_and_the_table_stays(workspace: Workspace, simulated_config: Config) -> None:
    table = workspace.table("examples")
    orphan, young = _orphan(table, 10), _orphan(table, 1)
    before = tables.digest(tables.scan(table).collect())
    (removed,) = vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert (removed.place, removed.files) == ("tables/examples", 3)
    assert removed.size_bytes > len("what a killed writer left")
    assert not orphan.exists()
    assert young.exists()
    assert len(_files(workspace)) == 2
    assert tables.digest(tables.scan(table).collect()) == before
    assert tables.metadata(table)["value"] == "2"


def test_a_dry_run_tells_the_same_and_removes_nothing(workspace: Workspace, simulated_config: Config) -> None:
    _orphan(workspace.table("examples"), 10)
    _run(workspace, "2026-01-01-aaaa", 0)
    _run(workspace, "2026-02-01-bbbb", 2)
    before = _files(workspace), tables.version(workspace.table("examples"))
    told = vacuum(simulated_config, workspace, keep_days=5, dry_run=True)
    assert (_files(workspace), tables.version(workspace.table("examples"))) == before
    assert workspace.run("2026-01-01-aaaa").exists()
    assert not (workspace.root / "mlflow.db").exists()
    assert [(one.place, one.files) for one in told] == [("runs/2026-01-01-aaaa", 1), ("tables/examples", 3)]
    assert vacuum(simulated_config, workspace, keep_days=5, dry_run=False) == told


def test_a_second_vacuum_removes_and_commits_nothing(workspace: Workspace, simulated_config: Config) -> None:
    vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    version = tables.version(workspace.table("examples"))
    (removed,) = vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert (removed.files, removed.size_bytes) == (0, 0)
    assert tables.version(workspace.table("examples")) == version


def test_a_version_of_the_last_days_stays(workspace: Workspace, simulated_config: Config) -> None:
    table = workspace.table("examples")
    for value in (3, 4):
        _write(table, value)
    vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert [_values(table, version) for version in (2, 3, 4)] == [[2], [3], [4]]
    with pytest.raises(FileNotFoundError):
        _values(table, 1)


def test_what_a_registered_version_was_made_from_stays_and_reads(
    workspace: Workspace, simulated_config: Config
) -> None:
    folder = _run(workspace, "2026-01-01-aaaa", 1)
    _run(workspace, "2026-02-01-bbbb", 2)
    _register(simulated_config, workspace, folder.name, 1)
    shutil.rmtree(folder / "features")
    removed = vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert [(one.place, one.files) for one in removed] == [("tables/examples", 1)]
    assert folder.exists()
    assert _values(workspace.table("examples"), 1) == [1]
    with pytest.raises(FileNotFoundError):
        _values(workspace.table("examples"), 0)


def test_what_a_run_that_stays_was_made_from_stays_and_reads(workspace: Workspace, simulated_config: Config) -> None:
    old = _run(workspace, "2026-01-26-aaaa", 0)
    kept = _run(workspace, "2026-01-27-aaaa", 1)
    newest = _run(workspace, "2026-02-01-bbbb", 2)
    vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert [folder.exists() for folder in (old, kept, newest)] == [False, True, True]
    assert _values(workspace.table("examples"), 1) == [1]


def test_the_lists_that_a_published_version_names_stay_and_read(workspace: Workspace, simulated_config: Config) -> None:
    table = workspace.table("candidates")
    for value in range(4):
        _write(table, value)
    _age(table, 10)
    copy = workspace.root / "published" / "2026-01-01-0123abcd"
    copy.mkdir(parents=True)
    write_json(copy / "version.json", {"name": copy.name, "candidates_version": 1})
    vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert _values(table, 1) == [1]
    assert _values(table) == [3]
    with pytest.raises(FileNotFoundError):
        _values(table, 0)


def test_what_a_killed_vacuum_left_of_a_run_goes(workspace: Workspace, simulated_config: Config) -> None:
    left = _run(workspace, ".2026-01-01-aaaa", 0)
    (workspace.root / "runs" / "notes").mkdir()
    _run(workspace, "2026-02-01-bbbb", 2)
    vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert not left.exists()
    assert (workspace.root / "runs" / "notes").exists()


def test_what_a_killed_writer_left_of_a_table_without_a_commit_goes_once_it_is_old(
    workspace: Workspace, simulated_config: Config
) -> None:
    table = workspace.table("unattributed")
    (table / f"date={FIRST}").mkdir(parents=True)
    old, fresh = _orphan(table, 3), _orphan(table, 1)
    told = vacuum(simulated_config, workspace, keep_days=2, dry_run=True)[-1]
    assert (told.place, told.files) == ("tables/unattributed", 1)
    assert old.exists()
    assert vacuum(simulated_config, workspace, keep_days=2, dry_run=False)[-1] == told
    assert not old.exists()
    assert fresh.exists()
    os.utime(fresh, (time.time() - 3 * DAY,) * 2)
    vacuum(simulated_config, workspace, keep_days=2, dry_run=False)
    assert list(table.iterdir()) == []


def test_the_tables_of_feature_stores_are_vacuumed_too(workspace: Workspace, simulated_config: Config) -> None:
    store = workspace.root / "features" / "0a1b2c3d" / "partials"
    for value in range(2):
        _write(store, value)
    _age(store, 10)
    removed = vacuum(simulated_config, workspace, keep_days=5, dry_run=False)
    assert [(one.place, one.files) for one in removed] == [("features/0a1b2c3d/partials", 1), ("tables/examples", 2)]
    assert _values(store) == [1]


def test_a_version_of_long_ago_stays_in_the_log_however_many_commits_follow(workspace: Workspace) -> None:
    table = workspace.table("examples")
    for value in range(3, 102):
        if value == 99:  # the next commit but one makes a checkpoint
            for log in (table / "_delta_log").iterdir():
                os.utime(log, (time.time() - 400 * DAY,) * 2)
        tables.write_all(table, pl.DataFrame({"value": [value], "date": [FIRST]}), {})
    assert list((table / "_delta_log").glob("*.checkpoint.parquet"))
    assert _values(table, 1) == [1]


def test_too_few_days_and_a_workspace_without_tables_are_refused(
    workspace: Workspace, simulated_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--keep-days 0: expected at least 1: who opened a table before its last"):
        vacuum(simulated_config, workspace, keep_days=0, dry_run=False)
    with pytest.raises(ValueError, match="holds no table: correct --workspace or run ingest first"):
        vacuum(simulated_config, Workspace(tmp_path / "nowhere"), keep_days=5, dry_run=True)


def test_the_command_prints_files_and_bytes_of_each_table(workspace: Workspace) -> None:
    arguments = ["vacuum", "--workspace", str(workspace.root), "--keep-days", "5"]
    for extra, verb in (["--dry-run"], "would go"), ([], "gone"):
        done = CliRunner().invoke(app, [*arguments, *extra])
        assert done.exit_code == 0, done.output
        assert done.output.startswith("tables/examples: 2 files, ")
        assert done.output.endswith(f" bytes {verb}\n")
