"""Options that the commands share, and what they mean. Heavy libraries are imported by the functions."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.workspace import Workspace

ConfigFile = Annotated[Path, typer.Option("--config", help="TOML file of the run.")]
SourceFolder = Annotated[  # text: a path would turn s3://bucket into s3:/bucket
    str, typer.Option("--source", help="Folder or URI (s3://bucket/prefix) of the interaction logs and side tables.")
]
WorkspaceFolder = Annotated[Path, typer.Option("--workspace", help="Folder of tables/, runs/ and mlflow.db.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, any key of the config; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same as --set seed=N.")]
LastDay = Annotated[
    str | None, typer.Option("--date", help="Last day to use (YYYY-MM-DD); default: the last with rows.")
]
WarmStart = Annotated[
    bool, typer.Option("--warm-start", help="Begin from the champion; same as --set training.warm_start=true.")
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Run it again even where it is finished and what it reads is unchanged; `publish --force` also puts "
        "earlier lists, those of far fewer users and those of a refused night in place.",
    ),
]
StageName = Annotated[
    Literal[
        "ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish", "watch"
    ],
    typer.Option(),
]
LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option("--log-format", envvar="COUNTERPOISE_LOG_FORMAT", help="json: one object a line, for machines."),
]
SIMULATED = Path("examples/simulated.toml")
HERE = Path("workspace")
SOURCE = "workspace/source"
SIMULATION = Path(SOURCE)


def open_run(
    config: Path, workspace: Path, overrides: list[str] | None, seed: int | None, *, warm_start: bool = False
) -> tuple["Config", "Workspace"]:
    """Read the configuration with its overrides, and name the workspace.

    Raises:
        ValueError: a key or a value is wrong.
    """
    from pipeline.config import load_config
    from pipeline.workspace import Workspace

    values = override_values(overrides, seed) | ({"training.warm_start": True} if warm_start else {})
    return load_config(config, values), Workspace(workspace)


def override_values(overrides: list[str] | None, seed: int | None) -> dict[str, Any]:
    """Read repeated --set and --seed."""
    from pipeline.config import parse_override

    values = dict(parse_override(text) for text in overrides or [])
    return values if seed is None else {**values, "seed": seed}


def parse_day(option: str, text: str | None) -> dt.date | None:
    """Read a day.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option} {text}: expected a day such as 2026-01-14") from None
