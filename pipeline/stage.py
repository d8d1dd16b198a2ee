"""What a stage returns, and how its time and its peak memory are measured."""

import logging
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

LOG = logging.getLogger("counterpoise")
CONSOLE = Console(stderr=True)
T = TypeVar("T")
TOLD = 8


@dataclass(frozen=True)
class Outcome:
    """Rows that a stage read and wrote, and what it has to say."""

    rows_in: int
    rows_out: int
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A stage's outcome with its seconds and its peak memory."""

    name: str
    outcome: Outcome
    seconds: float
    peak_mib: float

    def as_dict(self) -> dict[str, Any]:
        """Return the record that --summary and the run's folder keep."""
        return {
            "rows_in": self.outcome.rows_in,
            "rows_out": self.outcome.rows_out,
            "seconds": round(self.seconds, 3),
            "peak_mib": round(self.peak_mib, 1),
            **self.outcome.notes,
        }


def measure(name: str, stage: Callable[[], Outcome]) -> Measured:
    """Run a stage and log one line: rows in, rows out, seconds, peak MiB."""
    _reset_peak()
    start = time.perf_counter()
    outcome = stage()
    measured = Measured(name, outcome, time.perf_counter() - start, _peak_mib())
    notes = "".join(f", {key} {_told(value)}" for key, value in outcome.notes.items() if value != {})
    LOG.info(
        "%-9s %10s rows in, %10s rows out, %6.1f s, peak %5.0f MiB%s",
        name,
        f"{outcome.rows_in:,}",
        f"{outcome.rows_out:,}",
        measured.seconds,
        measured.peak_mib,
        notes,
        extra={"fields": {"stage": name, **measured.as_dict()}},
    )
    return measured


def _told(value: Any) -> str:
    """Put counts by name in words, the first few of them."""
    if not isinstance(value, dict):
        return str(value)
    parts = [f"{name} {count}" for name, count in value.items()]
    more = [f"and {len(parts) - TOLD} more"] if len(parts) > TOLD else []
    return f"({', '.join(parts[:TOLD] + more)})"


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    yield from track(items, label, total=total, console=CONSOLE, disable=not CONSOLE.is_terminal, transient=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended, so that several commits happen together or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _frame: arrived.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _reset_peak() -> None:
    """Ask Linux to count the peak from now on; elsewhere the peak is that of the whole process."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5", encoding="ascii")


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
