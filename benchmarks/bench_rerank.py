"""What re-ranking costs: expected clicks and conversions under the simulator's truth, against what it gives.

    counterpoise simulate --output W/source && counterpoise run --source W/source --workspace W --date 2026-01-14
    python -m benchmarks.bench_rerank --workspace W --source W/source

On the test day of a finished run: its candidates are scored once, every setting makes lists of them. Printed for the
first 10, 20 and 50 ranks: expected clicks and conversions a user (reference context), the difference to the lists in
the order of scores with a 95 % interval over users, drawn in pairs; how unlike the items of a list are (1 - cosine of
the towers' vectors, mean over pairs), categories in a list, the share of the catalogue that lists show and its Gini;
and users that are re-ranked in a second of CPU, median of rounds (for `off`, users whose candidates are scored).
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.truth import CONFIDENCE, Floats
from pipeline import threads
from pipeline.config import Config, load_config
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, run_folder
from pipeline.pair_scorer import PairScorer
from pipeline.population import epoch_us
from pipeline.rank import joined, rank_users, user_ranges
from pipeline.ranking_metrics import coverage, gini
from pipeline.ranking_section import Ranking
from pipeline.rerank_users import load_reranker, rerank, value_codes
from pipeline.retrieve import candidates_for, item_vectors
from pipeline.scoring import Bundle, Day, load_day, load_run_bundle
from pipeline.workspace import Workspace
from pipeline.world import World, load_world

Integers = NDArray[np.int64]
KS = (10, 20, 50)
REPLICATES = 1_000
CATEGORY = "category"
CAPS = [{"column": CATEGORY, "most": 3, "within": 20}]
SETTINGS: dict[str, dict[str, Any]] = {
    "off": {},
    **{f"MMR {weight}": {"diversity": weight} for weight in (0.1, 0.2, 0.3, 0.5, 0.7)},
    **{f"MMR {weight}, category": {"diversity": weight, "likeness": [CATEGORY]} for weight in (0.05, 0.1, 0.3)},
    "at most 3 a category in 20": {"caps": CAPS},
    "explore 0.05 of 10": {"exploration": 0.05},
    "explore 0.1 of 10": {"exploration": 0.1},
    "MMR 0.1, cap, explore 0.05": {"diversity": 0.1, "caps": CAPS, "exploration": 0.05},
}


@dataclass(frozen=True)
class Scored:
    """All candidates of a day's users, best first, and what is known of items: vectors, categories, the truth."""

    bundle: Bundle
    day: Day
    items_UK: Integers
    scores_UK: Floats
    clicks_UK: Floats
    """Expected clicks and, next, conversions of each candidate under the truth."""
    conversions_UK: Floats
    vectors_ID: NDArray[np.float32]
    categories_I: Integers
    speed: float
    """Users whose candidates are scored in a second of CPU."""


@dataclass(frozen=True)
class Made:
    """The lists of a setting (U, L), as places among the candidates, and users a CPU-second."""

    places_UL: Integers
    speed: float


def scored(config: Config, bundle: Bundle, day: Day, index: Path, world: World) -> Scored:
    """Score all candidates of all users, and look their truth up."""
    longest = config.ranking.model_copy(update={"list_length": config.retrieval.candidates})
    whole = config.model_copy(update={"ranking": longest})
    found, scorer = candidates_for(config, bundle, day, index), PairScorer(whole, bundle, day)
    ranges, start = user_ranges(day.users.height), time.process_time()
    lists = joined([rank_users(whole, scorer, None, users, found.of(users)) for users in ranges])
    speed = day.users.height / (time.process_time() - start)
    assert (lists.items >= 0).all(), "the simulated catalogue has enough items for every user"
    click_UK, conversion_UK = world.probabilities(
        users=world.user_indices(day.users["user_id"])[:, None],
        items=world.item_indices(day.items["item_id"])[lists.items],
        times_us=epoch_us(plan_of(config).start_of(day.day)),
    )
    vectors = item_vectors(bundle.retriever, day.item_codes)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = value_codes(day.items[CATEGORY])
    return Scored(bundle, day, lists.items, lists.scores, click_UK, click_UK * conversion_UK, vectors, codes, speed)


def make(config: Config, of: Scored, settings: dict[str, Any], rounds: int) -> Made:
    """Make the lists of a setting, some times over."""
    ranking = Ranking.model_validate(config.ranking.model_dump() | {"rerank": settings})
    reranker = load_reranker(config.model_copy(update={"ranking": ranking}), of.bundle, of.day)
    length = config.ranking.list_length
    if reranker is None:
        return Made(np.broadcast_to(np.arange(length), (len(of.items_UK), length)), of.speed)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for users in user_ranges(len(of.items_UK)):
            rerank(reranker, of.day.users["user_id"].gather(users), of.items_UK[users], of.scores_UK[users])
        seconds.append(time.process_time() - start)
    picked = rerank(reranker, of.day.users["user_id"], of.items_UK, of.scores_UK)
    return Made(picked.places, len(of.items_UK) / median(seconds))


def priced(truth_UK: Floats, made: Made, k: int, counts_RU: Integers) -> str:
    """Return the mean over users of a list's expected outcomes, and its difference to the order of scores."""
    own_U = np.take_along_axis(truth_UK, made.places_UL[:, :k], axis=1).sum(axis=1)
    difference_U = own_U - truth_UK[:, :k].sum(axis=1)
    if not difference_U.any():
        return f"{own_U.mean():.4f}"
    low, high = np.quantile(counts_RU @ difference_U / len(own_U), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    base = truth_UK[:, :k].sum(axis=1).mean()
    change = ", ".join(f"{100 * value / base:+.1f}" for value in (low, high))
    return f"{own_U.mean():.4f} {100 * difference_U.mean() / base:+.1f} % [{change}]"


def spread(of: Scored, made: Made, k: int) -> list[str]:
    """Return how unlike the items of lists are, their categories, and how lists spread over the catalogue."""
    items_UK = np.take_along_axis(of.items_UK, made.places_UL[:, :k], axis=1)
    # the sum over pairs is that of all vectors squared, less each with itself
    squared_U = (of.vectors_ID[items_UK].sum(axis=1, dtype=np.float64) ** 2).sum(axis=1)
    unlike = 1 - ((squared_U - k) / (k * (k - 1))).mean()
    ordered = np.sort(of.categories_I[items_UK], axis=1)
    categories = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1).mean()
    size = of.day.items.height
    covered, uneven = coverage(items_UK, catalogue_size=size), gini(items_UK, catalogue_size=size)
    return [f"{unlike:.3f}", f"{categories:.2f}", f"{100 * covered:.1f} %", f"{uneven:.3f}"]


def main(
    config: Annotated[Path, typer.Option()] = Path("examples/simulated.toml"),
    workspace: Annotated[Path, typer.Option()] = Path("workspace"),
    source: Annotated[Path, typer.Option()] = Path("workspace/source"),
    run: Annotated[str | None, typer.Option(help="Name of the run; default: the configuration's own.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Make and measure the lists of every setting."""
    settings, place = load_config(config, {}), Workspace(workspace)
    days = days_of(settings, place, None)
    folder = run_folder(settings, place, days) if run is None else place.run(run)
    bundle = load_run_bundle(folder)
    day = load_day(settings, place, folder / "features", days.test[-1], bundle.encoder)
    world = load_world(source / "world.safetensors")
    of = scored(settings, bundle, day, folder / f"lists-{days.test[-1]}", world)
    users = len(of.items_UK)
    counts_RU = np.random.default_rng(settings.seed).multinomial(users, np.full(users, 1 / users), size=REPLICATES)
    lists = {name: make(settings, of, keys, rounds) for name, keys in SETTINGS.items()}
    for k in KS:
        table = Table(title=f"first {k} of {settings.ranking.list_length}, {users:,} users, {day.items.height:,} items")
        columns = ("clicks", "conversions", "unlike", "categories", "coverage", "Gini", "users / CPU s")
        for name in ("lists", *columns):
            table.add_column(name, no_wrap=True)
        for name, made in lists.items():
            prices = [priced(truth, made, k, counts_RU) for truth in (of.clicks_UK, of.conversions_UK)]
            table.add_row(name, *prices, *spread(of, made, k), f"{made.speed:,.0f}")
        Console(width=180).print(table)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
