"""A million users, 30 days, 20 impressions a day: the pipeline at a share of it, and what the whole would need.

    python -m benchmarks.bench_scale --scale 0.02     # 20,000 users, 12 million impressions
    python -m benchmarks.bench_scale --scale 0.001    # a quick check: 1,000 users, 600 thousand impressions

Each stage is the command of its name in a process of its own. CPU-seconds and peak memory are the process's and its
children's. The second table multiplies CPU and disk by what drives each stage: rows of the log, or users. It holds as
long as the cost of a row stays that of the measured size, and says for memory what it grows with instead.
"""

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from pipeline import tables

WIDTH = 180
USERS, DAYS, PER_USER = 1_000_000, 30, 20
SLOTS = 10
LARGE_DAY = 1_000_000_000
STAGES = ("simulate", "ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank")
DONE = re.compile(r"(\w+) +([\d,]+) rows in, +([\d,]+) rows out")
# What the cost of a stage follows. A first run ingests and featurizes all days, a night adds one.
DRIVERS = {
    "simulate": "rows",
    "ingest": "new rows",
    "featurize": "new rows",
    "train": "rows",
    "calibrate": "rows of a day",
    "evaluate": "rows of a day",
    "register": "nothing",
    "retrieve": "users",
    "rank": "users",
}
MEMORY = {
    "simulate": "rows of a day",
    "ingest": "a slice of 4M rows at most, and 8 bytes an event of the days of the conversion window",
    "featurize": "partial counts of the window: users, items and their pairs; a day's rows",
    "train": "embedding rows (ids kept) and their optimiser state; a few row groups",
    "calibrate": "rows of the validation days",
    "evaluate": "rows of the test days",
    "register": "the model",
    "retrieve": "items x width of the index, users of a block",
    "rank": "the models, users x candidates of a block",
}


@dataclass(frozen=True)
class Measured:
    """One stage in its process: wall and CPU seconds, peak MiB, and the rows that it told of."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    rows_in: int
    rows_out: int


@dataclass(frozen=True)
class Size:
    """A world: users, impressions of all days and of one, and those that are new to a run."""

    users: int
    rows: int
    rows_a_day: int
    new_rows: int

    def of(self, driver: str) -> int:
        """Return how much of a driver there is."""
        return {
            "rows": self.rows,
            "new rows": self.new_rows,
            "rows of a day": self.rows_a_day,
            "users": self.users,
            "nothing": 1,
        }[driver]


def run_stage(arguments: list[str], log: Path) -> Measured:
    """Run a command of the pipeline in a process and wait for it."""
    with log.open("w", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603  # this interpreter, and arguments that are made here
            [sys.executable, "-m", "pipeline", *arguments], stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - start
    text = log.read_text(encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"counterpoise {arguments[0]} ended with {process.returncode}: {text[-2000:]}")
    told = DONE.search(text)
    rows_in, rows_out = (int(number.replace(",", "")) for number in told.group(2, 3)) if told else (0, 0)
    return Measured(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, rows_in, rows_out)


def run_all(config: Path, folder: Path, size: Size, items: int, overrides: list[str]) -> dict[str, Measured]:
    """Simulate a world and run every stage on it."""
    source, workspace = folder / "source", folder / "workspace"
    requests = size.rows_a_day // SLOTS
    world = {"--users": size.users, "--items": items, "--days": DAYS, "--requests-per-day": requests}
    simulated = ["simulate", "--output", str(source), *(str(each) for pair in world.items() for each in pair)]
    common = ["--config", str(config), "--source", str(source), "--workspace", str(workspace)]
    common += [text for override in overrides for text in ("--set", override)]
    found: dict[str, Measured] = {}
    for stage in STAGES:
        arguments = simulated if stage == "simulate" else [stage, *common]
        found[stage] = run_stage(arguments, folder / f"{stage}.log")
    return found


def disk(workspace: Path) -> dict[str, tuple[int, int]]:
    """Return the rows of each table and the bytes of its folder, and the bytes of runs and of the registry."""
    sizes: dict[str, tuple[int, int]] = {}
    for folder in sorted(path.parent for path in workspace.rglob("_delta_log")):
        rows = tables.scan(folder).select(pl.len()).collect().item()
        sizes[folder.relative_to(workspace).as_posix()] = (rows, _bytes(folder))
    for name in ("runs", "features", "mlruns", "mlartifacts"):
        inside = sum(total for table, (_, total) in sizes.items() if table.startswith(f"{name}/"))
        if total := _bytes(workspace / name) - inside:
            sizes[name] = (0, total)
    return sizes


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show_measured(found: dict[str, Measured], size: Size) -> Table:
    """Return a table of what was measured."""
    table = _table(f"{size.users:,} users, {size.rows:,} impressions in {DAYS} days", "stage", *NUMBERS)
    for stage, each in found.items():
        rows = each.rows_in or size.rows
        table.add_row(
            stage,
            f"{rows:,}",
            f"{each.rows_out:,}",
            f"{each.wall_s:,.1f}",
            f"{each.cpu_s:,.1f}",
            f"{rows / each.wall_s:,.0f}",
            f"{rows / each.cpu_s:,.0f}",
            f"{each.peak_mib:,.0f}",
        )
    return table


NUMBERS = ("rows in", "rows out", "wall s", "CPU-s", "rows/s wall", "rows/CPU-s", "peak MiB")


def show_needed(found: dict[str, Measured], size: Size) -> Table:
    """Return a table of the CPU-hours that larger worlds would need."""
    day, large = USERS * PER_USER, LARGE_DAY
    worlds = {
        "30 days of 1M users, once": Size(USERS, day * DAYS, day, day * DAYS),
        "a night of 1M users": Size(USERS, day * DAYS, day, day),
        "a night of 10^9 impressions": Size(large // PER_USER, large * DAYS, large, large),
    }
    table = _table("CPU-hours needed, by what each stage's cost follows", "stage", "follows", *worlds, "memory follows")
    for stage, each in found.items():
        factors = [world.of(DRIVERS[stage]) / size.of(DRIVERS[stage]) for world in worlds.values()]
        hours = [f"{each.cpu_s * factor / 3600:,.2f}" for factor in factors]
        table.add_row(stage, DRIVERS[stage], *hours, MEMORY[stage])
    return table


def show_disk(sizes: dict[str, tuple[int, int]], size: Size) -> Table:
    """Return a table of bytes on disk, and of what larger worlds would need."""
    table = _table("bytes on disk", "what", "rows", "MiB", "bytes a row", "GiB: 600M", "TiB: 30 x 10^9")
    large = LARGE_DAY * DAYS
    for name, (rows, total) in sizes.items():
        by_user = name.endswith(("candidates", "users"))
        grows = [
            (world / PER_USER / DAYS / size.users if by_user else world / size.rows)
            for world in (USERS * DAYS * PER_USER, large)
        ]
        told = rows and not name.endswith("items")
        table.add_row(
            name,
            f"{rows:,}",
            f"{total / 2**20:,.1f}",
            f"{total / rows:,.1f}" if rows else "",
            f"{total * grows[0] / 2**30:,.1f}" if told else "",
            f"{total * grows[1] / 2**40:,.2f}" if told else "",
        )
    return table


def _table(title: str, first: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="left" if "follows" in name else "right")
    return table


def main(
    scale: Annotated[float, typer.Option(min=0.0005, max=1, help="Share of a million users.")] = 0.02,
    items: Annotated[int, typer.Option(min=100, help="Items of the world.")] = 10_000,
    config: Annotated[Path, typer.Option(help="Run configuration.")] = Path("examples/simulated.toml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, any key of the config.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to work; kept. Default: a temporary folder.")] = None,
) -> None:
    """Measure every stage at a share of the size and print what the whole would need."""
    users = round(USERS * scale)
    rows_a_day = users * PER_USER
    size = Size(users, rows_a_day * DAYS, rows_a_day, rows_a_day * DAYS)
    scratch = folder or Path(tempfile.mkdtemp())
    scratch.mkdir(parents=True, exist_ok=True)
    chosen = ["training.epochs=1", *(overrides or [])]
    found = run_all(config, scratch, size, items, chosen)
    console = Console(width=WIDTH)
    console.print(f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, scale {scale:g}, {os.cpu_count()} cores, {' '.join(chosen)}")
    for table in (show_measured(found, size), show_needed(found, size), show_disk(disk(scratch / "workspace"), size)):
        console.print(table)
    if folder is None:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    typer.run(main)
