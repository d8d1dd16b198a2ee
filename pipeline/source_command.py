"""The command that measures candidate sources on a trained run: sources."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.options import HERE, SIMULATED, ConfigFile, LastDay, Overrides, Seed, WorkspaceFolder, open_run, parse_day

if TYPE_CHECKING:
    from rich.table import Table


def sources(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    output: Annotated[Path, typer.Option(help="New folder for the sequence source's model and the figures.")],
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    seed: Seed = None,
    date: LastDay = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the sequence source over users and days.")] = 5,
    users: Annotated[int, typer.Option(min=2, help="Users with a click that all sources are measured on.")] = 4000,
    candidates: Annotated[int, typer.Option(min=10, help="Places of a list.")] = 100,
) -> None:
    """Measure what each candidate source of a trained run catches of the test day: recall, gains, users a second."""
    from rich.console import Console

    from pipeline.source_study import SourceStudy, study_sources

    settings, place = open_run(config, workspace, overrides, seed)
    result = study_sources(settings, place, SourceStudy(epochs, users, candidates, parse_day("--date", date)), output)
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=160)).print(_table(result))
    for merge, labels in result["adds"].items():
        for label, found in labels.items():
            told = ", ".join(f"{name} {one['hits']} ({one['alone']} alone)" for name, one in found.items())
            typer.echo(f"{merge}, hits of {label}: {told}")
    typer.echo(f"quotas of {result['learned_on']}: {result['quotas']}\nfigures: {output / 'sources.json'}")


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    shown = Table(title=f"recall on {result['measured_on']}, {result['users']:,} users")
    ks = [f"{label} @{k}" for label, by_k in result["recall"]["two_towers"].items() for k in by_k]
    for name in ("source", *ks, "users/s"):
        shown.add_column(name)
    for source, labels in result["recall"].items():
        cells = [f"{one['value']:.4f}" for by_k in labels.values() for one in by_k.values()]
        speed = result["users_per_second"].get(source)
        shown.add_row(source, *cells, "" if speed is None else f"{speed:,.0f}")
    return shown
