"""Delta Lake tables: the only file that imports deltalake.

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
from pathlib import Path

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from pipeline.workspace import write_parquet

ROW_GROUP_ROWS = 131_072
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


def fingerprints(path: Path, column: str = "date") -> dict[dt.date, str]:
    """Return a digest of each day's data files, which changes exactly when a write replaces that day."""
    if not exists(path):
        return {}
    actions = pa.table(DeltaTable(path).get_add_actions(flatten=True))
    files: dict[dt.date, list[str]] = {}
    for day, name in zip(actions[f"partition.{column}"].to_pylist(), actions["path"].to_pylist(), strict=True):
        files.setdefault(day, []).append(name)
    return {day: hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest() for day, names in sorted(files.items())}


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
    whole = set(days(path, column)) <= set(dates)
    iterator = iter(frames)
    first = next(iterator)
    if not whole and (kept := set(scan(path).collect_schema().names())) != set(first.columns):
        different = sorted(kept ^ set(first.columns))
        raise ValueError(f"table {path} keeps other days with other columns ({different}): use a new --workspace")
    added: list[AddAction] = []
    rows = 0
    for frame in _chain(first, iterator):
        assert set(frame[column].unique()) <= set(dates), "a frame holds days that the write does not replace"
        added += [_write_file(path, column, day, part) for day, part in _by_day(frame, column)]
        rows += frame.height
    schema = Schema.from_arrow(first.to_arrow(compat_level=pl.CompatLevel.oldest()).schema)
    with _alone(path):
        table = _table_at(path, since)
        if isinstance(table, str) and exists(path):
            table = DeltaTable(path)
        _commit(table, added, schema, column, None if whole else dates, _properties(note, since))
    return rows


def _by_day(frame: pl.DataFrame, column: str) -> Iterator[tuple[dt.date, pl.DataFrame]]:
    """Yield the days of a frame with their rows; most frames hold one, and dividing those would copy them."""
    found = frame[column].unique()
    if len(found) == 1:
        yield found[0], frame
    else:
        yield from ((day, part) for (day,), part in frame.partition_by(column, as_dict=True).items())


def _write_file(path: Path, column: str, day: dt.date, rows: pl.DataFrame) -> AddAction:
    """Write a day's rows where the table will look for them; until a commit names the file it is no part of it."""
    file = path / f"{column}={day}" / f"part-{uuid.uuid4()}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(rows.drop(column), file, row_group_rows=ROW_GROUP_ROWS)
    return AddAction(
        path=file.relative_to(path).as_posix(),
        size=file.stat().st_size,
        partition_values={column: str(day)},
        modification_time=int(file.stat().st_mtime * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": rows.height}),
    )


def _commit(
    table: str | DeltaTable,
    added: list[AddAction],
    schema: Schema,
    column: str,
    dates: list[dt.date] | None,
    properties: CommitProperties,
) -> None:
    """Put files in place of some days, or of all where that is None."""
    if isinstance(table, str):
        create_table_with_add_actions(
            table,
            schema,
            added,
            mode="error",
            partition_by=[column],
            commit_properties=properties,
            post_commithook_properties=KEEP_LOG,
        )
        return
    table.create_write_transaction(
        [*added],
        mode="append" if dates == [] else "overwrite",
        schema=schema,
        partition_by=[column],
        partition_filters=[(column, "in", [str(date) for date in dates])] if dates else None,
        commit_properties=properties,
        post_commithook_properties=KEEP_LOG,
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Tell that another run wrote the same table."""
    try:
        yield
    except CommitFailedError as error:
        raise ValueError(_concurrent(path)) from error


def _concurrent(path: Path) -> str:
    return f"another run wrote {path} at the same time: run the same command again"


def _table_at(path: Path, since: Basis | None) -> str | DeltaTable:
    if since is None:
        return str(path)
    if since.version is None:
        if exists(path):
            raise ValueError(_concurrent(path))
        return str(path)
    return DeltaTable(path, version=since.version)


def _properties(note: dict[str, str], since: Basis | None) -> CommitProperties:
    """Return a note, and what the commit records; two commits since the same version conflict by `since` alone."""
    if since is None:
        return CommitProperties(custom_metadata=note)
    numbers = {**since.records, "since": -1 if since.version is None else since.version}
    transactions = [Transaction(app_id=name, version=number) for name, number in numbers.items()]
    return CommitProperties(custom_metadata=note, app_transactions=transactions)


def write_all(path: Path, frame: pl.DataFrame, note: dict[str, str], since: Basis | None = None) -> None:
    """Replace a whole small table in one commit.

    Raises:
        ValueError: another run wrote at the same time.
    """
    with _alone(path):
        write_deltalake(
            _table_at(path, since),
            frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
            mode="overwrite",
            schema_mode="overwrite",
            commit_properties=_properties(note, since),
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


def _chain(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield first
    yield from rest
