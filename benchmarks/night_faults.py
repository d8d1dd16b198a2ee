"""What goes wrong in a night of `benchmarks/nights.py`, done to real files: sources, processes, a disk, a model."""

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.config import Config
from pipeline.featurize import days_of, run_folder, table_versions
from pipeline.workspace import Workspace

LABELS = ("click", "conversion")
MORNING = dt.time(10)
SPARE_BYTES = 1 << 20
FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """The folders of the nights: the whole log, what has been delivered of it, the workspace, and the configuration."""

    root: Path
    config: Config

    @property
    def whole(self) -> Path:
        """Return where the whole simulated log lies."""
        return self.root / "whole"

    @property
    def source(self) -> Path:
        """Return the folder that the nights read."""
        return self.root / "source"

    @property
    def workspace(self) -> Workspace:
        """Return the workspace, always at one path: MLflow writes absolute ones."""
        return Workspace(self.root / "workspace")

    def log(self, day: dt.date) -> Path:
        """Return the delivered log of a day."""
        return self.source / "impressions" / f"{day}.parquet"

    def deliver(self, day: dt.date) -> None:
        """Deliver the log of a day as it should be."""
        shutil.copy(self.whole / "impressions" / self.log(day).name, self.log(day))


def deliver_half(place: Place, day: dt.date) -> None:
    """Deliver the rows of a morning alone."""
    rows = pl.read_parquet(place.whole / "impressions" / place.log(day).name)
    end = dt.datetime.combine(day, MORNING, tzinfo=dt.UTC)
    rows.filter(pl.col("received_time") < end).write_parquet(place.log(day))


def deliver_damaged(place: Place, day: dt.date) -> None:
    """Deliver a file of which the last third did not arrive."""
    content = (place.whole / "impressions" / place.log(day).name).read_bytes()
    place.log(day).write_bytes(content[: len(content) * 2 // 3])


def deliver_with_labels_lost(place: Place, day: dt.date, share: float = 0.3) -> None:
    """Deliver a log that has lost a share of its clicks, with their conversions."""
    rows = pl.read_parquet(place.whole / "impressions" / place.log(day).name)
    lost = pl.Series(np.random.default_rng(1).random(rows.height) < share)
    told = [name for name in rows.columns if name.startswith(LABELS) or name == "value"]
    without = [pl.lit(False if name in LABELS else None, rows[name].dtype).alias(name) for name in told]
    rows.with_columns(
        pl.when(lost).then(instead).otherwise(pl.col(name)).alias(name)
        for name, instead in zip(told, without, strict=True)
    ).write_parquet(place.log(day))


def shuffle_labels(place: Place, day: dt.date) -> None:
    """Put the labels in another order in the files of tables/examples, each file's by itself, as a defect would."""
    days = days_of(place.config, place.workspace, day)
    version = table_versions(run_folder(place.config, place.workspace, days))["examples"]
    generator = np.random.default_rng(2)
    for paths in tables.day_files(place.workspace.table("examples"), version).values():
        for path in paths:
            rows = pl.read_parquet(path, hive_partitioning=False)
            order = generator.permutation(rows.height)
            rows.with_columns(rows.select(LABELS)[order]).write_parquet(path)


@contextmanager
def full_disk(place: Place) -> Iterator[str]:
    """Put the workspace on a file system with hardly a byte to spare; give how, in words.

    Where mounting one is not allowed, nothing is done here and '' is given: limit the size of files instead.
    """
    root = place.workspace.root
    used = sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())
    aside = root.with_name("aside")
    root.rename(aside)
    root.mkdir()
    size = used + SPARE_BYTES
    if not _called("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)):
        root.rmdir()
        aside.rename(root)
        yield ""
        return
    try:
        shutil.copytree(aside, root, dirs_exist_ok=True)
        yield f"a file system of {size >> 20} MiB, {SPARE_BYTES >> 20} of them free"
    finally:
        shutil.rmtree(aside)
        shutil.copytree(root, aside)
        assert _called("umount", str(root))
        root.rmdir()
        aside.rename(root)


def limit_files() -> None:
    """Let no file of this process grow beyond 64 KiB, which fails as a full disk does."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))


def _called(*command: str) -> bool:
    done = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False)  # noqa: S603  # our own words
    return done is not False and done.returncode == 0
