"""Every benchmark of speed and memory in one table: each figure beside its target and the peer.

    python -m benchmarks                                # tens of minutes on two cores
    python -m benchmarks --only training,ranking

Each runs in a process of its own, one after the other; one that fails is named, and the exit code is 1. Peers that
are not installed are left out and say how to install them. bench_ingest, bench_engine and bench_scale print tables of
their own.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import Figure, read, show

BENCHMARKS = {
    "training": "benchmarks.bench_training",
    "training_memory": "benchmarks.bench_training_memory",
    "ranking": "benchmarks.bench_ranking",
    "retrieval": "benchmarks.bench_retrieval",
    "feed": "benchmarks.bench_feed",
}


def main(
    only: Annotated[str, typer.Option(help=f"Some of {','.join(BENCHMARKS)}.")] = ",".join(BENCHMARKS),
    output: Annotated[Path | None, typer.Option(help="Write all figures as JSON here.")] = None,
) -> None:
    """Run benchmarks and print what they found."""
    chosen = only.split(",")
    if strangers := sorted(set(chosen) - set(BENCHMARKS)):
        raise typer.BadParameter(f"{strangers} are none of {list(BENCHMARKS)}")
    found: list[Figure] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", BENCHMARKS[name], "--output", str(path)]
            if subprocess.run(command, check=False).returncode:  # noqa: S603  # our own modules
                failed.append(name)
            else:
                found += read(path)
    show("all benchmarks", found, output)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
