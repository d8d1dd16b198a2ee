"""The synthetic experiment of the MMoE paper: how shared-bottom, one gate (OMoE) and MMoE fare as tasks differ more.

    python -m benchmarks.mmoe_synthetic --runs 10

Two regression tasks over x ~ N(0, I) in 100 dimensions, equations 2 to 5 of Ma et al. 2018, section 3.2: u1 and u2
are orthogonal unit vectors, w1 = c u1, w2 = c (p u1 + sqrt(1 - p^2) u2), y = w x + sum of 6 sines of w x + noise of
variance 0.01. Every run draws new data, weights and order; the three bodies see the same. As in section 5.1: 8
experts of one layer of 16 units, towers of 8 units, Adam; shared-bottom gets the width that gives it as many
parameters.

The experiment passes where, at task correlation 0.5 and 0.9, the mean loss of MMoE is below that of one gate and of
shared-bottom beyond a paired 95 % interval over runs, where the lead over shared-bottom grows as the correlation
falls from 1.0 to 0.5, and where MMoE's standard deviation over runs is below shared-bottom's at 0.5 and 0.9.

As in the paper each body has its own learning rate, here one for each correlation: the best of LEARNING_RATES by the
mean loss of `--tuning-runs` runs with other seeds than those that are reported.
Cost: 3 correlations x 3 bodies x (runs + 3 rates x tuning runs) trainings of 200,000 rows, about 4 s each on one core.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

from models.body import BodySize
from models.experts import BODIES
from models.towers import TaskTowers
from pipeline import threads

CORRELATIONS = (1.0, 0.9, 0.5)
NAMES = {"shared_bottom": "shared-bottom", "moe": "one gate (OMoE)", "mmoe": "MMoE"}
DIMENSIONS, SINES, SCALE, NOISE = 100, 6, 1.0, 0.1
EXPERTS, EXPERT_WIDTH, TOWER_WIDTH = 8, 16, 8
LEARNING_RATES, BATCH = (1e-3, 3e-3, 1e-2), 100
FIRST_SEED, FIRST_TUNING_SEED = 1000, 5000


class Regression(nn.Module):
    """A body with two towers, and one number a task."""

    def __init__(self, body: str, width: int) -> None:
        super().__init__()
        size = BodySize(input_width=DIMENSIONS, tasks=2, hidden=(width,), experts=EXPERTS)
        self.body = BODIES[body](size)
        self.towers = TaskTowers(tasks=2, input_width=width, hidden=(TOWER_WIDTH,))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Maps (B, D) to (B, 2)."""
        predicted_BT: Tensor = self.towers(self.body(x_BD))
        return predicted_BT


def parameters(module: nn.Module) -> int:
    """Count the weights."""
    return sum(weight.numel() for weight in module.parameters())


def matched_width(target: int) -> int:
    """Return the width of shared-bottom's layer whose parameters come nearest to a number."""
    return min(range(1, 1000), key=lambda width: abs(parameters(Regression("shared_bottom", width)) - target))


def draw_data(rows: int, correlation: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw inputs (N, D) and the labels of two tasks (N, 2)."""
    axes, _ = torch.linalg.qr(torch.randn(DIMENSIONS, 2, generator=generator))
    other = correlation * axes[:, 0] + (1 - correlation**2) ** 0.5 * axes[:, 1]
    weights_DT = SCALE * torch.stack([axes[:, 0], other], dim=1)
    x_ND = torch.randn(rows, DIMENSIONS, generator=generator)
    z_NT = x_ND @ weights_DT
    frequency_S, phase_S = torch.arange(1, SINES + 1).float(), torch.rand(SINES, generator=generator) * 2 * torch.pi
    sines_NT = torch.sin(z_NT.unsqueeze(-1) * frequency_S + phase_S).sum(-1)
    return x_ND, z_NT + sines_NT + NOISE * torch.randn(rows, 2, generator=generator)


@dataclass(frozen=True)
class Run:
    """One draw of data: rows to learn from, rows to measure on, and the seed of the weights and the order."""

    data: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    seed: int


def draw_run(rows: int, held_out: int, correlation: float, seed: int) -> Run:
    """Draw the data of one run."""
    x_ND, y_NT = draw_data(rows + held_out, correlation, torch.Generator().manual_seed(seed))
    return Run((x_ND[:rows], y_NT[:rows]), (x_ND[rows:], y_NT[rows:]), seed)


def final_loss(body: str, width: int, learning_rate: float, run: Run) -> float:
    """Train one body and return its mean squared error over both tasks on rows that it has not seen."""
    torch.manual_seed(run.seed)
    model = Regression(body, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    x_ND, y_NT = run.data
    for rows in torch.split(torch.randperm(len(x_ND)), BATCH):
        optimizer.zero_grad()
        loss = (model(x_ND[rows]) - y_NT[rows]).square().mean()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return float((model(run.held_out[0]) - run.held_out[1]).square().mean())


def tuned_rate(body: str, width: int, runs: list[Run]) -> float:
    """Return the learning rate with the lowest mean loss over some runs."""
    return min(LEARNING_RATES, key=lambda rate: sum(final_loss(body, width, rate, run) for run in runs))


def paired(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of paired differences over runs with its 95 % interval by Student's t."""
    mean, error = float(differences.mean()), float(stats.sem(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - half, mean + half


def verdicts(losses: dict[float, dict[str, NDArray[np.float64]]]) -> list[tuple[str, bool]]:
    """Return each claim of the paper and whether it holds."""
    claims = []
    for correlation in CORRELATIONS[1:]:
        found = losses[correlation]
        for other in ("moe", "shared_bottom"):
            mean, low, high = paired(found[other] - found["mmoe"])
            claim = f"correlation {correlation}: {NAMES[other]} loses {mean:.4f} [{low:.4f}, {high:.4f}] to MMoE"
            claims.append((claim, low > 0))
        spread = {body: float(found[body].std(ddof=1)) for body in NAMES}
        spreads = f"spread of MMoE {spread['mmoe']:.4f}, of shared-bottom {spread['shared_bottom']:.4f}"
        claim = f"correlation {correlation}: {spreads}"
        claims.append((claim, spread["mmoe"] < spread["shared_bottom"]))
    lead = {p: losses[p]["shared_bottom"] - losses[p]["mmoe"] for p in CORRELATIONS}
    mean, low, high = paired(lead[0.5] - lead[1.0])
    claims.append((f"lead over shared-bottom grows by {mean:.4f} [{low:.4f}, {high:.4f}] from 1.0 to 0.5", low > 0))
    return claims


def main(
    runs: Annotated[int, typer.Option(min=2)] = 10,
    rows: Annotated[int, typer.Option(min=BATCH)] = 200_000,
    held_out: Annotated[int, typer.Option(min=100)] = 10_000,
    tuning_runs: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Run the experiment and print learning rates, losses and verdicts."""
    target = parameters(Regression("mmoe", EXPERT_WIDTH))
    widths = {"shared_bottom": matched_width(target), "moe": EXPERT_WIDTH, "mmoe": EXPERT_WIDTH}
    losses = {p: {body: np.zeros(runs) for body in NAMES} for p in CORRELATIONS}
    rates: dict[str, dict[float, float]] = {body: {} for body in NAMES}
    for correlation in CORRELATIONS:
        tuning = [draw_run(rows, held_out, correlation, FIRST_TUNING_SEED + number) for number in range(tuning_runs)]
        for body, width in widths.items():
            rates[body][correlation] = tuned_rate(body, width, tuning)
    for correlation, number in itertools.product(CORRELATIONS, range(runs)):
        run = draw_run(rows, held_out, correlation, FIRST_SEED + number)
        for body, width in widths.items():
            losses[correlation][body][number] = final_loss(body, width, rates[body][correlation], run)
    table = Table(title=f"mean squared error on {held_out:,} new rows after {rows:,}, {runs} runs, mean (spread)")
    for name in ("body", "parameters", "learning rates", *(f"correlation {p}" for p in CORRELATIONS)):
        table.add_column(name)
    for body, name in NAMES.items():
        cells = [f"{losses[p][body].mean():.4f} ({losses[p][body].std(ddof=1):.4f})" for p in CORRELATIONS]
        told = ", ".join(f"{rates[body][p]:g}" for p in CORRELATIONS)
        table.add_row(name, f"{parameters(Regression(body, widths[body])):,}", told, *cells)
    console = Console(width=160)
    console.print(table)
    for claim, holds in verdicts(losses):
        console.print(f"{'holds' if holds else 'FAILS'}: {claim}", highlight=False)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
