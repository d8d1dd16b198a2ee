"""Rank: score every user's candidates with the joint model and write the lists."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.retrieve import NONE, Candidates
from pipeline.scoring import Bundle, Day, score_pairs
from pipeline.stage import progress

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Lists:
    """The best candidates of every user (U, K), best first; item -1 where fewer items are available."""

    items: NDArray[np.int64]
    outputs: NDArray[np.float32]
    """What the model predicts of each, (U, K, O) in the order of `names`."""
    names: list[str]
    scores: NDArray[np.float64]
    from_towers: NDArray[np.bool_]


def rank_lists(config: Config, bundle: Bundle, day: Day, candidates: Candidates) -> Lists:
    """Order every user's candidates by the configured score, ties by item id, and cut to the list length."""
    users_UK = np.broadcast_to(np.arange(day.users.height)[:, None], candidates.items.shape)
    present = candidates.items != NONE
    users, items = users_UK[present], candidates.items[present]
    names = bundle.ranker.spec.outputs()
    weights_O = weights_of(config, names, bundle.version)
    predicted = np.zeros((len(users), len(names)), dtype=np.float32)
    scored: Iterator[tuple[slice, NDArray[np.float32]]] = score_pairs(config, bundle, day, users, items)
    for rows, outputs in progress(scored, "rank"):
        predicted[rows] = outputs
    outputs_UKO = np.zeros((*candidates.items.shape, len(names)), dtype=np.float32)
    outputs_UKO[present] = predicted
    scores = np.full(candidates.items.shape, -np.inf)
    scores[present] = predicted.astype(np.float64) @ weights_O
    order = np.lexsort((candidates.items, -scores), axis=1)[:, : config.ranking.list_length]
    return Lists(
        np.take_along_axis(candidates.items, order, axis=1),
        np.take_along_axis(outputs_UKO, order[..., None], axis=1),
        names,
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(candidates.from_towers, order, axis=1),
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
    """Return tables/candidates for a day: one row a user and rank, sorted by both."""
    users, places = np.nonzero(lists.items != NONE)
    items = lists.items[users, places]
    return pl.DataFrame(
        {
            "user_id": day.users["user_id"].gather(users),
            "rank": pl.Series(places + 1, dtype=pl.Int32),
            "item_id": day.items["item_id"].gather(items),
            **{name: lists.outputs[users, places, n] for n, name in enumerate(lists.names)},
            "score": lists.scores[users, places],
            "source": np.where(lists.from_towers[users, places], "two_towers", "popular"),
            "scored_for": pl.Series([day.day], dtype=pl.Date).new_from_index(0, len(users)),
            "model_version": pl.Series([version], dtype=pl.String).new_from_index(0, len(users)),
        }
    )
