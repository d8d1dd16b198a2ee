"""The processes that train together: `torchrun` starts them, each takes its shards of every batch, all step alike."""

import datetime as dt
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as group

from pipeline import threads, torchrun
from pipeline.stage import CONSOLE, LOG

TIMEOUT = dt.timedelta(hours=1)
"""How long a process waits for the others: the longest that rank 0 writes alone."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    def leads(self) -> bool:
        """Return whether this process writes files and logs."""
        return self.rank == 0

    def mine(self, shards: int) -> range:
        """Return the shards of each batch that this process takes: successive ones, as many as the others.

        Raises:
            ValueError: the processes cannot take equal numbers of shards.
        """
        if shards % self.size:
            raise ValueError(
                f"training.shards = {shards} cannot be dealt to {self.size} processes: set it to a multiple of them, "
                "the same for every number of processes that is to give the same model"
            )
        share = shards // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same on each; alone the values themselves."""
        if self.size == 1:
            return values
        # NCCL sums what lies on a GPU only.
        summed = values.cuda() if group.get_backend() == "nccl" else values.clone()
        group.all_reduce(summed)
        return summed.to(values.device)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            group.barrier()

    def sum_gradients(self, weights: Iterable[nn.Parameter], loss: Tensor, *, rows: int) -> Tensor:
        """Put the gradient of the whole batch on every process, and return its loss.

        A weight that no process has a gradient of keeps none, and a table's row that no process read is not updated.

        Args:
            weights: of the model, in an order that all processes share.
            loss: this process's share of the batch's.
            rows: of the batch in this process; with none its gradients do not count.
        """
        if self.size == 1:
            return loss
        parts = list(weights)
        tables = [one for one in parts if one.grad is not None and one.grad.is_sparse]
        indices = {id(table) for table in tables}
        summed = self._sum_dense([one for one in parts if id(one) not in indices], loss, counts=rows > 0)
        for table in tables:
            self._sum_sparse(table, counts=rows > 0)
        return summed

    def _sum_dense(self, weights: list[nn.Parameter], loss: Tensor, *, counts: bool) -> Tensor:
        present = [float(counts and weight.grad is not None) for weight in weights]
        gradients = [
            weight.grad.flatten() if weight.grad is not None and there else torch.zeros_like(weight).flatten()
            for weight, there in zip(weights, present, strict=True)
        ]
        own_loss = loss.reshape(1) if counts else torch.zeros_like(loss).reshape(1)
        flat = torch.cat([own_loss, torch.tensor(present, device=loss.device), *gradients])
        group.all_reduce(flat)
        flags, rest = flat[1 : 1 + len(weights)], flat[1 + len(weights) :]
        pieces = torch.split(rest, [weight.numel() for weight in weights])
        for weight, flag, piece in zip(weights, flags.tolist(), pieces, strict=True):
            weight.grad = piece.view_as(weight) if flag else None
        return flat[0]

    def _sum_sparse(self, table: nn.Parameter, *, counts: bool) -> None:
        """Give every process the rows of all, in the order of ranks, so that all add them up alike."""
        assert table.grad is not None
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        if not counts:
            rows, values = rows[:0], values[:0]
        gathered = torch.cat(self.gather(rows)), torch.cat(self.gather(values))
        table.grad = torch.sparse_coo_tensor(gathered[0].unsqueeze(0), gathered[1], table.shape, check_invariants=False)

    def gather(self, part: Tensor) -> list[Tensor]:
        """Return every process's tensor in the order of ranks; they may differ in their first dimension."""
        if self.size == 1:
            return [part]
        lengths = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(self.size)]
        group.all_gather(lengths, torch.tensor([len(part)], device=part.device))
        longest = int(max(lengths))
        padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        found = [torch.empty_like(padded) for _ in range(self.size)]
        group.all_gather(found, padded)
        return [one[: int(length)] for one, length in zip(found, lengths, strict=True)]


def current() -> World:
    """Return this process's place: alone where no others have been joined."""
    if not group.is_initialized():
        return World()
    return World(group.get_rank(), group.get_world_size())


def join(device: torch.device) -> World:
    """Meet the other processes that torchrun started, over NCCL on GPUs and gloo elsewhere; alone without torchrun.

    A process takes its share of this host's cores and, on GPUs, the one of its number on this host. Only rank 0 shows
    progress.

    Raises:
        ValueError: this host has fewer GPUs than processes.
    """
    if not torchrun.asked_for() or group.is_initialized():
        return current()
    local, locals_ = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads.share_of_cores(locals_))
    if device.type == "cuda":
        check_devices(locals_, torch.cuda.device_count())
        torch.cuda.set_device(local)
    store, rank, size = next(iter(group.rendezvous("env://", timeout=TIMEOUT)))  # type: ignore[attr-defined]
    if locals_ == size:
        # On one host torchrun keeps its store over restarts: without this the addresses of the killed are found in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = group.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    group.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = current()
    CONSOLE.quiet = CONSOLE.quiet or not world.leads()
    LOG.info("%d processes train together, over %s", world.size, group.get_backend())
    return world


def check_devices(processes: int, devices: int) -> None:
    """Refuse more processes than GPUs on a host: each takes one of its own.

    Raises:
        ValueError: there are too many.
    """
    if processes > devices:
        raise ValueError(
            f"torchrun started {processes} processes on a host with {devices} GPUs, and each needs one: set "
            f"--nproc-per-node to {devices} or less, or training.device = 'cpu'"
        )


def leave() -> None:
    """Part from the other processes."""
    if group.is_initialized():
        group.destroy_process_group()
