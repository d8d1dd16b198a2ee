"""Counters of a user and an item together: which of a day's pairs they know, and the encoded features of those."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.asof import FeatureState, pair_features
from features.encoding import Encoder, encode
from features.plan import ITEM, USER, CounterPlan, FeaturePlan

MISSING = -1


@dataclass(frozen=True)
class PairCounter:
    """The keys of a counter among a day's users and items, and the features of each.

    Attributes:
        names: the features.
        positions: (R + 2, F) float32, encoded: of the R keys that it knows, of one never seen, and of a missing one.
        user_numbers: (U,) the number of each user's part of the key, -1 where it is missing.
        item_numbers: (I,) likewise of each item.
        item_count: how many numbers items have.
        codes: (R,) user number * item_count + item number of the known keys, sorted.
    """

    names: list[str]
    positions: NDArray[np.float32]
    user_numbers: NDArray[np.int64]
    item_numbers: NDArray[np.int64]
    item_count: int
    codes: NDArray[np.int64]

    @property
    def unseen(self) -> int:
        """Return the row in `positions` of a key that was never seen; that of a missing one follows."""
        return len(self.codes)

    def rows(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows in `positions` of pairs (N) of a user's and an item's row number."""
        user_numbers, item_numbers = self.user_numbers[users], self.item_numbers[items]
        wanted = user_numbers * self.item_count + item_numbers
        places = np.searchsorted(self.codes, wanted)
        rows = np.full(len(users), self.unseen)
        inside = places < len(self.codes)
        known = inside.copy()
        known[inside] = self.codes[places[inside]] == wanted[inside]
        rows[known] = places[known]
        rows[(user_numbers == MISSING) | (item_numbers == MISSING)] = self.unseen + 1
        return rows


@dataclass(frozen=True)
class Levels:
    """The counters of a plan that are neither a user's nor an item's, by what is left of them at a given context."""

    user: list[CounterPlan]
    item: list[CounterPlan]
    pair: list[CounterPlan]
    context: list[CounterPlan]


def levels_at_a_context(plan: FeaturePlan) -> Levels:
    """Sort counters of pairs and of the context by what they depend on once the context is one value."""
    found = Levels([], [], [], [])
    for counter in plan.at_level("pair"):
        keys = set(counter.keys) - set(plan.context)
        if not keys:
            found.context.append(counter)
        elif keys <= {USER, *plan.users.keys()}:
            found.user.append(counter)
        elif keys <= {ITEM, *plan.items.keys()}:
            found.item.append(counter)
        else:
            found.pair.append(counter)
    return found


def positions_of(
    state: FeatureState, frame: pl.DataFrame, counters: Iterable[CounterPlan], plan: FeaturePlan, encoder: Encoder
) -> pl.DataFrame:
    """Return the encoded features of some counters of pairs for rows with their key columns."""
    chosen = replace(plan, counters=tuple(counters))
    return encode(pair_features(state, frame, chosen).select(chosen.pair_columns()), encoder)


def pair_counter(
    state: FeatureState,
    sides: tuple[pl.DataFrame, pl.DataFrame],
    counter: CounterPlan,
    plan: FeaturePlan,
    references: Mapping[str, str],
    encoder: Encoder,
) -> PairCounter:
    """Find what a counter knows of a day's users and items at a context.

    Args:
        state: the state as of the day.
        sides: users and items, with their key columns.
        counter: a counter that is keyed by both.
        plan: the features.
        references: the context.
        encoder: the encodings.
    """
    numbers, distinct = zip(*(_numbered(side, counter) for side in sides), strict=True)
    held = state.counters.get(counter.name)
    known = pl.DataFrame(schema={**dict.fromkeys(counter.keys, pl.String), "code": pl.Int64})
    item_count = distinct[1].height
    if held is not None:
        given = [pl.col(name) == references[name] for name in counter.keys if name in references]
        known = held.select(counter.keys).filter(pl.lit(value=True), *given)
        for name, frame in zip(("user", "item"), distinct, strict=True):
            known = known.join(frame.rename({"number": name}), on=frame.columns[:-1])
        known = known.select(*counter.keys, (pl.col("user") * item_count + pl.col("item")).alias("code")).sort("code")
    keys = pl.concat([known.select(counter.keys), _strangers(held, counter)])
    positions = positions_of(state, keys, [counter], plan, encoder)
    return PairCounter(
        [name.removesuffix("_position") for name in positions.columns],
        np.ascontiguousarray(positions.to_numpy()),
        numbers[0],
        numbers[1],
        item_count,
        known["code"].to_numpy(),
    )


def _numbered(side: pl.DataFrame, counter: CounterPlan) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Return the number of each row's part of the key, and the distinct parts with their numbers."""
    keys = [name for name in counter.keys if name in side.columns]
    number = pl.int_range(pl.len(), dtype=pl.Int64).alias("number")
    distinct = side.select(keys).drop_nulls().unique(maintain_order=True).with_columns(number)
    rows = side.select(keys).join(distinct, on=keys, how="left", maintain_order="left")
    return rows["number"].fill_null(MISSING).to_numpy(), distinct


def _strangers(held: pl.DataFrame | None, counter: CounterPlan) -> pl.DataFrame:
    """Return a key that the counter has never seen, and a missing one."""
    # Nothing sorts between the largest value and this one.
    largest = "" if held is None or held.is_empty() else str(held[counter.keys[0]].max())
    return pl.DataFrame(
        {name: [f"{largest}\0", None] for name in counter.keys}, schema=dict.fromkeys(counter.keys, pl.String)
    )
