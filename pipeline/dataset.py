"""From encoded frames to the tensors that models read, and from a configuration to the models' specs."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.encoding import Encoder
from features.plan import FeaturePlan
from models.inputs import Features
from models.ranker import RankerSpec
from models.retriever import RetrieverSpec
from pipeline import tables
from pipeline.config import Config
from pipeline.label_sums import LabelSums, sums_of, total
from pipeline.maturity import Maturity, Supervision, supervise

ORDER = ("event_time", "user_id", "item_id", "impression_id")
"""In which featurize writes each file of a day, and what is held in memory numbers a day's rows."""
DESCRIBED = (
    "impression_id",
    "user_id",
    "item_id",
    "event_time",
    "date",
    "click",
    "conversion",
    "label_matures_at",
)


@dataclass(frozen=True)
class Block:
    """Successive rows of a day that are read, shuffled and held in memory together."""

    rows: int
    clicked_rows: int
    read: Callable[[], "Examples"]


class Day(Protocol):
    """A day that models train on, in memory (`Examples`) or in the table (`pipeline.blocks.StoredDay`)."""

    def blocks(self) -> list[Block]:
        """Return its rows, at most `tables.ROW_GROUP_ROWS` in a block, each block in order of time."""

    def label_sums(self) -> LabelSums:
        """Return what its labels sum to."""

    def item_clicks(self) -> pl.DataFrame:
        """Return the `clicks` of each `item_id` that has some, in no order."""


@dataclass(frozen=True)
class Examples:
    """A day's examples: features, labels, who and what they are about, and what a loss is told of them."""

    features: Features
    clicks: torch.Tensor
    conversions: torch.Tensor
    frame: pl.DataFrame
    supervision: Supervision

    def blocks(self) -> list[Block]:
        """Return successive blocks of these rows, which are the table's where the day is one file.

        A day that featurize divided by users (`pipeline.blocks.StoredDay`) is whole here, and in order of time: the
        table holds the same rows in other blocks.
        """
        starts = range(0, len(self.clicks), tables.ROW_GROUP_ROWS)
        parts = [self] if len(starts) == 1 else [self._part(start) for start in starts]
        return [Block(len(part.clicks), int(part.clicks.count_nonzero()), partial(_itself, part)) for part in parts]

    def label_sums(self) -> LabelSums:
        """Return what the labels sum to, block by block."""
        return total(sums_of(block.read().supervision) for block in self.blocks())

    def item_clicks(self) -> pl.DataFrame:
        """Return the `clicks` of each `item_id` that has some, in no order."""
        return clicks_by_item(self.frame.with_columns(click=pl.Series(self.clicks.numpy() > 0)))

    def _part(self, start: int) -> "Examples":
        """Return the block that begins at a row; the first one has the counts of rows left out."""
        stop = min(start + tables.ROW_GROUP_ROWS, len(self.clicks))
        targets = self.supervision.targets.select(torch.arange(start, stop), self.clicks.device)
        return Examples(
            self.features.slice(slice(start, stop)),
            self.clicks[start:stop],
            self.conversions[start:stop],
            self.frame[start:stop],
            Supervision(targets, {} if start else self.supervision.left_out),
        )


def _itself(part: Examples) -> Examples:
    return part


def ranker_spec(config: Config, plan: FeaturePlan, encoder: Encoder, body: str, seed: int) -> RankerSpec:
    """Return the spec of a ranker over all features; context enters as a bias only."""
    return RankerSpec(
        body=body,
        categorical_cardinalities=encoder.cardinalities(),
        numeric=[*plan.numeric(), *encoder.text_columns()],
        bins=encoder.bins,
        pooled={name: field for name, (field, _) in encoder.lists.items()},
        single=plan.categorical(),
        context=list(plan.context),
        context_numeric=plan.context_numeric(),
        embedding_width=config.model.embedding_width,
        task_embeddings=config.model.task_embeddings,
        numeric_width=config.model.numeric_width,
        zero_bin=bool(encoder.zeros_apart),
        numeric_encoding=config.model.numeric_encoding,
        frequencies=config.model.frequencies,
        frequency_scale=config.model.frequency_scale,
        attention=plan.sequences() if config.model.sequence == "attention" else [],
        experts=config.model.experts,
        task_experts=config.model.task_experts,
        hidden=tuple(config.model.hidden),
        tower=tuple(config.model.tower),
        levels=config.model.levels,
        dropout=config.model.dropout,
        expert_activation=config.model.expert_activation,
        expert_norm=config.model.expert_norm,
        gate_dropout=config.model.gate_dropout,
        gate_temperature=config.model.gate_temperature,
        load_balance=config.model.load_balance,
        binary_tasks={name: task.space for name, task in config.labels.tasks.items() if task.kind == "binary"},
        value_tasks={name: task.space for name, task in config.labels.tasks.items() if task.kind == "value"},
        conversion_loss=config.training.conversion_loss,
        seed=seed,
    )


def raw_numeric(spec: RankerSpec, encoder: Encoder) -> list[str]:
    """Return the numbers among a ranker's raw features: all but those that the encoder makes of texts."""
    return [name for name in spec.numeric if name not in encoder.text_columns()]


def retriever_spec(config: Config, plan: FeaturePlan, encoder: Encoder, seed: int) -> RetrieverSpec:
    """Return the spec of the two towers: features of the user alone and of the item alone."""
    users, items = plan.user_columns(), plan.item_columns()
    return RetrieverSpec(
        categorical_cardinalities=encoder.cardinalities(),
        user_single=[name for name in plan.categorical() if name in {"user_id", *users}],
        item_single=[name for name in plan.categorical() if name in {"item_id", *items}],
        user_numeric=[name for name in plan.numeric() if name in users],
        item_numeric=[*(name for name in plan.numeric() if name in items), *encoder.text_columns()],
        user_pooled={name: field for name, (field, _) in encoder.lists.items() if name in users},
        item_pooled={name: field for name, (field, _) in encoder.lists.items() if name in items},
        bins=encoder.bins,
        embedding_width=config.retriever.embedding_width,
        numeric_width=config.retriever.numeric_width,
        zero_bin=bool(encoder.zeros_apart),
        hidden=tuple(config.retriever.hidden),
        space_width=config.retriever.space_width,
        temperature=config.retriever.temperature,
        seed=seed,
    )


def tensors(frame: pl.DataFrame, *, single: list[str], numeric: list[str], pooled: list[str]) -> Features:
    """Turn encoded columns into a model's features: ids (N, F) int64, positions (N, F) float32, pooled (N, L) int64."""
    ids = [frame[f"{name}_code"].to_numpy() for name in single]
    positions = [frame[f"{name}_position"].to_numpy() for name in numeric]
    rows = frame.height
    return Features(
        torch.from_numpy(np.stack(ids, axis=1).astype(np.int64) if ids else np.zeros((rows, 0), np.int64)),
        torch.from_numpy(np.stack(positions, axis=1) if positions else np.zeros((rows, 0), np.float32)),
        {name: torch.from_numpy(lists(frame[f"{name}_code"])) for name in pooled},
    )


def lists(column: pl.Series) -> NDArray[np.int64]:
    """Turn lists of one length into a matrix (N, L) int64."""
    width = int(column.list.len().max() or 0)  # type: ignore[arg-type]
    return column.explode().to_numpy().astype(np.int64).reshape(len(column), width)


def read_examples(table: Path, version: int, day: dt.date, spec: RankerSpec, maturity: Maturity | None) -> Examples:
    """Read a day of tables/examples.

    Args:
        table: the table.
        version: its version that the run's encoder made.
        day: the day.
        spec: names the feature columns.
        maturity: a label counts only where it was known before its cutoff; None takes labels as they are today.
    """
    return examples_from(tables.scan(table, version).filter(pl.col("date") == day).collect(), spec, maturity)


def examples_from(frame: pl.DataFrame, spec: RankerSpec, maturity: Maturity | None) -> Examples:
    """Turn an encoded frame with labels into examples; see `read_examples`."""
    return ordered_examples(frame.sort(ORDER), spec, maturity)


def clicks_by_item(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the rows of each `item_id` whose `click` is true, in no order."""
    return frame.filter("click").group_by("item_id").len("clicks")


def known_labels(frame: pl.DataFrame, spec: RankerSpec, maturity: Maturity | None) -> pl.DataFrame:
    """Return the rows with click, conversion and the labels of further tasks as they were known before the cutoff."""
    if maturity is None:
        return frame
    return frame.with_columns(
        (pl.col(label) & (pl.col(f"{label}_known_at") < maturity.cutoff)).fill_null(value=False).alias(label)
        for label in ("click", "conversion")
    ).with_columns(
        # what came after a click that was not known yet was not known either
        pl.when(pl.col("click_known_at").is_null() | (pl.col("click_known_at") < maturity.cutoff)).then(
            pl.col(f"label_{name}")
        )
        for name in [*spec.binary_tasks, *spec.value_tasks]
    )


def ordered_examples(frame: pl.DataFrame, spec: RankerSpec, maturity: Maturity | None) -> Examples:
    """Turn rows that are in order into examples; they are described by those columns of `DESCRIBED` that they have."""
    ordered = known_labels(frame, spec, maturity)
    return Examples(
        tensors(ordered, single=list(spec.single), numeric=list(spec.numeric), pooled=list(spec.pooled)),
        torch.from_numpy(ordered["click"].to_numpy().astype(np.float32)),
        torch.from_numpy(ordered["conversion"].to_numpy().astype(np.float32)),
        ordered.select(name for name in DESCRIBED if name in ordered.columns),
        supervise(ordered, maturity, spec.binary_tasks, spec.value_tasks),
    )


def without_tasks(spec: RankerSpec) -> RankerSpec:
    """Return a spec that asks `examples_from` for no labels but click and conversion."""
    return replace(spec, binary_tasks={}, value_tasks={})


def device_of(choice: str) -> torch.device:
    """Return the device that 'auto', 'cpu' or 'cuda' means here."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device = 'cuda' but no GPU is visible: set it to 'auto' or 'cpu'")
    return torch.device(choice)
