"""Rank: score every user's candidates with the joint model and write the lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.pair_scorer import PairScorer
from pipeline.rerank import Picked
from pipeline.rerank_users import Reranker, load_reranker, rerank
from pipeline.retrieve import NONE, Candidates
from pipeline.scoring import Bundle, Day
from pipeline.source_lists import source_names
from pipeline.source_merge import Bits
from pipeline.stage import progress

USERS = 512


@dataclass(frozen=True)
class Lists:
    """The candidates of every user's list (U, K), in its order; item -1 where fewer items are available."""

    items: NDArray[np.int64]
    outputs: NDArray[np.float32]
    """What the model predicts of each, (U, K, O) in the order of `names`."""
    names: list[str]
    scores: NDArray[np.float64]
    sources: Bits
    """Who found the item, as in `Candidates`."""
    propensity: NDArray[np.float64]
    """The probability that the item is in the list, over the draws of exploration; 1 without any."""
    is_exploration: NDArray[np.bool_]


def rank_lists(config: Config, bundle: Bundle, day: Day, candidates: Candidates) -> Lists:
    """Order every user's candidates by the configured score, ties by item id, re-rank them, and cut to the length."""
    weights_of(config, bundle.ranker.spec.outputs(), bundle.version)
    scorer, reranker = PairScorer(config, bundle, day), load_reranker(config, bundle, day)
    ranges = progress(user_ranges(day.users.height), "rank")
    return joined([rank_users(config, scorer, reranker, users, candidates.of(users)) for users in ranges])


def user_ranges(count: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of users in the ranges that are ranked together.

    Rounding depends on what is scored together: other ranges may move an output by 1e-7, the same ones give equal
    bytes wherever they are ranked.
    """
    return [np.arange(start, min(start + USERS, count)) for start in range(0, count, USERS)]


def joined(parts: Sequence[Lists]) -> Lists:
    """Return the lists of all users of some parts, in their order."""
    return Lists(
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        parts[0].names,
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.sources for part in parts]),
        np.concatenate([part.propensity for part in parts]),
        np.concatenate([part.is_exploration for part in parts]),
    )


def rank_users(
    config: Config, scorer: PairScorer, reranker: Reranker | None, users: NDArray[np.int64], candidates: Candidates
) -> Lists:
    """Order the candidates of some users as `rank_lists` does, whatever other users there are.

    Args:
        config: names the score and the list length.
        scorer: the model and the day.
        reranker: `load_reranker` of the same.
        users: (U,) row numbers in the day's users.
        candidates: of these users, in their order.
    """
    users_UK = np.broadcast_to(users[:, None], candidates.items.shape)
    present = candidates.items != NONE
    names = scorer.split.spec.outputs()
    weights_O = weights_of(config, names, scorer.bundle.version)
    predicted = scorer.score(users_UK[present], candidates.items[present])
    outputs_UKO = np.zeros((*candidates.items.shape, len(names)), dtype=np.float32)
    outputs_UKO[present] = predicted
    scores = np.full(candidates.items.shape, -np.inf)
    scores[present] = predicted.astype(np.float64) @ weights_O
    order = np.lexsort((candidates.items, -scores), axis=1)
    if reranker is None:
        order = order[:, : config.ranking.list_length]
        picked = Picked(order, np.ones(order.shape), np.zeros(order.shape, dtype=np.bool_))
    else:
        best_first = [np.take_along_axis(column, order, axis=1) for column in (candidates.items, scores)]
        picked = rerank(reranker, scorer.day.users["user_id"].gather(users), *best_first)
        order = np.take_along_axis(order, picked.places, axis=1)
    return Lists(
        np.take_along_axis(candidates.items, order, axis=1),
        np.take_along_axis(outputs_UKO, order[..., None], axis=1),
        names,
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(candidates.sources, order, axis=1),
        picked.propensity,
        picked.is_exploration,
    )


def weights_of(config: Config, names: list[str], version: str) -> NDArray[np.float64]:
    """Return the score's weight of each output, in order.

    Raises:
        ValueError: the score needs an output that the model does not have.
    """
    given = config.ranking.weights
    if missing := sorted(set(given) - set(names)):
        raise ValueError(
            f"ranking.weights needs {missing}, model version {version} gives {names}: promote a model that was trained "
            "on those tasks, or leave them out of the score"
        )
    return np.array([given.get(name, 0.0) for name in names])


def lists_frame(lists: Lists, day: Day, version: str) -> pl.DataFrame:
    """Return tables/candidates for a day: one row a user and rank, sorted by both.

    `score` is the model's, in whatever order re-ranking put the items; `source` names all who found the item.
    """
    users, places = np.nonzero(lists.items != NONE)
    items = lists.items[users, places]
    return pl.DataFrame(
        {
            "user_id": day.users["user_id"].gather(users),
            "rank": pl.Series(places + 1, dtype=pl.Int32),
            "item_id": day.items["item_id"].gather(items),
            **{name: lists.outputs[users, places, n] for n, name in enumerate(lists.names)},
            "score": lists.scores[users, places],
            "propensity": lists.propensity[users, places],
            "is_exploration": lists.is_exploration[users, places],
            "source": source_names(lists.sources[users, places]),
            "scored_for": pl.Series([day.day], dtype=pl.Date).new_from_index(0, len(users)),
            "model_version": pl.Series([version], dtype=pl.String).new_from_index(0, len(users)),
        }
    )
