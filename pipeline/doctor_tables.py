"""The doctor's checks of tables: each opens, and its files are there, hold what the log says, and are all there are."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.config import Config
from pipeline.draft import table_schemas
from pipeline.finding import Finding, judged
from pipeline.ledger import read_ledger
from pipeline.states import state_folder, stored_days
from pipeline.table_files import Logged, LoggedFile, ever_named, logged
from pipeline.vacuum import named_versions, tables_of
from pipeline.workspace import Workspace

KEYS = {
    "interactions": ["impression_id"],
    "examples": ["impression_id"],
    "raw": ["impression_id"],
    "candidates": ["user_id", "rank"],
}
"""What no day of a table holds twice."""
RESTORE = "restore the workspace from a backup, or use a new --workspace and run ingest again"
MORE = 3


def check_tables(config: Config, workspace: Workspace, *, deep: bool) -> Iterator[Finding]:
    """Look at every table of the workspace; deep reads all of their rows too."""
    schemas = table_schemas(config)
    for path in tables_of(workspace):
        name = path.relative_to(workspace.root).as_posix()
        try:
            held = logged(path)
        except ValueError as error:
            yield Finding(name, ok=False, sentence=f"{error}: {RESTORE}")
            continue
        problems = [problem for file in held.files for problem in _file_problems(path, held, file, deep=deep)]
        problems += _column_problems(held, schemas.get(path.name) if path.parent.name == "tables" else None)
        if deep and not problems:
            problems += _repeated(path, held)
        rows = sum(file.rows or 0 for file in held.files)
        yield from judged(name, problems, f"version {held.version}, {len(held.files):,} files, {rows:,} rows as logged")


def _file_problems(path: Path, held: Logged, file: LoggedFile, *, deep: bool) -> Iterator[str]:
    name = file.path.relative_to(path).as_posix()
    if not file.path.exists():
        yield f"{name} is gone, and version {held.version} needs it: {RESTORE}"
        return
    try:
        opened = pq.ParquetFile(file.path)
        read = sum(batch.num_rows for batch in opened.iter_batches()) if deep else opened.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        yield f"{name} cannot be read ({error}): {RESTORE}"
        return
    if file.rows is not None and read != file.rows:
        yield f"{name} holds {read:,} rows, the log says {file.rows:,}: {RESTORE}"
    columns = {*held.columns} - {held.day_column}
    if unlike := {*opened.schema_arrow.names} - columns:
        yield f"{name} has the columns {sorted(unlike)}, which the table has not: {RESTORE}"


def _column_problems(held: Logged, expected: pl.Schema | None) -> list[str]:
    if expected is None or {*expected} == {*held.columns}:
        return []
    differing = sorted({*expected} ^ {*held.columns})
    return [f"it differs from this configuration in the columns {differing}: give the --config that it was made with"]


def _repeated(path: Path, held: Logged) -> list[str]:
    """Return the days of which a row occurs twice."""
    key = KEYS.get(path.name)
    if key is None:
        return []
    problems = []
    for day in sorted(held.rows_by_day()):
        rows = tables.scan(path, held.version).filter(pl.col(held.day_column or "date") == day).select(key)
        count, distinct = rows.select(pl.len(), pl.struct(key).n_unique().alias("distinct")).collect().row(0)
        if count != distinct:
            problems.append(f"{day} holds {count - distinct:,} rows twice: run `counterpoise run --from featurize`")
    return problems


def check_days(workspace: Workspace) -> Iterator[Finding]:
    """Look for days of which the examples or features hold more rows than the interactions they were made from.

    Fewer are none: late events add to days of the past, and only days that a run still uses are made again.
    """
    log = workspace.table("interactions")
    if not tables.exists(log):
        yield Finding("days", ok=False, sentence="there is no table of interactions: run `counterpoise ingest` first")
        return
    shown = logged(log).rows_by_day()
    for path in [workspace.table("examples"), *sorted((workspace.root / "features").glob("*/raw"))]:
        if not tables.exists(path):
            continue
        rows = logged(path).rows_by_day()
        problems = [
            f"{day} has {count:,} rows, the interactions have {shown.get(day, 0):,}: a day that stands twice; run "
            "`counterpoise backfill` and `counterpoise featurize --force` for it"
            for day, count in sorted(rows.items())
            if count > shown.get(day, 0)
        ]
        name = path.relative_to(workspace.root).as_posix()
        yield from judged(f"days of {name}", problems, f"{len(rows)} days, none with more rows than the interactions")


def check_orphans(workspace: Workspace) -> Iterator[Finding]:
    """Look for files in the folders of tables that no commit has named."""
    for path in tables_of(workspace):
        named = ever_named(path)
        found = [file for file in path.rglob("*") if file.is_file() and file not in named]
        left = [file for file in found if "_delta_log" not in file.relative_to(path).parts]
        size = sum(file.stat().st_size for file in left)
        problem = f"{len(left):,} files of {size:,} bytes belong to no version: `counterpoise vacuum` removes them"
        name = path.relative_to(workspace.root).as_posix()
        yield from judged(f"orphans of {name}", [problem] if left else [], "no file that no version names")


def check_versions(workspace: Workspace, records: list[dict[str, str]]) -> Iterator[Finding]:
    """Look whether every version of a table that a run, a registered model or a published list names can be read."""
    wanted: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, version, owner in named_versions(workspace, records):
        wanted[name, version].append(owner)
    problems, well = [], 0
    for (name, version), owners in sorted(wanted.items()):
        path = workspace.table(name)
        if not path.exists():
            continue  # of another workspace that has the same registry
        missing = _missing(path, version)
        if missing is None:
            well += 1
            continue
        told = ", ".join(owners[:MORE]) + (f" and {len(owners) - MORE} more" if len(owners) > MORE else "")
        problems.append(
            f"version {version} of tables/{name} is gone ({missing}), and {told} was made from it: it cannot be "
            "reproduced; run that day again, or restore the files"
        )
    yield from judged("versions", problems, f"{well} versions of tables that runs, models and lists name are there")


def _missing(path: Path, version: int) -> str | None:
    """Say what is missing of a version; None where all of it is there."""
    try:
        files = logged(path, version).files
    except ValueError as error:
        return str(error)
    gone = [file.path for file in files if not file.path.exists()]
    return f"{len(gone)} of {len(files)} files are missing" if gone else None


def check_stores(workspace: Workspace) -> Iterator[Finding]:
    """Look whether the feature stores' ledgers and states can be read."""
    for root in sorted(path.parent for path in (workspace.root / "features").glob("*/ledger.json")):
        name = root.relative_to(workspace.root).as_posix()
        problems: list[str] = []
        try:
            ledger: Any = read_ledger(root / "ledger.json")
            lost = sorted(set(ledger.features) - set(logged(root / "raw").rows_by_day()))
            problems += [f"{day} is in its ledger and not in its features: remove {name}" for day in lost]
        except (ValueError, KeyError) as error:
            problems.append(f"ledger.json cannot be read ({error}): remove {name}, and featurize makes it again")
        states = stored_days(root / "states")
        for file in [file for day in states for file in sorted(state_folder(root / "states", day).glob("*.parquet"))]:
            try:
                pq.read_metadata(file)
            except (pa.ArrowException, OSError) as error:
                shown = file.relative_to(root).as_posix()
                problems.append(f"{shown} cannot be read ({error}): remove {name}, and featurize makes it again")
        yield from judged(name, problems, f"the ledger and {len(states)} states can be read")
