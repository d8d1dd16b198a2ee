"""Commands that look at runs and models, and change neither tables nor runs: report, compare, experiment, tune."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.options import HERE, SIMULATED, ConfigFile, Overrides, WorkspaceFolder, open_run

if TYPE_CHECKING:
    from pipeline.experiments import Experiment
    from pipeline.study_data import Study

STUDIED = ("model", "training", "seed")
"""Keys that a study may set on a workspace that was featurized without: features do not depend on them."""
OnDay = Annotated[
    Literal["validation", "test"], typer.Option("--on", help="Days to measure on; the test day is looked at once.")
]
FeaturizedRun = Annotated[
    str | None, typer.Option("--run", help="Run whose examples are read; default: the configuration's own.")
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each model, with seeds 1, 2, ...")]
Draws = Annotated[int, typer.Option("--replicates", min=20, help="Resamples of users.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of trained predictions; default: study/ in the workspace.")
]
JsonFile = Annotated[Path | None, typer.Option("--output", help="Write all figures as JSON here.")]
PageFile = Annotated[Path | None, typer.Option("--page", help="Write an HTML page here.")]


def report(
    run: Annotated[str, typer.Argument(help="Id of an evaluated run: the name of its folder in runs/.")],
    compare: Annotated[str | None, typer.Option(help="Id of a second run to draw beside it.")] = None,
    workspace: WorkspaceFolder = HERE,
    output: Annotated[
        Path | None,
        typer.Option(help="HTML file; default: report.html or against-RUN.html in the evaluation."),
    ] = None,
) -> None:
    """Write the HTML report of a run, or of two runs against each other."""
    from pipeline.html_report import write_comparison, write_run_report
    from pipeline.run_files import find_run
    from pipeline.workspace import Workspace

    place = Workspace(workspace)
    folder = find_run(place, run)
    name = "report.html" if compare is None else f"against-{compare}.html"
    page = output or folder / "evaluation" / name
    if not page.parent.is_dir():
        raise ValueError(f"--output {page}: the folder {page.parent} does not exist; make it first")
    if compare is None:
        write_run_report(folder, page)
    else:
        write_comparison(folder, find_run(place, compare), page)
    typer.echo(f"report: {page}")


def compare(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    bodies: Annotated[str, typer.Option(help="Bodies, the default first, such as ple,single_task.")] = (
        "ple,mmoe,shared_bottom,single_task"
    ),
    baselines: Annotated[
        str, typer.Option(help="Baselines: sk_logistic_regression, linear_svm, lightgbm; separated by commas.")
    ] = "",
    seeds: Seeds = 5,
    on: OnDay = "validation",
    replicates: Draws = 1000,
    overrides: Overrides = None,
    run: FeaturizedRun = None,
    cache: Cache = None,
    output: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Train bodies and baselines on the same examples with several seeds, and say which beats which."""
    from pipeline.compare import Comparison
    from pipeline.compare import compare as compare_models
    from pipeline.compare_page import terminal_table, write_compare_page

    _check_outputs(output, page)
    comparison = Comparison(_names(bodies), _names(baselines), seeds, replicates, cache or workspace / "study")
    result = compare_models(_study(config, workspace, overrides, on, run), comparison)
    _write(result, output, page, write_compare_page)
    _show(terminal_table(result))


def experiment(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    name: Annotated[Literal["sharing", "efficiency", "robustness"], typer.Argument(help="What is put to the test.")],
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    body: Annotated[str, typer.Option(help="The joint body that is held against single-task networks.")] = "ple",
    seeds: Seeds = 5,
    sizes: Annotated[str, typer.Option(help="sharing: shares of the training rows.")] = "0.01,0.03,0.1,0.3,1",
    levels: Annotated[str, typer.Option(help="robustness: levels of noise, 0 first.")] = "0,0.05,0.1,0.2,0.4",
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="sharing, efficiency: epochs at most; default 20 and 3.")
    ] = None,
    on: OnDay = "validation",
    replicates: Draws = 1000,
    overrides: Overrides = None,
    run: FeaturizedRun = None,
    cache: Cache = None,
    output: JsonFile = None,
    page: PageFile = None,
) -> None:
    """Put a promise of multi-task learning to the test by a rule that is stated before: passed or failed, and where."""
    from pipeline.experiment_page import experiment_table, outcome, write_experiment_page
    from pipeline.experiments import Experiment

    _check_outputs(output, page)
    points = _numbers("--sizes", sizes) if name == "sharing" else _numbers("--levels", levels)
    settings = Experiment(body, seeds, replicates, cache or workspace / "study")
    result = _run_experiment(name, _study(config, workspace, overrides, on, run), settings, points, max_epochs)
    _write(result, output, page, write_experiment_page)
    _show(experiment_table(result))
    typer.echo(f"{name} {outcome(result)}: {result['sentence']}\nrule: {result['rule']}")


def tune(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: ConfigFile = SIMULATED,
    workspace: WorkspaceFolder = HERE,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each weight in the second stage.")] = 3,
    stage_one_days: Annotated[int, typer.Option(min=1, help="Latest training days of the first stage.")] = 3,
    replicates: Draws = 1000,
    overrides: Overrides = None,
    run: FeaturizedRun = None,
    cache: Cache = None,
    output: JsonFile = None,
) -> None:
    """Look for a better training.conversion_weight in two stages, on the validation day alone."""
    from pipeline.tune import Tuning, tune_table
    from pipeline.tune import tune as tune_weight
    from pipeline.workspace import write_json

    _check_outputs(output)
    tuning = Tuning(seeds, stage_one_days, replicates, cache or workspace / "study")
    result = tune_weight(_study(config, workspace, overrides, "validation", run), tuning)
    if output is not None:
        write_json(output, result)
    _show(tune_table(result))
    typer.echo(f"{result['sentence']}\nrule: {result['rule']}")


def _run_experiment(
    name: str, study: "Study", settings: "Experiment", points: Sequence[float], max_epochs: int | None
) -> dict[str, Any]:
    from pipeline import experiment_efficiency, experiment_robustness, experiment_sharing

    if name == "sharing":
        epochs = max_epochs or experiment_sharing.MAX_EPOCHS
        return experiment_sharing.sharing(study, settings, points, epochs)
    if name == "efficiency":
        return experiment_efficiency.efficiency(study, settings, max_epochs or experiment_efficiency.EPOCHS)
    return experiment_robustness.robustness(study, settings, points)


def _study(
    config: Path, workspace: Path, overrides: list[str] | None, on: Literal["validation", "test"], run: str | None
) -> "Study":
    """Read the examples of the named run, or the configuration's, or the same before [model] and [training] changed."""
    from pipeline.study_data import featurized_run, load_study

    settings, place = open_run(config, workspace, overrides, None)
    kept = [text for text in overrides or [] if text.split("=")[0].strip().split(".")[0] not in STUDIED]
    featurized, _ = open_run(config, workspace, kept, None)
    return load_study(settings, place, on, run or featurized_run(settings, featurized, place))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(number) for number in _names(text)]
    except ValueError:
        raise ValueError(f"{option} {text}: expected numbers separated by commas, such as 0,0.1,0.4") from None


def _check_outputs(*paths: Path | None) -> None:
    """Refuse a place that cannot be written before hours of training, not after."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")


def _write(
    result: dict[str, Any], output: Path | None, page: Path | None, write: Callable[[Path, dict[str, Any]], None]
) -> None:
    from pipeline.workspace import write_json

    if output is not None:
        write_json(output, result)
    if page is not None:
        write(page, result)


def _show(table: Any) -> None:
    from rich.console import Console

    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=220)).print(table)
