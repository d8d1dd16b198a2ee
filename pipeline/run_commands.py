"""Commands that tell what was run: runs, show."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import HERE, WorkspaceFolder

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 180


def runs(workspace: WorkspaceFolder = HERE) -> None:
    """List the runs of a workspace: how far each came, and what became of its model."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.lineage import runs as all_runs
    from pipeline.workspace import Workspace

    table = Table(title=f"runs of {workspace}", title_justify="left")
    for name in ("run", "finished stages", "last end", "seconds", "version", "decision"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for line in all_runs(Workspace(workspace)):
        table.add_row(line.name, line.stages, line.ended, f"{line.seconds:.1f}", line.version, line.decision)
    Console(width=WIDTH).print(table)


def show(
    run: Annotated[str, typer.Argument(help="Name of a run, how it begins, or a published version.")],
    workspace: WorkspaceFolder = HERE,
) -> None:
    """Show a run: each stage with what it read, and its lists back to the files of the source."""
    from pipeline.lineage import find_run, lineage
    from pipeline.workspace import Workspace

    place = Workspace(workspace)
    folder = find_run(place, run)
    for line in [*_stage_lines(folder), *lineage(place, folder, run)]:
        typer.echo(line)


def _stage_lines(folder: "Path") -> list[str]:
    from pipeline.run_record import STEPS, read_record

    lines, record = [f"run {folder.name}"], read_record(folder)
    for name, entry in ((step, record[step]) for step in STEPS if step in record):
        lines.append(
            f"{name}: {entry['begun']} to {entry['ended']} on {entry['host']}, {entry['rows_in']:,} rows in, "
            f"{entry['rows_out']:,} out, peak {entry['peak_mib']:.0f} MiB"
        )
        lines += [f"  read {what}: {value}" for what, value in entry["inputs"].items()]
    return lines
