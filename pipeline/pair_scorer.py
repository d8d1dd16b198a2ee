"""Score pairs of a day's users and items by parts: of all items once, of each user once, of both where they meet.

Shapes: N pairs, U users, I items, W width of the ranker's first layers, R rows of a counter of pairs, O outputs.
"""

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.encoding import encode
from features.plan import CounterPlan
from models.inputs import Features
from models.part_table import NONE, PartTable
from models.split_ranker import Part, SplitRanker
from pipeline.config import Config
from pipeline.dataset import lists, tensors
from pipeline.feature_plan import plan_of
from pipeline.pair_counters import PairCounter, levels_at_a_context, pair_counter, positions_of
from pipeline.scoring import Bundle, Day

SLICE_PAIRS = 16_384
ITEM_PARTS_BYTES = 2**30
"""Up to this size the parts of all items, I x W x 4 bytes, are made once and held; beyond it a slice makes its own."""
ITEM_ROWS = 8_192


class PairScorer:
    """A model and a day's users and items, ready to score any of their pairs: what a worker loads once.

    The context has its reference values. Memory: the parts of all items (see `ITEM_PARTS_BYTES`), and for a slice of
    pairs at most one row of W for each user and for each pair and counter.
    """

    def __init__(self, config: Config, bundle: Bundle, day: Day) -> None:
        self.bundle, self.day, self.split = bundle, day, SplitRanker(bundle.ranker)
        self.plan, self.references = plan_of(config), config.context.references()
        levels = levels_at_a_context(self.plan)
        self.user_part, self.users = self._side(day.user_codes, day.users, levels.user)
        self.item_part, self.items = self._side(day.item_codes, day.items, levels.item)
        self.counters = [self._counter(counter) for counter in levels.pair]
        self.counter_parts = [self.split.part(set(counter.names)) for counter in self.counters]
        # Most pairs have never met: what they add is a constant, and a pair that has met adds the difference to it.
        self.unseen_W = [
            part(_numbers(counter.positions[[counter.unseen]]))[0]
            for counter, part in zip(self.counters, self.counter_parts, strict=True)
        ]
        constants = [self.split.constant_W, *self._of_context(levels.context), *self.unseen_W]
        self.constant_W = torch.stack(constants).sum(0)
        self._check_columns(levels.context)
        spec = bundle.ranker.spec
        self.histories = {name: lists(day.user_codes[f"{name}_code"]) for name in self.split.attended}
        self.candidates = day.item_codes[f"{spec.attention_target}_code"].to_numpy() if self.split.attended else None
        self.all_items = len(self.items) * self.split.width * 4 <= ITEM_PARTS_BYTES
        self.item_rows = len(self.items) if self.all_items else SLICE_PAIRS
        self.table = PartTable(self.split, rows=self.item_rows + (1 + len(self.counters)) * SLICE_PAIRS)
        if self.all_items:
            for start in range(0, len(self.items), ITEM_ROWS):
                self.table.fill(start, self.item_part(self.items.slice(slice(start, start + ITEM_ROWS))))

    def score(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the calibrated outputs (N, O) of pairs (N) of a row number in day.users and one in day.items.

        It is cheapest where pairs of one user stand together.
        """
        outputs = np.empty((len(users), len(self.split.spec.outputs())), dtype=np.float32)
        for start in range(0, len(users), SLICE_PAIRS):
            rows = slice(start, start + SLICE_PAIRS)
            outputs[rows] = self._score_slice(users[rows], items[rows])
        return self.bundle.calibration.apply(outputs, self.split.spec)

    def _score_slice(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        distinct, user_N = np.unique(users, return_inverse=True)
        rows_NS = self._summed_rows(distinct, user_N, users, items)
        if self.split.attention is None:
            return self.table.outputs(rows_NS)
        return self.table.outputs(
            rows_NS, lambda first_NW, block: self._attend(first_NW, distinct, user_N[block], items[block])
        )

    def _summed_rows(
        self,
        distinct: NDArray[np.int64],
        user_N: NDArray[np.int64],
        users: NDArray[np.int64],
        items: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Fill the table with the parts that pairs need, and return the rows that each pair adds up (N, S)."""
        filled = self.item_rows
        columns = [self._item_rows(items), user_N + filled]
        user_UW = self.user_part(self.users.slice(torch.from_numpy(distinct))) + self.constant_W
        filled = self.table.fill(filled, user_UW)
        for counter, part, unseen_W in zip(self.counters, self.counter_parts, self.unseen_W, strict=True):
            rows = counter.rows(users, items)
            seen = rows != counter.unseen
            wanted, place = np.unique(rows[seen], return_inverse=True)
            column = np.full(len(rows), NONE)
            column[seen] = place + filled
            columns.append(column)
            filled = self.table.fill(filled, part(_numbers(counter.positions[wanted])) - unseen_W)
        return np.stack(columns, axis=1)

    def _item_rows(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.all_items:
            return items
        distinct, item_N = np.unique(items, return_inverse=True)
        self.table.fill(0, self.item_part(self.items.slice(torch.from_numpy(distinct))))
        return item_N

    def _attend(
        self, first_NW: Tensor, users: NDArray[np.int64], user_N: NDArray[np.int64], items: NDArray[np.int64]
    ) -> None:
        assert self.split.attention is not None
        assert self.candidates is not None
        low, high = int(user_N.min()), int(user_N.max()) + 1
        histories = {name: torch.from_numpy(ids_UL[users[low:high]]) for name, ids_UL in self.histories.items()}
        candidates_N = torch.from_numpy(self.candidates[items].astype(np.int64))
        self.split.attention.add_to(first_NW, histories, torch.from_numpy(user_N - low), candidates_N)

    def _side(self, codes: pl.DataFrame, raw: pl.DataFrame, counters: list[CounterPlan]) -> tuple[Part, Features]:
        """Return the part of a side's columns, and their encoded rows, with the counters that the context fixes."""
        keys = raw.with_columns(pl.lit(value).alias(name) for name, value in self.references.items())
        counted = positions_of(self.day.state, keys, counters, self.plan, self.bundle.encoder)
        known = pl.concat([codes, counted], how="horizontal")
        part = self.split.part({name.removesuffix("_code").removesuffix("_position") for name in known.columns})
        return part, tensors(known, single=part.single, numeric=part.numeric, pooled=part.pooled)

    def _of_context(self, counters: list[CounterPlan]) -> list[Tensor]:
        if not self.references:
            return []
        context = pl.DataFrame({name: [value] for name, value in self.references.items()})
        part, features = self._side(encode(context, self.bundle.encoder), context, counters)
        return [part(features)[0]]

    def _counter(self, counter: CounterPlan) -> PairCounter:
        sides = self.day.users, self.day.items
        return pair_counter(self.day.state, sides, counter, self.plan, self.references, self.bundle.encoder)

    def _check_columns(self, of_context: list[CounterPlan]) -> None:
        parts = [self.user_part, self.item_part, *self.counter_parts]
        made = {name for part in parts for name in (*part.single, *part.numeric, *part.pooled)}
        made |= {*self.references, *self.split.attended, *(name for one in of_context for name in one.features())}
        spec = self.split.spec
        assert made >= {*spec.single, *spec.numeric, *spec.pooled}, "every column is in one part"


def _numbers(positions: NDArray[np.float32]) -> Features:
    """Return the features of rows that have numeric columns only."""
    return Features(torch.zeros(len(positions), 0, dtype=torch.int64), torch.from_numpy(positions))
