"""Retrieval and ranking of a range of users: pure functions that the engine maps over all of them.

A worker loads the model, the day and the index once for a stage and keeps them for all of its ranges. Ranges are
contiguous in the order of the users' ids and of one size everywhere, so that the rows do not depend on the workers.
"""

import datetime as dt
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.config import Config
from pipeline.pair_scorer import PairScorer
from pipeline.rank import USERS as RANKED_USERS
from pipeline.rank import joined, lists_frame, rank_users
from pipeline.rerank_users import Reranker, load_reranker
from pipeline.retrieve import NONE, Candidates, Retrieval, load_retrieval, retrieve_users
from pipeline.retrieve import USERS as RETRIEVED_USERS
from pipeline.scoring import Bundle, Day, load_bundle, load_day
from pipeline.workspace import Workspace, write_parquet_whole

RANGE_USERS = 16_384
"""A multiple of what retrieval and ranking take at once, so that a range gives what all users together give."""


@dataclass(frozen=True)
class Loaded:
    """A model and a day in memory."""

    bundle: Bundle
    day: Day


@dataclass(frozen=True)
class Serving:
    """A model, a day and an index by their paths, on storage that all workers share.

    Attributes:
        token: tells one stage of one run from all others, so that a worker knows what it has loaded.
        config: the configuration.
        workspace: holds the tables.
        features: the run's states and encoder.
        model: the model's folder.
        version: its version.
        day: the day that is scored.
        index: the folder of the index and of the candidates.
        held: both in memory, where ranges run in the driver's process.
    """

    token: str
    config: Config = field(compare=False)
    workspace: Workspace = field(compare=False)
    features: Path = field(compare=False)
    model: Path = field(compare=False)
    version: str = field(compare=False)
    day: dt.date = field(compare=False)
    index: Path = field(compare=False)
    held: Loaded | None = field(compare=False, default=None)

    def loaded(self) -> Loaded:
        """Return the model and the day, read at the first call in a process."""
        return self.held or _parts(self).loaded


@dataclass(frozen=True)
class _Parts:
    """What a process has loaded for one stage, each at its first use."""

    serving: Serving

    @cached_property
    def loaded(self) -> Loaded:
        serving = self.serving
        bundle = load_bundle(serving.model, serving.version)
        day = load_day(serving.config, serving.workspace, serving.features, serving.day, bundle.encoder)
        return Loaded(bundle, day)

    @cached_property
    def retrieval(self) -> Retrieval:
        loaded = self.serving.loaded()
        return load_retrieval(self.serving.config, loaded.bundle, loaded.day, self.serving.index)

    @cached_property
    def scorer(self) -> PairScorer:
        loaded = self.serving.loaded()
        return PairScorer(self.serving.config, loaded.bundle, loaded.day)

    @cached_property
    def reranker(self) -> Reranker | None:
        loaded = self.serving.loaded()
        return load_reranker(self.serving.config, loaded.bundle, loaded.day)


@lru_cache(maxsize=1)
def _parts(serving: Serving) -> _Parts:
    """Return what one stage has loaded; a worker gives all of it up at the first range of the next stage."""
    return _Parts(serving)


def forget() -> None:
    """Give up what this process has loaded."""
    _parts.cache_clear()


@dataclass(frozen=True)
class UserRange:
    """Users by their row numbers, from one on to before another, and the file of what is made of them."""

    serving: Serving
    start: int
    stop: int
    file: Path

    def shares(self, size: int) -> list[range]:
        """Divide the range for a function that takes so many users at once."""
        return [range(start, min(start + size, self.stop)) for start in range(self.start, self.stop, size)]


def user_ranges(serving: Serving, users: int, folder: Path) -> list[UserRange]:
    """Divide users into ranges whose files, in a folder, are in their order by name."""
    starts = range(0, users, RANGE_USERS)
    return [
        UserRange(serving, start, min(start + RANGE_USERS, users), folder / f"users-{number:06d}.parquet")
        for number, start in enumerate(starts)
    ]


def retrieve_range(task: UserRange) -> int:
    """Write the candidates of a range's users, and return how many there are."""
    retrieval = _parts(task.serving).retrieval
    parts = [retrieve_users(retrieval, users) for users in task.shares(RETRIEVED_USERS)]
    found = {
        "items": np.concatenate([part.items for part in parts]),
        "sources": np.concatenate([part.sources for part in parts]),
    }
    write_parquet_whole(pl.DataFrame(found), task.file)
    return int((found["items"] != NONE).sum())


def rank_range(task: UserRange) -> int:
    """Write the lists of a range's users as rows of tables/candidates, and return how many candidates they had."""
    serving, parts = task.serving, _parts(task.serving)
    scorer, reranker = parts.scorer, parts.reranker
    found = read_candidates(serving.index, task.start, task.stop)
    ranked = []
    for users in task.shares(RANKED_USERS):
        rows = slice(users.start - task.start, users.stop - task.start)
        numbers = np.arange(users.start, users.stop)
        ranked.append(rank_users(serving.config, scorer, reranker, numbers, found.of(rows)))
    day = replace(scorer.day, users=scorer.day.users[task.start : task.stop])
    write_parquet_whole(lists_frame(joined(ranked), day, serving.version), task.file)
    return int((found.items != NONE).sum())


def read_candidates(index: Path, start: int, stop: int) -> Candidates:
    """Read the candidates of a range of users."""
    kept = pl.scan_parquet(index / "candidates.parquet").slice(start, stop - start).collect()
    return Candidates(np.array(kept["items"].to_numpy()), np.array(kept["sources"].to_numpy()))
