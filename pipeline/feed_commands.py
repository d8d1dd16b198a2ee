"""The command that serves what was published."""

from pipeline.options import HERE, SIMULATED, ConfigFile, Overrides, WorkspaceFolder, open_run


def serve(
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
) -> None:
    """Answer with the published lists over HTTP, on loopback unless serve.host says otherwise."""
    from pipeline.serve import serve as serve_lists

    settings, place = open_run(config, workspace, overrides, None)
    serve_lists(settings, place.root)
