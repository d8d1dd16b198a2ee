"""The command line: `counterpoise`, also `python -m pipeline`. Heavy libraries are imported by the commands."""

import datetime as dt
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import (
    doctor_command,
    feed_commands,
    registry_commands,
    run_commands,
    source_command,
    study,
    text_command,
    threads,
    torchrun,
    translate_command,
    upkeep,
)
from pipeline.options import (
    HERE,
    SIMULATED,
    SIMULATION,
    SOURCE,
    ConfigFile,
    Force,
    LastDay,
    LogFormat,
    Overrides,
    Seed,
    SourceFolder,
    StageName,
    WarmStart,
    WorkspaceFolder,
    open_run,
    override_values,
    parse_day,
)

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.split import Days
    from pipeline.stage import Outcome
    from pipeline.workspace import Workspace

USER_ERROR = 2


class Interrupted(BaseException):  # not an error: typer would turn KeyboardInterrupt into exit code 1
    """Ctrl-C or a scheduler's SIGTERM arrived."""


NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL = "no space left to write ({}): free space and run the same command again; committed tables are untouched"
SPACE_WORDS = ("No space left on device", "File too large", "Disk quota exceeded")

app = typer.Typer(
    help="Interaction logs in, ranked candidate lists out. The stages, in order: ingest, featurize, train, calibrate, "
    "evaluate, register, retrieve, rank, publish; `run` runs them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(context: typer.Context, log_format: LogFormat = "text") -> None:
    """Take the options that stand before any command."""
    torchrun.check_command(context.invoked_subcommand)
    from pipeline.log_format import formatter

    for handler in logging.getLogger("counterpoise").handlers:
        handler.setFormatter(formatter(log_format))


@app.command()
def run(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: ConfigFile = SIMULATED,
    source: SourceFolder = SOURCE,
    workspace: WorkspaceFolder = HERE,
    overrides: Overrides = None,
    seed: Seed = None,
    date: LastDay = None,
    warm_start: WarmStart = False,  # noqa: FBT002  # typer reads the default of a flag
    summary: Annotated[Path | None, typer.Option(help="Write the summary as JSON here.")] = None,
    until: Annotated[StageName | None, typer.Option(help="Stop after this stage.")] = None,
    again: Annotated[StageName | None, typer.Option("--from", help="Run this stage and all after it again.")] = None,
    force: Force = False,  # noqa: FBT002
) -> None:
    """Run every stage that is not finished and print what came out."""
    from rich.console import Console

    from pipeline.report import feed_line, summary_table, verdict_lines
    from pipeline.run import Span
    from pipeline.run import run as run_all

    settings, place = open_run(config, workspace, overrides, seed, warm_start=warm_start)
    if summary is not None and not summary.parent.is_dir():
        raise ValueError(f"--summary {summary}: the folder {summary.parent} does not exist; make it first")
    with place.lock("run"):
        span = Span(until, "featurize" if force else again)
        made = run_all(settings, place, source, parse_day("--date", date), span)
    if summary is not None:
        summary.write_text(json.dumps(made, indent=2, default=str) + "\n", encoding="utf-8")
    if "evaluation" not in made:
        return  # the log said what was run
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(summary_table(made))
    console.print("\n".join(verdict_lines(made)), soft_wrap=True, highlight=False, markup=False)
    lists = made["candidates"]
    console.print(
        f"version {made['registered_version']}: {made['decision']}\n"
        f"lists for {lists['scored_for']}: {lists['path']} ({lists['rows']:,} rows, {lists['users']:,} users, "
        f"model version {made['model_version']})\n{feed_line(made['published'])}\n"
        f"report: {made['report']}\n{made['seconds']:.1f} s, peak {made['peak_mib']:.0f} MiB, digest {made['digest']}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def check(
    config: ConfigFile = SIMULATED,
    source: SourceFolder = SOURCE,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Validate config and source without writing tables: rows, rates and what is wrong."""
    from pipeline.check import check as check_source
    from pipeline.config import load_config

    settings = load_config(config, override_values(overrides, seed))
    for line in check_source(settings, source):
        typer.echo(line)


@app.command()
def simulate(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    output: Annotated[
        Path, typer.Option(help="Folder to write; an earlier simulation there is replaced.")
    ] = SIMULATION,
    users: Annotated[int | None, typer.Option(min=1)] = None,
    items: Annotated[int | None, typer.Option(min=1)] = None,
    days: Annotated[int | None, typer.Option(min=1)] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1)] = None,
    first_day: Annotated[str | None, typer.Option(help="YYYY-MM-DD")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, any key of the simulator.")] = None,
) -> None:
    """Simulate interaction logs of a world whose true probabilities are known."""
    from pydantic import ValidationError

    from pipeline.config import explain, parse_override
    from pipeline.simulate import simulate as simulate_logs
    from pipeline.world import SimulatorConfig

    given = {"users": users, "items": items, "days": days, "requests_per_day": requests_per_day, "seed": seed}
    values = {name: value for name, value in {**given, "first_day": first_day}.items() if value is not None}
    values |= dict(parse_override(text) for text in overrides or [])
    try:
        settings = SimulatorConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"simulate: {explain(error)}") from None
    counts = simulate_logs(settings, output)
    typer.echo(f"{output}: " + ", ".join(f"{name} {value:,.6g}" for name, value in counts.items()))


def _stage(name: str) -> Callable[..., None]:
    """Make the command of one stage; all take the same options, so that a scheduler calls them alike."""

    def command(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
        config: ConfigFile = SIMULATED,
        source: SourceFolder = SOURCE,
        workspace: WorkspaceFolder = HERE,
        overrides: Overrides = None,
        seed: Seed = None,
        date: LastDay = None,
        warm_start: WarmStart = False,  # noqa: FBT002
        force: Force = False,  # noqa: FBT002
    ) -> None:
        settings, place = open_run(config, workspace, overrides, seed, warm_start=warm_start)
        with place.lock(name) if torchrun.leads() else nullcontext():
            _call(name, settings, place, source, (parse_day("--date", date), force))

    return command


def _call(name: str, config: "Config", workspace: "Workspace", source: str, when: tuple[dt.date | None, bool]) -> None:
    from pipeline import calibrate, evaluate, featurize, ingest, publish, register, run, serve_lists, train, watch
    from pipeline.run_record import execute
    from pipeline.stage import measure

    date, force = when
    if name == "ingest":
        measure(name, lambda: ingest.ingest(config, workspace, source, date))
        return
    if name == run.WATCH:
        measure(name, lambda: watch.watch(config, workspace, run.watched_days(config, workspace, date), date))
        return
    days = featurize.days_of(config, workspace, date)
    job = run.job_of(config, workspace, days, source, run.Span(again=name if force else None))
    if name == "evaluate":
        execute(job, name, lambda: evaluate.evaluate(config, workspace, days, source))
        return
    stages: dict[str, Callable[[Config, Workspace, Days], Outcome]] = {
        "featurize": featurize.featurize,
        "train": train.train,
        "calibrate": calibrate.calibrate,
        "register": register.register,
        "retrieve": serve_lists.retrieve,
        "rank": serve_lists.rank,
        "publish": partial(publish.publish, force=force),
    }
    execute(job, name, lambda: stages[name](config, workspace, days))


STAGES = {
    "ingest": "Read the logs into tables/interactions; broken rows go to tables/quarantine.",
    "featurize": "Make point-in-time features and the encoder: tables/examples.",
    "train": "Train the ranker, the baseline and the retriever.",
    "calibrate": "Fit on the validation days what turns the ranker's probabilities into rates that hold.",
    "evaluate": "Measure the models on the test days, with intervals.",
    "register": "Register the model in MLflow; promote it if it is no worse.",
    "retrieve": "Build the index and find every user's candidates with the champion.",
    "rank": "Score the candidates with the champion: tables/candidates.",
    "publish": "Put the lists into the backend's store (feed.url) and switch to them at once, unless the gate refused.",
    "watch": "Tell what the published lists came to, how old the live ones are, and what has drifted.",
}
for _name, _help in STAGES.items():
    app.command(_name, help=_help)(_stage(_name))
for _command in (
    study.report,
    study.compare,
    study.experiment,
    study.tune,
    text_command.text_classify,
    upkeep.audit,
    upkeep.backfill,
    upkeep.vacuum,
    doctor_command.doctor,
    run_commands.runs,
    run_commands.show,
    registry_commands.promote,
    registry_commands.rollback,
    registry_commands.history,
    feed_commands.serve,
    source_command.sources,
    translate_command.translate_train,
):
    app.command()(_command)


def main() -> None:
    """Run the command line; what a user can fix ends with one line and exit code 2."""
    threads.configure()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("counterpoise")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if torchrun.leads() else logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except Interrupted:
        _fail("interrupted: each table is as it was or wholly new; run the same command again")
    except ValueError as error:
        _fail(str(error))
    except Exception as error:
        message = _environment_message(error)
        if message is None:
            raise
        _fail(message)


def _environment_message(error: Exception) -> str | None:
    """Return what to tell of a full disk or a path that cannot be used; None for a defect of ours."""
    # Rust libraries report a full disk as an error of their own type.
    full = isinstance(error, OSError) and error.errno in NO_SPACE
    if full or any(word in str(error) for word in SPACE_WORDS):
        return FULL.format(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; correct the path or its permissions"
    return None


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise Interrupted


def _fail(message: str) -> None:
    from pipeline.log_format import failure_line

    typer.echo(failure_line(" ".join(message.split()), logging.getLogger("counterpoise").handlers), err=True)
    sys.stderr.flush()
    os._exit(USER_ERROR)


if __name__ == "__main__":
    main()
