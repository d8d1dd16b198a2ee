"""The order in which training takes rows: rounds of shuffled blocks, dealt to shards, cut into batches.

A round is as many pieces of one day's blocks as there are shards; a batch takes as many rows from each. One process
takes some of the shards, so that any number of them goes through the same batches. Between two rounds, the number of
rounds and the state of the generator are all that there is to know of the order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from models.inputs import Features
from models.losses import Targets
from pipeline.dataset import Block, Day, Examples


@dataclass(frozen=True)
class Piece:
    """Successive rows of a block."""

    block: Block
    start: int
    stop: int


Round = tuple[Piece, ...]
"""One piece a shard."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch in this process; where it has none, one row stands in that must not count."""

    features: Features
    targets: Targets
    count: int
    of_batch: int
    """Rows of the whole batch, over all processes."""
    before: int
    """Rows of the batch in the processes before this one."""

    def share(self) -> float:
        """Return the share of the batch in this process."""
        return self.count / self.of_batch


def plan_epoch(days: Sequence[Day], shards: int, generator: torch.Generator) -> list[Round]:
    """Return an epoch's rounds: days follow each other in time, the blocks of a day are shuffled.

    Blocks that are too few for a round are cut into as many parts as there are shards.
    """
    rounds: list[Round] = []
    for day in days:
        blocks = day.blocks()
        if len(blocks) > 1:
            blocks = [blocks[number] for number in torch.randperm(len(blocks), generator=generator).tolist()]
        whole = len(blocks) - len(blocks) % shards
        rounds += [
            tuple(Piece(block, 0, block.rows) for block in blocks[first : first + shards])
            for first in range(0, whole, shards)
        ]
        rounds += [_cut(block, shards) for block in blocks[whole:]]
    return rounds


def _cut(block: Block, shards: int) -> Round:
    ends = [block.rows * number // shards for number in range(shards + 1)]
    return tuple(Piece(block, start, stop) for start, stop in pairwise(ends))


def steps_of(one: Round, batch_size: int) -> int:
    """Return the batches of a round: a shard that runs out gives no rows to the last of them."""
    a_shard = batch_size // len(one)
    return max(-(-(piece.stop - piece.start) // a_shard) for piece in one)


def batches(
    one: Round, mine: range, batch_size: int, generator: torch.Generator, device: torch.device
) -> Iterator[Rows]:
    """Yield a round's batches with the rows of some shards; rows are shuffled within a piece.

    Args:
        one: the round.
        mine: the shards whose rows are read.
        batch_size: rows of a whole batch, a multiple of the shards.
        generator: draws the orders of all shards, whoever takes them.
        device: where rows are put.
    """
    a_shard = batch_size // len(one)
    orders = [torch.randperm(piece.stop - piece.start, generator=generator) + piece.start for piece in one]
    parts = [torch.split(order, a_shard) for order in orders]
    features, targets, offsets = _read([one[shard].block for shard in mine])
    for step in range(steps_of(one, batch_size)):
        taken = [part[step] if step < len(part) else orders[0][:0] for part in parts]
        own = [taken[shard] + offset for shard, offset in zip(mine, offsets, strict=True)]
        rows = torch.cat(own)
        count = len(rows)
        chosen = rows if count else torch.zeros(1, dtype=torch.int64)
        told = targets.select(chosen, device)
        yield Rows(
            features.slice(chosen).to(device),
            told if count else _untold(told),
            count,
            sum(len(part) for part in taken),
            sum(len(part) for part in taken[: mine.start]),
        )


def _untold(targets: Targets) -> Targets:
    """Return targets that train nothing: what sums over a batch must not count the row that stands in for none."""
    none_B = torch.zeros_like(targets.click_mask_B)
    extra = {name: (labels_B, none_B) for name, (labels_B, _) in targets.extra.items()}
    return replace(targets, click_mask_B=none_B, conversion_mask_B=none_B, extra=extra)


def _read(blocks: Sequence[Block]) -> tuple[Features, Targets, list[int]]:
    """Read blocks, each once, side by side, and return where each begins."""
    begins: dict[int, int] = {}
    read: list[Examples] = []
    for block in blocks:
        if id(block) not in begins:
            begins[id(block)] = sum(len(one.clicks) for one in read)
            read.append(block.read())
    features, targets = read[0].features, read[0].supervision.targets
    if len(read) > 1:
        features = _joined_features([one.features for one in read])
        targets = _joined_targets([one.supervision.targets for one in read])
    return features, targets, [begins[id(block)] for block in blocks]


def _joined_features(parts: Sequence[Features]) -> Features:
    return Features(
        torch.cat([part.ids_BF for part in parts]),
        torch.cat([part.positions_BF for part in parts]),
        {name: torch.cat([part.pooled[name] for part in parts]) for name in parts[0].pooled},
    )


def _joined_targets(parts: Sequence[Targets]) -> Targets:
    return Targets(
        torch.cat([part.clicks_B for part in parts]),
        torch.cat([part.conversions_B for part in parts]),
        torch.cat([part.click_mask_B for part in parts]),
        torch.cat([part.conversion_mask_B for part in parts]),
        {
            name: (
                torch.cat([part.extra[name][0] for part in parts]),
                torch.cat([part.extra[name][1] for part in parts]),
            )
            for name in parts[0].extra
        },
    )
