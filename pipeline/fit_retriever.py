"""Fit the two towers on the clicked rows, which are gathered block by block into pools that are shuffled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
import torch

from models.inputs import Features
from models.optimizer import build_optimizers
from models.ranker import RankerSpec
from models.retriever import Retriever, RetrieverSpec, in_batch_softmax
from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.dataset import Block, Day, Examples, device_of
from pipeline.distributed import World, current
from pipeline.fit_state import FitState, finish, finished, load_kept
from pipeline.stage import progress

POOL_ROWS = 131_072
"""Clicked rows that are shuffled together: as few blocks as have so many."""

Pool = Sequence[Block]


@dataclass(frozen=True)
class Clicked:
    """Clicked rows, of which some converted."""

    users: Features
    items: Features
    item_codes: torch.Tensor
    """The number of a row's item among all clicked ones."""
    shares: torch.Tensor
    """Of all clicks, those on the row's item."""
    conversions: torch.Tensor

    def select(self, rows: torch.Tensor, device: torch.device) -> "Clicked":
        """Return some rows, by their numbers, on a device."""
        return Clicked(
            self.users.slice(rows).to(device),
            self.items.slice(rows).to(device),
            self.item_codes[rows].to(device),
            self.shares[rows].to(device),
            self.conversions[rows].to(device),
        )


@dataclass(frozen=True)
class Columns:
    """What turns a block into clicked rows."""

    spec: RetrieverSpec
    ranker: RankerSpec
    """Names the columns of a block's features."""
    items: pl.DataFrame
    """Each clicked `item_id` with its `number` and its `clicks`, in order of the ids."""
    clicks: int


def fit_retriever(
    config: Config,
    spec: RetrieverSpec,
    columns: RankerSpec,
    training: Sequence[Day],
    begin: Callable[[Retriever], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Retriever, list[float]]:
    """Fit the two towers on the clicked rows; conversions among them train the second space.

    Both count as known before the cutoff, whatever labels.immature says: the softmax takes positives alone, so a
    conversion that is still to come is a pair less, not a wrong negative.
    Items enter a batch in proportion to their clicks, which the correction log q(item) takes back out. `begin` sets
    the initial weights; by default they are the seed's. Memory holds `POOL_ROWS` clicked rows, a block, and a number
    and a count for each item. Processes that have been joined share each batch's rows and see all of its items.

    Raises:
        ValueError: a loss or a weight is no finite number any more, or several processes do not find the same
            checkpoint.
    """
    retriever, kept = Retriever(spec), load_kept(checkpoint)
    found = finished(checkpoint, kept, retriever)
    if found is not None:
        return retriever.eval(), found
    if begin is not None:
        begin(retriever)
    state = _begun(config, retriever.to(device_of(config.training.device)), checkpoint)
    with torch.random.fork_rng(devices=[state.device] if state.device.type == "cuda" else []):
        if kept is not None:
            state.restore(kept)
        items = _item_clicks(training)
        of_blocks = Columns(spec, columns, items, int(items["clicks"].sum()))
        for _ in progress(range(state.epoch, config.retriever.epochs), "train retriever"):
            _epoch(config, state, training, of_blocks)
    finish(checkpoint, retriever, state.curve)
    return retriever.to("cpu").eval(), state.curve


def _begun(config: Config, retriever: Retriever, checkpoint: Checkpoint | None) -> FitState:
    settings = config.retriever
    optimizers = build_optimizers(
        retriever,
        learning_rate=settings.learning_rate,
        embedding_learning_rate=settings.embedding_learning_rate,
        weight_decay=0.0,
    )
    device = next(retriever.parameters()).device
    return FitState(retriever, optimizers, torch.Generator().manual_seed(config.seed), device, checkpoint)


def _epoch(config: Config, state: FitState, training: Sequence[Day], columns: Columns) -> None:
    pools = state.plan(partial(plan_pools, training))
    for pool in pools[state.done :]:
        for rows in _batches(pool, config.retriever.batch_size, columns, state):
            state.total += _step(state, rows)
        state.trained(sum(block.rows for block in pool), last=state.done + 1 == len(pools))
    state.curve.append(state.total / columns.clicks)
    # The loss is that before the last step, which alone may spoil the weights.
    if not (np.isfinite(state.curve[-1]) and all(bool(weight.isfinite().all()) for weight in state.model.parameters())):
        raise ValueError(
            f"training of the retriever diverged in epoch {state.epoch + 1}: its loss or a weight is no finite number; "
            "lower retriever.learning_rate and retriever.embedding_learning_rate"
        )
    state.next_epoch(last=state.epoch + 1 == config.retriever.epochs)


def plan_pools(days: Sequence[Day], generator: torch.Generator) -> list[Pool]:
    """Return an epoch's pools: successive ones of all days' shuffled blocks with clicks, each with enough of them.

    Where one pool holds all, its blocks stay in the order of time, since its rows are shuffled anyway.
    """
    blocks = [block for day in days for block in day.blocks() if block.clicked_rows]
    if sum(block.clicked_rows for block in blocks) <= POOL_ROWS:
        return [blocks]
    pools: list[list[Block]] = [[]]
    for number in torch.randperm(len(blocks), generator=generator).tolist():
        if sum(block.clicked_rows for block in pools[-1]) >= POOL_ROWS:
            pools.append([])
        pools[-1].append(blocks[number])
    return [*pools]


def _batches(pool: Pool, batch_size: int, columns: Columns, state: FitState) -> Iterator[Clicked]:
    """Yield this process's rows of each batch of a pool: its share of them, to one row."""
    world = current()
    clicked = read_pool(pool, columns)
    order = torch.randperm(len(clicked.item_codes), generator=state.generator)
    for rows in torch.split(order, batch_size):
        own = torch.tensor_split(rows, world.size)[world.rank]
        yield clicked.select(own, state.device)


def read_pool(pool: Pool, columns: Columns) -> Clicked:
    """Read the clicked rows of a pool's blocks, one block after another."""
    parts = [_clicked(block.read(), columns) for block in pool]
    return Clicked(
        _joined([part.users for part in parts]),
        _joined([part.items for part in parts]),
        torch.cat([part.item_codes for part in parts]),
        torch.cat([part.shares for part in parts]),
        torch.cat([part.conversions for part in parts]),
    )


def _clicked(block: Examples, columns: Columns) -> Clicked:
    rows = torch.nonzero(block.clicks).flatten()
    names = block.frame.select("item_id")[rows.numpy()]
    found = names.join(columns.items, on="item_id", how="left", maintain_order="left")
    clicks = torch.from_numpy(found["clicks"].to_numpy().astype(np.int64))
    spec = columns.spec
    return Clicked(
        _side(block, rows, columns.ranker, (spec.user_single, spec.user_numeric, spec.user_pooled)),
        _side(block, rows, columns.ranker, (spec.item_single, spec.item_numeric, spec.item_pooled)),
        torch.from_numpy(found["number"].to_numpy().astype(np.int64)),
        clicks.float() / columns.clicks,
        block.conversions[rows],
    )


def _side(
    block: Examples,
    rows: torch.Tensor,
    ranker: RankerSpec,
    names: tuple[Sequence[str], Sequence[str], Sequence[str] | dict[str, str]],
) -> Features:
    """Pick one side's columns out of the ranker's features of some rows."""
    single, numeric, pooled = names
    ids = [list(ranker.single).index(name) for name in single]
    positions = [list(ranker.numeric).index(name) for name in numeric]
    return Features(
        block.features.ids_BF[rows][:, ids],
        block.features.positions_BF[rows][:, positions],
        {name: block.features.pooled[name][rows] for name in pooled},
    )


def _joined(parts: Sequence[Features]) -> Features:
    return Features(
        torch.cat([part.ids_BF for part in parts]),
        torch.cat([part.positions_BF for part in parts]),
        {name: torch.cat([part.pooled[name] for part in parts]) for name in parts[0].pooled},
    )


def _item_clicks(training: Sequence[Day]) -> pl.DataFrame:
    """Count the clicks of each item over all days, and number the items in the order of their ids."""
    counted = pl.DataFrame(schema={"item_id": pl.String, "clicks": pl.UInt32})
    for day in training:
        counted = pl.concat([counted, day.item_clicks()]).group_by("item_id").agg(pl.col("clicks").sum())
    return counted.sort("item_id").with_row_index("number")


def _step(state: FitState, own: Clicked) -> float:
    """Descend the loss of one batch, and return it times the batch's rows."""
    world, retriever = current(), state.model
    assert isinstance(retriever, Retriever)
    state.optimizers.zero_grad()
    vectors = retriever.users(own.users), retriever.items(own.items)
    users, items, batch = _whole(world, vectors, own)
    loss = retriever_loss(retriever.spec.temperature, users, items, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    # Every process has the loss of the whole batch, and of its gradient what its own vectors carry.
    world.sum_gradients(retriever.parameters(), loss.detach(), rows=len(own.conversions))
    state.optimizers.step()
    return float(loss.detach()) * len(batch.conversions)


def _whole(
    world: World, vectors: tuple[torch.Tensor, torch.Tensor], own: Clicked
) -> tuple[torch.Tensor, torch.Tensor, Clicked]:
    """Return the vectors and rows of the whole batch; those of other processes are constants."""
    if world.size == 1:
        return *vectors, own
    gathered = [world.gather(one.detach()) for one in vectors]
    for parts, one in zip(gathered, vectors, strict=True):
        parts[world.rank] = one
    users, items = (torch.cat(parts) for parts in gathered)
    rest = [torch.cat(world.gather(one)) for one in (own.item_codes, own.shares, own.conversions)]
    return users, items, replace(own, item_codes=rest[0], shares=rest[1], conversions=rest[2])


def retriever_loss(
    temperature: float, users_B2S: torch.Tensor, items_B2S: torch.Tensor, batch: Clicked
) -> torch.Tensor:
    """Add the in-batch softmax of the click space and, over converted rows, of the conversion space."""
    losses = [
        in_batch_softmax(
            users_B2S[:, space],
            items_B2S[:, space],
            item_ids_B=batch.item_codes,
            log_q_B=batch.shares.log(),
            weights_B=weights,
            temperature=temperature,
        )
        for space, weights in enumerate((torch.ones_like(batch.conversions), batch.conversions))
    ]
    return torch.stack(losses).sum()
