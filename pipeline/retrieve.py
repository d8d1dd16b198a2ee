"""Retrieve: the index over available items, and candidates for every user."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from models.inputs import Features
from models.retriever import Retriever, query_vectors
from models.serialization import weights_digest
from pipeline.config import Config
from pipeline.dataset import tensors
from pipeline.index import IndexSpec, build_index, choose_kind, load_index, save_index, search
from pipeline.scoring import Bundle, Day
from pipeline.stage import progress
from pipeline.workspace import write_parquet

USERS = 1024
SAMPLED_USERS = 500
NONE = -1


@dataclass(frozen=True)
class Candidates:
    """Item numbers (U, K) of every user, -1 where fewer items are available, and whether towers found them."""

    items: NDArray[np.int64]
    from_towers: NDArray[np.bool_]


def item_vectors(retriever: Retriever, codes: pl.DataFrame) -> NDArray[np.float32]:
    """Embed encoded items: (I, 2S) float32, the click space first."""
    spec = retriever.spec
    features = tensors(
        codes, single=list(spec.item_single), numeric=list(spec.item_numeric), pooled=list(spec.item_pooled)
    )
    with torch.inference_mode():
        vectors = [retriever.items(part).flatten(1).numpy() for part in _parts(features)]
    return np.ascontiguousarray(np.concatenate(vectors))


def user_vectors(retriever: Retriever, codes: pl.DataFrame, conversion_weight: float) -> NDArray[np.float32]:
    """Embed encoded users as queries of a blend: (U, 2S) float32."""
    spec = retriever.spec
    features = tensors(
        codes, single=list(spec.user_single), numeric=list(spec.user_numeric), pooled=list(spec.user_pooled)
    )
    with torch.inference_mode():
        vectors = [
            query_vectors(retriever.users(part), conversion_weight=conversion_weight).numpy()
            for part in _parts(features)
        ]
    return np.ascontiguousarray(np.concatenate(vectors))


def _parts(features: Features) -> Iterator[Features]:
    for start in range(0, len(features), 8192):
        yield features.slice(slice(start, start + 8192))


def make_index(config: Config, bundle: Bundle, day: Day, folder: Path) -> IndexSpec:
    """Build the index of a day's available items and save it with the items' ids."""
    vectors = item_vectors(bundle.retriever, day.item_codes)
    numbers = np.linspace(0, day.users.height - 1, min(SAMPLED_USERS, day.users.height)).round().astype(np.int64)
    queries = user_vectors(bundle.retriever, day.user_codes[numbers], config.retrieval.conversion_weight)
    kind = choose_kind(config.retrieval.index, len(vectors), config.retrieval.exact_below)
    towers = weights_digest(bundle.retriever)
    index, spec = build_index(vectors, queries, kind=kind, k=config.retrieval.candidates, towers=towers)
    save_index(index, spec, folder)
    write_parquet(day.items.select("item_id"), folder / "items.parquet")
    return spec


def candidates_for(config: Config, bundle: Bundle, day: Day, folder: Path) -> Candidates:
    """Search the saved index for every user with a history; leave out seen items and fill up with popular ones.

    Raises:
        ValueError: the index does not belong to the bundle's towers or the day's items.
    """
    index, spec = load_index(folder, weights_digest(bundle.retriever))
    listed = pl.read_parquet(folder / "items.parquet")["item_id"]
    if not listed.equals(day.items["item_id"]):
        raise ValueError(
            f"{folder} indexes other items than are available on {day.day}: run `counterpoise retrieve` again"
        )
    width = min(config.retrieval.candidates, spec.items)
    found = np.full((day.users.height, width), NONE, dtype=np.int64)
    queries = user_vectors(bundle.retriever, day.user_codes, config.retrieval.conversion_weight)
    numbers = np.flatnonzero(day.has_history)
    seen_counts = np.bincount(day.seen // day.items.height, minlength=day.users.height)
    for start in progress(range(0, len(numbers), USERS), "retrieve"):
        users = numbers[start : start + USERS]
        wanted = min(spec.items, width + int(seen_counts[users].max()))
        found[users] = _unseen(search(index, queries[users], wanted)[1], users, day, width)
    from_towers = found != NONE
    _fill(found, day)
    return Candidates(found, from_towers)


def popular_candidates(day: Day, width: int) -> NDArray[np.int64]:
    """Return the most popular unseen items of every user (U, width), the baseline of the lists."""
    found = np.full((day.users.height, min(width, day.items.height)), NONE, dtype=np.int64)
    _fill(found, day)
    return found


def _unseen(items: NDArray[np.int64], users: NDArray[np.int64], day: Day, width: int) -> NDArray[np.int64]:
    """Move unseen items to the front, keep their order and cut to the width."""
    out = (items == NONE) | _is_seen(users[:, None], items, day)
    order = np.argsort(out, axis=1, kind="stable")[:, :width]
    kept = np.take_along_axis(items, order, axis=1)
    kept[np.take_along_axis(out, order, axis=1)] = NONE
    return kept


def _is_seen(users: NDArray[np.int64], items: NDArray[np.int64], day: Day) -> NDArray[np.bool_]:
    if not len(day.seen):
        return np.zeros(items.shape, dtype=np.bool_)
    pairs = users * day.items.height + items
    places = np.minimum(np.searchsorted(day.seen, pairs), len(day.seen) - 1)
    return np.asarray(day.seen[places] == pairs)


def _fill(found: NDArray[np.int64], day: Day) -> None:
    """Put popular items that a user has neither seen nor listed into the empty places, in place."""
    for user in np.flatnonzero((found == NONE).any(axis=1)):
        empty = np.flatnonzero(found[user] == NONE)
        fresh = day.popularity[~_is_seen(np.asarray(user), day.popularity, day)]
        fresh = fresh[~np.isin(fresh, found[user])][: len(empty)]
        found[user, empty[: len(fresh)]] = fresh
