"""How good the lists of a test day are: against next-day behaviour and, on simulated data, against the truth."""

import datetime as dt
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import tables
from pipeline.config import Config
from pipeline.curves import thinned
from pipeline.feature_plan import plan_of
from pipeline.featurize import table_versions
from pipeline.metrics import Interval
from pipeline.popularity import NAMES, deciles_of, known_impressions
from pipeline.rank import Lists, lists_frame, rank_lists
from pipeline.ranking_metrics import coverage, evaluate_lists, gini, lorenz, recall_by_group
from pipeline.retrieve import candidates_for, make_index, popular_candidates
from pipeline.scoring import Bundle, Day, load_day, numbered
from pipeline.source_adds import evaluate_sources
from pipeline.source_files import local_folder
from pipeline.source_merge import Pairs
from pipeline.workspace import Workspace, replaced_folder, write_parquet
from pipeline.world import expected_conversions, load_world, ranked_by_truth

TOP = 10


def evaluate_day_lists(
    config: Config, workspace: Workspace, bundle: Bundle, folder: Path, date: dt.date, source: str | Path
) -> dict[str, Any]:
    """Make the lists that would have been served on a test day and measure them.

    Args:
        config: the run's configuration.
        workspace: its tables.
        bundle: the run's model.
        folder: the run's folder; the lists are kept in it.
        date: the test day.
        source: where the simulator's world lies, if any.

    Returns:
        `retrieval` ({recall, ndcg} by label and k, of the ranked lists), `candidates` (the same before ranking),
        `popular_retrieval` (of the most popular items), `retrieval_by_popularity` (recall of next-day clicks by the
        item's decile), `lists` (coverage, Gini, expected conversions), `exposure` (its Lorenz curve), and `sources`
        (what each candidate source adds; None where the towers are the only one).
    """
    day = load_day(config, workspace, folder / "features", date, bundle.encoder)
    with replaced_folder(folder / f"lists-{date}") as kept:
        spec = make_index(config, bundle, day, kept)
        found = candidates_for(config, bundle, day, kept)
        ranked = rank_lists(config, bundle, day, found)
        write_parquet(lists_frame(ranked, day, bundle.version), kept / "lists.parquet")
        relevant = relevant_on(workspace, day)
        sources = evaluate_sources(config, bundle, day, kept, relevant.pairs)
    popular = popular_candidates(day, config.ranking.list_length)
    shown, held = lorenz(ranked.items, catalogue_size=day.items.height)
    lists: dict[str, Any] = {
        "scored_for": str(date),
        "users": day.users.height,
        "test_users_without_a_list": relevant.users_without_a_list,
        "items": day.items.height,
        "coverage": coverage(ranked.items, catalogue_size=day.items.height),
        "gini": gini(ranked.items, catalogue_size=day.items.height),
        "index": {"kind": spec.kind, "recall": spec.recall, "recall_k": spec.recall_k},
    }
    if config.evaluation.world is not None:
        lists["expected_conversions_of_top_10"] = _expected(config, source, day, ranked, popular)
    return {
        "retrieval": _against(config, ranked.items, relevant.pairs),
        "candidate_retrieval": _against(config, found.items, relevant.pairs),
        "popular_retrieval": _against(config, popular, relevant.pairs),
        "retrieval_by_popularity": _by_popularity(config, workspace, folder, day, ranked.items, relevant),
        "lists": lists,
        "exposure": {
            "lorenz": [[0.0, 0.0], *thinned(shown, held, along=(shown + held) / 2)],
            "coverage": lists["coverage"],
            "gini": lists["gini"],
        },
        "sources": sources,
    }


@dataclass(frozen=True)
class Relevant:
    """What users went on to do on the day.

    Attributes:
        pairs: by label, user and item numbers.
        items: the id of each item number; the available ones come first.
        users_without_a_list: users of the day that no list is for.
    """

    pairs: dict[str, Pairs]
    items: pl.Series
    users_without_a_list: int


def relevant_on(workspace: Workspace, day: Day, known_before: dt.datetime | None = None) -> Relevant:
    """Return the day's clicks and conversions; items that no list can hold have numbers too and count as missed.

    With a moment, what was not known before it counts as none.
    """
    rows = tables.scan(workspace.table("interactions")).filter(pl.col("date") == day.day).collect()
    joined = rows.join(numbered(day.users, "user"), on="user_id").join(
        numbered(day.items, "item"), on="item_id", how="left"
    )
    unlisted = day.items.height - 1 + joined["item_id"].rank("dense").cast(pl.Int64)
    joined = joined.with_columns(pl.col("item_number").fill_null(unlisted))
    pairs = {}
    for label in ("click", "conversion"):
        known = pl.lit(value=True) if known_before is None else pl.col(f"{label}_known_at") < known_before
        chosen = joined.filter(pl.col(label) & known)
        pairs[label] = (chosen["user_number"].to_numpy(), chosen["item_number"].to_numpy())
    numbers = pl.concat([day.items["item_id"], joined["item_id"].unique().sort()])
    return Relevant(pairs, numbers, rows["user_id"].n_unique() - joined["user_id"].n_unique())


def _against(config: Config, items_UK: NDArray[np.int64], relevant: dict[str, Pairs]) -> dict[str, Any]:
    found: dict[str, Any] = {"recall": {}, "ndcg": {}, "users": {}}
    for label, (users, items) in relevant.items():
        if not len(users):
            found["users"][label] = 0
            continue
        measured = evaluate_lists(
            lists_UK=items_UK,
            relevant_users=users,
            relevant_items=items,
            ks=_ks(config, items_UK),
            replicates=config.evaluation.replicates,
            seed=config.seed,
        )
        found["recall"][label] = _by_k(measured["recall"])
        found["ndcg"][label] = _by_k(measured["ndcg"])
        found["users"][label] = measured["users"]
    return found


def _by_popularity(
    config: Config, workspace: Workspace, folder: Path, day: Day, items_UK: NDArray[np.int64], relevant: Relevant
) -> list[dict[str, Any]]:
    """Return recall of next-day clicks by decile of the item's impressions known before; [] without a click."""
    users, items = relevant.pairs["click"]
    if not len(users):
        return []
    version = table_versions(folder)["interactions"]
    known = known_impressions(config, workspace, version, day.day, "item_id")
    measured = recall_by_group(
        lists_UK=items_UK,
        relevant_users=users,
        relevant_items=items,
        group_of_item=deciles_of(relevant.items, known).to_numpy(),
        ks=_ks(config, items_UK),
        replicates=config.evaluation.replicates,
        seed=config.seed,
    )
    return [
        {
            "decile": name,
            "pairs": measured[name]["pairs"],
            "share": measured[name]["share"],
            "recall": _by_k(measured[name]["recall"]),
        }
        for name in NAMES
        if name in measured
    ]


def _ks(config: Config, items_UK: NDArray[np.int64]) -> list[int]:
    return [k for k in config.evaluation.ks if k <= items_UK.shape[1]] or [items_UK.shape[1]]


def _by_k(intervals: dict[int, Interval]) -> dict[str, dict[str, float]]:
    return {str(k): interval.as_dict() for k, interval in intervals.items()}


def _expected(
    config: Config, source: str | Path, day: Day, ranked: Lists, popular: NDArray[np.int64]
) -> dict[str, float]:
    """Return mean expected conversions a user of the first ten places, under the simulator's truth."""
    assert config.evaluation.world is not None, "the caller asks where there is a world"
    world = load_world(_world_file(local_folder(source, "evaluation.world"), config.evaluation.world))
    time = plan_of(config).start_of(day.day)
    users = world.user_indices(day.users["user_id"])
    items = np.append(world.item_indices(day.items["item_id"]), -1)  # place -1 stays -1: an empty slot
    oracle = ranked_by_truth(world, users=users, time=time, k=TOP, excluded=_excluded(day, items))
    model, baseline = items[ranked.items[:, :TOP]], items[popular[:, :TOP]]
    made = {
        name: float(expected_conversions(world, users=users, lists=lists, time=time).mean())
        for name, lists in (("model", model), ("popularity", baseline), ("oracle", oracle))
    }
    return {
        **made,
        "model_over_popularity": made["model"] / made["popularity"],
        "model_share_of_oracle": made["model"] / made["oracle"],
    }


def _excluded(day: Day, items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the seen items of each user: the oracle leaves out what the lists leave out."""
    bounds = np.searchsorted(day.seen, np.arange(day.users.height + 1) * day.items.height)
    return [items[day.seen[low:high] % day.items.height] for low, high in pairwise(bounds)]


def _world_file(source: Path, name: str) -> Path:
    path = source / name
    if not path.is_file():
        raise ValueError(f"{path} does not exist: simulate again, or remove evaluation.world from the config")
    return path
