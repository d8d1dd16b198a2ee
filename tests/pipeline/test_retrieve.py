"""Candidates are the same whatever searches them, in whatever ranges of users, and fill up with popular items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.encoding import load_encoder
from models.calibration import Calibration
from models.ranker import Ranker
from models.retriever import Retriever
from models.serialization import weights_digest
from pipeline.config import Config
from pipeline.dataset import ranker_spec, retriever_spec
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.index import load_index
from pipeline.ingest import ingest
from pipeline.retrieve import (
    NONE,
    _filled,
    candidates_for,
    load_retrieval,
    make_index,
    popular_candidates,
    retrieve_users,
)
from pipeline.scoring import Bundle, Day, load_day
from pipeline.source_merge import POPULAR, SOURCES, TOWERS
from pipeline.workspace import Workspace

WIDTH = 20
TOWERS_BIT, POPULAR_BIT = (1 << SOURCES.index(name) for name in (TOWERS, POPULAR))


def _of_kind(config: Config, kind: str) -> Config:
    retrieval = config.retrieval.model_copy(update={"candidates": WIDTH, "index": kind})
    return config.model_copy(update={"retrieval": retrieval})


@pytest.fixture(scope="module")
def config(simulated_config: Config) -> Config:
    return _of_kind(simulated_config, "exact")


@pytest.fixture(scope="module")
def scored(config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Day]:
    place = Workspace(tmp_path_factory.mktemp("retrieve"))
    ingest(config, place, simulated_source)
    days = days_of(config, place, None)
    featurize(config, place, days)
    features = run_folder(config, place, days) / "features"
    encoder, plan = load_encoder(features / "encoder.json"), plan_of(config)
    ranker = Ranker(ranker_spec(config, plan, encoder, "mmoe", 3)).eval()
    retriever = Retriever(retriever_spec(config, plan, encoder, 3)).eval()
    bundle = Bundle(encoder, ranker, retriever, Calibration(), "1")
    return bundle, load_day(config, place, features, days.test[0], encoder)


@pytest.fixture(scope="module")
def bundle(scored: tuple[Bundle, Day]) -> Bundle:
    return scored[0]


@pytest.fixture(scope="module")
def day(scored: tuple[Bundle, Day]) -> Day:
    return scored[1]


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_no_kind_of_index_gives_a_seen_item_or_one_twice(
    kind: str, config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    chosen = _of_kind(config, kind)
    assert make_index(chosen, bundle, day, tmp_path).kind == kind
    found = candidates_for(chosen, bundle, day, tmp_path)
    pairs = np.arange(day.users.height)[:, None] * day.items.height + found.items
    assert (found.items != NONE).all()
    assert len(np.unique(pairs)) == pairs.size
    assert len(day.seen)
    assert not np.isin(pairs, day.seen).any()
    np.testing.assert_array_equal((found.sources == TOWERS_BIT).any(axis=1), day.has_history)
    assert set(np.unique(found.sources)) <= {0, TOWERS_BIT, POPULAR_BIT}


def test_faiss_and_exact_search_give_the_same_candidates(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    retrieval = load_retrieval(config, bundle, day, tmp_path)
    by_faiss = replace(retrieval, index=load_index(tmp_path, weights_digest(bundle.retriever))[0])
    users = range(day.users.height)
    ours, theirs = retrieve_users(retrieval, users), retrieve_users(by_faiss, users)
    np.testing.assert_array_equal(np.sort(ours.items), np.sort(theirs.items))
    np.testing.assert_array_equal(ours.sources, theirs.sources)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_ranges_of_users_are_retrieved_alike_together_and_apart(
    kind: str, config: Config, bundle: Bundle, day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.retrieve.USERS", 16)
    make_index(_of_kind(config, kind), bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    retrieval = load_retrieval(config, bundle, day, tmp_path)
    assert len(retrieval.shares()) > 2
    for users in reversed(retrieval.shares()):
        part = retrieve_users(retrieval, users)
        np.testing.assert_array_equal(part.items, found.items[users.start : users.stop])
        np.testing.assert_array_equal(part.sources, found.sources[users.start : users.stop])


def test_empty_places_are_filled_with_the_most_popular_items_user_by_user(day: Day) -> None:
    items, users = day.items.height, np.arange(10, day.users.height)
    rng = np.random.default_rng(1)
    found = rng.permuted(np.tile(np.arange(items), (len(users), 1)), axis=1)[:, :WIDTH]
    found[rng.random(found.shape) < rng.random((len(users), 1))] = NONE
    expected = found.copy()
    for user, row in zip(users, expected, strict=True):
        seen = set((day.seen[day.seen // items == user] % items).tolist()) | set(row.tolist())
        empty = np.flatnonzero(row == NONE)
        row[empty] = [item for item in day.popularity.tolist() if item not in seen][: len(empty)]
    np.testing.assert_array_equal(_filled(found, day, users), expected)


def test_places_stay_empty_where_a_user_has_seen_all_other_items(day: Day) -> None:
    items = day.items.height
    seen = replace(day, seen=np.arange(items - 3), has_history=np.zeros(day.users.height, dtype=np.bool_))
    first, second = popular_candidates(seen, WIDTH)[:2]
    assert sorted(first[:3].tolist()) == [items - 3, items - 2, items - 1]
    assert (first[3:] == NONE).all()
    assert (second != NONE).all()
