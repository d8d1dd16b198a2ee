"""What the log of a Delta table says of its files: for checks that look below `pipeline.tables`, which it helps."""

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError


@dataclass(frozen=True)
class LoggedFile:
    """A data file as the log names it: its path, its rows and bytes, and its day where the table has days."""

    path: Path
    rows: int | None
    size_bytes: int
    day: dt.date | None


@dataclass(frozen=True)
class Logged:
    """A table at a version: its columns, the days' column (None without), and its files."""

    version: int
    columns: list[str]
    day_column: str | None
    files: list[LoggedFile]

    def rows_by_day(self) -> dict[dt.date, int]:
        """Return the rows of each day by the log."""
        found: dict[dt.date, int] = {}
        for file in self.files:
            if file.day is not None:
                found[file.day] = found.get(file.day, 0) + (file.rows or 0)
        return found


def logged(path: Path, version: int | None = None) -> Logged:
    """Read a table's log, at a version or at the latest; no data file is opened.

    Raises:
        ValueError: the log is damaged, or has no such version any more.
    """
    try:
        table = DeltaTable(path, version=version)
        actions = pa.table(table.get_add_actions(flatten=True))
    except DeltaError as error:
        at = "" if version is None else f" at version {version}"
        raise ValueError(f"{path}{at} cannot be opened ({' '.join(str(error).split())})") from error
    column = next(iter(table.metadata().partition_columns), None)
    listed = {name: actions[name].to_pylist() for name in actions.column_names}
    empty = [None] * actions.num_rows
    parts = zip(
        listed["path"],
        listed.get("num_records", empty),
        listed["size_bytes"],
        listed.get(f"partition.{column}", empty),
        strict=True,
    )
    files = [LoggedFile(path / unquote(name), rows, size, day) for name, rows, size, day in parts]
    return Logged(table.version(), [field.name for field in table.schema().fields], column, files)


def ever_named(path: Path) -> set[Path]:
    """Return every file that a commit of a table has named; others in its folder are of writers that were killed."""
    named = set()
    for log in sorted((path / "_delta_log").glob("*.json")):
        for line in log.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                named.add(path / unquote(action["add"]["path"]))
    return named
