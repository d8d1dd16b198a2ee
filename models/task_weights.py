"""How the losses of several tasks are balanced while they train: by set weights, learned ones, or by their gradients.

Each way has `backward`, which sets the gradients of the ranker's weights for one step, and `weights`, which tells the
weights that it has learned. Shapes: T task, P number of the trunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import ExpertLayers
from models.optimizer import load_state_tensors, state_tensors, under
from models.ranker import DeepScorer, Ranker

TASK_WEIGHTS = ("static", "uncertainty", "gradnorm", "pcgrad")
SMALLEST_WEIGHT = 1e-3  # GradNorm's steps could carry a weight below 0, where its task would be unlearned
SHARERS = 2
"""Tasks whose losses must reach a number of the trunk for it to be shared."""


@dataclass(frozen=True)
class Balancing:
    """Which way, and its settings."""

    way: str = "static"
    """One of `TASK_WEIGHTS`."""
    learning_rate: float = 0.01
    """Of learned weights (uncertainty, gradnorm)."""
    asymmetry: float = 1.5
    """How strongly slow tasks are pulled up (gradnorm)."""


class StaticWeights:
    """Adds the losses as they come."""

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor | None = None) -> Tensor:
        """Returns what is descended, without its graph; `rest` is added that is no task's loss."""
        total = _with_rest(torch.stack(list(losses.values())).sum(), rest)
        torch.autograd.backward(total)
        return total.detach()

    def weights(self) -> dict[str, float]:
        """Returns none: nothing is learned."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns none: nothing is learned."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
        assert not tensors, list(tensors)


class UncertaintyWeights:
    """Learns a log-variance s a task, by which its cross-entropy weighs exp(-s).

    The sum of exp(-s) loss + s / 2 is descended (Kendall et al. 2018, section 3.2: a softmax's likelihood with a
    temperature exp(s), equation 10). At its minimum a task weighs 1 / (2 loss). Losses must not be negative: the
    weight of one that stays so would grow without bound.
    """

    def __init__(self, tasks: Sequence[str], settings: Balancing, device: torch.device) -> None:
        self.tasks = list(tasks)
        self.log_variance_T = nn.Parameter(torch.zeros(len(self.tasks), device=device))
        self.optimizer = torch.optim.Adam([self.log_variance_T], lr=settings.learning_rate)

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor | None = None) -> Tensor:
        """Returns what is descended, without its graph; moves the weights too."""
        assert list(losses) == self.tasks, list(losses)
        losses_T = torch.stack(list(losses.values()))
        total = _with_rest((torch.exp(-self.log_variance_T) * losses_T + self.log_variance_T / 2).sum(), rest)
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        self.optimizer.step()
        return total.detach()

    def weights(self) -> dict[str, float]:
        """Returns exp(-s) of each task."""
        return dict(zip(self.tasks, torch.exp(-self.log_variance_T.detach()).tolist(), strict=True))

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the log-variances and their optimiser's state, by name."""
        return {"log_variance_T": self.log_variance_T.detach(), **_named("optimizer", state_tensors(self.optimizer))}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state_tensors` gave."""
        self.log_variance_T.data.copy_(tensors["log_variance_T"])
        load_state_tensors(self.optimizer, under("optimizer", tensors))


class GradNormWeights:
    """Learns weights that give each task's gradient at the last shared layer the norm that its progress asks for.

    A task's norm is to be the tasks' mean norm times its relative inverse training rate to the power of the asymmetry
    (Chen et al. 2018, equations 1 and 2, algorithm 1). The layer is the weight of the body's last expert layer, of
    which the numbers count that more than one task's loss reaches; norms are of these. Progress is measured
    from each task's first loss above 0. The weights sum to the number of tasks. They stay where nothing is shared,
    and in a batch in which a task has no gradient there. Losses must not be negative.
    """

    def __init__(
        self, tasks: Sequence[str], settings: Balancing, shared: nn.Parameter | None, device: torch.device
    ) -> None:
        self.tasks, self.settings, self.shared = list(tasks), settings, shared
        self.weight_T = nn.Parameter(torch.ones(len(self.tasks), device=device))
        self.first_T = torch.zeros(len(self.tasks), device=device)
        self.optimizer = torch.optim.Adam([self.weight_T], lr=settings.learning_rate)

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor | None = None) -> Tensor:
        """Returns what is descended, without its graph; moves the weights too."""
        assert list(losses) == self.tasks, list(losses)
        losses_T = torch.stack(list(losses.values()))
        norms_T = None if self.shared is None else self._norms(losses, self.shared)
        total = _with_rest((self.weight_T.detach() * losses_T).sum(), rest)
        torch.autograd.backward(total)
        if norms_T is not None:
            self._move(losses_T.detach(), norms_T)
        return total.detach()

    def weights(self) -> dict[str, float]:
        """Returns the weight of each task."""
        return dict(zip(self.tasks, self.weight_T.tolist(), strict=True))

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the weights, the first losses and the optimiser's state, by name."""
        learned = {"weight_T": self.weight_T.detach(), "first_T": self.first_T}
        return {**learned, **_named("optimizer", state_tensors(self.optimizer))}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state_tensors` gave."""
        self.weight_T.data.copy_(tensors["weight_T"])
        self.first_T.copy_(tensors["first_T"])
        load_state_tensors(self.optimizer, under("optimizer", tensors))

    def _norms(self, losses: Mapping[str, Tensor], shared: nn.Parameter) -> Tensor:
        gradients = [
            torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)[0] for loss in losses.values()
        ]
        gradients_TP = torch.stack([gradient.flatten() for gradient in gradients])
        norms_T: Tensor = torch.linalg.vector_norm(gradients_TP * shared_numbers(gradients_TP), dim=1)
        return norms_T

    def _move(self, losses_T: Tensor, norms_T: Tensor) -> None:
        self.first_T = torch.where(self.first_T > 0, self.first_T, losses_T)
        if not bool((norms_T > 0).all()) or not bool((self.first_T > 0).all()):
            return
        self.weight_T.grad = weight_gradient(self.weight_T.detach(), norms_T, losses_T / self.first_T, self.settings)
        self.optimizer.step()
        with torch.no_grad():
            self.weight_T.clamp_(min=SMALLEST_WEIGHT)
            self.weight_T.mul_(len(self.tasks) / self.weight_T.sum())


class ProjectedGradients:
    """Takes out of each task's gradient what works against another's, on the trunk that the tasks share (PCGrad).

    Only dense weights of the input layer and of the body count, and of these in each batch the numbers that more than
    one task's loss reaches: towers, gates and experts of one task keep its own gradient. Embedding tables are left
    out: their sparse gradients are summed as usual, as are those of biases and of the context. Which task is projected
    on which first is drawn for each step. Source: Yu et al. 2020, algorithm 1.
    """

    def __init__(self, trunk: Sequence[nn.Parameter], generator: torch.Generator) -> None:
        self.trunk, self.generator = list(trunk), generator

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor | None = None) -> Tensor:
        """Returns what the losses sum to, without its graph."""
        gradients = []
        for loss in losses.values():
            torch.autograd.backward(loss, retain_graph=True)
            gradients.append(self._taken())
        if rest is not None:
            torch.autograd.backward(rest)
        if self.trunk:
            combined_P = combine(torch.stack(gradients), self.generator)
            self._give(combined_P if rest is None else combined_P + self._taken())
        return _with_rest(torch.stack(list(losses.values())).sum(), rest).detach()

    def weights(self) -> dict[str, float]:
        """Returns none: nothing is learned."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns none: nothing is learned."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
        assert not tensors, list(tensors)

    def _taken(self) -> Tensor:
        """Returns the trunk's gradient in one row (P), and forgets it."""
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.trunk]
        for weight in self.trunk:
            weight.grad = None
        return torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)

    def _give(self, gradient_P: Tensor) -> None:
        parts = torch.split(gradient_P, [one.numel() for one in self.trunk])
        for weight, part in zip(self.trunk, parts, strict=True):
            weight.grad = part.view_as(weight).clone()


Balance = StaticWeights | UncertaintyWeights | GradNormWeights | ProjectedGradients


def build_balance(settings: Balancing, ranker: Ranker, tasks: Sequence[str], generator: torch.Generator) -> Balance:
    """Builds the chosen way for a ranker and the names of its tasks; draws come from the generator."""
    if settings.way == "uncertainty":
        return UncertaintyWeights(tasks, settings, ranker.bias_T.device)
    if settings.way == "gradnorm":
        return GradNormWeights(tasks, settings, last_expert_weight(ranker), ranker.bias_T.device)
    if settings.way == "pcgrad":
        return ProjectedGradients(trunk(ranker), generator)
    assert settings.way == "static", settings.way
    return StaticWeights()


def trunk(ranker: Ranker) -> list[nn.Parameter]:
    """Returns the dense weights below the task towers; none for a linear ranker."""
    scorer = ranker.scorer
    if not isinstance(scorer, DeepScorer):
        return []
    return [weight for part in (scorer.inputs, scorer.body) for weight in part.parameters()]


def last_expert_weight(ranker: Ranker) -> nn.Parameter | None:
    """Returns the weight of the last layer of the body's last experts; None for a linear ranker."""
    if not isinstance(ranker.scorer, DeepScorer):
        return None
    experts = [module for module in ranker.scorer.body.modules() if isinstance(module, ExpertLayers)]
    weight = experts[-1].layers[-1].weight_GIO
    assert isinstance(weight, nn.Parameter)
    return weight


def shared_numbers(gradients_TP: Tensor) -> Tensor:
    """Returns whether at least two tasks have a gradient on a number: (T, P) to (P) bool."""
    return (gradients_TP != 0).sum(0) >= SHARERS


def combine(gradients_TP: Tensor, generator: torch.Generator) -> Tensor:
    """Adds gradients after each has lost what works against another's: (T, P) to (P).

    Where two have a negative inner product over the shared numbers, one is projected onto the normal plane of the
    other's original. Without a conflict this is the sum.
    """
    shared_P = shared_numbers(gradients_TP)
    shared_TP = gradients_TP * shared_P
    projected_TP = shared_TP.clone()
    for task in range(len(shared_TP)):
        for other in torch.randperm(len(shared_TP), generator=generator).tolist():
            product = projected_TP[task] @ shared_TP[other]
            if other != task and product < 0:
                projected_TP[task] -= product / shared_TP[other].square().sum() * shared_TP[other]
    return projected_TP.sum(0) + (gradients_TP * ~shared_P).sum(0)


def weight_gradient(weight_T: Tensor, norms_T: Tensor, progress_T: Tensor, settings: Balancing) -> Tensor:
    """Returns the gradient of GradNorm's loss by the weights: (T).

    The loss is the sum of |G - mean(G) r ^ asymmetry|, with G = weight * norm of the unweighted gradient and r a
    task's share of its first loss over the tasks' mean share; the right-hand side counts as a constant.
    """
    norm_T = weight_T * norms_T
    target_T = norm_T.mean() * (progress_T / progress_T.mean()).pow(settings.asymmetry)
    return torch.sign(norm_T - target_T) * norms_T


def _with_rest(total: Tensor, rest: Tensor | None) -> Tensor:
    return total if rest is None else total + rest


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
