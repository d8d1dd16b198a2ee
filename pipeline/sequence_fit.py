"""Fit an encoder with its decoders on pairs of a source and targets: a fixed number of steps, then it is done.

Shapes: R pairs, B batch, L source length, C ids of a source position, N targets of a source, T target length.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sequence import PADDING, SequenceModel, SequenceSpec
from pipeline.stage import progress

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
LARGEST_GRADIENT = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Pairs:
    """Sources (R, L, C) and, by decoder, their targets (R, N, T), all padded with 0 behind their ends."""

    source_RLC: Tensor
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.source_RLC)

    def only(self, names: Collection[str]) -> "Pairs":
        """Return the targets of some decoders."""
        return Pairs(self.source_RLC, {name: ids for name, ids in self.targets.items() if name in names})

    def batch(self, rows_B: Tensor) -> "Pairs":
        """Return some rows, as short as the longest of them."""
        return Pairs(
            _trimmed(self.source_RLC[rows_B], 1),
            {name: _trimmed(_trimmed(ids[rows_B], 2), 1) for name, ids in self.targets.items()},
        )


@dataclass(frozen=True)
class SequenceFit:
    """How a model is fitted: AdamW, whose rate rises over the first tenth of the steps and then falls to 0."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


def fit_sequence(spec: SequenceSpec, fit: SequenceFit, pairs: Pairs) -> tuple[SequenceModel, list[float]]:
    """Fit all decoders of a model together: the loss is the sum of theirs.

    Equal arguments give equal weights; the global random state is left alone.

    Returns:
        The model, ready to use, and the mean loss of each tenth of the steps.

    Raises:
        ValueError: there is no pair or no step, or the loss is no number any more.
    """
    if not len(pairs) or fit.steps < 1:
        raise ValueError(f"{len(pairs)} pairs and {fit.steps} steps to fit, expected at least one of both")
    model = SequenceModel(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, fit.steps))
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fit.seed)  # dropout draws from the global state
        for rows_B in progress(_batches(len(pairs), fit), "fit", fit.steps):
            batch = pairs.batch(rows_B)
            loss = torch.stack(list(model.losses(batch.source_RLC, batch.targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    curve = [float(part.mean()) for part in torch.stack(losses).tensor_split(min(10, fit.steps))]
    if not torch.tensor(curve).isfinite().all():
        raise ValueError(f"the loss is no number any more: {curve}; lower the learning rate {fit.learning_rate}")
    return model.eval(), curve


def _batches(rows: int, fit: SequenceFit) -> Iterator[Tensor]:
    """Give rows in a new order each epoch, until all steps are made; an epoch's last batch may be smaller."""
    generator, made = torch.Generator().manual_seed(fit.seed), 0
    while True:
        for rows_B in torch.split(torch.randperm(rows, generator=generator), fit.batch_size):
            if made == fit.steps:
                return
            made += 1
            yield rows_B


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step."""
    rising = max(1, round(WARM_UP * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def _trimmed(ids: Tensor, dimension: int) -> Tensor:
    """Cut padding that all rows have at the end of a dimension; one place stays."""
    others = [other for other in range(ids.dim()) if other != dimension]
    used = (ids != PADDING).amax(others).nonzero()
    return ids.narrow(dimension, 0, int(used[-1, 0]) + 1 if len(used) else 1)
