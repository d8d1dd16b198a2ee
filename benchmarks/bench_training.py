"""Training speed, memory and start-up against DeepCTR-Torch, torch-rechub, TorchRec and the floor, at equal sizes.

    python -m venv peers
    peers/bin/pip install torch torch-rechub==0.9.0 deepctr-torch==0.3.0 requests
    python -m venv fbgemm
    fbgemm/bin/pip install torch tensordict torchmetrics iopath pyre-extensions
    fbgemm/bin/pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0
    python -m benchmarks.bench_training --peers peers/bin/python --torchrec fbgemm/bin/python

Every contestant has a process of its own with one thread; they take turns, round after round, and speeds are medians
over the rounds, in rows per second of the process's own CPU. benchmarks/training_workload.py has the workload. All
processes keep freed memory (glibc), as ours does by itself. A peer that cannot be imported is left out.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Annotated

import typer

from benchmarks.figures import Figure, show
from pipeline import threads

ENVIRONMENT = {
    **threads.SETTINGS,
    **threads.ONE_THREAD,
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}
OURS, OURS_NORMED, FLOOR = "ours", "ours, BatchNorm", "floor"
DEEPCTR, RECHUB, TORCHREC = "deepctr-torch", "torch-rechub", "torchrec"
PEERS = (DEEPCTR, RECHUB, TORCHREC)
SMALL = (OURS, DEEPCTR, FLOOR)
"""Contestants at batches below 4096."""
TARGETS = {
    (OURS, DEEPCTR, 4096): 5.0,
    (OURS, DEEPCTR, 1024): 9.0,
    (OURS, DEEPCTR, 256): 35.0,
    (OURS, RECHUB, 4096): 5.0,
    (OURS_NORMED, RECHUB, 4096): 3.0,
    (OURS, TORCHREC, 4096): 1.6,
}
INSTALL = "pip install torch-rechub==0.9.0 deepctr-torch==0.3.0 requests, torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"


@dataclass
class Contestant:
    """A process that trains or predicts when it is asked to."""

    process: subprocess.Popen[str]
    cpu_seconds_to_first_step: float
    peak_mib: float
    speeds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    walls: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """Rows per second of CPU, and of the clock, by what was done and at which batch size."""

    def measure(self, do: str, batch: int, seconds: float) -> None:
        """Measure once over about so many seconds of CPU; the first time is not counted, but says how many rows."""
        key = do, batch
        if key not in self.speeds:
            answer = self._ask(do, batch, 2 * batch)
            self.speeds[key], self.walls[key] = [], []
            if do == "train" and batch == max(batch_sizes(OURS)):
                self.peak_mib = answer["peak_mib"]
            rate = answer["rows"] / answer["cpu"]
        else:
            rate = median(self.speeds[key])
        steps = max(2, min(round(rate * seconds / batch), ROWS // batch))
        answer = self._ask(do, batch, steps * batch)
        self.speeds[key].append(answer["rows"] / answer["cpu"])
        self.walls[key].append(answer["rows"] / answer["wall"])

    def _ask(self, do: str, batch: int, rows: int) -> dict[str, float]:
        _pipe(self.process.stdin).write(json.dumps({"do": do, "batch": batch, "rows": rows}) + "\n")
        _pipe(self.process.stdin).flush()
        answer: dict[str, float] = json.loads(_pipe(self.process.stdout).readline())
        return answer


ROWS = 65_536


def batch_sizes(name: str) -> Sequence[int]:
    """Return the batch sizes that a contestant trains at, the largest first."""
    return (4096, 1024, 256) if name in SMALL else (4096,)


def main(  # typer reads options from the signature
    body: Annotated[str, typer.Option(help="mmoe, ple, or both.")] = "mmoe,ple",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="CPU seconds of a measurement.")] = 0.5,
    peers: Annotated[Path, typer.Option(help="Python with torch-rechub and DeepCTR-Torch.")] = Path(sys.executable),
    torchrec: Annotated[Path, typer.Option(help="Python with TorchRec and fbgemm.")] = Path(sys.executable),
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Measure all contestants and print each figure beside its target."""
    figures: list[Figure] = []
    for name in body.split(","):
        contestants = _begin(name, {DEEPCTR: peers, RECHUB: peers, TORCHREC: torchrec})
        for _ in range(rounds):
            for contestant, one in contestants.items():
                for batch in batch_sizes(contestant):
                    one.measure("train", batch, seconds)
                if contestant != OURS_NORMED:
                    one.measure("predict", 4096, seconds)
        figures += _figures(name.upper(), contestants)
        for one in contestants.values():
            _pipe(one.process.stdin).close()
            one.process.wait()
    show(f"training, medians of {rounds} rounds, rows per CPU-second of one thread", figures, output)


def _begin(body: str, pythons: dict[str, Path]) -> dict[str, Contestant]:
    begun = {name: _start(name, body, pythons.get(name, Path(sys.executable))) for name in _names()}
    for name, one in begun.items():
        if one is None:
            print(f"{name} is not installed and left out: {INSTALL}")
    return {name: one for name, one in begun.items() if one is not None}


def _names() -> list[str]:
    return [OURS, OURS_NORMED, *PEERS, FLOOR]


def _start(name: str, body: str, python: Path) -> Contestant | None:
    """Start a contestant and wait for its first step; None where its library is missing."""
    process = subprocess.Popen(  # noqa: S603  # our own module
        [str(python), "-m", "benchmarks.training_workload", name, body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    line = _pipe(process.stdout).readline()
    if not line:
        process.wait()
        return None
    first = json.loads(line)
    return Contestant(process, first["cpu"], first["peak_mib"])


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _figures(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    return [
        *_speeds(body, contestants),
        *_ratios(body, contestants),
        *_over_floor(body, contestants),
        *_predictions(body, contestants),
        *_memory(body, contestants),
        *_start_up(body, contestants),
    ]


def _speeds(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    ours = contestants[OURS]
    return [
        Figure(
            what=f"{body}, batch {batch}: training",
            value=median(ours.speeds["train", batch]),
            unit="rows / CPU s",
            peer=f"{median(ours.walls['train', batch]):,.0f} rows a second of the clock, on these shared cores",
        )
        for batch in batch_sizes(OURS)
    ]


def _ratios(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    return [
        _ratio(f"{body}, batch {batch}: {own} against {peer}", contestants, own, peer, ("train", batch), target)
        for (own, peer, batch), target in TARGETS.items()
        if peer in contestants
    ]


def _ratio(  # two contestants, what they did, and what is asked for
    what: str, contestants: dict[str, Contestant], own: str, peer: str, key: tuple[str, int], target: float | None
) -> Figure:
    ours, theirs = (median(contestants[name].speeds[key]) for name in (own, peer))
    return Figure(what=what, value=ours / theirs, unit="x", peer=f"{ours:,.0f} : {theirs:,.0f}", at_least=target)


def _over_floor(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    found = []
    for batch in batch_sizes(FLOOR):
        ours, floor = (median(contestants[name].speeds["train", batch]) for name in (OURS, FLOOR))
        peer = f"floor {floor:,.0f}: products, reads and writes of rows"
        what = f"{body}, batch {batch}: time over floor"
        found.append(Figure(what=what, value=floor / ours, unit="x", peer=peer, at_most=1.6))
    return found


def _predictions(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    peers = [name for name in (*PEERS, FLOOR) if name in contestants]
    return [
        _ratio(f"{body}, batch 4096: predict against {peer}", contestants, OURS, peer, ("predict", 4096), None)
        for peer in peers
    ]


def _memory(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    ours = contestants[OURS].peak_mib
    return [
        Figure(
            what=f"{body}, batch 4096: peak memory against {name}",
            value=ours / contestants[name].peak_mib,
            unit="x",
            peer=f"{ours:,.0f} : {contestants[name].peak_mib:,.0f} MiB, with the imports",
            at_most=0.5,
        )
        for name in PEERS
        if name in contestants
    ]


def _start_up(body: str, contestants: dict[str, Contestant]) -> list[Figure]:
    ours = contestants[OURS].cpu_seconds_to_first_step
    return [
        Figure(
            what=f"{body}: start-up to the first step against {name}",
            value=ours / contestants[name].cpu_seconds_to_first_step,
            unit="x",
            peer=f"{ours:.1f} : {contestants[name].cpu_seconds_to_first_step:.1f} CPU s",
            at_most=1.0,
        )
        for name in PEERS
        if name in contestants
    ]


if __name__ == "__main__":
    typer.run(main)
