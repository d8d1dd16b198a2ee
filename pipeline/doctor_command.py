"""The command that examines a workspace: doctor."""

from typing import Annotated

import typer

from pipeline.options import HERE, SIMULATED, ConfigFile, Overrides, WorkspaceFolder, open_run

PROBLEMS = 2


def doctor(
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read all rows of all tables too.")] = False,  # noqa: FBT002
) -> None:
    """Check a workspace without writing: tables, runs, models, index and published lists; exit code 2 with problems."""
    from pipeline.doctor import examine

    settings, place = open_run(config, workspace, overrides, None)
    findings = examine(settings, place, deep=deep)
    for finding in findings:
        typer.echo(finding.line())
    problems = sum(not finding.ok for finding in findings)
    typer.echo(f"{len(findings)} checks, {problems} problems")
    if problems:
        raise typer.Exit(PROBLEMS)
