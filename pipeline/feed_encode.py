"""From tables/candidates to the records of a version, some users at a time."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.feed_records import FIELD_BYTES, ITEM_BYTES, MAX_USER_BYTES, seal, seed_of

ROWS_A_BATCH = 2_000_000
TOP = 15  # half precision is normal up to 2**15 and some beyond


@dataclass(frozen=True)
class Day:
    """The lists of a day.

    Attributes:
        lists: user_id, rank, item_id and the fields, in any order of rows.
        fields: what goes with every item.
        users: all ids, in order.
        items: all ids, in order; the place is the item's number.
        scales: of each field.
        candidates: rows.
        model_versions: those that made the lists.
    """

    lists: pl.LazyFrame
    fields: list[str]
    users: pl.Series
    items: pl.Series
    scales: list[float]
    candidates: int
    model_versions: list[str]

    def size_bytes(self) -> int:
        """Return the bytes of all keys and records, at most."""
        width = ITEM_BYTES + FIELD_BYTES * len(self.fields)
        keys = self.users.str.len_bytes().sum()
        return int(keys) + self.candidates * width + 32 * len(self.users)


def read_day(lists: pl.LazyFrame, fields: Sequence[str]) -> Day:
    """Learn what a day's lists hold.

    Raises:
        ValueError: they are empty, a field is no number of theirs, or an id cannot be a key.
    """
    schema = lists.collect_schema()
    numeric = {name for name, kind in schema.items() if kind.is_numeric() or kind == pl.Boolean}
    if strangers := [name for name in fields if name not in numeric]:
        numbers = sorted(name for name in numeric if not schema[name].is_integer())
        raise ValueError(f"feed.fields names {strangers}, no numbers of the lists: expected some of {numbers}")
    # an engine that streams holds what is distinct, not the rows
    users, items, versions = (
        lists.select(pl.col(name).unique().sort()).collect(engine="streaming").to_series()
        for name in ("user_id", "item_id", "model_version")
    )
    if users.is_empty():
        raise ValueError("the lists are empty: nothing was published, what was published before stays")
    wrong = users.filter(~users.str.len_bytes().is_between(1, MAX_USER_BYTES))
    if len(wrong):
        raise ValueError(
            f"user_id {wrong[0][:40]!r} cannot be a key: expected 1 to {MAX_USER_BYTES} bytes; change it in the source"
        )
    largest = lists.select(pl.len(), *(pl.col(name).cast(pl.Float64).abs().max() for name in fields))
    count, *values = largest.collect(engine="streaming").row(0)
    scales = [scale_of(name, value) for name, value in zip(fields, values, strict=True)]
    return Day(lists, list(fields), users, items, scales, count, versions.to_list())


def scale_of(name: str, largest: float | None) -> float:
    """Return the power of two that brings the largest value to at most 2**15.

    Raises:
        ValueError: there is no largest value.
    """
    if largest is None or not math.isfinite(largest):
        raise ValueError(f"{name} of the lists is {largest}: expected finite numbers; run `counterpoise rank` again")
    return 1.0 if largest == 0 else 2.0 ** (math.ceil(math.log2(largest)) - TOP)


@dataclass(frozen=True)
class Batch:
    """Some users' lists as columns, in the order of user and rank.

    Attributes:
        frame: the rows.
        users: their keys.
        lengths: items of each user.
        numbers: of each item, uint32.
        values: of each field, half precision.
    """

    frame: pl.DataFrame
    users: list[bytes]
    lengths: np.ndarray[Any, np.dtype[np.uint32]]
    numbers: bytes
    values: list[bytes]

    def records(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield each user's key and record in a version of this name."""
        seed, end = seed_of(name), 0
        for user, length in zip(self.users, self.lengths.tolist(), strict=True):
            start, end = end, end + length
            parts = [values[FIELD_BYTES * start : FIELD_BYTES * end] for values in self.values]
            yield user, seal(b"".join([self.numbers[ITEM_BYTES * start : ITEM_BYTES * end], *parts]), seed)


def batches(day: Day, rows: int = ROWS_A_BATCH) -> Iterator[Batch]:
    """Yield the day's lists, users of about so many rows at a time in the order of their keys; memory holds these."""
    numbers = pl.Enum(day.items)
    users_a_batch = max(1, rows * len(day.users) // day.candidates)
    for start in range(0, len(day.users), users_a_batch):
        users = day.users.slice(start, users_a_batch)
        mine = day.lists.filter(pl.col("user_id").is_between(pl.lit(users[0]), pl.lit(users[-1])))
        frame = mine.sort("user_id", "rank").collect(engine="streaming")
        lengths = frame["user_id"].rle().struct.field("len").to_numpy()
        assert len(lengths) == len(users), "one list a user"
        codes = frame["item_id"].cast(numbers).to_physical().cast(pl.UInt32).to_numpy()
        values = [
            (frame[name].cast(pl.Float64).to_numpy() / scale).astype("<f2").tobytes()
            for name, scale in zip(day.fields, day.scales, strict=True)
        ]
        yield Batch(frame, [user.encode() for user in users], lengths, codes.astype("<u4").tobytes(), values)


class Digest:
    """The SHA-256 of lists as records hold them, whatever the batches."""

    def __init__(self, day: Day) -> None:
        self.hashes = [hashlib.sha256() for _ in range(3 + len(day.fields))]
        self.head = repr((day.fields, day.scales, day.model_versions)).encode()

    def update(self, batch: Batch) -> None:
        """Count a batch in."""
        users = b"".join(len(user).to_bytes(2, "little") + user for user in batch.users)
        parts = [users, batch.lengths.astype("<u4").tobytes(), batch.numbers, *batch.values]
        for hashed, part in zip(self.hashes, parts, strict=True):
            hashed.update(part)

    def hexdigest(self, catalogue: bytes, scored_for: str) -> str:
        """Return the digest of the batches with the ids of their items and their day."""
        parts = [self.head, scored_for.encode(), hashlib.sha256(catalogue).digest()]
        return hashlib.sha256(b"\n".join(parts + [hashed.digest() for hashed in self.hashes])).hexdigest()
