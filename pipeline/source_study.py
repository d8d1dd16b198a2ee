"""What candidate sources catch of the next day: two towers, sequences, popular items, items clicked together, merged.

Quotas are learned on the validation day, and all is measured on the test day. Shapes: U users, K places of a list.
"""

import datetime as dt
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.asof import KNOWN_FROM
from features.encoding import load_encoder
from models.retriever import Retriever, load_retriever
from models.sequence import SequenceModel, save_sequence_model
from pipeline import tables
from pipeline.config import Config
from pipeline.exact_search import make_catalogue
from pipeline.feature_plan import plan_of
from pipeline.feature_store import open_store
from pipeline.featurize import days_of, run_folder
from pipeline.histories import Coding, encode_histories, histories, training_pairs
from pipeline.item_to_item import co_occurrence_lists
from pipeline.list_quality import relevant_on
from pipeline.metrics import user_bootstrap
from pipeline.ranking_metrics import evaluate_lists, recall_of_users
from pipeline.retrieve import NONE, Retrieval, item_vectors, popular_candidates, retrieve_users
from pipeline.scoring import Day, load_day, numbered
from pipeline.semantic_ids import SemanticIds, save_semantic_ids, semantic_ids_of
from pipeline.sequence_source import catalogue_of, fit_source, sequence_lists
from pipeline.source_merge import Merged, learn_order, merge, quotas
from pipeline.split import Days
from pipeline.workspace import Workspace, write_json

LEVELS, CENTRES = 3, 32
TOWERS, SEQUENCE, POPULAR, TOGETHER = "two_towers", "sequence", "popular", "co_occurrence"
MERGES = {
    "two_towers + sequence": (TOWERS, SEQUENCE),
    "two_towers + popular": (TOWERS, POPULAR),
    "all": (TOWERS, SEQUENCE, POPULAR, TOGETHER),
}
"""Merged lists: with the second one beside, what the first gains is not taken for what any second source would give."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class SourceStudy:
    """How long the sequence source trains, on how many users of a day all sources are measured, and at which ks."""

    epochs: int = 5
    users: int = 4000
    width: int = 100
    last_day: dt.date | None = None
    """The test day, as of the run; None for the last one with rows."""

    @property
    def ks(self) -> list[int]:
        """Return the lengths at which recall is measured."""
        return [k for k in (10, 50, 100) if k <= self.width]


@dataclass(frozen=True)
class _Run:
    """A trained run and its tables."""

    config: Config
    workspace: Workspace
    days: Days
    retriever: Retriever

    def day(self, date: dt.date) -> Day:
        """Return users and items as of a day; the feature store keeps the states of the last days."""
        folder = run_folder(self.config, self.workspace, self.days)
        states = open_store(self.config, self.workspace).states
        return load_day(self.config, self.workspace, states, date, load_encoder(folder / "model" / "encoder.json"))

    def interactions_before(self, date: dt.date) -> pl.LazyFrame:
        """Return the rows of earlier days."""
        return tables.scan(self.workspace.table("interactions")).filter(pl.col("date") < date)


@dataclass(frozen=True)
class _Measured:
    """The lists of some users of a day by source, what they did, and the users that a source lists in a second."""

    lists: dict[str, Integers]
    relevant: dict[str, tuple[Integers, Integers]]
    users_per_second: dict[str, float]


def study_sources(config: Config, workspace: Workspace, study: SourceStudy, output: Path) -> dict[str, Any]:
    """Train the sequence source on a trained run's days, learn quotas, and measure every source.

    Args:
        config: the run's.
        workspace: with the run, featurized and trained.
        study: how.
        output: a new folder for `model/`, `semantic_ids/` and `sources.json`.

    Raises:
        ValueError: the folder exists, the run was not trained, or a day has no click.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists: give a new folder, or remove it")
    days = days_of(config, workspace, study.last_day)
    run = _Run(config, workspace, days, load_retriever(run_folder(config, workspace, days) / "model" / "retriever"))
    learned_on, measured_on = days.validation[-1], days.test[-1]
    day = run.day(learned_on)
    vectors = item_vectors(run.retriever, day.item_codes)
    ids = semantic_ids_of(day.items["item_id"], vectors, levels=LEVELS, centres=CENTRES, seed=config.seed)
    begun = time.perf_counter()
    table, plan = workspace.table("interactions"), plan_of(config)
    pairs = training_pairs(table, plan, days.train, days.validation[0], Coding(ids))
    model, curve = fit_source(Coding(ids), pairs, epochs=study.epochs, seed=config.seed)
    seconds = time.perf_counter() - begun
    before = _measure(run, study, day, ids, model)
    orders = {
        name: learn_order({one: before.lists[one] for one in sources}, before.relevant, study.width)
        for name, sources in MERGES.items()
    }
    day = run.day(measured_on)
    ids = ids.extended(day.items["item_id"], item_vectors(run.retriever, day.item_codes))
    measured = _measure(run, study, day, ids, model)
    result = {
        "data_set": config.name,
        "seed": config.seed,
        "learned_on": str(learned_on),
        "measured_on": str(measured_on),
        "training": {"rows": len(pairs), "epochs": study.epochs, "seconds": round(seconds, 1), "loss": curve},
        "weights": sum(weight.numel() for weight in model.parameters()),
        **_figures(config, study, measured, orders),
    }
    output.mkdir(parents=True)
    save_sequence_model(model, output / "model")
    save_semantic_ids(ids, output / "semantic_ids")
    write_json(output / "sources.json", result)
    return result


def _measure(run: _Run, study: SourceStudy, day: Day, ids: SemanticIds, model: SequenceModel) -> _Measured:
    """Make the lists of every source for the users that clicked on the day, or a sample of them."""
    relevant = relevant_on(run.workspace, day).pairs
    active = np.unique(relevant["click"][0])
    if len(active) > study.users:
        active = np.sort(np.random.default_rng(run.config.seed).permutation(active)[: study.users])
    makers: dict[str, Callable[[], Integers]] = {
        TOWERS: lambda: _of_towers(run, study, day)[active],
        SEQUENCE: lambda: _of_sequences(run, study, day, ids, model, active),
        POPULAR: lambda: popular_candidates(day, study.width)[active],
        TOGETHER: lambda: _of_co_occurrence(run, study, day)[active],
    }
    made = {SEQUENCE: len(active)}  # the others list all users
    lists, speeds = {}, {}
    for name, make in makers.items():
        begun = time.perf_counter()
        lists[name] = make()
        speeds[name] = made.get(name, day.users.height) / (time.perf_counter() - begun)
    return _Measured(lists, {label: _of(pairs, active) for label, pairs in relevant.items()}, speeds)


def _of(pairs: tuple[Integers, Integers], active: Integers) -> tuple[Integers, Integers]:
    """Return the pairs of some users, by their places among them."""
    users, items = pairs
    kept = np.isin(users, active)
    return np.searchsorted(active, users[kept]), items[kept]


def _of_towers(run: _Run, study: SourceStudy, day: Day) -> Integers:
    vectors = make_catalogue(item_vectors(run.retriever, day.item_codes))
    weight = run.config.retrieval.conversion_weight
    retrieval = Retrieval(run.retriever, day, weight, min(study.width, day.items.height), vectors)
    parts = [retrieve_users(retrieval, users) for users in retrieval.shares()]
    return np.concatenate([np.where(part.from_towers, part.items, NONE) for part in parts])


def _of_sequences(  # a run's day, a model and its ids, and whom it is for
    run: _Run, study: SourceStudy, day: Day, ids: SemanticIds, model: SequenceModel, active: Integers
) -> Integers:
    coding = Coding(ids)
    found = histories(run.interactions_before(day.day), plan_of(run.config), day.day)
    source_RLC = encode_histories(found, day.users["user_id"].gather(active), coding)
    catalogue = catalogue_of(coding, day.items["item_id"])
    weight = run.config.retrieval.conversion_weight
    wide = sequence_lists(model, catalogue, source_RLC, conversion_weight=weight, width=study.width)
    seen = np.isin(active[:, None] * day.items.height + wide, day.seen)
    wide[seen] = NONE
    return np.take_along_axis(wide, np.argsort(wide == NONE, axis=1, kind="stable"), axis=1)


def _of_co_occurrence(run: _Run, study: SourceStudy, day: Day) -> Integers:
    clicks = (
        run.interactions_before(day.day)
        .filter(pl.col("click") & (pl.col(KNOWN_FROM["click"]) < plan_of(run.config).start_of(day.day)))
        .select("user_id", "item_id")
        .collect()
        .join(numbered(day.users, "user"), on="user_id")
        .join(numbered(day.items, "item"), on="item_id")
    )
    pairs = (clicks["user_number"].to_numpy(), clicks["item_number"].to_numpy())
    shape = (day.users.height, day.items.height)
    seen_users, seen_items = np.divmod(day.seen, day.items.height)
    return co_occurrence_lists(pairs, shape, (seen_users, seen_items), study.width)


def _figures(
    config: Config, study: SourceStudy, measured: _Measured, orders: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Return recall by source, label and k, differences to the towers, and what each source adds to a merged list."""
    merged = {
        name: merge({one: measured.lists[one] for one in MERGES[name]}, order, study.width)
        for name, order in orders.items()
    }
    every = {**measured.lists, **{name: one.items_UW for name, one in merged.items()}}
    replicates = config.evaluation.replicates
    recall: dict[str, Any] = {}
    for label, (users, items) in measured.relevant.items():
        for name, lists in every.items():
            found = evaluate_lists(
                lists_UK=lists, relevant_users=users, relevant_items=items, ks=study.ks, replicates=replicates
            )
            by_k: dict[str, Any] = {str(k): one.as_dict() for k, one in found["recall"].items()}
            recall.setdefault(name, {})[label] = by_k
            if name != TOWERS:
                for k in study.ks:
                    by_k[str(k)]["to_towers"] = _difference(
                        (lists, measured.lists[TOWERS]), (users, items), k, replicates
                    )
    return {
        "users": len(measured.lists[TOWERS]),
        "recall": recall,
        "quotas": {name: quotas(order, MERGES[name]) for name, order in orders.items()},
        "adds": {name: added(one, MERGES[name], measured.relevant) for name, one in merged.items()},
        "users_per_second": measured.users_per_second,
    }


def _difference(
    lists: tuple[Integers, Integers], relevant: tuple[Integers, Integers], k: int, replicates: int
) -> dict[str, float]:
    """Return the paired difference in recall at k of two sources, with its interval over users."""
    users, items = relevant
    ours, theirs = (recall_of_users(lists_UK=one, relevant_users=users, relevant_items=items, k=k)[1] for one in lists)
    gains_E1 = (ours - theirs)[:, None]
    once = np.ones((len(gains_E1), 1))
    interval = user_bootstrap(
        lambda counts_RE: counts_RE @ gains_E1 / len(gains_E1), once, replicates=replicates, seed=0
    )
    return interval[0].as_dict()


def added(
    merged: Merged, names: tuple[str, ...], relevant: Mapping[str, tuple[Integers, Integers]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return, by label and source, the hits of a merged list that the source found, and those that it alone found."""
    told: dict[str, dict[str, dict[str, int]]] = {}
    for label, (users, items) in relevant.items():
        users_P, items_P = np.unique(np.stack([users, items]), axis=1)
        is_hit_PW = merged.items_UW[users_P] == items_P[:, None]
        bits_H = merged.sources_UW[users_P][is_hit_PW]
        told[label] = {
            name: {"hits": int((bits_H >> bit & 1).sum()), "alone": int((bits_H == 1 << bit).sum())}
            for bit, name in enumerate(names)
        }
    return told
