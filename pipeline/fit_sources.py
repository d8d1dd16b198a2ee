"""Fit the candidate sources beside the towers, and learn on the validation day who fills which places."""

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from features.encoding import Encoder
from models.retriever import Retriever
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder, table_versions
from pipeline.histories import Coding, training_pairs
from pipeline.list_quality import relevant_on
from pipeline.retrieve import item_vectors, lists_by_source, open_retrieval
from pipeline.scoring import Day, load_day
from pipeline.semantic_ids import semantic_ids_of
from pipeline.sequence_source import fit_source
from pipeline.source_adds import Active, active_users
from pipeline.source_lists import Floats, save_day_sequences
from pipeline.source_merge import SEQUENCE, SOURCES, learn_order, quotas
from pipeline.sources import SequenceSource, Sources
from pipeline.split import Days
from pipeline.workspace import Workspace


def fit_sources(
    config: Config, workspace: Workspace, days: Days, encoder: Encoder, retriever: Retriever
) -> Sources | None:
    """Fit the sources of retrieval.sources; None where the towers are the only one.

    Sequences learn from the training days, and places are learned from what a sample of users clicked and converted on
    the last validation day, as far as it was known before the first test day.

    Raises:
        ValueError: the training days or the validation day have no click.
    """
    if len(config.retrieval.sources) == 1:
        return None
    folder, known_before = run_folder(config, workspace, days), plan_of(config).start_of(days.test[0])
    day = load_day(config, workspace, folder / "features", days.validation[-1], encoder)
    active = active_users(relevant_on(workspace, day, known_before).pairs, config.retrieval.quota_users, config.seed)
    vectors = item_vectors(retriever, day.item_codes)
    names = [name for name in SOURCES if name in config.retrieval.sources]
    record: dict[str, Any] = {"names": names, "learned_on": str(day.day)}
    sequence = None
    if SEQUENCE in names:
        log = tables.scan(workspace.table("interactions"), table_versions(folder)["interactions"])
        epochs = config.retrieval.sequence.epochs
        sequence, record[SEQUENCE] = fit_sequence_source(
            config, log, (days.train, known_before), (day, vectors), epochs=epochs
        )
    order = _learned_order(config, retriever, (day, vectors), Sources([], sequence, record), active)
    width = min(config.retrieval.candidates, day.items.height)
    record |= {"users": len(active.users), "quotas": quotas(order, names, width)}
    return Sources(order, sequence, record)


def fit_sequence_source(
    config: Config,
    interactions: pl.LazyFrame,
    learned: tuple[list[dt.date], dt.datetime],
    items: tuple[Day, Floats],
    *,
    epochs: int,
) -> tuple[SequenceSource, dict[str, Any]]:
    """Fit the sequence source.

    Args:
        config: names the seed and the ids' digits.
        interactions: tables/interactions.
        learned: the days whose clicks are learned, and the moment before which they were known.
        items: a day whose items get ids, and their vectors.
        epochs: passes over users and days.

    Returns:
        The source, and its training: rows, targets left out since their items are not available on the day and so have
        no id, epochs, weights, and the loss along it.
    """
    (days, known_before), (day, vectors), settings = learned, items, config.retrieval.sequence
    ids = semantic_ids_of(
        day.items["item_id"], vectors, levels=settings.levels, centres=settings.centres, seed=config.seed
    )
    pairs, left_out = training_pairs(interactions, plan_of(config), days, known_before, Coding(ids))
    model, curve = fit_source(Coding(ids), pairs, epochs=epochs, seed=config.seed)
    weights = sum(weight.numel() for weight in model.parameters())
    told = {"rows": len(pairs), "left_out": left_out, "epochs": epochs, "weights": weights, "loss": curve}
    return SequenceSource(model, ids), told


def _learned_order(
    config: Config, retriever: Retriever, items: tuple[Day, Floats], sources: Sources, active: Active
) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        save_day_sequences(config, sources, *items, Path(scratch))
        retrieval = open_retrieval(config, retriever, items, sources, Path(scratch))
        return learn_order(lists_by_source(retrieval, sources.names, active.users), active.relevant, retrieval.width)
