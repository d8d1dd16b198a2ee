"""Delta Lake tables: the only file that imports deltalake, but for table_files.py, which helps it.

A write is one atomic commit; a reader sees the table before it or after it. Days are the partitions, and a
write replaces the days that it names and leaves the others as they are.
"""

import datetime as dt
import hashlib
import io
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from pipeline.workspace import locked_folder, write_parquet_whole

ROW_GROUP_ROWS = 131_072
Files = Mapping[dt.date, Path | list[Path]]
# Delta would drop what the log says of versions older than 30 days, and registered models name such versions.
KEEP_LOG = PostCommitHookProperties(cleanup_expired_logs=False)
# What Delta itself says of a commit; the rest of a commit's metadata is the note that a write gave.
OWN_METADATA = {
    "clientVersion",
    "engineInfo",
    "isBlindAppend",
    "isolationLevel",
    "operation",
    "operationMetrics",
    "operationParameters",
    "readVersion",
    "timestamp",
    "version",
}


@dataclass(frozen=True)
class Basis:
    """What a write was computed from, so that it fails where another one came between.

    Attributes:
        version: the table's version that was read; None where there was no table.
        records: names and numbers that the commit keeps for good, see `recorded`.
    """

    version: int | None
    records: Mapping[str, int] = field(default_factory=dict)


def basis(path: Path, records: Mapping[str, int] | None = None) -> Basis:
    """Return the basis of a write that is computed from the table as it is now."""
    return Basis(version(path) if exists(path) else None, records or {})


def recorded(path: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the last number that a commit recorded under each name, without the names that none did."""
    if not exists(path):
        return {}
    table = DeltaTable(path)
    numbers = {name: table.transaction_version(name) for name in names}
    return {name: number for name, number in numbers.items() if number is not None}


def exists(path: Path) -> bool:
    """Return whether a table was committed at this path."""
    return DeltaTable.is_deltatable(str(path))


def version(path: Path) -> int:
    """Return the number of the table's latest commit."""
    return DeltaTable(path).version()


def metadata(path: Path) -> dict[str, str]:
    """Return what the latest commit says of itself, such as its data set and configuration."""
    latest = DeltaTable(path).history(1)[0]
    return {key: value for key, value in latest.items() if isinstance(value, str)}


def notes(path: Path, until: int) -> list[dict[str, str]]:
    """Return what each commit up to a version says of itself, the earliest first."""
    history = sorted(DeltaTable(path).history(), key=lambda entry: int(entry["version"]))
    return [
        {key: value for key, value in entry.items() if isinstance(value, str)}
        for entry in history
        if entry["version"] <= until
    ]


def scan(path: Path, version_number: int | None = None) -> pl.LazyFrame:
    """Scan a table lazily, at a version or at its latest.

    Raises:
        ValueError: nothing was committed there.
    """
    if not exists(path):
        raise ValueError(f"table {path} does not exist: run the stage that writes it first (counterpoise --help)")
    return pl.scan_delta(str(path), version=version_number)


def days(path: Path, column: str = "date") -> list[dt.date]:
    """Return the days that have rows, in order."""
    if not exists(path):
        return []
    return sorted(dt.date.fromisoformat(part[column]) for part in DeltaTable(path).partitions())


def day_files(path: Path, version_number: int | None = None, column: str = "date") -> dict[dt.date, list[Path]]:
    """Return the Parquet files of each day at a version or at the latest, by name; they lack the day's column."""
    if not exists(path):
        return {}
    actions = pa.table(DeltaTable(path, version=version_number).get_add_actions(flatten=True))
    files: dict[dt.date, list[Path]] = {}
    for day, name in sorted(zip(actions[f"partition.{column}"].to_pylist(), actions["path"].to_pylist(), strict=True)):
        files.setdefault(day, []).append(path / name)
    return files


def fingerprints(path: Path, column: str = "date") -> dict[dt.date, str]:
    """Return a digest of each day's data files, which changes exactly when a write replaces that day."""
    names = {
        day: "\n".join(file.relative_to(path).as_posix() for file in files)
        for day, files in day_files(path, column=column).items()
    }
    return {day: hashlib.sha256(text.encode()).hexdigest() for day, text in names.items()}


def row_groups(path: Path, version_number: int, day: dt.date, column: str = "date") -> list[tuple[Path, list[int]]]:
    """Return the Parquet files of a day at a version, by name, each with the rows of its row groups in order."""
    files = [(file, pq.read_metadata(file)) for file in day_files(path, version_number, column).get(day, [])]
    return [(file, [found.row_group(group).num_rows for group in range(found.num_row_groups)]) for file, found in files]


def write_days(
    path: Path,
    frames: Iterable[pl.DataFrame],
    dates: list[dt.date],
    *,
    column: str = "date",
    note: dict[str, str],
    since: Basis | None = None,
) -> int:
    """Replace whole days by the frames' rows in one commit and return the rows written.

    Frames are pulled one by one, so memory holds one of them. The first frame's columns are the schema; it
    may differ from the table's only where no other day stays. Without a day, the commit only says what it records.

    Raises:
        ValueError: other days stay and have other columns, or another run wrote since the basis.
    """
    iterator = iter(frames)
    first = next(iterator)
    _check_columns(path, column, dates, set(first.columns))
    files: list[tuple[dt.date, Path]] = []
    rows = 0
    for frame in chain([first], iterator):
        assert set(frame[column].unique()) <= set(dates), "a frame holds days that the write does not replace"
        for day, part in _by_day(frame, column):
            file = new_file(path, day, column, len(files))
            write_parquet_whole(part.drop(column), file, row_group_rows=ROW_GROUP_ROWS)
            files.append((day, file))
        rows += frame.height
    _replace(path, files, first.schema, dates, _Commit(column, note, since))
    return rows


def commit_files(
    path: Path, files: Files, schema: pl.Schema, *, note: dict[str, str], since: Basis | None = None
) -> None:
    """Replace whole days by files with the names of `new_file`, which lack the day's column; empty ones are removed.

    Raises:
        ValueError: other days stay and have other columns, or another run wrote since the basis.
    """
    _check_columns(path, "date", list(files), set(schema))
    parts = [(day, file) for day, held in files.items() for file in ([held] if isinstance(held, Path) else held)]
    empty = {file for _, file in parts if not pq.read_metadata(file).num_rows}
    for file in empty:
        file.unlink()
    _replace(path, [part for part in parts if part[1] not in empty], schema, list(files), _Commit("date", note, since))


def new_file(path: Path, day: dt.date, column: str = "date", number: int = 0) -> Path:
    """Return a new name for a file of a day, where it is no part of the table until a commit; numbers order a day."""
    return path / f"{column}={day}" / f"part-{number:05d}-{uuid.uuid4()}.parquet"


def _by_day(frame: pl.DataFrame, column: str) -> list[tuple[dt.date, pl.DataFrame]]:
    """Return the days of a frame with their rows; most frames hold one, and dividing those would copy them."""
    found = frame[column].unique()
    if len(found) == 1:
        return [(found[0], frame)]
    return [(day, part) for (day,), part in frame.partition_by(column, as_dict=True).items()]


def _check_columns(path: Path, column: str, dates: list[dt.date], new: set[str]) -> None:
    kept = set(scan(path).collect_schema().names()) if set(days(path, column)) - set(dates) else new
    if kept == new or (column == "scored_for" and kept < new):  # lists may gain columns: days before them have nulls
        return
    raise ValueError(f"table {path} keeps other days with other columns ({sorted(kept ^ new)}): use a new --workspace")


@dataclass(frozen=True)
class _Commit:
    """The column of the days, what a commit says of itself, and what it was computed from."""

    column: str
    note: dict[str, str]
    since: Basis | None

    def properties(self) -> CommitProperties:
        """Return the note, and what the commit records; two since the same version conflict by `since` alone."""
        if self.since is None:
            return CommitProperties(custom_metadata=self.note)
        numbers = {**self.since.records, "since": -1 if self.since.version is None else self.since.version}
        transactions = [Transaction(app_id=name, version=number) for name, number in numbers.items()]
        return CommitProperties(custom_metadata=self.note, app_transactions=transactions)


def _replace(
    path: Path, files: list[tuple[dt.date, Path]], columns: pl.Schema, dates: list[dt.date], commit: _Commit
) -> None:
    """Put files in place of some days."""
    whole = set(days(path, commit.column)) <= set(dates)
    added = [_add_action(path, commit.column, day, file) for day, file in files]
    schema = Schema.from_arrow(columns.to_frame().to_arrow(compat_level=pl.CompatLevel.oldest()).schema)
    shared: dict[str, Any] = {"partition_by": [commit.column], "commit_properties": commit.properties()}
    shared["post_commithook_properties"] = KEEP_LOG
    with _alone(path, commit.since) as table:
        if table is None:
            create_table_with_add_actions(str(path), schema, added, mode="error", **shared)
            return
        table.create_write_transaction(
            [*added],
            mode="overwrite" if whole or dates else "append",
            schema=schema,
            partition_filters=[(commit.column, "in", [str(day) for day in dates])] if dates and not whole else None,
            **shared,
        )


def _add_action(path: Path, column: str, day: dt.date, file: Path) -> AddAction:
    return AddAction(
        path=file.relative_to(path).as_posix(),
        size=file.stat().st_size,
        partition_values={column: str(day)},
        modification_time=int(file.stat().st_mtime * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": pq.read_metadata(file).num_rows}),
    )


@contextmanager
def _alone(path: Path, since: Basis | None) -> Iterator[DeltaTable | None]:
    """Yield the table as the write's basis knew it, or None where the write creates it, and tell of another run's."""
    known = since.version if since is not None else version(path) if exists(path) else None
    try:
        if known is not None:
            yield DeltaTable(path, version=known)
            return
        with locked_folder(path.parent):  # of two writers that create a table at once, Delta lets both commit
            if exists(path):
                raise ValueError(_concurrent(path))
            yield None
    except CommitFailedError as error:
        raise ValueError(_concurrent(path)) from error


def _concurrent(path: Path) -> str:
    return f"another run wrote {path} at the same time: run the same command again"


def write_all(path: Path, frame: pl.DataFrame, note: dict[str, str], since: Basis | None = None) -> None:
    """Replace a whole small table in one commit.

    Raises:
        ValueError: another run wrote at the same time.
    """
    with _alone(path, since) as table:
        write_deltalake(
            path if table is None else table,
            frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
            mode="overwrite",
            schema_mode="overwrite",
            commit_properties=_Commit("date", note, since).properties(),
            post_commithook_properties=KEEP_LOG,
        )


def vacuum(path: Path, *, keep_days: int, keep_versions: Collection[int], dry_run: bool) -> dict[str, int]:
    """Remove the files that no version of the last days and no version to keep needs, and return their bytes.

    What a killed writer left goes too, once it has not been touched for as many days. Versions to keep that the
    table does not have are passed over. The latest note stays the latest; nothing is committed where nothing goes.
    """
    table = DeltaTable(path)
    history = table.history()
    horizon = (dt.datetime.now(dt.UTC) - dt.timedelta(days=keep_days)).timestamp() * 1000
    recent = [entry["version"] for entry in history if entry["timestamp"] >= horizon]
    served = max((entry["version"] for entry in history if entry["timestamp"] < horizon), default=None)
    kept = sorted({version for version in {*recent, *keep_versions, served} - {None} if _is_readable(path, version)})

    def delete(*, dry: bool) -> list[str]:
        note = {name: value for name, value in history[0].items() if name not in OWN_METADATA}
        return table.vacuum(
            retention_hours=24 * keep_days,
            dry_run=dry,
            enforce_retention_duration=False,
            full=True,
            keep_versions=kept,
            commit_properties=CommitProperties(custom_metadata=note),
            post_commithook_properties=KEEP_LOG,
        )

    # Delta names what earlier vacuums took as long as the log tells of its removal.
    sizes = {name: (path / name).stat().st_size for name in delete(dry=True) if (path / name).exists()}
    if sizes and not dry_run:
        delete(dry=False)
    return sizes


def _is_readable(path: Path, version_number: int) -> bool:
    try:
        DeltaTable(path, version=version_number)
    except DeltaError:
        return False
    return True


def digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of a frame's rows, order and types included."""
    buffer = io.BytesIO()
    frame.rechunk().write_ipc(buffer, compat_level=pl.CompatLevel.oldest())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
