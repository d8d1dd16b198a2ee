"""Fit one ranker on given examples: the loop, the validation loss that keeps an epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.dropout import rows_of_batch
from models.extra_tasks import extra_losses
from models.losses import Propensity
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, predict
from models.ranker_spec import LINEAR
from models.task_weights import Balancing, build_balance
from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.dataset import Day, Examples, device_of
from pipeline.distributed import World, current
from pipeline.fit_state import FitState, finish, finished, load_kept
from pipeline.label_sums import base_rates, total
from pipeline.maturity import TASKS
from pipeline.objective import balanced_tasks, step_losses
from pipeline.rounds import Round, Rows, batches, plan_epoch, steps_of
from pipeline.stage import progress

PREDICT_ROWS = 16_384
LOWER_RATES = "training.learning_rate and training.embedding_learning_rate, or set model.expert_norm = 'layer'"


@dataclass(frozen=True)
class Fit:
    """How one ranker is fitted."""

    epochs: int
    batch_size: int
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    conversion_weight: float
    extra_weights: Mapping[str, float]
    """Of further tasks by name; that of a value is divided by its mean, so that its unit does not matter."""
    debiasing_weight: float
    """Of the losses that correct for what is clicked, within the task of conversion."""
    counterfactual_prior_weight: float
    """Within these, of the disagreement of factual and counterfactual."""
    propensity: Propensity
    balancing: Balancing
    seed: int
    device: torch.device
    shards: int = 1
    """Parts that each batch takes equal numbers of rows from; several processes deal them out among themselves."""


def fit_of(config: Config, learning_rate: float | None = None) -> Fit:
    """Return how a configuration fits a ranker, or the baseline at a learning rate of its own."""
    training = config.training
    return Fit(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=learning_rate or training.learning_rate,
        embedding_learning_rate=learning_rate or training.embedding_learning_rate,
        weight_decay=training.weight_decay,
        conversion_weight=training.conversion_weight,
        extra_weights={name: task.weight for name, task in config.labels.tasks.items()},
        debiasing_weight=training.debiasing_weight,
        counterfactual_prior_weight=training.counterfactual_prior_weight,
        propensity=Propensity(floor=training.propensity_floor, self_normalised=training.self_normalised),
        balancing=Balancing(
            way=training.task_weights,
            learning_rate=training.task_weight_learning_rate,
            asymmetry=training.gradnorm_asymmetry,
        ),
        seed=config.seed,
        device=device_of(training.device),
        shards=training.shards,
    )


def fit_ranker(
    spec: RankerSpec,
    fit: Fit,
    training: Sequence[Day],
    validation: Sequence[Day],
    begin: Callable[[Ranker], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Ranker, list[dict[str, float]]]:
    """Fit one ranker; days follow each other in time, rows are shuffled within blocks of a day.

    `begin` sets the initial weights; by default they are the seed's, with a bias that predicts the base rates. With a
    checkpoint the fit goes on where that was written, to the weights that an undisturbed fit ends with. Processes that
    have been joined (`pipeline.distributed`) fit it together: all return the same.

    Returns:
        The weights of the epoch with the lowest validation loss, and the curve of all epochs. Where no validation
        row is mature for a task, its loss is missing and the other task selects; without any, the last epoch stays.

    Raises:
        ValueError: a loss is no number any more, several processes cannot fit what is asked for, or they do not find
            the same checkpoint.
    """
    check_sharing(spec, fit)
    ranker, kept = Ranker(spec), load_kept(checkpoint)
    found = finished(checkpoint, kept, ranker)
    if found is not None:
        return ranker.eval(), found
    rates = base_rates(total(day.label_sums() for day in training), spec.binary_tasks, spec.value_tasks)
    weights = loss_weights(spec, fit, rates["extra"])
    if begin is None:
        ranker.start_at(**rates)
    else:
        begin(ranker)
    ranker.to(fit.device)
    with torch.random.fork_rng(devices=[fit.device] if fit.device.type == "cuda" else []):
        # Dropout draws from the global state: without this a fit would depend on what was drawn before.
        torch.manual_seed(fit.seed)
        state = _begun(ranker, fit, checkpoint)
        if kept is not None:
            state.restore(kept)
        _train(state, fit, training, validation, weights)
    ranker.load_state_dict(state.best)
    finish(checkpoint, ranker, state.curve)
    return ranker.to("cpu").eval(), state.curve


def check_sharing(spec: RankerSpec, fit: Fit, world: World | None = None) -> None:
    """Refuse what several processes cannot fit as one would.

    Raises:
        ValueError: a batch cannot be dealt to the shards, or a loss depends on a batch as a whole in a way that is not
            shared.
    """
    if fit.batch_size % fit.shards:
        raise ValueError(
            f"training.batch_size = {fit.batch_size} is no multiple of training.shards = {fit.shards}: a batch takes "
            "as many rows from each shard; change one of them"
        )
    world = current() if world is None else world
    world.mine(fit.shards)
    asked = {
        "training.task_weights = 'static'": fit.balancing.way != "static",
        "model.load_balance = 0": spec.load_balance > 0,
        "model.expert_norm = 'layer' or 'none'": spec.expert_norm == "batch",
    }
    if world.size > 1 and any(asked.values()):
        wanted = " and ".join(setting for setting, is_asked in asked.items() if is_asked)
        raise ValueError(
            f"{world.size} processes cannot share what looks at a batch as a whole: set {wanted}, or train with one"
        )


def _begun(ranker: Ranker, fit: Fit, checkpoint: Checkpoint | None) -> FitState:
    generator = torch.Generator().manual_seed(fit.seed)
    optimizers = build_optimizers(
        ranker,
        learning_rate=fit.learning_rate,
        embedding_learning_rate=fit.embedding_learning_rate,
        weight_decay=fit.weight_decay,
    )
    balance = build_balance(fit.balancing, ranker, balanced_tasks(ranker.spec), generator)
    return FitState(ranker, optimizers, generator, fit.device, checkpoint, balance)


def _train(
    state: FitState, fit: Fit, training: Sequence[Day], validation: Sequence[Day], weights: Mapping[str, float]
) -> None:
    """Go through the epochs that are left, and keep the best one's weights and the curve of all."""
    ranker = state.model
    assert isinstance(ranker, Ranker)
    while state.epoch < fit.epochs:
        rounds = state.plan(partial(plan_epoch, training, fit.shards))
        steps = [steps_of(one, fit.batch_size) for one in rounds]
        ranker.train()
        left = _batches(state, fit, rounds)
        for batch in progress(left, f"train {ranker.spec.body} epoch {state.epoch + 1}", sum(steps[state.done :])):
            state.total += train_step(state, fit, batch, weights)
        measured = _validation(ranker, validation, weights)
        if not math.isfinite(state.total + sum(measured.values())):
            raise ValueError(
                f"training of {ranker.spec.body} diverged in epoch {state.epoch + 1}: its loss is no number; lower "
                + ("training.baseline_learning_rate" if ranker.spec.body == LINEAR else LOWER_RATES)
            )
        if not state.curve or not measured or measured["validation"] < min(at["validation"] for at in state.curve):
            state.best = {name: value.detach().clone() for name, value in ranker.state_dict().items()}
        learned = {f"weight_{task}": weight for task, weight in state.balance.weights().items()}
        state.curve.append({"training": state.total / sum(steps), **measured, **learned})
        state.next_epoch(last=state.epoch + 1 == fit.epochs)


def _batches(state: FitState, fit: Fit, rounds: Sequence[Round]) -> Iterator[Rows]:
    """Yield this process's rows of the batches that are left of an epoch; each round is counted once it is trained."""
    mine = current().mine(fit.shards)
    for one in rounds[state.done :]:
        yield from batches(one, mine, fit.batch_size, state.generator, fit.device)
        state.trained(sum(piece.stop - piece.start for piece in one), last=state.done + 1 == len(rounds))


def train_step(state: FitState, fit: Fit, batch: Rows, weights: Mapping[str, float]) -> float:
    """Descend the loss of one batch, of which this process has some rows, and return it."""
    world, ranker = current(), state.model
    assert isinstance(ranker, Ranker)
    propensity = fit.propensity if world.size == 1 else replace(fit.propensity, over_batch=world.sum)
    state.optimizers.zero_grad()
    with rows_of_batch(batch.before, batch.of_batch):
        losses, rest = step_losses(ranker, propensity, (batch.features, batch.targets), weights)
    if world.size > 1:
        losses = {task: loss * batch.share() for task, loss in losses.items()}
    loss = state.balance.backward(losses, rest)
    loss = world.sum_gradients(ranker.parameters(), loss, rows=batch.count)
    state.optimizers.step()
    return float(loss)


def loss_weights(spec: RankerSpec, fit: Fit, means: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each loss by name; `means` are those of further tasks within their spaces."""
    extra = {name: fit.extra_weights[name] for name in spec.binary_tasks}
    extra |= {name: fit.extra_weights[name] / means[name] for name in spec.value_tasks}
    debiasing = fit.debiasing_weight
    return {
        "click": 1.0,
        "click_and_conversion": fit.conversion_weight,
        "conversion": fit.conversion_weight if spec.conversion_loss == "click_only" else debiasing,
        "imputation": debiasing,
        "counterfactual": debiasing,
        "counterfactual_prior": debiasing * fit.counterfactual_prior_weight,
        **extra,
    }


def _validation(ranker: Ranker, days: Sequence[Day], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the loss that selects an epoch beside the losses of the tasks; empty without a mature row."""
    measured = validation_losses(ranker, days) | _extra_validation_losses(ranker, days)
    weighed = sum(weights[task] * loss for task, loss in measured.items())
    return {"validation": weighed, **measured} if measured else {}


def validation_losses(ranker: Ranker, days: Sequence[Day]) -> dict[str, float]:
    """Return the log-loss of click and of click-and-conversion over the rows that would train them, weighed likewise.

    A task without such a row has no loss.
    """
    sums_2T = torch.zeros(2, len(TASKS), dtype=torch.float64)
    for block in _own_blocks(days):
        probabilities = predict(ranker, block.features, PREDICT_ROWS)
        targets = block.supervision.targets
        clicks, conversions = targets.clicks_B.numpy(), targets.conversions_B.numpy()
        masks = (targets.click_mask_B.numpy(), targets.conversion_mask_B.numpy())
        for task, (column, labels, mask) in enumerate(zip((0, 2), (clicks, conversions), masks, strict=True)):
            kept = mask > 0
            weights = mask[kept].astype(np.float64)
            sums_2T[0, task] += _log_loss_sum(probabilities[kept, column], labels[kept], weights)
            sums_2T[1, task] += float(weights.sum())
    return _means(TASKS, sums_2T)


def _extra_validation_losses(ranker: Ranker, days: Sequence[Day]) -> dict[str, float]:
    """Return the mean loss of each further task over the rows that its mask keeps; none for a task without one."""
    spec, device = ranker.spec, next(ranker.parameters()).device
    names = [*spec.binary_tasks, *spec.value_tasks]
    sums_2T = torch.zeros(2, len(names), dtype=torch.float64)
    ranker.eval()
    for block in _own_blocks(days) if names else ():
        for batch in torch.split(torch.arange(len(block.clicks)), PREDICT_ROWS):
            targets = block.supervision.targets.select(batch, device)
            with torch.inference_mode():
                logits_BT = ranker(block.features.slice(batch).to(device))
                losses = extra_losses(logits_BT, targets, spec.binary_tasks, spec.value_tasks)
            for task, name in enumerate(names):
                sums_2T[0, task] += float(losses[name]) * len(batch)
                sums_2T[1, task] += float(targets.extra[name][1].sum())
    return _means(names, sums_2T)


def _own_blocks(days: Sequence[Day]) -> Iterator[Examples]:
    """Read the blocks that this process measures: each of several takes its share."""
    world = current()
    blocks = [block for day in days for block in day.blocks()]
    for block in blocks[world.rank :: world.size]:
        yield block.read()


def _means(names: Sequence[str], sums_2T: torch.Tensor) -> dict[str, float]:
    """Return the mean of each loss that has rows, from the sums of losses and of rows in each process."""
    sums, rows = current().sum(sums_2T).tolist()
    return {name: loss / count for name, loss, count in zip(names, sums, rows, strict=True) if count}


def _log_loss_sum(
    probabilities: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float64]
) -> float:
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-(weights * (labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))).sum())
