"""Scoring a day: the same features as training, candidates without what is seen or unavailable, and their order."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from features.encoding import encode, load_encoder
from models.calibration import Calibration, Platt, log_odds, sigmoid
from models.ranker import Ranker, predict
from models.retriever import Retriever
from pipeline import pair_scorer, tables
from pipeline.config import Config
from pipeline.dataset import examples_from, ranker_spec, retriever_spec
from pipeline.example_tasks import KEPT
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.pair_scorer import PairScorer
from pipeline.rank import joined, lists_frame, rank_lists, rank_users
from pipeline.ranking_section import Ranking
from pipeline.rerank_users import load_reranker
from pipeline.retrieve import NONE, candidates_for, make_index, popular_candidates
from pipeline.scoring import Bundle, Day, check_features, load_day
from pipeline.source_lists import source_names
from pipeline.split import Days
from pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def config(simulated_config: Config) -> Config:
    retrieval = simulated_config.retrieval.model_copy(update={"candidates": 20})
    ranking = simulated_config.ranking.model_copy(update={"list_length": 10})
    return simulated_config.model_copy(update={"retrieval": retrieval, "ranking": ranking})


@pytest.fixture(scope="module")
def workspace(config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("scoring"))
    ingest(config, place, simulated_source)
    featurize(config, place, days_of(config, place, None))
    return place


@pytest.fixture(scope="module")
def days(config: Config, workspace: Workspace) -> Days:
    return days_of(config, workspace, None)


@pytest.fixture(scope="module")
def bundle(config: Config, workspace: Workspace, days: Days) -> Bundle:
    plan = plan_of(config)
    encoder = load_encoder(run_folder(config, workspace, days) / "features" / "encoder.json")
    ranker = Ranker(ranker_spec(config, plan, encoder, "mmoe", 3)).eval()
    retriever = Retriever(retriever_spec(config, plan, encoder, 3)).eval()
    return Bundle(encoder, ranker, retriever, Calibration(), "1")


@pytest.fixture(scope="module")
def day(config: Config, workspace: Workspace, days: Days, bundle: Bundle) -> Day:
    return load_day(config, workspace, run_folder(config, workspace, days) / "features", days.test[0], bundle.encoder)


@pytest.mark.parametrize(
    "options", [{}, {"sequence": "attention"}, {"numeric_encoding": "periodic"}], ids=["default", "attention", "waves"]
)
def test_a_pair_scores_as_its_example_does_at_the_reference_context(
    config: Config, workspace: Workspace, days: Days, bundle: Bundle, day: Day, options: dict[str, str]
) -> None:
    chosen = config.model_copy(update={"model": config.model.model_copy(update=options)})
    ranker = Ranker(ranker_spec(chosen, plan_of(config), bundle.encoder, "mmoe", 3)).eval()
    bundle = replace(bundle, ranker=ranker)
    raw = pl.read_parquet(run_folder(config, workspace, days) / "features" / f"raw-{days.test[0]}.parquet")
    raw = raw.with_columns(pl.lit(value).alias(name) for name, value in config.context.references().items())
    users = {name: number for number, name in enumerate(day.users["user_id"])}
    items = {name: number for number, name in enumerate(day.items["item_id"])}
    raw = raw.filter(pl.col("item_id").is_in(list(items)) & pl.col("user_id").is_in(list(users)))
    encoded = pl.concat([raw.select(KEPT), encode(raw, bundle.encoder)], how="horizontal")
    examples = examples_from(encoded, bundle.ranker.spec, None)
    expected = predict(bundle.ranker, examples.features, 1000)
    user_numbers = np.array([users[name] for name in examples.frame["user_id"]])
    item_numbers = np.array([items[name] for name in examples.frame["item_id"]])
    made = PairScorer(config, bundle, day).score(user_numbers, item_numbers)
    assert len(made) > 300
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_lists_are_ordered_by_calibrated_outputs(config: Config, bundle: Bundle, day: Day, tmp_path: Path) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    curves = {"click": Platt(0.5, 1.0), "conversion": Platt(2.0, -0.3)}
    calibrated = replace(bundle, calibration=Calibration(method="platt", curves=curves))
    frame = lists_frame(rank_lists(config, calibrated, day, found), day, "1")
    own = lists_frame(rank_lists(config, bundle, day, found), day, "1")
    both = frame.join(own, on=["user_id", "item_id"], suffix="_own")
    assert both.height > 100
    for name, slope, intercept in (("p_click", 0.5, 1.0), ("p_conversion", 2.0, -0.3)):
        expected = sigmoid(slope * log_odds(both[f"{name}_own"].to_numpy()) + intercept)
        np.testing.assert_allclose(both[name], expected, rtol=1e-5)
    np.testing.assert_allclose(frame["score"], frame["p_click"] * frame["p_conversion"], rtol=1e-6)


def test_candidates_are_the_nearest_unseen_items(config: Config, bundle: Bundle, day: Day, tmp_path: Path) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    free = replace(day, seen=np.zeros(0, dtype=np.int64))
    without_filter = candidates_for(config, bundle, free, tmp_path)
    seen = set(day.seen.tolist())
    assert seen
    for user in np.flatnonzero(day.has_history):
        expected = [i for i in without_filter.items[user] if user * day.items.height + i not in seen]
        got = found.items[user][: len(expected)].tolist()
        assert got == expected
        assert not {user * day.items.height + item for item in found.items[user] if item != NONE} & seen


def test_a_user_without_history_gets_the_popular_items(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    stranger = int(np.flatnonzero(day.has_history)[0])
    has_history = day.has_history.copy()
    has_history[stranger] = False
    found = candidates_for(config, bundle, replace(day, has_history=has_history), tmp_path)
    popular = popular_candidates(day, 20)[stranger]
    assert found.items[stranger].tolist() == popular.tolist()
    assert set(source_names(found.sources[stranger])) == {"popular"}


def test_popularity_counts_the_clicks_of_the_last_seven_days(workspace: Workspace, config: Config, day: Day) -> None:
    start = plan_of(config).start_of(day.day)
    log = tables.scan(workspace.table("interactions")).collect()
    recent = log.filter(
        (pl.col("date") < day.day)
        & (pl.col("date") >= day.day - dt.timedelta(days=7))
        & pl.col("click")
        & (pl.col("click_known_at") < start)
    )
    counts = {name: recent.filter(pl.col("item_id") == name).height for name in day.items["item_id"]}
    expected = sorted(counts, key=lambda name: (-counts[name], name))
    assert day.items["item_id"].gather(day.popularity).to_list() == expected


def test_lists_are_the_best_scored_candidates_in_order(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    lists = rank_lists(config, bundle, day, found)
    frame = lists_frame(lists, day, "1")
    assert frame.height == day.users.height * 10
    user = 3
    present = found.items[user][found.items[user] != NONE]
    outputs = PairScorer(config, bundle, day).score(np.full(len(present), user), present)
    scores = outputs[:, 2].astype(np.float64)
    best = present[np.lexsort((present, -scores))][:10]
    assert lists.items[user].tolist() == best.tolist()


def test_ranges_of_users_are_ranked_alike_together_and_apart(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    whole, scorer = rank_lists(config, bundle, day, found), PairScorer(config, bundle, day)
    ranges = np.array_split(np.arange(day.users.height), 3)
    apart = joined([rank_users(config, scorer, None, users, found.of(users)) for users in ranges])
    np.testing.assert_array_equal(apart.items, whole.items)
    np.testing.assert_allclose(apart.outputs, whole.outputs, rtol=1e-5)


def test_the_parts_of_many_items_are_made_slice_by_slice(
    config: Config, bundle: Bundle, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    users, items = (generator.integers(0, count, 500) for count in (day.users.height, day.items.height))
    held = PairScorer(config, bundle, day)
    monkeypatch.setattr(pair_scorer, "ITEM_PARTS_BYTES", 0)
    monkeypatch.setattr(pair_scorer, "SLICE_PAIRS", 64)
    fresh = PairScorer(config, bundle, day)
    assert held.all_items
    assert not fresh.all_items
    np.testing.assert_allclose(fresh.score(users, items), held.score(users, items), rtol=1e-5)


def test_a_configured_blend_orders_the_lists(config: Config, bundle: Bundle, day: Day, tmp_path: Path) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    by_click = config.model_copy(
        update={"ranking": config.ranking.model_copy(update={"weights": {"p_click": 2.0, "p_conversion": 1.0}})}
    )
    frame = lists_frame(rank_lists(by_click, bundle, day, found), day, "1")
    expected = 2.0 * frame["p_click"].cast(pl.Float64) + frame["p_conversion"].cast(pl.Float64)
    np.testing.assert_allclose(frame["score"], expected, rtol=1e-6)


def _reranked(config: Config, **settings: object) -> Config:
    ranking = config.ranking.model_dump() | {"rerank": settings}
    return config.model_copy(update={"ranking": Ranking.model_validate(ranking)})


def test_without_reranking_lists_are_in_the_order_of_scores_and_certain(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    frame = lists_frame(rank_lists(config, bundle, day, found), day, "1")
    assert frame["propensity"].unique().to_list() == [1.0]
    assert not frame["is_exploration"].any()
    # a cap that no list can break changes no bit
    loose = _reranked(config, caps=[{"column": "category", "most": 10, "within": 10}])
    assert lists_frame(rank_lists(loose, bundle, day, found), day, "1").equals(frame)


def test_a_cap_on_categories_holds_in_every_list(config: Config, bundle: Bundle, day: Day, tmp_path: Path) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    categories = day.items.select("item_id", "category")
    own, capped = (
        lists_frame(rank_lists(one, bundle, day, found), day, "1").join(categories, on="item_id")
        for one in (config, _reranked(config, caps=[{"column": "category", "most": 1, "within": 4}]))
    )
    repeated = [frame.filter(pl.col("rank") <= 4).group_by("user_id", "category").len() for frame in (own, capped)]
    assert repeated[0]["len"].max() == 2
    assert repeated[1]["len"].max() == 1
    # the model's score stays with its item
    both = capped.join(own, on=["user_id", "item_id"], suffix="_own")
    assert (both["score"] == both["score_own"]).all()
    assert capped.height == own.height == day.users.height * 10


@pytest.mark.parametrize("likeness", [["vectors"], ["category"], ["vectors", "brand"]], ids=str)
def test_diversity_makes_the_items_of_lists_less_alike(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path, likeness: list[str]
) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    reranker = load_reranker(_reranked(config, diversity=0.9, likeness=likeness), bundle, day)
    assert reranker is not None
    lists = [
        rank_lists(one, bundle, day, found).items[:, :5]
        for one in (config, _reranked(config, diversity=0.9, likeness=likeness))
    ]

    def likeness_within(items_UK: NDArray[np.int64]) -> float:
        parts = [(codes[items_UK][:, :, None] == codes[items_UK][:, None]) for codes in reranker.codes.values()]
        if reranker.vectors is not None:
            parts.append(np.einsum("ukd,uld->ukl", *[reranker.vectors[items_UK]] * 2))
        return float(np.mean(parts))

    assert likeness_within(lists[1]) < likeness_within(lists[0])


def test_items_are_told_apart_by_the_first_value_of_a_multi_valued_column(
    config: Config, bundle: Bundle, day: Day
) -> None:
    cap = {"column": "first_title", "most": 1, "within": 5}
    reranker = load_reranker(_reranked(config, caps=[cap]), bundle, day)
    assert reranker is not None
    titles = day.items["title"].list.first()
    pairs = pl.DataFrame({"code": reranker.codes["first_title"], "title": titles}).unique()
    assert pairs["code"].n_unique() == pairs["title"].n_unique() == pairs.height > 3


def test_explored_items_are_candidates_that_the_list_would_leave_out(
    config: Config, bundle: Bundle, day: Day, tmp_path: Path
) -> None:
    make_index(config, bundle, day, tmp_path)
    found = candidates_for(config, bundle, day, tmp_path)
    exploring = _reranked(config, exploration=0.3, exploration_within=4)
    own, explored = (rank_lists(one, bundle, day, found) for one in (config, exploring))
    drawn = explored.is_exploration
    assert (explored.items[~drawn] == own.items[~drawn]).all()
    assert drawn[:, :4].mean() == pytest.approx(0.3, abs=0.1)
    assert not drawn[:, 4:].any()
    for user in np.flatnonzero(drawn.any(axis=1)):
        assert set(explored.items[user][drawn[user]]) <= set(found.items[user]) - set(own.items[user])
    left_out = (found.items != NONE).sum(axis=1) - 10
    frame = lists_frame(explored, day, "1").filter("is_exploration")
    expected = (0.3 * 4 / left_out)[np.nonzero(drawn)[0]]
    np.testing.assert_allclose(frame["propensity"], expected)


def test_an_index_of_other_items_is_refused(config: Config, bundle: Bundle, day: Day, tmp_path: Path) -> None:
    make_index(config, bundle, day, tmp_path)
    fewer = replace(day, items=day.items.head(10), item_codes=day.item_codes.head(10))
    with pytest.raises(ValueError, match="indexes other items than are available"):
        candidates_for(config, bundle, fewer, tmp_path)


def test_a_model_that_needs_other_features_is_refused(config: Config, bundle: Bundle) -> None:
    without = config.model_copy(update={"features": config.features.model_copy(update={"counters": []})})
    with pytest.raises(ValueError, match="model version 1 needs the features"):
        check_features(bundle, plan_of(without))
