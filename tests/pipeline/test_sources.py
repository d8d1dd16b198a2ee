"""A run whose candidates come from three sources: what ships with the model, who found what, and what leaks nothing."""

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import tables
from pipeline.calibrate import calibrate
from pipeline.config import load_config
from pipeline.engine import open_engine
from pipeline.evaluate import evaluate
from pipeline.exact_search import NONE
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.fit_sources import fit_sources
from pipeline.html_report import write_run_report
from pipeline.ingest import ingest
from pipeline.list_quality import relevant_on
from pipeline.register import register
from pipeline.retrieve import Retrieval, lists_by_source, load_retrieval, make_index, retrieve_users
from pipeline.run_record import STEPS
from pipeline.scoring import Day, load_day, load_run_bundle
from pipeline.semantic_ids import load_semantic_ids, save_semantic_ids
from pipeline.serve_lists import rank, retrieve
from pipeline.source_adds import active_users, added
from pipeline.source_lists import source_names, undecodable_items
from pipeline.source_merge import SOURCES, learn_order
from pipeline.sources import load_sources
from pipeline.train import train
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated.toml"
CHANGES: dict[str, Any] = {
    "source.time_zone": "Asia/Shanghai",
    "retrieval.sources": ["popular", "two_towers", "sequence"],
    "retrieval.candidates": 25,
    "retrieval.quota_users": 30,
    "retrieval.sequence.epochs": 1,
    "retriever.epochs": 1,
    "ranking.list_length": 10,
    "evaluation.ks": [5],
    "evaluation.replicates": 30,
    "evaluation.importance": False,
    "training.batch_size": 128,
    "training.control": False,
    "gate.pcoc": [0.01, 100.0],
    "gate.blocking_alarms": [],
    "gate.tolerance": {"log_loss": 1.0, "gauc": 1.0, "recall": 1.0, "coverage": 1.0},
}


class Made:
    """A run from ingest to the ranked lists."""

    def __init__(self, source: Path, root: Path) -> None:
        self.config = load_config(EXAMPLE, CHANGES)
        self.workspace = Workspace(root)
        ingest(self.config, self.workspace, source)
        self.days = days_of(self.config, self.workspace, None)
        for stage in (featurize, train, calibrate):
            stage(self.config, self.workspace, self.days)
        evaluate(self.config, self.workspace, self.days, source)
        register(self.config, self.workspace, self.days)
        retrieve(self.config, self.workspace, self.days)
        rank(self.config, self.workspace, self.days)
        self.folder = run_folder(self.config, self.workspace, self.days)
        self.bundle = load_run_bundle(self.folder)

    def day(self, date: dt.date) -> Day:
        """Return a day as this run's model sees it."""
        return load_day(self.config, self.workspace, self.folder / "features", date, self.bundle.encoder)

    def json(self, name: str) -> Any:
        """Read a file of the run."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(simulated_source, tmp_path_factory.mktemp("sources") / "workspace")


@pytest.fixture(scope="module")
def retrieval(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    """Return what retrieves with a place for each source, whatever so small a validation day gave them."""
    folder, day = tmp_path_factory.mktemp("index"), made.day(made.days.scored_for)
    make_index(made.config, made.bundle, day, folder)
    loaded = load_retrieval(made.config, made.bundle, day, folder)
    assert loaded.sources is not None
    return replace(loaded, sources=replace(loaded.sources, order=list(SOURCES)))


def test_the_model_ships_its_sources_with_places_of_the_validation_day(made: Made) -> None:
    told = made.json("model/sources.json")
    assert told["names"] == list(SOURCES) == made.json("model/training.json")["sources"]
    assert told["learned_on"] == str(made.days.validation[-1])
    assert sum(told["quotas"].values()) == 25
    assert told["digests"].items() <= made.json("model/training.json")["digests"].items()
    assert [len(told["order"]), told["users"] <= 30] == [3, True]


def test_every_file_of_sources_in_the_model_and_the_index_is_recorded_as_made(made: Made) -> None:
    for stage, place in (("train", "model"), ("retrieve", "index")):
        files = {
            file.relative_to(made.folder).as_posix() for file in (made.folder / place).rglob("*") if file.is_file()
        }
        recorded = {
            file.relative_to(made.folder).as_posix()
            for pattern in STEPS[stage].made
            for file in made.folder.glob(pattern)
            if file.is_file()
        }
        assert {f"{place}/semantic_ids/semantic_ids.json"} < recorded
        # The encoder is featurize's, and the calibration is calibrate's.
        assert files - recorded <= {"model/encoder.json", "model/calibration.json"}


def test_the_champion_has_them_too_and_its_lists_name_the_sources_with_a_place(made: Made) -> None:
    lists = tables.scan(made.workspace.table("candidates")).collect()
    named = {name for names in lists["source"].unique() for name in names.split("+")}
    told = made.json("model/sources.json")
    assert named == {*told["order"], "popular"}, "popular items fill what stays empty"


def test_a_source_is_named_for_an_item_exactly_where_its_own_list_has_it(retrieval: Retrieval) -> None:
    users = np.arange(retrieval.day.users.height)
    assert retrieval.sources is not None
    placed = retrieval.sources.placed
    own = lists_by_source(retrieval, placed, users)
    found = retrieve_users(retrieval, range(len(users)))
    names = source_names(found.sources)
    assert {name for told in np.unique(names) for name in told.split("+")} == {*SOURCES}
    assert any("+" in told for told in np.unique(names)), "an item that two sources found"
    for user, items in enumerate(found.items):
        for item, told in zip(items, names[user], strict=True):
            held = [name for name in placed if item != NONE and item in own[name][user]]
            assert told == ("+".join(held) or ("popular" if item != NONE else ""))
    pairs = np.arange(len(users))[:, None] * retrieval.day.items.height + found.items
    assert not np.isin(pairs[found.items != NONE], retrieval.day.seen).any()


def test_a_source_without_a_place_is_not_asked(retrieval: Retrieval) -> None:
    assert retrieval.sources is not None
    towers = replace(retrieval.sources, order=["two_towers"] * 3)
    alone = replace(retrieval, sources=None, sequences=None)
    users = range(retrieval.day.users.height)
    found, expected = (retrieve_users(one, users) for one in (replace(alone, sources=towers), alone))
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.sources, expected.sources)


def test_a_user_without_a_history_gets_no_sequence(retrieval: Retrieval) -> None:
    history = retrieval.day.history.filter(pl.col("click")).collect()["user_id"].unique()
    without = np.flatnonzero(~retrieval.day.users["user_id"].is_in(history.implode()).to_numpy())
    listed = lists_by_source(retrieval, ["sequence"], np.arange(retrieval.day.users.height))["sequence"]
    assert len(without)
    assert (listed[without] == NONE).all()
    assert (np.delete(listed, without, axis=0)[:, 0] != NONE).all()


def test_items_whose_last_digit_the_model_does_not_know_are_counted_and_not_listed(made: Made, tmp_path: Path) -> None:
    day, sources = made.day(made.days.scored_for), made.bundle.sources
    assert sources is not None
    ids = load_semantic_ids(made.folder / "index" / "semantic_ids", "retrieve")
    twins = pl.Series("item_id", [f"twin {number}" for number in range(9)])
    more = ids.extended(twins, np.zeros((9, ids.codebooks_LKW[0].shape[1]), dtype=np.float32))
    save_semantic_ids(more, tmp_path / "semantic_ids")
    day = replace(day, items=pl.concat([day.items.select("item_id"), twins.to_frame()]))
    beyond = int((more.digits_of(twins)[:, -1] >= ids.last_digits).sum())
    assert undecodable_items(sources, day, tmp_path) == beyond > 0
    notes = retrieve(made.config, made.workspace, made.days).notes
    assert notes["undecodable_items"] == 0


def test_several_processes_give_the_same_bytes(made: Made) -> None:
    before = (made.folder / "index" / "candidates.parquet").read_bytes()
    several = made.config.model_copy(
        update={"engine": made.config.engine.model_copy(update={"workers": 2, "kind": "local"})}
    )
    with open_engine(several) as engine:
        assert not engine.in_process
    retrieve(several, made.workspace, made.days)
    assert (made.folder / "index" / "candidates.parquet").read_bytes() == before


def test_what_became_known_after_the_test_day_began_changes_no_source(made: Made, tmp_path: Path) -> None:
    start = dt.datetime.combine(made.days.test[0], dt.time(), tzinfo=dt.UTC) - dt.timedelta(hours=8)
    rows = tables.scan(made.workspace.table("interactions")).collect()
    learned = rows["date"] == made.days.validation[-1]
    late = rows.filter(learned & (pl.Series(range(rows.height)) % 3 == 0))
    changed = rows.with_columns(
        click=pl.col("impression_id").is_in(late["impression_id"].implode()) | pl.col("click"),
        click_known_at=pl.when(pl.col("impression_id").is_in(late["impression_id"].implode()) & ~pl.col("click"))
        .then(pl.lit(start + dt.timedelta(hours=1)).cast(rows.schema["click_known_at"]))
        .otherwise("click_known_at"),
    )
    assert changed["click"].sum() > rows["click"].sum()
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(made.workspace.root, workspace.root)
    dates = sorted(rows["date"].unique())
    tables.write_days(workspace.table("interactions"), [changed.sort("date")], dates, note={})
    arguments = made.days, made.bundle.encoder, made.bundle.retriever
    ours, theirs = (fit_sources(made.config, place, *arguments) for place in (made.workspace, workspace))
    assert ours is not None
    assert theirs is not None
    assert (ours.order, ours.record) == (theirs.order, theirs.record)
    day = made.day(made.days.validation[-1])
    before = {label: len(users) for label, (users, _) in relevant_on(made.workspace, day, start).pairs.items()}
    after = {label: len(users) for label, (users, _) in relevant_on(workspace, day, start).pairs.items()}
    assert before == after
    assert len(relevant_on(workspace, day).pairs["click"][0]) > after["click"]


def test_the_order_is_what_the_validation_day_gives_for_the_lists_of_that_day(made: Made, tmp_path: Path) -> None:
    day = made.day(made.days.validation[-1])
    make_index(made.config, made.bundle, day, tmp_path)
    retrieval = load_retrieval(made.config, made.bundle, day, tmp_path)
    start = dt.datetime.combine(made.days.test[0], dt.time(), tzinfo=dt.UTC) - dt.timedelta(hours=8)
    active = active_users(relevant_on(made.workspace, day, start).pairs, 30, made.config.seed)
    assert made.bundle.sources is not None
    assert (
        learn_order(lists_by_source(retrieval, list(SOURCES), active.users), active.relevant, 25)
        == made.bundle.sources.order
    )


def test_what_a_source_adds_is_the_recall_less_that_of_lists_without_it(made: Made) -> None:
    told = made.json("evaluation/evaluation.json")["sources"]
    assert told["users"] <= 30
    for step, k in (("candidates", 25), ("lists", 10)):
        assert told[step]["k"] == k
        assert sum(share["alone"] for share in told[step]["share"].values()) <= 1.0
        for label in ("click", "conversion"):
            for name in SOURCES:
                found = told[step]["without"][label][name]
                assert found["low"] <= found["value"] <= found["high"]
    hits = told["candidates"]["added"]["click"]
    assert all(0 <= one["alone"] <= one["hits"] for one in hits.values())


def test_the_report_says_who_found_what(made: Made, tmp_path: Path) -> None:
    write_run_report(made.folder, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Item texts and candidate sources" in text
    assert "No text encoder of items is used" in text
    assert f"Places were learned on {made.days.validation[-1]}" in text
    assert "Sequences did not learn 0 clicks and 0 conversions on items that were no longer available." in text


def test_sources_that_are_missing_or_changed_are_refused(made: Made, tmp_path: Path) -> None:
    for name, message in (
        ("sources.json", r"sources\.json does not exist: run `counterpoise train` first"),
        ("sequence/spec.json", r"spec\.json cannot be read"),
        ("semantic_ids/items.parquet", "run `counterpoise train` again"),
    ):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(made.folder / "model", folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=message):
            load_sources(folder)
    told = made.json("model/sources.json")
    folder = tmp_path / "changed"
    shutil.copytree(made.folder / "model", folder)
    (folder / "sources.json").write_text(json.dumps(told | {"digests": told["digests"] | {"sequence": "0"}}))
    with pytest.raises(ValueError, match="is not what was trained"):
        load_sources(folder)


def test_hits_are_told_by_who_found_them_and_by_who_alone() -> None:
    items, sources = np.array([[4, 5, 6], [7, 8, -1]]), np.array([[1, 2, 3], [3, 2, 0]], dtype=np.uint8)
    relevant = {"click": (np.array([0, 0, 0, 1, 1]), np.array([4, 6, 9, 7, 8]))}
    assert added(items, sources, {"a": 0, "b": 1}, relevant) == {
        "click": {"a": {"hits": 3, "alone": 1}, "b": {"hits": 3, "alone": 1}}
    }


def test_a_day_without_a_click_has_no_users_to_learn_from() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match=r"nobody clicked on the day .* or set retrieval\.sources"):
        active_users({"click": (nobody, nobody)}, 10, 1)


@pytest.mark.parametrize("sources", [["popular"], ["two_towers", "two_towers"], []])
def test_the_towers_are_always_a_source_and_none_is_named_twice(sources: list[str]) -> None:
    with pytest.raises(ValueError, match="expected 'two_towers', and each source once"):
        load_config(EXAMPLE, {"retrieval.sources": sources})
