"""Where a workspace keeps its tables and runs, and how a run's folder is replaced as a whole."""

import datetime as dt
import fcntl
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Workspace:
    """A folder with tables/, runs/ and, by default, mlflow.db."""

    root: Path

    def table(self, name: str) -> Path:
        """Return the folder of a table."""
        return self.root / "tables" / name

    def run(self, run_id: str) -> Path:
        """Return the folder of a run."""
        return self.root / "runs" / run_id

    @contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Let no other command that takes the lock write here until the block has ended.

        The lock is the operating system's (flock on .lock): it ends with the process, however that ends.

        Raises:
            ValueError: another process holds it; the message names the process and its command.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / ".lock"
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = path.read_text(encoding="utf-8") or "another process"
                raise ValueError(
                    f"workspace {self.root} is being written by {holder}: run the same command again when it ended"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} (counterpoise {command})")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def run_id(test_last: dt.date, config_digest: str) -> str:
    """Name a run by its last test day and its configuration, so that a rerun has the same name."""
    return f"{test_last}-{config_digest}"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait for the operating system's lock on a folder, which is made if need be, and hold it; no file is left."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def made_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to write in; it goes where the block fails."""
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write in, and put it in place of `folder` only where the block ends well."""
    draft, old = folder.with_name(f".{folder.name}.draft"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # killed between the two renames below
    shutil.rmtree(draft, ignore_errors=True)
    with made_folder(draft):
        yield draft
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON that is either there as a whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    draft.replace(path)


def write_parquet(frame: pl.DataFrame, path: Path, *, row_group_rows: int | None = None) -> None:
    """Write Parquet through Python's own file, whose error tells a full disk where polars' does not."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=1, row_group_size=row_group_rows)
    path.write_bytes(buffer.getbuffer())


def write_parquet_whole(frame: pl.DataFrame, path: Path, *, row_group_rows: int | None = None) -> None:
    """Write Parquet that is there as a whole or not at all, also where two workers run the same task at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4()}.draft")
    write_parquet(frame, draft, row_group_rows=row_group_rows)
    draft.replace(path)


def join_parquet(parts: list[Path], file: Path) -> None:
    """Put the rows of some Parquet files behind one another into one, without holding them; the files go."""
    if len(parts) == 1:
        parts[0].rename(file)
        return
    pl.scan_parquet(parts).sink_parquet(file, compression="zstd", compression_level=1)
    for part in parts:
        part.unlink()


def read_json(path: Path, made_by: str) -> Any:
    """Read what a stage wrote.

    Raises:
        ValueError: the file is not there; the message names the stage that makes it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run `counterpoise {made_by}` first with the same options") from None
