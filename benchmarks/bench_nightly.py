"""What a night costs as the history grows: every stage of the same last day after 7, 30, 90 and 180 days.

    python -m benchmarks.bench_nightly --histories 7 --histories 30 --histories 90 --histories 180 --rounds 3

One simulated log of raw events with equal daily volume. For each history the workspace holds the days before the last
one, as the night before left it; then `counterpoise run --date LAST` of the last day is timed stage by stage, on a
copy of the workspace each round, the histories in turn. Five days train in each. Ratios are to the shortest history.
The truth and the world of the simulator are left out, since no night would have them.
"""

import datetime as dt
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline import threads
from pipeline.simulate import simulate
from pipeline.workspace import read_json
from pipeline.world import SimulatorConfig

FIRST = dt.date(2026, 1, 1)
EXAMPLE = Path("examples/events.toml")
Times = dict[str, float]


def _source(everything: Path, folder: Path, days: list[dt.date]) -> Path:
    """Give some days of receipt as a source of their own, by links."""
    (folder / "events").mkdir(parents=True)
    for day in days:
        name = f"{day}.jsonl.gz"
        (folder / "events" / name).hardlink_to(everything / "events" / name)
    for name in ("users.csv", "items.csv"):
        (folder / name).hardlink_to(everything / name)
    return folder


def _write_config(folder: Path) -> None:
    """Write the example's configuration without what only a simulation has."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("truth =", "world ="))]
    (folder / "night.toml").write_text("\n".join(kept), encoding="utf-8")


def _run(source: Path, workspace: Path, last: dt.date, summary: Path) -> None:
    place = ["--config", str(summary.parent / "night.toml"), "--source", str(source), "--workspace", str(workspace)]
    # The first files of a history hold late events of days before it: days of few impressions, which a gate would stop.
    gates = [part for key in ("max_volume_ratio", "max_rate_ratio") for part in ("--set", f"gates.{key}=1e9")]
    night = ["--date", str(last), "--set", "split.train_days=5", "--summary", str(summary), *gates]
    subprocess.run(  # noqa: S603  # the command line of this repository
        [sys.executable, "-m", "pipeline", "run", *place, *night],
        check=True,
        env={**os.environ, **threads.SETTINGS},
        stdout=subprocess.DEVNULL,
    )


def _night(source: Path, prepared: Path, scratch: Path, last: dt.date) -> Times:
    """Time the stages of the last day's run on a copy of a prepared workspace."""
    workspace = scratch / "night"
    shutil.copytree(prepared, workspace)
    os.sync()  # a larger copy that is still being written would slow down the night
    _run(source, workspace, last, scratch / "summary.json")
    stages = read_json(scratch / "summary.json", "run")["stages"]
    shutil.rmtree(workspace)
    return {name: float(stage["seconds"]) for name, stage in stages.items()}


def main(
    histories: Annotated[list[int], typer.Option(help="Days of history, several.")],
    rounds: Annotated[int, typer.Option(help="Nights for each history.")] = 3,
    requests_per_day: Annotated[int, typer.Option(help="Ten impressions each.")] = 3000,
) -> None:
    """Measure and print a table of seconds and ratios."""
    threads.configure()
    longest = max(histories)
    last = FIRST + dt.timedelta(days=longest)
    found: dict[int, list[Times]] = {history: [] for history in histories}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _write_config(scratch)
        world = SimulatorConfig(
            users=6000, items=2000, days=longest + 1, first_day=FIRST, requests_per_day=requests_per_day
        )
        simulate(world, scratch / "all")
        sources = {}
        for history in histories:
            days = [last - dt.timedelta(days=n) for n in range(history, -1, -1)]
            before = _source(scratch / "all", scratch / f"before-{history}", days[:-1])
            sources[history] = _source(scratch / "all", scratch / f"night-{history}", days)
            _run(before, scratch / f"workspace-{history}", days[-2], scratch / "summary.json")
        for _ in range(rounds):
            for history in histories:
                prepared = scratch / f"workspace-{history}"
                found[history].append(_night(sources[history], prepared, scratch, last))
    _print(found, rounds)


def _print(found: dict[int, list[Times]], rounds: int) -> None:
    medians = {
        history: {stage: statistics.median(night[stage] for night in nights) for stage in nights[0]}
        for history, nights in found.items()
    }
    totals = {history: statistics.median(sum(night.values()) for night in nights) for history, nights in found.items()}
    shortest = min(found)
    table = Table(title=f"seconds of the last night, median of {rounds} ({dt.datetime.now(tz=dt.UTC):%Y-%m-%d})")
    table.add_column("stage")
    for history in found:
        table.add_column(f"{history} days", justify="right")
    for stage in medians[shortest]:
        table.add_row(stage, *(f"{medians[history][stage]:.2f}" for history in found))
    table.add_row("all", *(f"{totals[history]:.2f}" for history in found))
    table.add_row(f"ratio to {shortest} days", *(f"{totals[history] / totals[shortest]:.2f}" for history in found))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
