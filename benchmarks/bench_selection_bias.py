"""Selection bias: p_conversion over ALL impressions against the simulator's truth, by the loss that trained it.

    counterpoise ingest --config C --source S --workspace W && counterpoise featurize --config C --workspace W
    python -m benchmarks.bench_selection_bias --config C --workspace W --source S --seeds 3

A model that learns conversions on clicked impressions alone is used on all of them when lists are ranked. On
simulated logs the true probability of a conversion given a click is known for every impression, clicked or not.
Printed on the validation days (--on test for the others), with labels as the night before knew them in training:

- ratio: mean predicted over mean true p_conversion, on all impressions, on clicked and on unclicked ones,
- excess: mean Kullback-Leibler divergence from the truth to the prediction on all impressions, in 1e-3 nats, and its
  paired difference to click-only training with a 95 % interval over users and seeds,
- AUC on all impressions, each counted with its true probability as positive, the rest of it as negative.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.truth import REPLICATES, Floats, SoftAuc, interval, read_truth
from pipeline import threads
from pipeline.config import load_config, parse_override
from pipeline.fit import fit_of
from pipeline.study_data import load_study
from pipeline.study_training import Material, train_ranker
from pipeline.workspace import Workspace

LOSSES = ("click_only", "esmm", "escm2_ips", "escm2_dr", "dcmt")


def divergence(truth_N: Floats, predicted_N: Floats) -> Floats:
    """Return the Kullback-Leibler divergence of each impression in nats: (N)."""
    predicted_N = predicted_N.clip(1e-9, 1 - 1e-9)
    converts = truth_N * np.log(truth_N / predicted_N)
    return converts + (1 - truth_N) * np.log((1 - truth_N) / (1 - predicted_N))


def user_resamples(of_rows_SN: Floats, users_N: NDArray[np.int64], seed: int) -> Floats:
    """Return the mean over rows of each seed, on resamples of users: (R, S)."""
    sums_US = np.stack([np.bincount(users_N, weights=rows_N) for rows_N in of_rows_SN], axis=1)
    rows_U = np.bincount(users_N)
    generator = np.random.default_rng(seed)
    users = len(rows_U)
    weights_RU = np.stack([generator.multinomial(users, np.full(users, 1 / users)) for _ in range(REPLICATES)])
    return (weights_RU @ sums_US) / (weights_RU @ rows_U)[:, None]


def main(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    config: Annotated[Path, typer.Option()] = Path("examples/simulated.toml"),
    workspace: Annotated[Path, typer.Option()] = Path("workspace"),
    source: Annotated[Path, typer.Option()] = Path("workspace/source"),
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    on: Annotated[Literal["validation", "test"], typer.Option()] = "validation",
    run: Annotated[str | None, typer.Option(help="Run whose examples are read.")] = None,
    cache: Annotated[Path | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Train with every loss and compare with the truth."""
    settings = load_config(config, dict(parse_override(text) for text in overrides or []))
    study = load_study(settings, Workspace(workspace), on=on, run=run)
    truth_N, rows = read_truth(study, source).conversion, study.rows()
    clicked_N, material = rows.clicks, Material(study.training, study.validation, {"measured": study.measured})
    excess: dict[str, Floats] = {}
    table = Table(title=f"{settings.name}, {on} day, {len(truth_N):,} impressions, {seeds} seeds")
    for name in ("loss", "ratio, all", "clicked", "unclicked", "excess", "excess - click-only [95 %]", "AUC"):
        table.add_column(name)
    for loss in LOSSES:
        predicted_SN = []
        for seed in range(1, seeds + 1):
            training = settings.training.model_copy(update={"conversion_loss": loss})
            changed = settings.model_copy(update={"seed": seed, "training": training})
            spec = replace(study, config=changed).spec(settings.model.body, seed)
            made = train_ranker(spec, fit_of(changed), material, cache)
            predicted_SN.append(made.predictions["measured"][:, 1].astype(np.float64))
        ratios = [
            np.mean([one[space].sum() for one in predicted_SN]) / truth_N[space].sum()
            for space in (np.ones_like(clicked_N), clicked_N, ~clicked_N)
        ]
        excess[loss] = 1000 * np.stack([divergence(truth_N, one) for one in predicted_SN])
        each = excess[loss] - excess[LOSSES[0]]
        draws_RS = user_resamples(each, rows.users, settings.seed)
        value, low, high = interval(each.mean(axis=1), draws_RS, settings.seed)
        areas = [SoftAuc(one)(truth_N, 1 - truth_N) for one in predicted_SN]
        table.add_row(
            loss,
            *(f"{ratio:.3f}" for ratio in ratios),
            f"{excess[loss].mean():.3f}",
            f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{np.mean(areas):.4f} ({np.std(areas, ddof=1):.4f})",
        )
    table.caption = f"AUC of the truth itself {SoftAuc(truth_N)(truth_N, 1 - truth_N):.4f}"
    Console(width=160).print(table)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
