"""How much of the signal that there is does each body find: the share of the oracle's AUC above one half.

    python -m benchmarks.bench_oracle --config C --workspace W --source S --seeds 3 --bodies ple,single_task

On a featurized workspace of a simulated log (ingest, featurize). The AUC is taken over the true probabilities of every
measured impression instead of its one label, so that the luck of labels, which on rare conversions is larger than any
difference of models, does not enter. Printed per task, in its own space (click and click-and-conversion on impressions,
conversion on clicks): the mean share over seeds, and its paired difference to single-task with a 95 % interval over
users and seeds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.truth import Floats, SoftAuc, Truth, interval, read_truth, user_draws
from pipeline import threads
from pipeline.config import load_config, parse_override
from pipeline.evaluate import OUTPUT_OF, TASKS
from pipeline.fit import fit_of
from pipeline.study_data import Study, load_study
from pipeline.study_training import Material, train_ranker
from pipeline.workspace import Workspace

CONTROL = "single_task"


def predictions(study: Study, body: str, seeds: int, cache: Path | None) -> list[Floats]:
    """Train a body with every seed and return its predictions, each (N, 3)."""
    material = Material(study.training, study.validation, {"measured": study.measured})
    made = []
    for seed in range(1, seeds + 1):
        changed = replace(study, config=study.config.model_copy(update={"seed": seed}))
        trained = train_ranker(changed.spec(body, seed), fit_of(changed.config), material, cache)
        made.append(trained.predictions["measured"].astype(np.float64))
    return made


def shares(study: Study, truth: Truth, task: str, made: list[Floats]) -> Floats:
    """Return the share of the oracle's signal: (S, 1 + replicates), on the whole sample and on each resample."""
    positive_N, negative_N = truth.expected(task)
    draws = [np.ones(len(positive_N), np.int64), *user_draws(study.rows().users, study.config.seed)]
    oracle = SoftAuc(positive_N / (positive_N + negative_N))
    best = np.array([oracle(positive_N * weights, negative_N * weights) for weights in draws]) - 0.5
    found = []
    for one in made:
        area = SoftAuc(one[:, OUTPUT_OF[task]])
        found.append([area(positive_N * weights, negative_N * weights) - 0.5 for weights in draws])
    return np.array(found) / best


def main(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: Annotated[Path, typer.Option()] = Path("examples/simulated.toml"),
    workspace: Annotated[Path, typer.Option()] = Path("workspace"),
    source: Annotated[Path, typer.Option()] = Path("workspace/source"),
    bodies: Annotated[str, typer.Option()] = "ple,shared_bottom,single_task",
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    on: Annotated[Literal["validation", "test"], typer.Option()] = "validation",
    run: Annotated[str | None, typer.Option(help="Run whose examples are read.")] = None,
    cache: Annotated[Path | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Train the bodies and compare each with the oracle."""
    settings = load_config(config, dict(parse_override(text) for text in overrides or []))
    study = load_study(settings, Workspace(workspace), on=on, run=run)
    truth = read_truth(study, source)
    names = list(dict.fromkeys([*bodies.split(","), CONTROL]))
    found: dict[str, dict[str, Floats]] = {}
    for body in names:
        made = predictions(study, body, seeds, cache)
        found[body] = {task: shares(study, truth, task, made) for task in TASKS}
    table = Table(
        title=f"{settings.name}, {on} day, {len(truth.click):,} impressions, {seeds} seeds: share of the oracle"
    )
    for name in ("body", *(cell for task in TASKS for cell in (task, "- single-task"))):
        table.add_column(name)
    for body in names:
        cells = []
        for task in TASKS:
            each = found[body][task] - found[CONTROL][task]
            value, low, high = interval(each[:, 0], each[:, 1:].T, settings.seed)
            cells += [f"{found[body][task][:, 0].mean():.4f}", f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"]
        table.add_row(body, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
