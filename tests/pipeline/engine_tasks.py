"""Tasks of the engine's tests: worker processes import them by name."""

import os
import signal
import sys
import time
from pathlib import Path


def squared(number: int) -> int:
    """Return a number that tells its task."""
    return number * number


def refused(number: int) -> int:
    """Raise what a user can fix, for one of the tasks."""
    if number == 3:
        raise ValueError(f"day {number} has no rows: ingest it again")
    return number


def broken(number: int) -> int:
    """Raise what only a programmer can fix."""
    raise ZeroDivisionError(number)


def killed_once(task: tuple[int, Path]) -> int:
    """Kill this process at the first try of one task."""
    number, folder = task
    marker = folder / "killed"
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def killed_always(number: int) -> int:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def threads(_number: int) -> tuple[int, list[str]]:
    """Return the threads that polars has here, and which heavy libraries came with the engine alone."""
    heavy = sorted({"torch", "faiss", "mlflow"} & set(sys.modules))
    import polars as pl

    return pl.thread_pool_size(), heavy


def refused_first(task: tuple[int, Path]) -> None:
    """Raise in the first task; the others leave a file when they begin, and one when they end."""
    number, folder = task
    if number == 0:
        raise ValueError("day 0 has no rows")
    (folder / f"begun-{number}").touch()
    time.sleep(0.3)
    (folder / f"ended-{number}").touch()


def slept(number: int) -> int:
    """Take a while, all but the first."""
    time.sleep(min(number, 1) * 2)
    return number
