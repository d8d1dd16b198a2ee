"""What the sequence source learns from: a user's actions that were known before a day, and what came on that day.

Shapes: R rows, L actions of a history, C = D + 2 ids of an action, N items of a target, D digits of an item.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.asof import KNOWN_FROM
from features.plan import FeaturePlan
from models.sequence import FIRST_KNOWN, PADDING
from pipeline.semantic_ids import SemanticIds
from pipeline.sequence_fit import Pairs

LENGTH = 16
"""Last actions of a user that are read."""
TARGETS = 2
"""Items of a target that one row holds, a user with more has several rows: most click one or two a day."""
ACTIONS = 2
"""A click, and a click with a conversion."""
AGES = 8
"""Ages up to 1, 2, 4 ... 64 days, and more."""
LABELS = ("click", "conversion")


@dataclass(frozen=True)
class Coding:
    """How items and actions are written as ids: each digit, the action and the age has ids of its own."""

    ids: SemanticIds

    @property
    def starts(self) -> list[int]:
        """Return the first id of each digit, and the one behind the last digit's."""
        return [FIRST_KNOWN, *(FIRST_KNOWN + np.cumsum(self.ids.sizes)).tolist()]

    @property
    def source_vocabulary(self) -> int:
        """Return how many ids a history may hold."""
        return self.starts[-1] + ACTIONS + AGES

    @property
    def target_vocabulary(self) -> int:
        """Return how many ids an item may hold."""
        return self.starts[-1]

    def tokens(self, item_ids: pl.Series) -> NDArray[np.int64]:
        """Return the ids (I, D) of items; 0 throughout for one without digits or with a last digit beyond the ids."""
        digits = self.ids.digits_of(item_ids)
        is_known = np.all((digits >= 0) & (digits < np.array(self.ids.sizes)), axis=1)
        tokens: NDArray[np.int64] = digits + np.array(self.starts[:-1])
        tokens[~is_known] = PADDING
        return tokens


def histories(interactions: pl.LazyFrame, plan: FeaturePlan, day: dt.date) -> pl.DataFrame:
    """Return each user's last clicks known before a day began, newest last.

    Args:
        interactions: with the times at which clicks and conversions could be counted, as features count them.
        plan: says when the day began.
        day: the day.

    Returns:
        user_id, and lists of one length: items, converted (whether its conversion was known too), age_days.
    """
    start = plan.start_of(day)
    known = interactions.filter(pl.col("click") & (pl.col(KNOWN_FROM["click"]) < start))
    return (
        known.select(
            "user_id",
            "item_id",
            known_at=pl.col(KNOWN_FROM["click"]),
            converted=(pl.col("conversion") & (pl.col(KNOWN_FROM["conversion"]) < start)).fill_null(value=False),
            age_days=(pl.lit(start) - pl.col(KNOWN_FROM["click"])).dt.total_seconds() / 86_400,
        )
        .sort("user_id", "known_at", "item_id")
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("item_id").tail(LENGTH).alias("items"), pl.col("converted", "age_days").tail(LENGTH))
        .collect()
    )


def encode_histories(found: pl.DataFrame, user_ids: pl.Series, coding: Coding) -> Tensor:
    """Return the ids (R, L, C) of users' histories, oldest action first, 0 where there is none.

    An item without digits leaves the action and its age.
    """
    rows = user_ids.alias("user_id").to_frame().with_row_index("row").join(found, on="user_id")
    actions = rows.explode("items", "converted", "age_days").with_columns(place=pl.int_range(pl.len()).over("row"))
    ids_RLC = torch.full((len(user_ids), LENGTH, len(coding.starts) + 1), PADDING)
    if not actions.height:
        return ids_RLC[:, :1]
    action = coding.starts[-1] + actions["converted"].cast(pl.Int64).to_numpy()
    age = np.ceil(np.log2(np.maximum(actions["age_days"].to_numpy(), 1.0))).clip(0, AGES - 1).astype(np.int64)
    columns = [coding.tokens(actions["items"]), action[:, None], (coding.starts[-1] + ACTIONS + age)[:, None]]
    row, place = (torch.tensor(actions[name].to_list(), dtype=torch.int64) for name in ("row", "place"))
    ids_RLC[row, place] = torch.from_numpy(np.concatenate(columns, axis=1))
    return ids_RLC[:, : int(place.max()) + 1]


def training_pairs(
    interactions: pl.LazyFrame, plan: FeaturePlan, days: Sequence[dt.date], known_before: dt.datetime, coding: Coding
) -> tuple[Pairs, dict[str, int]]:
    """Return a row for each user and day with a click: the history before it, and its clicks and conversions.

    Args:
        interactions: rows of tables/interactions.
        plan: says when days begin.
        days: whose clicks are targets.
        known_before: labels that were not known before this moment count as none, as on the night that trains.
        coding: of the items; a target without digits is left out.

    Returns:
        The rows, and by label how many targets were left out.

    Raises:
        ValueError: no day has a click.
    """
    sources, targets = [], []
    for day in days:
        frame = interactions.filter(pl.col("date") <= day)
        rows = _targets(frame.filter(pl.col("date") == day).collect(), known_before)
        if rows.height:
            sources.append(encode_histories(histories(frame, plan, day), rows["user_id"], coding))
            targets.append(rows)
    if not sources:
        raise ValueError(f"no click from {days[0]} to {days[-1]} to learn sequences from: train on more days")
    length = max(part.shape[1] for part in sources)
    source_RLC = torch.cat([torch.nn.functional.pad(part, (0, 0, 0, length - part.shape[1])) for part in sources])
    every = pl.concat(targets)
    encoded = {label: _encode_targets(every[label], coding) for label in LABELS}
    left_out = {label: int(every[label].list.len().sum()) - _count(ids_RND) for label, ids_RND in encoded.items()}
    return Pairs(source_RLC, encoded), left_out


def _count(ids_RND: Tensor) -> int:
    return int((ids_RND != PADDING).any(-1).sum())


def _targets(rows: pl.DataFrame, known_before: dt.datetime) -> pl.DataFrame:
    """Return user_id and lists of the items clicked and converted, of a click or more, at most TARGETS of each."""
    known = {
        label: (pl.col(label) & (pl.col(f"{label}_known_at") < known_before)).fill_null(value=False) for label in LABELS
    }
    return (
        rows.group_by("user_id", "item_id")
        .agg(known[label].any() for label in LABELS)
        .filter("click")
        .sort("user_id", "item_id")
        .with_columns(part=pl.int_range(pl.len()).over("user_id") // TARGETS)
        .group_by("user_id", "part", maintain_order=True)
        .agg(pl.col("item_id").filter(pl.col(label)).alias(label) for label in LABELS)
        .drop("part")
    )


def _encode_targets(lists: pl.Series, coding: Coding) -> Tensor:
    """Return ids (R, N, D)."""
    items = lists.alias("item").to_frame().with_row_index("row").explode("item").drop_nulls()
    items = items.with_columns(place=pl.int_range(pl.len()).over("row"))
    ids_RND = torch.full((len(lists), TARGETS, len(coding.starts) - 1), PADDING)
    row, place = (torch.tensor(items[name].to_list(), dtype=torch.int64) for name in ("row", "place"))
    ids_RND[row, place] = torch.from_numpy(coding.tokens(items["item"]))
    return ids_RND
