"""Users ranked per CPU-second: by parts against whole rows, torch-rechub, DeepCTR-Torch and the floor, at equal sizes.

    python -m venv peers && peers/bin/pip install torch torch-rechub==0.9.0 deepctr-torch==0.3.0 requests safetensors
    python -m benchmarks.bench_ranking --peers peers/bin/python

Every contestant has a process of its own with one thread; they take turns, round after round, and speeds are medians
over the rounds, of the process's own CPU. benchmarks/ranking_workload.py has the workload. A peer that cannot be
imported is left out.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Annotated

import typer

from benchmarks.figures import Figure, show
from pipeline import threads

OURS, NAIVE, RECHUB, DEEPCTR, FLOOR = "ours", "ours, naive", "torch-rechub", "deepctr-torch", "floor"
RECHUB_NETWORK = "torch-rechub, network alone"
PEERS = (RECHUB, RECHUB_NETWORK, DEEPCTR)
CONTESTANTS = {
    "mmoe": (OURS, NAIVE, *PEERS, FLOOR),
    "worst": (OURS, NAIVE, FLOOR),
    "kuairand": (OURS, NAIVE, FLOOR),
}
TARGETS = {NAIVE: 3.0, RECHUB: 10.0, RECHUB_NETWORK: None, DEEPCTR: 3.0}
MOST_USERS = 512


@dataclass
class Contestant:
    """A process that scores the candidates of so many users when it is asked to."""

    process: subprocess.Popen[str]
    speeds: list[float] = field(default_factory=list)
    """Users per second of CPU."""

    def measure(self, seconds: float) -> None:
        """Measure once over about so many seconds; the first time is not counted, but says how many users."""
        rate = median(self.speeds) if self.speeds else self._rate(32)
        self.speeds.append(self._rate(max(16, min(round(rate * seconds), MOST_USERS))))

    def _rate(self, users: int) -> float:
        _pipe(self.process.stdin).write(json.dumps({"users": users}) + "\n")
        _pipe(self.process.stdin).flush()
        return float(users / json.loads(_pipe(self.process.stdout).readline())["cpu"])


def main(  # typer reads options from the signature
    sizes: Annotated[str, typer.Option(help="mmoe, worst, kuairand, or several.")] = "mmoe,worst,kuairand",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="CPU seconds of a measurement.")] = 0.25,
    peers: Annotated[Path, typer.Option(help="Python with torch-rechub and DeepCTR-Torch.")] = Path(sys.executable),
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Measure all contestants and print each figure beside its target."""
    figures: list[Figure] = []
    for name in sizes.split(","):
        begun = {one: _start(one, name, peers if one in PEERS else Path(sys.executable)) for one in CONTESTANTS[name]}
        contestants = {one: contestant for one, contestant in begun.items() if contestant is not None}
        for missing in begun.keys() - contestants.keys():
            print(f"{missing} is not installed and left out: pip install torch-rechub==0.9.0 deepctr-torch==0.3.0")
        for _ in range(rounds):
            for contestant in contestants.values():
                contestant.measure(seconds)
        figures += _figures(name, {one: median(contestant.speeds) for one, contestant in contestants.items()})
        for contestant in contestants.values():
            _pipe(contestant.process.stdin).close()
            contestant.process.wait()
    show(f"ranking 200 of 100,000 items, medians of {rounds} rounds, one thread", figures, output)


def _start(name: str, sizes: str, python: Path) -> Contestant | None:
    """Start a contestant and wait until it has scored once; None where its library is missing."""
    process = subprocess.Popen(  # noqa: S603  # our own module
        [str(python), "-m", "benchmarks.ranking_workload", name, sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if name in PEERS else None,
        text=True,
        env=os.environ | threads.SETTINGS | threads.ONE_THREAD,
    )
    if not _pipe(process.stdout).readline():
        process.wait()
        assert name in PEERS, f"{name} failed: run python -m benchmarks.ranking_workload {name!r} {sizes}"
        return None
    return Contestant(process)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _figures(sizes: str, speeds: dict[str, float]) -> list[Figure]:
    own = speeds[OURS]
    found = [Figure(what=f"{sizes}: ranking", value=own, unit="users / CPU s")]
    found += [
        Figure(
            what=f"{sizes}: against {name}", value=own / speed, unit="x", peer=f"{own:,.0f} : {speed:,.0f}",
            at_least=TARGETS[name] if sizes == "mmoe" else None,
        )
        for name, speed in speeds.items()
        if name in TARGETS
    ]  # fmt: skip
    peer = f"floor {speeds[FLOOR]:,.0f}: products, sums of two rows"
    at_most = 2.0 if sizes == "mmoe" else None
    return [
        *found,
        Figure(what=f"{sizes}: time over floor", value=speeds[FLOOR] / own, unit="x", peer=peer, at_most=at_most),
    ]


if __name__ == "__main__":
    typer.run(main)
