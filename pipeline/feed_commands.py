"""Commands that feed a backend: publish, serve."""

from typing import Annotated

import typer

from pipeline.options import HERE, SIMULATED, ConfigFile, LastDay, Overrides, Seed, WorkspaceFolder, open_run, parse_day


def publish(  # typer reads options from the signature
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    seed: Seed = None,
    date: LastDay = None,
    force: Annotated[  # noqa: FBT002  # typer reads the default of a flag
        bool, typer.Option("--force", help="Publish earlier lists, far fewer users, or the same lists again.")
    ] = False,
) -> None:
    """Put the lists of the serving day into the backend's store (feed.url) and switch to them at once."""
    from pipeline import publish as publishing
    from pipeline.featurize import days_of
    from pipeline.stage import measure

    settings, place = open_run(config, workspace, overrides, seed)
    with place.lock("publish"):
        days = days_of(settings, place, parse_day("--date", date))
        done = measure("publish", lambda: publishing.publish(settings, place, days, force=force))
    notes = done.outcome.notes
    typer.echo(
        f"{settings.feed.url}: version {notes['version']}, lists for {notes['scored_for']}, {done.outcome.rows_out:,} "
        f"users, model version {notes['model_version']}; published: {notes['published']}"
    )


def serve(
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
) -> None:
    """Answer with the published lists over HTTP, on loopback unless serve.host says otherwise."""
    from pipeline.serve import serve as serve_lists

    settings, place = open_run(config, workspace, overrides, None)
    serve_lists(settings, place.root)
