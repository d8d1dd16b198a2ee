"""The order in which training takes rows, whoever takes them."""

from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.inputs import Features
from models.losses import Targets
from pipeline.dataset import Block, Examples
from pipeline.label_sums import LabelSums
from pipeline.maturity import Supervision
from pipeline.rounds import Rows, batches, plan_epoch, steps_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class NumberedDay:
    """A day whose only feature is the number of the row, in blocks of given sizes."""

    first: int
    sizes: tuple[int, ...]

    def blocks(self) -> list[Block]:
        """Return the blocks, the numbers of which follow each other."""
        starts = [self.first + sum(self.sizes[:number]) for number in range(len(self.sizes))]
        return [Block(size, 0, partial(_numbered, start, size)) for start, size in zip(starts, self.sizes, strict=True)]

    def label_sums(self) -> LabelSums:
        """Return none."""
        return LabelSums()

    def item_clicks(self) -> pl.DataFrame:
        """Return none."""
        return pl.DataFrame()


def _numbered(start: int, size: int) -> Examples:
    numbers = torch.arange(start, start + size)
    column = numbers.float()
    features = Features(numbers.unsqueeze(1), column.unsqueeze(1), {"tags": numbers.unsqueeze(1)})
    targets = Targets(column, column, column, column, {"task": (column, column)})
    return Examples(features, column, column, pl.DataFrame(), Supervision(targets, {}))


def _epoch(days: list[NumberedDay], *, shards: int, batch_size: int, processes: int = 1, rank: int = 0) -> list[Rows]:
    generator = torch.Generator().manual_seed(3)
    share = shards // processes
    mine = range(rank * share, (rank + 1) * share)
    rounds = plan_epoch(days, shards, generator)
    found = [row for one in rounds for row in batches(one, mine, batch_size, generator, CPU)]
    assert len(found) == sum(steps_of(one, batch_size) for one in rounds)
    return found


def _numbers(rows: Rows) -> list[int]:
    found = rows.features.ids_BF[: rows.count, 0].tolist()
    assert rows.targets.clicks_B[: rows.count].tolist() == found
    assert rows.targets.extra["task"][1][: rows.count].tolist() == found
    assert rows.features.pooled["tags"][: rows.count, 0].tolist() == found
    return [int(number) for number in found]


def test_days_of_one_block_are_shuffled_by_the_generator_alone_one_after_another() -> None:
    days = [NumberedDay(0, (10,)), NumberedDay(10, (7,))]
    generator = torch.Generator().manual_seed(3)
    expected = [torch.split(torch.randperm(size, generator=generator) + first, 4) for first, size in ((0, 10), (10, 7))]
    found = [_numbers(rows) for rows in _epoch(days, shards=1, batch_size=4)]
    assert found == [part.tolist() for parts in expected for part in parts]


SIZES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, shards=st.sampled_from([1, 2, 4]), processes=st.sampled_from([1, 2, 4]))
def test_an_epoch_takes_every_row_once_and_any_number_of_processes_the_same_batches(
    sizes: list[list[int]], shards: int, processes: int
) -> None:
    processes = min(processes, shards)
    firsts = [sum(sum(day) for day in sizes[:number]) for number in range(len(sizes))]
    days = [NumberedDay(first, tuple(day)) for first, day in zip(firsts, sizes, strict=True)]
    alone = _epoch(days, shards=shards, batch_size=8)
    assert sorted(number for rows in alone for number in _numbers(rows)) == list(range(sum(map(sum, sizes))))
    assert all(rows.count == rows.of_batch <= 8 for rows in alone)
    parts = [_epoch(days, shards=shards, batch_size=8, processes=processes, rank=rank) for rank in range(processes)]
    for whole, *shared in zip(alone, *parts, strict=True):
        assert _numbers(whole) == [number for rows in shared for number in _numbers(rows)]
        assert {rows.of_batch for rows in shared} == {whole.count}
        assert [rows.before for rows in shared] == [
            sum(rows.count for rows in shared[:rank]) for rank in range(processes)
        ]
        assert sum(rows.share() for rows in shared) == pytest.approx(1)
        assert all(len(rows.features) == max(rows.count, 1) for rows in shared)
        masks = [rows.targets.click_mask_B + rows.targets.extra["task"][1] for rows in shared if not rows.count]
        assert not any(mask.any() for mask in masks)


def test_the_blocks_of_a_day_are_shuffled_but_stay_in_their_day() -> None:
    days = [NumberedDay(0, (1,) * 50), NumberedDay(50, (1,) * 50)]
    found = [_numbers(rows)[0] for rows in _epoch(days, shards=1, batch_size=4)]
    assert sorted(found[:50]) == list(range(50))
    assert found[:50] != sorted(found[:50])


def test_blocks_that_are_too_few_for_the_shards_are_cut() -> None:
    (first, second), (third,) = (
        plan_epoch([NumberedDay(0, sizes)], 2, torch.Generator().manual_seed(0)) for sizes in ((9, 9, 9), (5,))
    )
    assert [(piece.start, piece.stop) for piece in first] == [(0, 9), (0, 9)]
    assert [(piece.start, piece.stop) for piece in second] == [(0, 4), (4, 9)]
    assert [(piece.start, piece.stop) for piece in third] == [(0, 2), (2, 5)]
    assert replace(first[0], stop=3).block is first[0].block
