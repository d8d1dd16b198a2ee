"""Raw events to a labelled table: `counterpoise ingest` beside a plain polars job on the same files.

    python -m benchmarks.bench_ingest --rounds 3                      # 5 million events, Parquet and JSONL.gz
    python -m benchmarks.bench_ingest --rounds 1 --times-days 10 --formats parquet    # 50 million, ten times the days
    python -m benchmarks.bench_ingest --rounds 1 --times-users 4 --formats parquet    # four times the events of a day

The plain job reads the files with polars, drops repeated event ids, joins clicks to impressions and conversions to
clicks by id, and writes Parquet by day: no contract, no quarantine, no windows, no knowledge times, no table. Each job
runs in a process of its own, the two in turn; CPU-seconds and peak memory are the process's.
"""

import datetime as dt
import gzip
import itertools
import multiprocessing
import resource
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from pipeline import threads
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

DAYS = 14
LARGEST_IN_MEMORY = 10_000_000
REQUESTS_PER_DAY = 34_000  # with 10 slots and 5 % clicks about 5 million events
STREAM = {"impression": "impression_id", "request": "request_id", "value": "value", "received_time": "received_time"}
Measured = tuple[float, float]


def make_source(folder: Path, times_days: int, times_users: int, formats: list[str]) -> int:
    """Simulate clean events, repeated on later days and by other users, one file a day and copy. Return the events."""
    config = SimulatorConfig(
        users=60_000,
        items=10_000,
        days=DAYS,
        requests_per_day=REQUESTS_PER_DAY,
        late_share=0,
        duplicate_share=0,
        disorder_share=0,
        malformed_share=0,
    )
    simulate(config, folder / "simulated")
    events = 0
    for file in sorted((folder / "simulated" / "events").glob("*.jsonl.gz")):
        lines = gzip.decompress(file.read_bytes())
        if not lines:
            continue
        frame = pl.read_ndjson(lines, infer_schema_length=None)
        for days, users in itertools.product(range(times_days), range(times_users)):
            copied = _copy(frame, days, users)
            events += copied.height
            for form in formats:
                _write(copied, folder / form / f"{days}-{file.name.removesuffix('.jsonl.gz')}-{users}.{form}")
    shutil.rmtree(folder / "simulated")
    return events


def _copy(frame: pl.DataFrame, days: int, users: int) -> pl.DataFrame:
    """Return the events of other users, on days that follow the simulated ones."""
    ids = [pl.col(name) + f"-{days}-{users}" for name in ("event_id", "impression_id", "request_id", "user_id")]
    shift = dt.timedelta(days=days * DAYS)
    times = [
        (pl.col(name).str.to_datetime(time_unit="us", time_zone="UTC") + shift).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        for name in ("event_time", "received_time")
    ]
    return frame.with_columns(*ids, *times)


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        time = pl.col("event_time", "received_time").str.to_datetime(time_unit="us", time_zone="UTC")
        frame.with_columns(time).write_parquet(path)
    else:
        with gzip.open(path, "wb", compresslevel=1) as file:
            frame.write_ndjson(file)


def ours(folder: Path, form: str, output: Path) -> None:
    """Ingest with the whole contract."""
    stream = {"files": f"{form}/*.{form}", **STREAM}
    config = Config.model_validate(
        {
            "name": "bench",
            "source": {"streams": [stream]},
            "labels": {"click_window": "1h", "conversion_window": "3d"},
            "context": {"columns": {"position": "1", "surface": "home"}},
        }
    )
    ingest(config, Workspace(output), folder)


def plain(folder: Path, form: str, output: Path) -> None:
    """Do with polars alone what needs no contract."""
    if form == "parquet":
        events = pl.scan_parquet(folder / form / "*.parquet").collect()
    else:
        events = pl.concat(
            pl.read_ndjson(gzip.decompress(file.read_bytes()), infer_schema_length=None)
            for file in sorted((folder / form).glob("*.jsonl.gz"))
        )
        events = events.with_columns(
            pl.col("event_time", "received_time").str.to_datetime(time_unit="us", time_zone="UTC")
        )
    events = events.unique("event_id", keep="first")
    clicks = events.filter(pl.col("event") == "click").select("impression_id", click_time="event_time")
    conversions = events.filter(pl.col("event") == "conversion").select(
        "impression_id", conversion_time="event_time", conversion_value="value"
    )
    labelled = (
        events.filter(pl.col("event") == "impression")
        .join(clicks, on="impression_id", how="left")
        .join(conversions, on="impression_id", how="left")
        .with_columns(
            date=pl.col("event_time").dt.date(),
            click=pl.col("click_time").is_not_null(),
            conversion=pl.col("conversion_time").is_not_null(),
        )
    )
    for (day,), frame in labelled.partition_by("date", as_dict=True).items():
        (output / f"date={day}").mkdir(parents=True)
        frame.drop("date").sort("event_time").write_parquet(output / f"date={day}" / "part.parquet")


def _measured(job: Callable[[Path, str, Path], None], folder: Path, form: str) -> Measured:
    """Run a job in a fresh process; return its CPU-seconds and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as output:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(job, folder, form, Path(output) / "out", sender))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{job.__name__} on {form} ended with {process.exitcode}")
        found: Measured = receiver.recv()
    return found


def _child(job: Callable[[Path, str, Path], None], folder: Path, form: str, output: Path, sender: object) -> None:
    begun = resource.getrusage(resource.RUSAGE_SELF)
    job(folder, form, output)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - begun.ru_utime - begun.ru_stime
    sender.send((cpu, used.ru_maxrss / 1024))  # type: ignore[attr-defined]


def main(
    rounds: Annotated[int, typer.Option(help="Rounds, the two jobs in turn.")] = 3,
    times_days: Annotated[int, typer.Option(help="Times the 14 days.")] = 1,
    times_users: Annotated[int, typer.Option(help="Times the events of a day.")] = 1,
    formats: Annotated[list[str] | None, typer.Option(help="parquet, jsonl.gz")] = None,
) -> None:
    """Measure both jobs on each format and print a table."""
    threads.configure()
    chosen = formats or ["parquet", "jsonl.gz"]
    table = Table(title=f"raw events to labelled table, {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, medians of {rounds}")
    for name in ("format", "events", "job", "CPU-seconds", "rows per CPU-second", "peak MiB", "CPU over plain"):
        table.add_column(name, justify="left" if name in {"format", "job"} else "right")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        events = make_source(folder, times_days, times_users, chosen)
        for form in chosen:
            jobs = {"plain polars": plain, "counterpoise": ours}
            if events > LARGEST_IN_MEMORY:
                del jobs["plain polars"]
            found: dict[str, list[Measured]] = {name: [] for name in jobs}
            for _ in range(rounds):
                for name, job in jobs.items():
                    found[name].append(_measured(job, folder, form))
            base = statistics.median(cpu for cpu, _ in next(iter(found.values())))
            for name, runs in found.items():
                cpu = statistics.median(cpu for cpu, _ in runs)
                peak = max(peak for _, peak in runs)
                row = (
                    form,
                    f"{events:,}",
                    name,
                    f"{cpu:.1f}",
                    f"{events / cpu:,.0f}",
                    f"{peak:,.0f}",
                    f"{cpu / base:.2f}",
                )
                table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
