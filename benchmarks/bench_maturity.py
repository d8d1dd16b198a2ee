"""Which labels.immature: keep, drop and weight against labels as known at the end of the log, same model and epochs.

    python -m benchmarks.bench_maturity --workspace W --seeds 4
    python -m benchmarks.bench_maturity --workspace W --seeds 3 --source S

Without a source it simulates one world a seed, 16 days long, whose conversions come 48 hours after the click on
average and up to 7 days after it; an existing world of the workspace is used again. With one, all seeds train on the
same examples of examples/simulated.toml. The cutoff is the start of the test day; what was not known by then is known
only to 'final'. Prints, on final labels, a table of each seed and of the mean, and paired differences with 95 %
intervals over users: of each world and of their mean, or, on one source, of the seeds' averaged predictions.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from pipeline.config import Config, load_config
from pipeline.dataset import ranker_spec, read_examples
from pipeline.evaluate import OUTPUT_OF, Impressions, impressions_of
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.fit import PREDICT_ROWS, fit_of, fit_ranker
from pipeline.ingest import ingest
from pipeline.maturity import Maturity, maturity_of
from pipeline.metrics import METRICS, Interval, metric_values, paired_difference, summarise
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

POLICIES = ("keep", "drop", "weight", "final")
EXAMPLE = Path("examples/simulated.toml")
PARTS = ("validation", "test")
MEASURES = (
    ("conversion", "auc"),
    ("conversion", "pcoc"),
    ("click_and_conversion", "auc"),
    ("click_and_conversion", "pcoc"),
)
PAIRS = (("drop", "keep"), ("weight", "keep"), ("weight", "drop"), ("drop", "final"), ("weight", "final"))
TASKS = ("conversion", "click_and_conversion")
DIFFERENCES = ("auc", "pcoc", "log_loss")
Predictions = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """Final labels of one part of one seed, and each policy's predictions (N, 3) of them."""

    rows: Impressions
    predictions: Predictions

    def value(self, policy: str, task: str, metric: str) -> float:
        """Return a metric of one policy in the task's own space."""
        labels, space = self.rows.of_task(task)
        users = np.unique(self.rows.users[space], return_inverse=True)[1]
        probabilities = self.predictions[policy][space, OUTPUT_OF[task]]
        summary = summarise(labels=labels[space], probabilities=probabilities, users=users)
        values = metric_values(summary, np.ones((1, len(summary.sums))))[0]
        return float(values[METRICS.index(metric)])


def _delayed_world(seed: int, root: Path) -> tuple[Config, Workspace]:
    config = load_config(EXAMPLE, {"labels.conversion_window": "7d", "seed": seed})
    world = SimulatorConfig(
        seed=seed,
        days=16,
        requests_per_day=4000,
        click_rate=0.2,
        conversion_rate=0.2,
        conversion_delay_hours_mean=48,
        conversion_window_days=7,
    )
    source = root / f"source-{seed}"
    if not source.exists():
        simulate(world, source)
    return config, _featurized(config, Workspace(root / f"ws-{seed}"), source)


def _featurized(config: Config, workspace: Workspace, source: Path) -> Workspace:
    if not tables.exists(workspace.table("interactions")):
        ingest(config, workspace, source)
    days = days_of(config, workspace, None)
    if not (run_folder(config, workspace, days) / "features").exists():
        featurize(config, workspace, days)
    return workspace


def _maturities(config: Config, examples: pl.LazyFrame, cutoff: dt.datetime) -> Iterator[tuple[str, Maturity]]:
    for policy in ("keep", "drop", "weight"):
        labels = config.labels.model_copy(update={"immature": policy})
        yield policy, maturity_of(config.model_copy(update={"labels": labels}), examples, cutoff)
    keep = maturity_of(
        config.model_copy(update={"labels": config.labels.model_copy(update={"immature": "keep"})}), examples, cutoff
    )
    yield "final", replace(keep, cutoff=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))


def _measure(config: Config, workspace: Workspace, seed: int) -> dict[str, Measured]:
    """Train every policy with one seed and predict the validation and the test day."""
    days = days_of(config, workspace, None)
    plan, folder = plan_of(config), run_folder(config, workspace, days)
    spec = ranker_spec(config, plan, load_encoder(folder / "features" / "encoder.json"), config.model.body, seed)
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    fit = fit_of(config.model_copy(update={"seed": seed}))
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    final = {part: [read_examples(table, version, day, spec, None) for day in getattr(days, part)] for part in PARTS}
    made: dict[str, Predictions] = {part: {} for part in PARTS}
    for policy, maturity in _maturities(config, fitted, plan.start_of(days.test[0])):
        training = [read_examples(table, version, day, spec, maturity) for day in days.train]
        validation = [read_examples(table, version, day, spec, maturity) for day in days.validation]
        ranker, _ = fit_ranker(spec, fit, training, validation)
        for part, examples in final.items():
            predicted = [predict(ranker, day.features, PREDICT_ROWS) for day in examples]
            made[part][policy] = np.concatenate(predicted).astype(np.float64)
    return {part: Measured(impressions_of(final[part]), made[part]) for part in PARTS}


def _averaged(seeds: list[Measured]) -> Measured:
    mean = {policy: np.mean([one.predictions[policy] for one in seeds], axis=0) for policy in POLICIES}
    return Measured(seeds[0].rows, mean)


def _absolute(title: str, seeds: list[Measured]) -> tuple[Table, dict[tuple[str, str, str], float]]:
    table = Table(title=title)
    for name in ("seed", "labels", *(f"{task} {metric}" for task, metric in MEASURES)):
        table.add_column(name)
    means: dict[tuple[str, str, str], float] = {}
    for policy in POLICIES:
        values = np.array([[one.value(policy, *measure) for measure in MEASURES] for one in seeds])
        for seed, row in enumerate(values, start=1):
            table.add_row(str(seed), policy, *(f"{value:.4f}" for value in row))
        mean = values.mean(axis=0)
        table.add_row("mean", policy, *(f"{value:.4f}" for value in mean), end_section=True)
        for (task, metric), column, value in zip(MEASURES, values.T, mean, strict=True):
            # |log PCOC| of each seed, so that errors of opposite signs do not cancel.
            means[policy, task, metric] = float(np.abs(np.log(column)).mean() if metric == "pcoc" else value)
    return table, means


def _difference(world: Measured, ours: str, other: str) -> list[Interval]:
    found: list[Interval] = []
    for task in TASKS:
        labels, space = world.rows.of_task(task)
        intervals = paired_difference(
            labels=labels[space],
            probabilities=world.predictions[ours][space, OUTPUT_OF[task]],
            baseline=world.predictions[other][space, OUTPUT_OF[task]],
            users=np.unique(world.rows.users[space], return_inverse=True)[1],
        )
        found += [intervals[metric] for metric in DIFFERENCES]
    return found


def _mean(intervals: tuple[Interval, ...]) -> Interval:
    """Average independent differences: the squares of their intervals' sides add up."""
    value = float(np.mean([one.value for one in intervals]))
    below = np.linalg.norm([one.value - one.low for one in intervals]) / len(intervals)
    above = np.linalg.norm([one.high - one.value for one in intervals]) / len(intervals)
    return Interval(value, value - float(below), value + float(above))


def _differences(worlds: list[Measured]) -> Table:
    table = Table(title="paired differences [95 % over users]")
    for name in ("world", "difference", *(f"{task} {metric}" for task in TASKS for metric in DIFFERENCES)):
        table.add_column(name)
    for ours, other in PAIRS:
        found = [_difference(world, ours, other) for world in worlds]
        rows = {str(number): row for number, row in enumerate(found, start=1)}
        rows["mean"] = [_mean(column) for column in zip(*found, strict=True)]
        for name, row in rows.items() if len(worlds) > 1 else [("1", found[0])]:
            cells = [f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" for one in row]
            table.add_row(name, f"{ours} - {other}", *cells, end_section=name == "mean")
    return table


def _closed(means: dict[tuple[str, str, str], float]) -> Table:
    table = Table(title="share of the gap between keep and final that is closed (means over seeds; |log PCOC|)")
    for name in ("labels", *(f"{task} {metric}" for task, metric in MEASURES)):
        table.add_column(name)
    for policy in ("drop", "weight"):
        shares = []
        for task, metric in MEASURES:
            gap = abs(means["keep", task, metric] - means["final", task, metric])
            left = abs(means[policy, task, metric] - means["final", task, metric])
            shares.append(f"{1 - left / gap:.0%} of {gap:.4f}")
        table.add_row(policy, *shares)
    return table


def main(
    workspace: Annotated[Path, typer.Option()],
    seeds: Annotated[int, typer.Option(min=1)] = 4,
    source: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Train with every rule and compare them on final labels."""
    measured = []
    for seed in range(1, seeds + 1):
        if source is None:
            config, place = _delayed_world(seed, workspace)
        else:
            config = load_config(EXAMPLE, {})
            place = _featurized(config, Workspace(workspace), source)
        measured.append(_measure(config, place, seed))
    console = Console(width=200)
    for part in PARTS if source is not None else ("test",):
        found = [one[part] for one in measured]
        table, means = _absolute(f"{part} day, final labels", found)
        for printed in (table, _differences(found if source is None else [_averaged(found)]), _closed(means)):
            console.print(printed)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
