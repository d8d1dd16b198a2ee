"""What a trained ranker's gates, experts and tasks do with a sample of rows.

Shapes: B batch, N gate, E expert, O output width, U units of a layer, P elements of a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.inputs import Features
from models.layers import ExpertLayers
from models.losses import Targets
from models.ranker import DeepScorer, Ranker

ACTIVE_FROM = 1e-6
"""A unit whose output stays below this is dead: exactly 0 with ReLU, and nearly so far left of 0 with Swish."""
TRUNK = ("table.", "inputs.", "body.")
"""The parts of a scorer that can be shared: not the task towers, nor the bias of the context."""

Losses = Callable[[Ranker, Features, Targets], dict[str, Tensor]]


class GateUse(NamedTuple):
    """How the gates of one level weigh their experts, over all rows of a sample."""

    utilisation_NE: Tensor
    """Mean weight of each expert; rows sum to 1."""
    entropy_N: Tensor
    """Mean entropy of a row's weights, in nats."""
    normalised_entropy_N: Tensor
    """That over the entropy of equal weights; NaN for a gate that sees one expert."""


def gate_use(gates_BNE: Tensor, visible_NE: Tensor) -> GateUse:
    """Averages utilisation and entropy of the gates of one level over at least one row.

    Low entropy alone is no collapse: gates may each choose for a row. It is one where the utilisation is uneven too.
    Source: Shazeer et al. 2017, section 4 (importance); the entropy is Shannon's.
    """
    entropy_N = -torch.special.xlogy(gates_BNE, gates_BNE).sum(-1).mean(0)
    count_N = visible_NE.sum(-1)
    normalised_N = torch.where(count_N > 1, entropy_N / count_N.log(), torch.nan)
    return GateUse(gates_BNE.mean(0), entropy_N, normalised_N)


def linear_cka(outputs_BEO: Tensor) -> Tensor:
    """Compares the outputs of experts pair by pair: (E, E) float64 between 0 and 1, 1 on the diagonal.

    CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|) of column-centred outputs in Frobenius norms: 1 where one is a rotation,
    reflection or isotropic scaling of the other. NaN where an expert's output is the same for all rows.
    Source: Kornblith et al. 2019, section 3, with a linear kernel; computed in feature space, where O is below B.
    """
    rows, experts, width = outputs_BEO.shape
    centred_BEO = outputs_BEO.double() - outputs_BEO.double().mean(0)
    flat = centred_BEO.reshape(rows, experts * width)
    products = (flat.T @ flat).view(experts, width, experts, width)
    squared_EE = products.square().sum((1, 3))
    norm_E = squared_EE.diagonal().sqrt()
    return (squared_EE / torch.outer(norm_E, norm_E)).clamp(max=1.0)


def dead_share(outputs_BEU: Tensor) -> Tensor:
    """Returns the share of each expert's units that are active for no row: (E) float32.

    ReLU units die where their input is below 0 for every row, and get no gradient that could bring them back.
    Source: Wang et al. 2024 (HoME), section 1, who found experts with ReLU of which over 90 % of the outputs are 0.
    """
    return (outputs_BEU.abs().amax(0) < ACTIVE_FROM).float().mean(-1)


@dataclass(frozen=True)
class Activations:
    """Outputs of every layer of networks that run side by side."""

    part: str
    """'body' or 'towers'."""
    layers: list[Tensor]
    """After activation, each (B, E, U); the last is what the networks give."""


def activations(ranker: Ranker, features: Features) -> list[Activations]:
    """Records what the experts of the body, level by level, and the task towers give for some rows.

    Runs in evaluation mode and leaves the ranker's mode as it was; the linear ranker has neither, and gives none.
    """
    found: list[Activations] = []
    with ExitStack() as hooks:
        for part, module in _parts(ranker).items():
            for network in [layer for layer in module.modules() if isinstance(layer, ExpertLayers)]:
                recorded = Activations(part, [])
                found.append(recorded)
                _record(network, recorded.layers, hooks)
        _evaluated(ranker, partial(ranker, features))
    return found


def gates_of(ranker: Ranker, features: Features) -> list[Tensor]:
    """Returns the gates' weights (B, N, E) level by level in evaluation mode; none for a body without gates."""
    gates: list[Tensor] = _evaluated(ranker, partial(ranker.gates, features))
    return gates


def _evaluated(ranker: Ranker, call: Callable[[], Any]) -> Any:
    was_training = ranker.training
    ranker.eval()
    with torch.inference_mode():
        result = call()
    ranker.train(was_training)
    return result


def _parts(ranker: Ranker) -> dict[str, nn.Module]:
    scorer = ranker.scorer
    return {"body": scorer.body, "towers": scorer.towers} if isinstance(scorer, DeepScorer) else {}


def _record(network: ExpertLayers, layers: list[Tensor], hooks: ExitStack) -> None:
    """Keeps what each layer passes on: what the next one is given, whatever norm and activation stand between."""
    for layer in list(network.layers)[1:]:
        hooks.callback(layer.register_forward_pre_hook(lambda _module, given: layers.append(given[0])).remove)
    hooks.callback(network.register_forward_hook(lambda _module, _given, output: layers.append(output)).remove)


@dataclass(frozen=True)
class Cosine:
    """Cosine between the gradients of two tasks, over batches."""

    mean: float | None
    """None where no batch reaches an element by both losses."""
    standard_error: float | None
    """Of the mean, from the spread over batches; None with less than two batches."""
    conflicts: float | None
    """Share of batches with a cosine below 0."""
    batches: int
    """Batches that have a cosine."""


def gradient_cosines(
    ranker: Ranker, batches: Sequence[tuple[Features, Targets]], losses: Losses
) -> dict[tuple[str, str], dict[str, Cosine]]:
    """Measures whether tasks pull the weights that they share the same way, for each pair of losses.

    'dense' is over all weights of inputs and body together, 'embedding' over the embedding tables. A pair's cosine is
    over the elements that both gradients reach in the batch, that is, where both differ from 0: experts, gates and
    columns that only one task trains do not dilute it; what serves the click serves its product with the conversion
    too. A batch without such an element, or in which a loss keeps no row, has no cosine. Evaluation mode, so without
    dropout; no gradient is left behind.
    Source: Yu et al. 2020 (PCGrad), definition 1: below 0 the tasks conflict.
    """
    was_training = ranker.training
    ranker.eval()
    measured: dict[tuple[str, str], dict[str, list[float]]] = {}
    for features, targets in batches:
        gradients = _gradients(ranker, losses(ranker, features, targets))
        for pair in combinations(gradients, 2):
            kinds = measured.setdefault(pair, {"dense": [], "embedding": []})
            for kind, values in kinds.items():
                values.extend(_cosine(gradients[pair[0]][kind], gradients[pair[1]][kind]))
    ranker.train(was_training)
    return {pair: {kind: _summary(values) for kind, values in kinds.items()} for pair, kinds in measured.items()}


def _gradients(ranker: Ranker, losses: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns for each loss the gradient (P) of the dense and of the embedding weights, aligned between losses."""
    weights = [weight for name, weight in ranker.scorer.named_parameters() if name.startswith(TRUNK)]
    found = {
        name: torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for name, loss in losses.items()
    }
    aligned: dict[str, dict[str, list[Tensor]]] = {name: {"dense": [], "embedding": []} for name in losses}
    for weight, of_losses in zip(weights, zip(*found.values(), strict=True), strict=True):
        kind = "embedding" if any(part is not None and part.is_sparse for part in of_losses) else "dense"
        parts = _rows(of_losses) if kind == "embedding" else [_dense(part, weight) for part in of_losses]
        for name, part in zip(found, parts, strict=True):
            aligned[name][kind].append(part.flatten())
    nothing = torch.zeros(0)
    return {
        name: {kind: torch.cat([nothing, *parts]) for kind, parts in kinds.items()} for name, kinds in aligned.items()
    }


def _dense(gradient: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if gradient is None else gradient


def _rows(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """Lays out sparse gradients of a table over the rows that any of them has: a table may have millions."""
    coalesced = [None if gradient is None else gradient.coalesce() for gradient in gradients]
    present = [gradient for gradient in coalesced if gradient is not None]
    rows_R = torch.unique(torch.cat([gradient.indices()[0] for gradient in present]))
    laid_out = []
    for gradient in coalesced:
        values = torch.zeros(len(rows_R), present[0].shape[1])
        if gradient is not None:
            values[torch.searchsorted(rows_R, gradient.indices()[0])] = gradient.values()
        laid_out.append(values)
    return laid_out


def _cosine(one_P: Tensor, other_P: Tensor) -> list[float]:
    """Returns the cosine over the elements that both reach, or nothing without one."""
    shared_P = (one_P != 0) & (other_P != 0)
    if not shared_P.any():
        return []
    # In double precision: squares of small gradients vanish in float32.
    one, other = one_P[shared_P].double(), other_P[shared_P].double()
    return [float(one @ other / (one.norm() * other.norm()))]


def _summary(cosines: list[float]) -> Cosine:
    if not cosines:
        return Cosine(None, None, None, 0)
    values = torch.tensor(cosines, dtype=torch.float64)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Cosine(float(values.mean()), error, float((values < 0).double().mean()), len(values))
