"""Retrieve: the index over available items, and candidates for every user.

A range of users is retrieved by a pure function of what `load_retrieval` loads once a process, so that processes may
share the users among them.
"""

from collections.abc import Iterator, Mapping
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
from pipeline.exact_search import NONE, Catalogue, Excluded, exact_search, make_catalogue
from pipeline.index import (
    Index,
    IndexSpec,
    build_index,
    check_saved,
    load_index,
    sample_of,
    save_index,
    search,
    stored_vectors,
)
from pipeline.scoring import Bundle, Day
from pipeline.source_lists import DaySequences, load_day_sequences, merged_lists, save_day_sequences
from pipeline.source_merge import POPULAR, SEQUENCE, SOURCES, TOWERS, Bits
from pipeline.sources import Sources
from pipeline.stage import progress
from pipeline.workspace import write_parquet

__all__ = ["NONE", "Candidates", "Retrieval", "candidates_for", "load_retrieval", "make_index", "retrieve_users"]

USERS = 1024
SAMPLED_USERS = 500


@dataclass(frozen=True)
class Candidates:
    """Item numbers (U, K) of every user, -1 where fewer items are available, and who found them.

    Bit s of `sources` is of `source_merge.SOURCES[s]`: an item has that of each source whose own list holds it, and
    that of popular items where it only fills an empty place.
    """

    items: NDArray[np.int64]
    sources: Bits

    def of(self, users: NDArray[np.int64] | slice) -> "Candidates":
        """Return the candidates of some users."""
        return Candidates(self.items[users], self.sources[users])


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
    """Build the index of a day's available items, save it with the items' ids and check what was saved."""
    vectors = item_vectors(bundle.retriever, day.item_codes)
    numbers = np.linspace(0, day.users.height - 1, min(SAMPLED_USERS, day.users.height)).round().astype(np.int64)
    queries = user_vectors(bundle.retriever, day.user_codes[numbers], config.retrieval.conversion_weight)
    towers = weights_digest(bundle.retriever)
    sample = sample_of(vectors, queries, config.retrieval.candidates)
    index, spec = build_index(
        sample, kind=config.retrieval.index, towers=towers, exact_below=config.retrieval.exact_below
    )
    spec = save_index(index, spec, folder)
    check_saved(folder, towers, sample)
    if bundle.sources is not None:
        save_day_sequences(config, bundle.sources, day, vectors, folder)
    write_parquet(day.items.select("item_id"), folder / "items.parquet")
    return spec


@dataclass(frozen=True)
class Retrieval:
    """What the retrieval of any user of a day needs.

    Attributes:
        retriever: the towers.
        day: users, items and what to leave out.
        conversion_weight: blend of the two spaces.
        width: candidates of a user.
        index: an approximate index, or the items' vectors to search exactly.
        sources: who fills which places; None where the towers fill all.
        sequences: the sequence source of the day, where it is one.
    """

    retriever: Retriever
    day: Day
    conversion_weight: float
    width: int
    index: Index | Catalogue
    sources: Sources | None = None
    sequences: DaySequences | None = None

    def shares(self) -> list[range]:
        """Return the ranges of user numbers that `retrieve_users` takes."""
        count = self.day.users.height
        return [range(start, min(start + USERS, count)) for start in range(0, count, USERS)]


def load_retrieval(config: Config, bundle: Bundle, day: Day, folder: Path) -> Retrieval:
    """Load the saved index.

    Raises:
        ValueError: the index is damaged, or does not belong to the bundle's towers or the day's items.
    """
    index, spec = load_index(folder, weights_digest(bundle.retriever))
    listed = pl.read_parquet(folder / "items.parquet")["item_id"]
    if not listed.equals(day.items["item_id"]):
        raise ValueError(
            f"{folder} indexes other items than are available on {day.day}: run `counterpoise retrieve` again"
        )
    held = make_catalogue(stored_vectors(index)) if spec.kind == "exact" else index
    return _opened(config, bundle.retriever, day, held, (bundle.sources, folder))


def open_retrieval(
    config: Config, retriever: Retriever, items: tuple[Day, NDArray[np.float32]], sources: Sources, folder: Path
) -> Retrieval:
    """Search a day's item vectors exactly, without an index; the folder is that of `save_day_sequences`."""
    day, vectors = items
    return _opened(config, retriever, day, make_catalogue(vectors), (sources, folder))


def _opened(
    config: Config, retriever: Retriever, day: Day, index: Index | Catalogue, beside: tuple[Sources | None, Path]
) -> Retrieval:
    sources, folder = beside
    return Retrieval(
        retriever=retriever,
        day=day,
        conversion_weight=config.retrieval.conversion_weight,
        width=min(config.retrieval.candidates, day.items.height),
        index=index,
        sources=sources,
        sequences=None if sources is None else load_day_sequences(sources, day, folder),
    )


def retrieve_users(retrieval: Retrieval, users: range) -> Candidates:
    """Return the candidates of a range of user numbers, one of `Retrieval.shares` so that every split gives equal rows.

    The sources' lists are merged as the model's sources say; empty places are filled with popular items.
    """
    numbers = np.arange(users.start, users.stop)
    names, order = ([TOWERS], []) if retrieval.sources is None else (retrieval.sources.placed, retrieval.sources.order)
    return merged_candidates(retrieval, numbers, lists_by_source(retrieval, names, numbers), order)


def merged_candidates(
    retrieval: Retrieval, users: NDArray[np.int64], lists: Mapping[str, NDArray[np.int64]], order: list[str]
) -> Candidates:
    """Merge sources' lists (U, K) of users by ascending numbers, and fill what stays empty with popular items."""
    merged = merged_lists(lists, order, retrieval.width)
    filled = _filled(merged.items_UW, retrieval.day, users)
    is_filled = (merged.items_UW == NONE) & (filled != NONE)
    return Candidates(filled, merged.sources_UW | (is_filled * np.uint8(1 << SOURCES.index(POPULAR))))


def lists_by_source(retrieval: Retrieval, names: list[str], users: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return what each of some of the model's sources lists (U, K), by name: unseen items, -1 behind a list's end.

    Args:
        retrieval: of the day.
        names: of the sources.
        users: numbers, ascending.
    """
    return {name: lists_of(retrieval, name, users) for name in names}


def lists_of(retrieval: Retrieval, source: str, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what one source lists, as `lists_by_source`."""
    day, width = retrieval.day, retrieval.width
    if source == TOWERS:
        return _of_towers(retrieval, users)
    if source == POPULAR:
        return popular_candidates(day, width, users)
    assert source == SEQUENCE, source
    assert retrieval.sequences is not None
    found = retrieval.sequences.lists(users, conversion_weight=retrieval.conversion_weight, width=width)
    return _unseen(found, users, day, width)


def _of_towers(retrieval: Retrieval, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the nearest items (U, K) that users with a history have not seen."""
    day = retrieval.day
    found = np.full((len(users), retrieval.width), NONE, dtype=np.int64)
    places = np.flatnonzero(day.has_history[users])
    if len(places):
        numbers = users[places]
        queries = user_vectors(retrieval.retriever, day.user_codes[users], retrieval.conversion_weight)[places]
        if isinstance(retrieval.index, Catalogue):
            out = Excluded(*_seen_by(numbers, day))
            found[places] = exact_search(retrieval.index, queries, retrieval.width, out)[1]
        else:
            wanted = min(
                day.items.height, retrieval.width + int(np.bincount(_seen_by(numbers, day)[0], minlength=1).max())
            )
            found[places] = _unseen(search(retrieval.index, queries, wanted)[1], numbers, day, retrieval.width)
    return found


def candidates_for(config: Config, bundle: Bundle, day: Day, folder: Path) -> Candidates:
    """Retrieve the candidates of all users with the saved index.

    Raises:
        ValueError: the index is damaged, or does not belong to the bundle's towers or the day's items.
    """
    retrieval = load_retrieval(config, bundle, day, folder)
    parts = [retrieve_users(retrieval, users) for users in progress(retrieval.shares(), "retrieve")]
    return Candidates(np.concatenate([part.items for part in parts]), np.concatenate([part.sources for part in parts]))


def popular_candidates(day: Day, width: int, users: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the most popular unseen items (U, width), the baseline of the lists, of all users or of given ones."""
    numbers = np.arange(day.users.height) if users is None else users
    found = np.full((len(numbers), min(width, day.items.height)), NONE, dtype=np.int64)
    for start in range(0, len(found), USERS):
        rows = slice(start, start + USERS)
        found[rows] = _filled(found[rows], day, numbers[rows])
    return found


def _seen_by(users: NDArray[np.int64], day: Day) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs to leave out of ascending users: places in the given users, ascending, and item numbers."""
    low, high = np.searchsorted(day.seen, (users[0] * day.items.height, (users[-1] + 1) * day.items.height))
    owners, items = np.divmod(day.seen[low:high], day.items.height)
    places = np.searchsorted(users, owners)
    known = users[places] == owners
    return places[known], items[known]


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


def _filled(found: NDArray[np.int64], day: Day, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put popular items that users have neither seen nor listed into their empty places."""
    rows = np.flatnonzero((found == NONE).any(axis=1))
    if not len(rows):
        return found
    places, items = _seen_by(users[rows], day)
    listed, columns = np.nonzero(found[rows] != NONE)
    taken = (np.concatenate([places, listed]), np.concatenate([items, found[rows][listed, columns]]))
    # No user needs more of the most popular items than a list and what the user may not get again.
    tried = day.popularity[: found.shape[1] + int(np.bincount(taken[0], minlength=1).max())]
    rank = np.full(day.items.height, len(tried))
    rank[tried] = np.arange(len(tried))
    fresh = np.ones((len(rows), len(tried) + 1), dtype=np.bool_)
    fresh[taken[0], rank[taken[1]]] = False
    fresh = fresh[:, :-1]
    empty = found[rows] == NONE
    fresh &= fresh.cumsum(axis=1) <= empty.sum(axis=1, keepdims=True)
    empty &= empty.cumsum(axis=1) <= fresh.sum(axis=1, keepdims=True)
    filled = found.copy()
    whole = filled[rows]
    whole[empty] = tried[np.nonzero(fresh)[1]]
    filled[rows] = whole
    return filled
