"""Commands beside the nightly run: audit, backfill, vacuum."""

from typing import Annotated

import typer

from pipeline.options import (
    HERE,
    SIMULATED,
    ConfigFile,
    LastDay,
    Overrides,
    Seed,
    WorkspaceFolder,
    open_run,
    parse_day,
)


def audit(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    seed: Seed = None,
    date: LastDay = None,
    sampled_days: Annotated[
        int, typer.Option("--days", min=1, help="Days to recompute, the last test day included.")
    ] = 3,
    rows: Annotated[int, typer.Option(min=1, help="Examples to compare on each.")] = 1000,
) -> None:
    """Recompute sampled features from the log as it was known when their day began; any difference is an error."""
    from pipeline import audit as audits
    from pipeline.featurize import days_of
    from pipeline.stage import measure

    settings, place = open_run(config, workspace, overrides, seed)
    with place.lock("audit"):
        days = days_of(settings, place, parse_day("--date", date))
        draw = {"sampled_days": sampled_days, "rows": rows, "seed": settings.seed}
        done = measure("audit", lambda: audits.audit(settings, place, days, **draw))
    typer.echo(
        f"{done.outcome.rows_out:,} examples of {done.outcome.notes['days']}: {done.outcome.notes['features']} columns "
        "each, identical to those of the log cut off at their day"
    )


def backfill(
    first: Annotated[str, typer.Option("--from", help="First day to make again (YYYY-MM-DD).")],
    last: Annotated[str, typer.Option("--to", help="Last day to make again.")],
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    date: LastDay = None,
) -> None:
    """Make labels, counts and features of a range of days again, and say which days differ from before."""
    from pipeline.backfill import backfill as make_again
    from pipeline.featurize import days_of
    from pipeline.stage import measure

    settings, place = open_run(config, workspace, overrides, None)
    begin, end = parse_day("--from", first), parse_day("--to", last)
    assert begin is not None, "typer requires it"
    assert end is not None, "typer requires it"
    with place.lock("backfill"):
        days = days_of(settings, place, parse_day("--date", date))
        done = measure("backfill", lambda: make_again(settings, place, days, begin, end))
    notes = done.outcome.notes
    typer.echo(
        f"{notes['days_counted']} days counted, {notes['days_featurized']} days of features made again; "
        f"labels changed: {notes['labels_changed']}; features changed: {notes['features_changed']}"
    )


def vacuum(
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    keep_days: Annotated[int, typer.Option(help="Versions and run folders of so many days stay.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,  # noqa: FBT002
) -> None:
    """Remove old table files and run folders that no registered model version needs, and what killed runs left."""
    from pipeline.vacuum import vacuum as vacuum_workspace

    settings, place = open_run(config, workspace, overrides, None)
    with place.lock("vacuum"):
        removed = vacuum_workspace(settings, place, keep_days=keep_days, dry_run=dry_run)
    for one in removed:
        verb = "would go" if dry_run else "gone"
        typer.echo(f"{one.place}: {one.files:,} files, {one.size_bytes:,} bytes {verb}")
