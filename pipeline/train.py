"""Train: the joint ranker, the logistic-regression baseline and the two-tower retriever of a run."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.encoding import load_encoder
from models.inputs import Features
from models.losses import joint_loss
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, predict, save_ranker
from models.retriever import Retriever, RetrieverSpec, in_batch_softmax, save_retriever
from models.serialization import weights_digest
from pipeline.config import Config
from pipeline.dataset import Examples, device_of, ranker_spec, read_examples, retriever_spec
from pipeline.featurize import plan_of, run_folder, table_versions
from pipeline.split import Days
from pipeline.stage import Outcome, progress
from pipeline.workspace import Workspace, replaced_folder, write_json

PREDICT_ROWS = 16_384


@dataclass(frozen=True)
class Fit:
    """How one ranker is fitted."""

    epochs: int
    batch_size: int
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    conversion_weight: float
    seed: int
    device: torch.device


def train(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Fit all models of a run on its training days and keep the epoch that the validation day prefers.

    A label counts only where it was known before the first test day began, as it would have been that night.

    Raises:
        ValueError: featurize has not run, or the training days hold one class only.
    """
    plan = plan_of(config)
    folder = run_folder(config, workspace, days)
    encoder = load_encoder(folder / "features" / "encoder.json")
    cutoff = plan.start_of(days.test[0])
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    spec = ranker_spec(config, plan, encoder, config.model.body, config.seed)
    training = [read_examples(table, version, day, spec, cutoff) for day in days.train]
    validation = [read_examples(table, version, day, spec, cutoff) for day in days.validation]
    _check_classes(training, days)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it, and filling costs 5 % of a step
    fit = fit_of(config)
    linear_fit = fit_of(config, config.training.baseline_learning_rate)
    linear_spec = ranker_spec(config, plan, encoder, "linear", config.seed)
    towers_spec = retriever_spec(config, plan, encoder, config.seed)
    with replaced_folder(folder / "model") as model:
        ranker, curve = fit_ranker(spec, fit, training, validation)
        save_ranker(ranker, model / "ranker")
        baseline, baseline_curve = fit_ranker(linear_spec, linear_fit, training, validation)
        save_ranker(baseline, model / "logistic_regression")
        retriever, losses = fit_retriever(config, towers_spec, spec, training)
        save_retriever(retriever, model / "retriever")
        shutil.copy(folder / "features" / "encoder.json", model / "encoder.json")
        digests = {"ranker": weights_digest(ranker), "retriever": weights_digest(retriever)}
        record = {
            "ranker": curve,
            "logistic_regression": baseline_curve,
            "retriever": losses,
            "digests": digests,
        }
        write_json(model / "training.json", record)
    rows = sum(len(day.features) for day in training)
    parameters = sum(weight.numel() for weight in ranker.parameters())
    return Outcome(rows, rows, {"parameters": parameters, "epochs": len(curve), "body": config.model.body})


def fit_of(config: Config, learning_rate: float | None = None) -> Fit:
    """Return how a configuration fits a ranker, at its own or at a given learning rate."""
    training = config.training
    return Fit(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=learning_rate or training.learning_rate,
        embedding_learning_rate=learning_rate or training.embedding_learning_rate,
        weight_decay=training.weight_decay,
        conversion_weight=training.conversion_weight,
        seed=config.seed,
        device=device_of(training.device),
    )


def _check_classes(training: list[Examples], days: Days) -> None:
    rows = sum(len(day.clicks) for day in training)
    for label in ("clicks", "conversions"):
        positives = int(sum(getattr(day, label).sum().item() for day in training))
        if positives in {0, rows}:
            raise ValueError(
                f"training days {days.train[0]} to {days.train[-1]} hold {positives} {label} in {rows} rows: "
                "both classes are needed; widen split.train or correct the labels"
            )


def fit_ranker(
    spec: RankerSpec, fit: Fit, training: list[Examples], validation: list[Examples]
) -> tuple[Ranker, list[dict[str, float]]]:
    """Fit one ranker; days follow each other in time, rows are shuffled within a day.

    Returns:
        The weights of the epoch with the lowest validation loss, and the curve of all epochs.
    """
    ranker = Ranker(spec)
    ranker.start_at(**_base_rates(training))
    ranker.to(fit.device)
    optimizers = build_optimizers(
        ranker,
        learning_rate=fit.learning_rate,
        embedding_learning_rate=fit.embedding_learning_rate,
        weight_decay=fit.weight_decay,
    )
    generator = torch.Generator().manual_seed(fit.seed)
    best: dict[str, torch.Tensor] = {}
    curve: list[dict[str, float]] = []
    steps = sum(-(-len(day.clicks) // fit.batch_size) for day in training)
    for epoch in range(fit.epochs):
        batches = _batches(training, fit, generator)
        total = 0.0
        ranker.train()
        for features, clicks, conversions in progress(batches, f"train {spec.body} epoch {epoch + 1}", steps):
            optimizers.zero_grad()
            loss = joint_loss(ranker(features), clicks, conversions, conversion_weight=fit.conversion_weight)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers.step()
            total += float(loss.detach())
        measured = validation_losses(ranker, validation)
        validated = measured["click"] + fit.conversion_weight * measured["click_and_conversion"]
        if not curve or validated < min(point["validation"] for point in curve):
            best = {name: value.detach().clone() for name, value in ranker.state_dict().items()}
        curve.append({"training": total / steps, "validation": validated, **measured})
    ranker.load_state_dict(best)
    return ranker.to("cpu").eval(), curve


def _base_rates(training: list[Examples]) -> dict[str, float]:
    """Return smoothed rates, so that even a tiny log has none of 0 or 1."""
    impressions = sum(len(day.clicks) for day in training)
    clicks = sum(float(day.clicks.sum()) for day in training)
    conversions = sum(float(day.conversions.sum()) for day in training)
    return {
        "click_rate": (clicks + 1) / (impressions + 2),
        "conversion_rate": (conversions + 1) / (clicks + 2),
    }


def _batches(
    training: list[Examples], fit: Fit, generator: torch.Generator
) -> Iterator[tuple[Features, torch.Tensor, torch.Tensor]]:
    for day in training:
        order = torch.randperm(len(day.clicks), generator=generator)
        for rows in torch.split(order, fit.batch_size):
            yield (
                day.features.slice(rows).to(fit.device),
                day.clicks[rows].to(fit.device),
                day.conversions[rows].to(fit.device),
            )


def validation_losses(ranker: Ranker, days: list[Examples]) -> dict[str, float]:
    """Return the log-loss of click and of click-and-conversion over the rows of some days."""
    sums = {"click": 0.0, "click_and_conversion": 0.0}
    rows = 0
    for day in days:
        probabilities = predict(ranker, day.features, PREDICT_ROWS)
        rows += len(probabilities)
        sums["click"] += _log_loss_sum(probabilities[:, 0], day.clicks.numpy())
        sums["click_and_conversion"] += _log_loss_sum(probabilities[:, 2], day.conversions.numpy())
    return {name: total / rows for name, total in sums.items()}


def _log_loss_sum(probabilities: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-np.where(labels > 0, np.log(clipped), np.log1p(-clipped)).sum())


def fit_retriever(
    config: Config, spec: RetrieverSpec, columns: RankerSpec, training: list[Examples]
) -> tuple[Retriever, list[float]]:
    """Fit the two towers on the clicked rows; conversions among them train the second space.

    Items enter a batch in proportion to their clicks, which the correction log q(item) takes back out.
    """
    settings = config.retriever
    clicked = [(day, torch.nonzero(day.clicks).flatten()) for day in training]
    users, items = _sides(clicked, spec, columns)
    conversions = torch.cat([day.conversions[rows] for day, rows in clicked])
    names = pl.concat([day.frame["item_id"].gather(rows.numpy()) for day, rows in clicked])
    codes = torch.from_numpy(names.rank("dense").to_numpy().astype(np.int64))
    frequency = torch.bincount(codes)[codes].float() / len(codes)
    device = device_of(config.training.device)
    retriever = Retriever(spec).to(device)
    optimizers = build_optimizers(
        retriever,
        learning_rate=settings.learning_rate,
        embedding_learning_rate=settings.embedding_learning_rate,
        weight_decay=0.0,
    )
    curve = []
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in progress(range(settings.epochs), "train retriever", settings.epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(codes), generator=generator), settings.batch_size):
            optimizers.zero_grad()
            batch = Clicked(
                users.slice(rows).to(device),
                items.slice(rows).to(device),
                codes[rows].to(device),
                frequency[rows].log().to(device),
                conversions[rows].to(device),
            )
            loss = retriever_loss(retriever, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers.step()
            total += float(loss.detach()) * len(rows)
        curve.append(total / len(codes))
        assert np.isfinite(curve[-1]), f"retriever diverged in epoch {epoch}"
    return retriever.to("cpu").eval(), curve


@dataclass(frozen=True)
class Clicked:
    """A batch of clicked rows, of which some converted."""

    users: Features
    items: Features
    item_codes: torch.Tensor
    log_q: torch.Tensor
    conversions: torch.Tensor


def retriever_loss(retriever: Retriever, batch: Clicked) -> torch.Tensor:
    """Add the in-batch softmax of the click space and, over converted rows, of the conversion space."""
    users_B2S, items_B2S = retriever.users(batch.users), retriever.items(batch.items)
    losses = [
        in_batch_softmax(
            users_B2S[:, space],
            items_B2S[:, space],
            item_ids_B=batch.item_codes,
            log_q_B=batch.log_q,
            weights_B=weights,
            temperature=retriever.spec.temperature,
        )
        for space, weights in enumerate((torch.ones_like(batch.conversions), batch.conversions))
    ]
    return torch.stack(losses).sum()


def _sides(
    clicked: list[tuple[Examples, torch.Tensor]], spec: RetrieverSpec, columns: RankerSpec
) -> tuple[Features, Features]:
    """Pick the users' and the items' columns out of the ranker's features of the clicked rows."""
    single, numeric = list(columns.single), list(columns.numeric)

    def pick(names: list[str], numbers: list[str], pooled: list[str]) -> Features:
        ids = [single.index(name) for name in names]
        positions = [numeric.index(name) for name in numbers]
        return Features(
            torch.cat([day.features.ids_BF[rows][:, ids] for day, rows in clicked]),
            torch.cat([day.features.positions_BF[rows][:, positions] for day, rows in clicked]),
            {name: torch.cat([day.features.pooled[name][rows] for day, rows in clicked]) for name in pooled},
        )

    users = pick(list(spec.user_single), list(spec.user_numeric), list(spec.user_pooled))
    items = pick(list(spec.item_single), list(spec.item_numeric), list(spec.item_pooled))
    return users, items
