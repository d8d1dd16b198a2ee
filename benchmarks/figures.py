"""A figure beside its target and its peer: what benchmarks print, and `python -m benchmarks` collects."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

WIDTH = 180


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    A ratio is against the peer, measured in the same run.
    """

    what: str
    """Such as 'MMoE, batch 4096: training, rows per CPU-second'."""
    value: float
    unit: str = ""
    peer: str = ""
    """What it was measured against, with the peer's own value."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """Return the target in words, empty without one."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """Return 'met' or 'MISSED', empty without a target."""
        if self.at_least is not None:
            return "met" if self.value >= self.at_least else "MISSED"
        if self.at_most is not None:
            return "met" if self.value <= self.at_most else "MISSED"
        return ""


def show(title: str, figures: Sequence[Figure], output: Path | None = None) -> None:
    """Print figures as a table, and write them as JSON where a file is given."""
    table = Table(title=title, title_justify="left")
    for name in ("figure", "measured", "target", "", "against"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for figure in figures:
        measured = f"{_rounded(figure.value)} {figure.unit}".rstrip()
        table.add_row(figure.what, measured, figure.target, figure.verdict, figure.peer)
    Console(width=WIDTH).print(table)
    if output is not None:
        output.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


def read(path: Path) -> list[Figure]:
    """Read figures that `show` wrote."""
    return [Figure(**values) for values in json.loads(path.read_text())]


def _rounded(value: float) -> str:
    """Return three significant digits, whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
