"""Which body: every body on the same encoded examples, several seeds, measured on the VALIDATION day.

Run it on an ingested and featurized workspace:

    counterpoise ingest --config C --source S --workspace W && counterpoise featurize --config C --workspace W
    python -m benchmarks.bench_bodies --config C --workspace W --seeds 5

Prints, per body, the mean over seeds of AUC and GAUC of each task, and the paired difference to single-task: the
probabilities of all seeds are averaged, and users are resampled for both bodies at once.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from features.encoding import load_encoder
from models.ranker import predict
from pipeline import tables, threads
from pipeline.config import Config, load_config, parse_override
from pipeline.dataset import Examples, ranker_spec, read_examples
from pipeline.evaluate import OUTPUT_OF, TASKS, impressions_of
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, run_folder, table_versions
from pipeline.fit import PREDICT_ROWS, fit_of, fit_ranker
from pipeline.maturity import maturity_of
from pipeline.metrics import metric_values, paired_difference, summarise
from pipeline.workspace import Workspace

BODIES = ("single_task", "shared_bottom", "mmoe", "ple")


def _body(config: Config, workspace: Workspace, body: str, seeds: int) -> tuple[list[NDArray[np.float64]], float]:
    """Train one body with every seed; return its validation predictions and the seconds of one training."""
    days = days_of(config, workspace, None)
    plan = plan_of(config)
    encoder = load_encoder(run_folder(config, workspace, days) / "features" / "encoder.json")
    spec = ranker_spec(config, plan, encoder, body, 1)
    table, cutoff = workspace.table("examples"), plan.start_of(days.test[0])
    version = table_versions(run_folder(config, workspace, days))["examples"]
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    maturity = maturity_of(config, fitted, cutoff)
    training = [read_examples(table, version, day, spec, maturity) for day in days.train]
    validation = [read_examples(table, version, day, spec, maturity) for day in days.validation]
    predictions, start = [], time.perf_counter()
    for seed in range(1, seeds + 1):
        seeded = config.model_copy(update={"seed": seed})
        ranker, _ = fit_ranker(ranker_spec(seeded, plan, encoder, body, seed), fit_of(seeded), training, validation)
        parts = [predict(ranker, day.features, PREDICT_ROWS) for day in validation]
        predictions.append(np.concatenate(parts).astype(np.float64))
    return predictions, (time.perf_counter() - start) / seeds


def _validation(config: Config, workspace: Workspace) -> list[Examples]:
    days = days_of(config, workspace, None)
    plan = plan_of(config)
    encoder = load_encoder(run_folder(config, workspace, days) / "features" / "encoder.json")
    spec = ranker_spec(config, plan, encoder, "ple", 1)
    version = table_versions(run_folder(config, workspace, days))["examples"]
    return [read_examples(workspace.table("examples"), version, day, spec, None) for day in days.validation]


def main(
    config: Annotated[Path, typer.Option()] = Path("examples/simulated.toml"),
    workspace: Annotated[Path, typer.Option()] = Path("workspace"),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Train and compare the bodies."""
    settings, place = load_config(config, dict(parse_override(text) for text in overrides or [])), Workspace(workspace)
    rows = impressions_of(_validation(settings, place))
    made = {body: _body(settings, place, body, seeds) for body in BODIES}
    table = Table(title=f"{settings.name}, validation day, {seeds} seeds")
    for name in (
        "body",
        "s",
        *(f"{task} AUC / GAUC" for task in TASKS),
        *(f"{task} AUC - single-task" for task in TASKS),
    ):
        table.add_column(name)
    for body, (predictions, seconds) in made.items():
        absolute, differences = [], []
        for task in TASKS:
            labels, space = rows.of_task(task)
            users = np.unique(rows.users[space], return_inverse=True)[1]
            column = OUTPUT_OF[task]
            values = []
            for one in predictions:
                summary = summarise(labels=labels[space], probabilities=one[space, column], users=users)
                values.append(metric_values(summary, np.ones((1, len(summary.sums))))[0, :2])
            auc, gauc = np.mean(values, axis=0)
            absolute.append(f"{auc:.4f} / {gauc:.4f}")
            ours = np.mean([one[space, column] for one in predictions], axis=0)
            base = np.mean([one[space, column] for one in made["single_task"][0]], axis=0)
            found = paired_difference(labels=labels[space], probabilities=ours, baseline=base, users=users)["auc"]
            differences.append(f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
        table.add_row(body, f"{seconds:.0f}", *absolute, *differences)
    Console(width=200).print(table)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
