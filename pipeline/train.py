"""Train: the joint ranker, the logistic-regression baseline and the two-tower retriever of a run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from features.encoding import load_encoder
from models.inputs import Features
from models.losses import UNSTABLE
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, save_ranker
from models.retriever import Retriever, RetrieverSpec, in_batch_softmax, save_retriever
from models.serialization import weights_digest
from pipeline import tables
from pipeline.config import Config
from pipeline.control import CONTROL, fit_control, why_no_control
from pipeline.dataset import Examples, device_of, ranker_spec, read_examples, retriever_spec
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder, table_versions
from pipeline.fit import fit_of, fit_ranker
from pipeline.maturity import check_classes, maturity_of, maturity_record
from pipeline.split import Days
from pipeline.stage import LOG, Outcome, progress
from pipeline.warm_start import read_beginnings
from pipeline.workspace import Workspace, replaced_folder, write_json

WHY_UNSTABLE = "it learns imputed labels beside what they supervise; hold its validation losses against esmm's"


def train(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Fit all models of a run on its training days and keep the epoch that the validation day prefers.

    A label counts only where it was known before the first test day began, as it would have been that night;
    labels.immature says what becomes of those that may still change then. With training.warm_start all models begin
    from the champion that featurize recorded. The control of separate networks lies beside the model, in control/.

    Raises:
        ValueError: featurize has not run, the rows that train a task hold one class only, labels.immature = 'weight'
            has too few conversions to fit their delay on, or the champion is of another architecture.
    """
    plan = plan_of(config)
    folder = run_folder(config, workspace, days)
    encoder = load_encoder(folder / "features" / "encoder.json")
    cutoff = plan.start_of(days.test[0])
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    spec = ranker_spec(config, plan, encoder, config.model.body, config.seed)
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    maturity = maturity_of(config, fitted, cutoff)
    training = [read_examples(table, version, day, spec, maturity) for day in days.train]
    validation = [read_examples(table, version, day, spec, maturity) for day in days.validation]
    supervisions = [day.supervision for day in training]
    check_classes(supervisions, maturity, days)
    labels = maturity_record(maturity, supervisions, [day.supervision for day in validation])
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it, and filling costs 5 % of a step
    if config.training.conversion_loss in UNSTABLE:
        LOG.warning("training.conversion_loss = %r is unstable: %s", config.training.conversion_loss, WHY_UNSTABLE)
    fit = fit_of(config)
    linear_fit = fit_of(config, config.training.baseline_learning_rate)
    linear_spec = ranker_spec(config, plan, encoder, "linear", config.seed)
    towers_spec = retriever_spec(config, plan, encoder, config.seed)
    begin = read_beginnings(config, folder / "features", encoder)
    with replaced_folder(folder / "model") as model:
        ranker, curve = fit_ranker(spec, fit, training, validation, begin.ranker)
        save_ranker(ranker, model / "ranker")
        baseline, baseline_curve = fit_ranker(linear_spec, linear_fit, training, validation, begin.baseline)
        save_ranker(baseline, model / "logistic_regression")
        retriever, losses = fit_retriever(config, towers_spec, spec, training, begin.retriever)
        save_retriever(retriever, model / "retriever")
        shutil.copy(folder / "features" / "encoder.json", model / "encoder.json")
        digests = {"ranker": weights_digest(ranker), "retriever": weights_digest(retriever)}
        record: dict[str, Any] = {
            "ranker": curve,
            "logistic_regression": baseline_curve,
            "retriever": losses,
            "digests": digests,
            "labels": labels,
            "warm_start": begin.record,
            "conversion_loss": told_loss(config),
            "task_weights": config.training.task_weights,
        }
        if why_no_control(config) is None:
            record[CONTROL], digests[CONTROL] = fit_control(spec, fit, training, validation, folder / "control")
        write_json(model / "training.json", record)
    return _outcome(config, ranker, training, len(curve), labels)


def fit_retriever(
    config: Config,
    spec: RetrieverSpec,
    columns: RankerSpec,
    training: list[Examples],
    begin: Callable[[Retriever], None] | None = None,
) -> tuple[Retriever, list[float]]:
    """Fit the two towers on the clicked rows; conversions among them train the second space.

    Both count as known before the cutoff, whatever labels.immature says: the softmax takes positives alone, so a
    conversion that is still to come is a pair less, not a wrong negative.
    Items enter a batch in proportion to their clicks, which the correction log q(item) takes back out. `begin` sets
    the initial weights; by default they are the seed's.
    """
    settings = config.retriever
    clicked = [(day, torch.nonzero(day.clicks).flatten()) for day in training]
    users, items = _sides(clicked, spec, columns)
    conversions = torch.cat([day.conversions[rows] for day, rows in clicked])
    names = pl.concat([day.frame["item_id"].gather(rows.numpy()) for day, rows in clicked])
    codes = torch.from_numpy(names.rank("dense").to_numpy().astype(np.int64))
    frequency = torch.bincount(codes)[codes].float() / len(codes)
    device = device_of(config.training.device)
    retriever = Retriever(spec)
    if begin is not None:
        begin(retriever)
    retriever.to(device)
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


def told_loss(config: Config) -> str:
    """Return how conversions were supervised, and whether that is unstable."""
    name = config.training.conversion_loss
    return f"{name} (unstable)" if name in UNSTABLE else name


def _outcome(config: Config, ranker: Ranker, training: list[Examples], epochs: int, labels: dict[str, Any]) -> Outcome:
    rows = sum(len(day.features) for day in training)
    notes = {
        "parameters": sum(weight.numel() for weight in ranker.parameters()),
        "epochs": epochs,
        "body": config.model.body,
        "left_out_of_conversion_loss": sum(labels["training"]["click_and_conversion"]["left_out"].values()),
        "epoch_selected_by": labels["epoch_selected_by"],
        "conversion_loss": told_loss(config),
    }
    return Outcome(rows, rows, notes)


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
