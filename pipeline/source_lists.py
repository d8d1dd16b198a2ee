"""What each source of a model lists for some users of a day, and the sequence source made ready for one.

Shapes: U users, K places of a list, I items, W width of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.sequence import SequenceModel
from pipeline.config import Config
from pipeline.exact_search import NONE
from pipeline.feature_plan import plan_of
from pipeline.histories import Coding, encode_histories, histories
from pipeline.scoring import Day
from pipeline.semantic_ids import load_semantic_ids, save_semantic_ids
from pipeline.sequence_source import Catalogue, catalogue_of, sequence_lists
from pipeline.source_merge import SOURCES, Bits, Integers, Merged, merge
from pipeline.sources import IDS, Sources
from pipeline.workspace import write_parquet

HISTORIES = "histories.parquet"
ROW_GROUP_USERS = 16_384
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DaySequences:
    """The sequence source of a day: what may be decoded, and where the users' histories lie, one row a user."""

    model: SequenceModel
    coding: Coding
    catalogue: Catalogue
    histories: Path

    def lists(self, users: Integers, *, conversion_weight: float, width: int) -> Integers:
        """Return the items (U, K) of users by ascending numbers, best first, seen ones among them."""
        first = int(users[0])
        read = pl.scan_parquet(self.histories).slice(first, int(users[-1]) - first + 1).collect()[users - first]
        source_RLC = encode_histories(read.drop_nulls("items"), read["user_id"], self.coding)
        return sequence_lists(self.model, self.catalogue, source_RLC, conversion_weight=conversion_weight, width=width)


def save_day_sequences(config: Config, sources: Sources, day: Day, vectors_IW: Floats, folder: Path) -> None:
    """Write the ids of the day's items and the users' histories, if sequences are a source.

    Args:
        config: says when days begin.
        sources: of the model.
        day: users and items.
        vectors_IW: of the day's items, by the model's towers: items that have no id yet are coded by them.
        folder: of the index.
    """
    if sources.sequence is None:
        return
    save_semantic_ids(sources.sequence.ids.extended(day.items["item_id"], vectors_IW), folder / IDS)
    found = histories(day.history, plan_of(config), day.day)
    users = day.users.select("user_id").join(found, on="user_id", how="left", maintain_order="left")
    write_parquet(users, folder / HISTORIES, row_group_rows=ROW_GROUP_USERS)


def load_day_sequences(sources: Sources, day: Day, folder: Path) -> DaySequences | None:
    """Read what `save_day_sequences` wrote.

    Raises:
        ValueError: a file is missing or damaged, or no available item can be decoded.
    """
    if sources.sequence is None:
        return None
    coding = Coding(load_semantic_ids(folder / IDS, "retrieve"))
    return DaySequences(sources.sequence.model, coding, catalogue_of(coding, day.items["item_id"]), folder / HISTORIES)


def undecodable_items(sources: Sources, day: Day, folder: Path) -> int:
    """Return how many available items the sequence source never lists: their last digit is beyond what it knows.

    Raises:
        ValueError: as `load_day_sequences`.
    """
    found = load_day_sequences(sources, day, folder)
    return 0 if found is None else day.items.height - len(found.catalogue.numbers)


def merged_lists(lists: Mapping[str, Integers], order: list[str], width: int) -> Merged:
    """Merge sources' lists as their order says; bit s of an item's number is of source s of all."""
    if len(lists) == 1:
        ((name, items),) = lists.items()
        return Merged(items, (items != NONE) * _renumbered([name])[1])
    found = merge(lists, order, width)
    return Merged(found.items_UW, _renumbered(list(lists))[found.sources_UW])


def _renumbered(names: list[str]) -> Bits:
    """Return for each set of some sources, as bits by their places, the set as bits by their places among all."""
    sets = range(2 ** len(names))
    told = [sum(1 << SOURCES.index(name) for bit, name in enumerate(names) if held >> bit & 1) for held in sets]
    return np.array(told, dtype=np.uint8)


def source_names(bits: Bits) -> NDArray[np.str_]:
    """Write sets of sources as their names joined by '+', '' for none."""
    every = ["+".join(name for bit, name in enumerate(SOURCES) if held >> bit & 1) for held in range(2 ** len(SOURCES))]
    return np.array(every)[bits]
