"""What candidate sources catch of the next day: two towers, sequences, popular items, items clicked together, merged.

Quotas are learned on the validation day, and all is measured on the test day. Shapes: U users, K places of a list.
"""

import datetime as dt
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.asof import KNOWN_FROM
from features.encoding import load_encoder
from models.retriever import Retriever, load_retriever
from models.sequence import save_sequence_model
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.feature_store import open_store
from pipeline.featurize import days_of, run_folder
from pipeline.fit_sources import fit_sequence_source
from pipeline.item_to_item import co_occurrence_lists
from pipeline.list_quality import relevant_on
from pipeline.ranking_metrics import evaluate_lists
from pipeline.retrieve import item_vectors, lists_of, open_retrieval
from pipeline.scoring import Day, load_day, numbered
from pipeline.semantic_ids import save_semantic_ids
from pipeline.source_adds import Active, active_users, added, difference_in_recall
from pipeline.source_lists import save_day_sequences
from pipeline.source_merge import POPULAR, SEQUENCE, SOURCES, TOWERS, Integers, learn_order, merge, quotas
from pipeline.sources import IDS, MODEL, Sources
from pipeline.split import Days
from pipeline.workspace import Workspace, write_json

TOGETHER = "co_occurrence"
MERGES = {
    "two_towers + sequence": (TOWERS, SEQUENCE),
    "two_towers + popular": (TOWERS, POPULAR),
    "all": (TOWERS, SEQUENCE, POPULAR, TOGETHER),
}
"""Merged lists: with the second one beside, what the first gains is not taken for what any second source would give."""


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


@dataclass(frozen=True)
class _Measured:
    """Some users of a day and what they did, their lists by source, and the users that a source lists in a second."""

    active: Active
    lists: dict[str, Integers]
    users_per_second: dict[str, float]


def study_sources(config: Config, workspace: Workspace, study: SourceStudy, output: Path) -> dict[str, Any]:
    """Train the sequence source on a trained run's days, learn quotas, and measure every source.

    Args:
        config: the run's.
        workspace: with the run, featurized and trained.
        study: how.
        output: a new folder for `sequence/`, `semantic_ids/` and `sources.json`.

    Raises:
        ValueError: the folder exists, the run was not trained, or a day has no click.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists: give a new folder, or remove it")
    days = days_of(config, workspace, study.last_day)
    run = _Run(config, workspace, days, load_retriever(run_folder(config, workspace, days) / "model" / "retriever"))
    day, known_before = run.day(days.validation[-1]), plan_of(config).start_of(days.test[0])
    log, begun = tables.scan(workspace.table("interactions")), time.perf_counter()
    items = day, item_vectors(run.retriever, day.item_codes)
    sequence, training = fit_sequence_source(config, log, (days.train, known_before), items, epochs=study.epochs)
    training["seconds"] = round(time.perf_counter() - begun, 1)
    sources = Sources([], sequence, {"names": list(SOURCES)})
    before = _measure(run, study, sources, day, known_before)
    orders = {
        name: learn_order({one: before.lists[one] for one in merged}, before.active.relevant, study.width)
        for name, merged in MERGES.items()
    }
    measured = _measure(run, study, sources, run.day(days.test[-1]), None)
    result = {
        "data_set": config.name,
        "seed": config.seed,
        "learned_on": str(days.validation[-1]),
        "measured_on": str(days.test[-1]),
        "training": training,
        **_figures(config, study, measured, orders),
    }
    output.mkdir(parents=True)
    save_sequence_model(sequence.model, output / MODEL)
    save_semantic_ids(sequence.ids, output / IDS)
    write_json(output / "sources.json", result)
    return result


def _measure(run: _Run, study: SourceStudy, sources: Sources, day: Day, known_before: dt.datetime | None) -> _Measured:
    """Make the lists of every source for the users that clicked on the day, or a sample of them."""
    active = active_users(relevant_on(run.workspace, day, known_before).pairs, study.users, run.config.seed)
    narrow = run.config.retrieval.model_copy(update={"candidates": study.width})
    config = run.config.model_copy(update={"retrieval": narrow})
    items = day, item_vectors(run.retriever, day.item_codes)
    with tempfile.TemporaryDirectory() as scratch:
        save_day_sequences(config, sources, *items, Path(scratch))
        retrieval = open_retrieval(config, run.retriever, items, sources, Path(scratch))
        makers = {name: partial(lists_of, retrieval, name, active.users) for name in SOURCES}
        makers[TOGETHER] = partial(_of_co_occurrence, run, study, day, active.users)
        lists, speeds = {}, {}
        for name, make in makers.items():
            begun = time.perf_counter()
            lists[name] = make()
            users = day.users.height if name == TOGETHER else len(active.users)
            speeds[name] = users / (time.perf_counter() - begun)
    return _Measured(active, lists, speeds)


def _of_co_occurrence(run: _Run, study: SourceStudy, day: Day, users: Integers) -> Integers:
    """List items that were clicked together, for all users, and return those of some."""
    start = plan_of(run.config).start_of(day.day)
    clicks = (
        day.history.filter(pl.col("click") & (pl.col(KNOWN_FROM["click"]) < start))
        .select("user_id", "item_id")
        .collect()
        .join(numbered(day.users, "user"), on="user_id")
        .join(numbered(day.items, "item"), on="item_id")
    )
    pairs = (clicks["user_number"].to_numpy(), clicks["item_number"].to_numpy())
    shape = (day.users.height, day.items.height)
    seen_users, seen_items = np.divmod(day.seen, day.items.height)
    return co_occurrence_lists(pairs, shape, (seen_users, seen_items), study.width)[users]


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
    for label, (users, items) in measured.active.relevant.items():
        for name, lists in every.items():
            found = evaluate_lists(
                lists_UK=lists, relevant_users=users, relevant_items=items, ks=study.ks, replicates=replicates
            )
            by_k: dict[str, Any] = {str(k): one.as_dict() for k, one in found["recall"].items()}
            recall.setdefault(name, {})[label] = by_k
            if name != TOWERS:
                for k in study.ks:
                    gain = difference_in_recall(lists, measured.lists[TOWERS], (users, items), k, replicates)
                    by_k[str(k)]["to_towers"] = gain.as_dict()
    return {
        "users": len(measured.active.users),
        "recall": recall,
        "quotas": {name: quotas(order, MERGES[name], study.width) for name, order in orders.items()},
        "adds": {
            name: added(
                one.items_UW, one.sources_UW, {of: bit for bit, of in enumerate(MERGES[name])}, measured.active.relevant
            )
            for name, one in merged.items()
        },
        "users_per_second": measured.users_per_second,
    }
