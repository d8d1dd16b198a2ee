"""Commands about which version is champion: promote, rollback, history."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import HERE, SIMULATED, ConfigFile, Overrides, WorkspaceFolder, open_run

if TYPE_CHECKING:
    from pipeline.promotion import Entry, Move

Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded with the version.")]
SHOWN_SIGNS = 60


def promote(
    version: Annotated[str, typer.Argument(help="Version of the registered model.")],
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Although its gate failed; needs --reason.")] = False,  # noqa: FBT002
    reason: Reason = "",
) -> None:
    """Make a registered version champion, after loading it; one whose gate failed needs --force."""
    from pipeline import promotion

    settings, place = open_run(config, workspace, overrides, None)
    _tell(promotion.promote(settings, place, version, reason=reason, force=force))


def rollback(
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    to: Annotated[str | None, typer.Option(help="Version; default: the champion before this one.")] = None,
    reason: Reason = "",
) -> None:
    """Make the champion before this one champion again; no model, list or table changes."""
    from pipeline import promotion

    settings, place = open_run(config, workspace, overrides, None)
    _tell(promotion.rollback(settings, place, to, reason=reason))


def history(config: ConfigFile = SIMULATED, workspace: WorkspaceFolder = HERE, overrides: Overrides = None) -> None:
    """Show the registered versions, the newest first: what the gate decided, and when each was champion."""
    from rich.console import Console
    from rich.table import Table

    from pipeline import promotion

    settings, place = open_run(config, workspace, overrides, None)
    table = Table(title=f"versions of {settings.tracking.model}", title_justify="left")
    for column in ("version", "registered (UTC)", "run", "gate", "log-loss", "alias", "champion (UTC)", "decision"):
        table.add_column(column, overflow="fold")
    for entry in promotion.history(settings, place):
        table.add_row(*_cells(entry))
    Console(width=200).print(table)


def _tell(move: "Move") -> None:
    before = "no version" if move.before is None else f"version {move.before}"
    typer.echo(
        f"version {move.version} is champion, {before} was: lists are made by it from the next `counterpoise retrieve`"
    )


def _cells(entry: "Entry") -> list[str]:
    tags = entry.tags
    spells = [f"{_minutes(begin)} to {'now' if end is None else _minutes(end)}" for begin, end in entry.champion]
    return [
        entry.version,
        entry.made_at.strftime("%Y-%m-%d %H:%M"),
        tags.get("run", "-"),
        tags.get("gate", "-"),
        tags.get("test_log_loss", "-"),
        "champion" if entry.is_champion else "",
        "\n".join(spells),
        tags.get("decision", "-")[:SHOWN_SIGNS],
    ]


def _minutes(moment: str) -> str:
    return moment[: len("2026-01-14T02:00")].replace("T", " ")
