"""All that decides how a fit goes on: weights, optimisers, random states and the place in the data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from models.optimizer import Optimizers, under
from models.task_weights import Balance, StaticWeights
from pipeline.checkpoint import Checkpoint, Kept
from pipeline.distributed import current
from pipeline.stage import LOG

Plan = TypeVar("Plan")


@dataclass
class FitState:
    """A model that is being fitted, between two rounds of its data."""

    model: nn.Module
    optimizers: Optimizers
    generator: torch.Generator
    """Draws the order of the data."""
    device: torch.device
    checkpoint: Checkpoint | None = None
    balance: Balance = field(default_factory=StaticWeights)
    epoch: int = 0
    done: int = 0
    """Rounds of this epoch that have been trained on."""
    total: float = 0.0
    """Sum of this epoch's losses."""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[Any] = field(default_factory=list)
    rows: int = 0
    """Trained on since the last checkpoint."""
    begun: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """The generator's state when this epoch began."""

    def plan(self, of_epoch: Callable[[torch.Generator], Plan]) -> Plan:
        """Return the epoch's plan as it was drawn when the epoch began."""
        if not self.done:
            self.begun = self.generator.get_state()
            return of_epoch(self.generator)
        now = self.generator.get_state()
        self.generator.set_state(self.begun)
        plan = of_epoch(self.generator)
        self.generator.set_state(now)
        return plan

    def trained(self, rows: int, *, last: bool) -> None:
        """Count a round; after enough rows all is kept, unless the round was the epoch's last."""
        self.done += 1
        self.rows += rows
        if self.checkpoint is not None and not last and self.rows >= self.checkpoint.every_rows:
            self.save()

    def next_epoch(self, *, last: bool) -> None:
        """Begin an epoch; all is kept, unless the one before was the last."""
        self.epoch, self.done, self.total = self.epoch + 1, 0, 0.0
        if not last:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, if there is one."""
        self.rows = 0
        if self.checkpoint is None:
            return
        tensors = {
            **_named("model", self.model.state_dict()),
            **_named("best", self.best),
            **_named("optimizers", self.optimizers.state_tensors()),
            **_named("balance", self.balance.state_tensors()),
            "random.data": self.generator.get_state(),
            "random.begun": self.begun,
            "random.cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        places = {"epoch": self.epoch, "done": self.done, "total": self.total, "curve": self.curve}
        self.checkpoint.save(tensors, {"finished": False, **places})

    def restore(self, kept: Kept) -> None:
        """Go on where a checkpoint was written."""
        tensors, values = kept.tensors, kept.values
        self.model.load_state_dict(under("model", tensors))
        self.best = {name: value.to(self.device) for name, value in under("best", tensors).items()}
        self.optimizers.load_state_tensors(under("optimizers", tensors))
        self.balance.load_state_tensors(under("balance", tensors))
        self.generator.set_state(tensors["random.data"])
        self.begun = tensors["random.begun"]
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.epoch, self.done, self.total = values["epoch"], values["done"], values["total"]
        self.curve = values["curve"]
        assert self.checkpoint is not None
        LOG.info("%s: training goes on in epoch %d after %d rounds", self.checkpoint.path, self.epoch + 1, self.done)


def load_kept(checkpoint: Checkpoint | None) -> Kept | None:
    """Return what a checkpoint holds, if there is one; returns when all processes have read it.

    Raises:
        ValueError: processes that train together find different ones, or the file is damaged.
    """
    if checkpoint is None:
        return None
    world, kept = current(), checkpoint.load()
    place = torch.tensor([-1, -1, -1])
    if kept is not None:
        place = torch.tensor([kept.values["finished"], kept.values.get("epoch", 0), kept.values.get("done", 0)])
    places_R3 = torch.zeros(world.size, 3, dtype=torch.int64)
    places_R3[world.rank] = place
    check_places(checkpoint, world.sum(places_R3))
    return kept


def check_places(checkpoint: Checkpoint, places_R3: torch.Tensor) -> None:
    """Refuse to go on from different places: finished, epoch and round of each of R processes, -1 for no checkpoint.

    Raises:
        ValueError: they differ.
    """
    if not bool((places_R3 == places_R3[0]).all()):
        raise ValueError(
            f"{checkpoint.path} is not the same to all {len(places_R3)} processes (finished, epoch and round, -1 where "
            f"it is missing or of another training: {places_R3.tolist()}): all of them need one workspace on shared "
            "storage without a cache of names, and the same version of counterpoise; correct that and train again"
        )


def finished(checkpoint: Checkpoint | None, kept: Kept | None, model: nn.Module) -> list[Any] | None:
    """Give a model the weights that an interrupted train had finished, and return their curve; None without any."""
    if checkpoint is None or kept is None or not kept.values["finished"]:
        return None
    model.load_state_dict(under("model", kept.tensors))
    LOG.info("%s: this model was trained before train was interrupted", checkpoint.path)
    curve: list[Any] = kept.values["curve"]
    return curve


def finish(checkpoint: Checkpoint | None, model: nn.Module, curve: list[Any]) -> None:
    """Keep a trained model until all models of its run are."""
    if checkpoint is not None:
        checkpoint.save(_named("model", model.state_dict()), {"finished": True, "curve": curve})


def _named(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
