"""Vacuum: remove the files of old table versions and the old run folders that nothing needs any more."""

import datetime as dt
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import tables, tracking
from pipeline.config import Config
from pipeline.workspace import Workspace, read_json

MINIMUM_DAYS = 1
SECONDS_A_DAY = 86_400
STORES = ("tables", "features")


@dataclass(frozen=True)
class Removed:
    """What was removed of a table or a run folder; in a dry run, what would be."""

    place: str
    files: int
    size_bytes: int


def vacuum(config: Config, workspace: Workspace, *, keep_days: int, dry_run: bool) -> list[Removed]:
    """Remove what is older than some days and needed by no registered model version, and say so for each place.

    A run folder goes by its last test day, counted back from that of the newest one. A file of a table goes where no
    version of the last days needs it, nor one that a registered model version, a run folder that stays or the copy of a
    published list names. What killed writers left goes likewise.

    Raises:
        ValueError: the days are too few, or the workspace holds no table.
    """
    if keep_days < MINIMUM_DAYS:
        raise ValueError(
            f"--keep-days {keep_days}: expected at least {MINIMUM_DAYS}: who opened a table before its last commit "
            "still reads files of the version before, and would find them gone"
        )
    found = tables_of(workspace)
    if not found:
        raise ValueError(f"workspace {workspace.root} holds no table: correct --workspace or run ingest first")
    records = tracking.registered_records(config, workspace)
    old = old_runs(workspace, keep_days, {record["run"] for record in records if "run" in record})
    needed = needed_versions(records, (run for run in run_folders(workspace) if run not in old))
    for name, version, _ in _of_lists(workspace):
        needed[name].add(version)
    removed = [_remove_folder(workspace, run, dry_run=dry_run) for run in old]
    for path in found:
        sizes = tables.vacuum(path, keep_days=keep_days, keep_versions=needed[path.name], dry_run=dry_run)
        removed.append(Removed(_shown(workspace, path), len(sizes), sum(sizes.values())))
    return [*removed, *_remove_unborn(workspace, keep_days, dry_run=dry_run)]


def tables_of(workspace: Workspace) -> list[Path]:
    """Return the folders of all Delta tables: tables/ and the feature stores."""
    logs = (log for store in STORES for log in (workspace.root / store).rglob("_delta_log"))
    return sorted(log.parent for log in logs)


def run_folders(workspace: Workspace) -> list[Path]:
    """Return the folders of runs, what a killed vacuum left of one included."""
    return sorted(path for path in (workspace.root / "runs").glob("*") if _last_test_day(path) is not None)


def old_runs(workspace: Workspace, keep_days: int, registered: set[str]) -> list[Path]:
    """Return the run folders beyond the horizon that made no registered model version."""
    days = {path: day for path in run_folders(workspace) if (day := _last_test_day(path)) is not None}
    if not days:
        return []
    horizon = max(days.values()) - dt.timedelta(days=keep_days)
    return [path for path, day in days.items() if day < horizon and path.name not in registered]


def needed_versions(records: Iterable[dict[str, str]], runs: Iterable[Path]) -> dict[str, set[int]]:
    """Return the versions of each table, by name, that registered models and run folders were made from."""
    needed: dict[str, set[int]] = defaultdict(set)
    for name, version, _ in [*_of_models(records), *_of_runs(runs)]:
        needed[name].add(version)
    return needed


def named_versions(workspace: Workspace, records: Iterable[dict[str, str]]) -> Iterator[tuple[str, int, str]]:
    """Yield table, version and who names it: registered models, all run folders, and the copies of published lists."""
    yield from _of_models(records)
    yield from _of_runs(run_folders(workspace))
    yield from _of_lists(workspace)


def _of_models(records: Iterable[dict[str, str]]) -> Iterator[tuple[str, int, str]]:
    for record in records:
        for name, value in record.items():
            if name.startswith("table_"):
                yield name.removeprefix("table_"), int(value), f"the registered model of run {record.get('run', '?')}"


def _of_runs(runs: Iterable[Path]) -> Iterator[tuple[str, int, str]]:
    for run in runs:
        path = run / "features" / "versions.json"
        versions: dict[str, Any] = read_json(path, "featurize") if path.exists() else {}
        for name, version in versions.items():
            yield name, int(version), f"run {run.name}"


def _of_lists(workspace: Workspace) -> Iterator[tuple[str, int, str]]:
    for path in sorted((workspace.root / "published").glob("[!.]*/version.json")):
        record = read_json(path, "publish")
        yield "candidates", int(record["candidates_version"]), f"the published version {record['name']}"


def _last_test_day(run: Path) -> dt.date | None:
    """Read the day that a run's name begins with; None where a folder is no run's."""
    try:
        return dt.date.fromisoformat(run.name.removeprefix(".")[:10])
    except ValueError:
        return None


def _remove_folder(workspace: Workspace, run: Path, *, dry_run: bool) -> Removed:
    files = [path for path in run.rglob("*") if path.is_file()]
    removed = Removed(_shown(workspace, run), len(files), sum(path.stat().st_size for path in files))
    if not dry_run:
        gone = run.with_name(f".{run.name.removeprefix('.')}")  # a kill must leave no half of a run under its name
        run.rename(gone)
        shutil.rmtree(gone)
    return removed


def _remove_unborn(workspace: Workspace, keep_days: int, *, dry_run: bool) -> Iterator[Removed]:
    """Remove what killed writers left of tables that never came to a commit."""
    horizon = time.time() - keep_days * SECONDS_A_DAY
    for table in sorted((workspace.root / "tables").glob("[!.]*")):
        if (table / "_delta_log").exists():
            continue
        files = [file for file in table.rglob("*") if file.is_file() and file.stat().st_mtime < horizon]
        yield Removed(_shown(workspace, table), len(files), sum(file.stat().st_size for file in files))
        for file in [] if dry_run else files:
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()


def _shown(workspace: Workspace, path: Path) -> str:
    return path.relative_to(workspace.root).as_posix()
