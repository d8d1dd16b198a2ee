"""What re-ranking needs to know of a day's items, loaded once a process, and its use on the candidates of users."""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.ranking_section import VECTORS, Rerank
from pipeline.rerank import MISSING, Capped, Floats, Integers, Likeness, Picked, choose, cosines, explore, streams
from pipeline.retrieve import NONE, item_vectors
from pipeline.scoring import Bundle, Day

COSINES = 2**23
"""Likenesses that are held at once, 4 bytes each: the users of a block are as many as have no more."""


@dataclass(frozen=True)
class Reranker:
    """How lists of a day are re-ranked.

    Attributes:
        settings: of the configuration.
        length: ranks of a list.
        seed: of the draws of exploration.
        day: likewise.
        vectors: (I, D) unit vectors of the items; None where likeness does not ask for them.
        codes: of each column (I,), the values of the items as numbers.
    """

    settings: Rerank
    length: int
    seed: int
    day: dt.date
    vectors: NDArray[np.float32] | None
    codes: dict[str, Integers]


def load_reranker(config: Config, bundle: Bundle, day: Day) -> Reranker | None:
    """Gather what re-ranking needs; None where lists stay in the order of their scores."""
    settings = config.ranking.rerank
    if not settings.is_on():
        return None
    vectors = None
    if settings.diversity and VECTORS in settings.likeness:
        vectors = item_vectors(bundle.retriever, day.item_codes)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = {name: value_codes(day.items[name]) for name in settings.columns()}
    return Reranker(settings, config.ranking.list_length, config.seed, day.day, vectors, codes)


def value_codes(column: pl.Series) -> Integers:
    """Number the values of a column, `MISSING` where there is none."""
    return column.rank("dense").cast(pl.Int64).fill_null(MISSING).to_numpy()


def rerank(reranker: Reranker, user_ids: pl.Series, items_UK: Integers, scores_UK: Floats) -> Picked:
    """Choose the lists of some users from their candidates.

    Args:
        reranker: what is known of the items.
        user_ids: of the users.
        items_UK: item numbers, best first, `NONE` where there is no item.
        scores_UK: of the items, -inf where there is none.
    """
    length = min(reranker.length, items_UK.shape[1])
    rows = max(1, COSINES // items_UK.shape[1] ** 2) if reranker.vectors is not None else len(items_UK)
    blocks = [slice(start, start + rows) for start in range(0, len(items_UK), rows)]
    chosen_UL = np.concatenate([_chosen(reranker, items_UK[block], scores_UK[block], length) for block in blocks])
    settings = reranker.settings
    return explore(
        chosen_UL,
        items_UK != NONE,
        streams(user_ids, reranker.seed, reranker.day),
        settings.exploration,
        min(settings.exploration_within, length),
    )


def _chosen(reranker: Reranker, items_UK: Integers, scores_UK: Floats, length: int) -> Integers:
    settings, known_UK = reranker.settings, np.maximum(items_UK, 0)
    codes = {name: np.where(items_UK == NONE, MISSING, codes_I[known_UK]) for name, codes_I in reranker.codes.items()}
    caps = [Capped(codes[cap.column], cap.most, cap.within) for cap in settings.caps]
    likeness = None
    if settings.diversity:
        alike = None if reranker.vectors is None else cosines(reranker.vectors[known_UK])
        likeness = Likeness(settings.diversity, alike, [codes[name] for name in settings.likeness if name != VECTORS])
    return choose(scores_UK, length, likeness, caps)
