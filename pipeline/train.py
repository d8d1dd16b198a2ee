"""Train: the joint ranker, the logistic-regression baseline, the two-tower retriever and further sources of a run."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from features.encoding import Encoder, load_encoder
from models.losses import UNSTABLE
from models.ranker import RankerSpec, save_ranker
from models.retriever import Retriever, RetrieverSpec, save_retriever
from models.serialization import weights_digest
from pipeline import tables
from pipeline.blocks import StoredDay, identity, stored_day
from pipeline.checkpoint import FOLDER, Checkpoint
from pipeline.code_version import code_digest
from pipeline.config import Config
from pipeline.control import CONTROL, fit_control, why_no_control
from pipeline.dataset import device_of, ranker_spec, retriever_spec
from pipeline.distributed import current, join, leave
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder, table_versions
from pipeline.fit import Fit, fit_of, fit_ranker
from pipeline.fit_retriever import fit_retriever
from pipeline.fit_sources import fit_sources
from pipeline.label_sums import check_classes, maturity_record, total
from pipeline.maturity import maturity_of
from pipeline.sources import SOURCES_KEY, Sources, save_sources
from pipeline.split import Days
from pipeline.stage import LOG, Outcome
from pipeline.warm_start import Beginnings, read_beginnings
from pipeline.workspace import Workspace, replaced_folder, write_json

WHY_UNSTABLE = "it learns imputed labels beside what they supervise; hold its validation losses against esmm's"


@dataclass(frozen=True)
class Task:
    """What a run trains, on which days, from where."""

    config: Config
    folder: Path
    encoder: Encoder
    sources: Callable[[Retriever], Sources | None]
    """Fits the candidate sources beside given towers."""
    spec: RankerSpec
    linear: RankerSpec
    towers: RetrieverSpec
    fit: Fit
    training: list[StoredDay]
    validation: list[StoredDay]
    labels: dict[str, Any]
    """What training.json says of them."""
    begin: Beginnings

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the checkpoint of one of the run's models."""
        specs = json.dumps([asdict(self.spec), asdict(self.towers)], sort_keys=True, default=str)
        made_by = {
            "configuration": self.config.digest(),
            "encoder": hashlib.sha256(specs.encode()).hexdigest()[:16],
            "version of the examples": identity([*self.training, *self.validation]),
            "base": str((self.begin.record or {}).get("base_version")),
            "version of counterpoise": code_digest(),
            "device": self.fit.device.type,
        }
        path = self.folder / FOLDER / f"{name}.safetensors"
        return Checkpoint(path, made_by, self.config.training.checkpoint_rows, writes=current().leads())


def train(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Fit all models of a run on its training days and keep the epoch that the validation day prefers.

    A label counts only where it was known before the first test day began, as it would have been that night;
    labels.immature says what becomes of those that may still change then. With training.warm_start all models begin
    from the champion that featurize recorded. The control of separate networks lies beside the model, in control/.
    Memory holds a block of rows and the models, however many rows there are. Killed and run again, it goes on at the
    last checkpoint. Processes that torchrun started train together; the first one writes.

    Raises:
        ValueError: featurize has not run, the rows that train a task hold one class only, labels.immature = 'weight'
            has too few conversions to fit their delay on, or the champion is of another architecture.
    """
    world = join(device_of(config.training.device))
    task = _task(config, workspace, days)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it, and filling costs 5 % of a step
    if config.training.conversion_loss in UNSTABLE:
        LOG.warning("training.conversion_loss = %r is unstable: %s", config.training.conversion_loss, WHY_UNSTABLE)
    with replaced_folder(task.folder / "model") if world.leads() else nullcontext() as model:
        record, parameters = _fit_models(task, model)
        if model is not None:
            shutil.copy(task.folder / "features" / "encoder.json", model / "encoder.json")
            write_json(model / "training.json", record)
    world.wait()  # what another process has not read yet must not go
    if world.leads():
        shutil.rmtree(task.folder / FOLDER, ignore_errors=True)
    world.wait()
    leave()
    return _outcome(task, len(record["ranker"]), parameters)


def _task(config: Config, workspace: Workspace, days: Days) -> Task:
    plan, folder = plan_of(config), run_folder(config, workspace, days)
    encoder = load_encoder(folder / "features" / "encoder.json")
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    spec = ranker_spec(config, plan, encoder, config.model.body, config.seed)
    fitted = tables.scan(table, version).filter(pl.col("date").is_in([*days.train, *days.validation]))
    maturity = maturity_of(config, fitted, plan.start_of(days.test[0]))
    training = [stored_day(table, version, day, spec, maturity) for day in days.train]
    validation = [stored_day(table, version, day, spec, maturity) for day in days.validation]
    sums = total(day.label_sums() for day in training)
    check_classes(sums, maturity, days)
    return Task(
        config=config,
        folder=folder,
        encoder=encoder,
        sources=lambda retriever: fit_sources(config, workspace, days, encoder, retriever),
        spec=spec,
        linear=ranker_spec(config, plan, encoder, "linear", config.seed),
        towers=retriever_spec(config, plan, encoder, config.seed),
        fit=fit_of(config),
        training=training,
        validation=validation,
        labels=maturity_record(maturity, sums, total(day.label_sums() for day in validation)),
        begin=read_beginnings(config, folder / "features", encoder),
    )


def _fit_models(task: Task, model: Path | None) -> tuple[dict[str, Any], int]:
    """Fit one model after another, and save each into a folder if there is one.

    Returns:
        What training.json says, and the ranker's number of weights.
    """
    config, begin, data = task.config, task.begin, (task.training, task.validation)
    ranker, curve = fit_ranker(task.spec, task.fit, *data, begin.ranker, task.checkpoint("ranker"))
    linear_fit = fit_of(config, config.training.baseline_learning_rate)
    if model is not None:
        save_ranker(ranker, model / "ranker")
    digests = {"ranker": weights_digest(ranker)}
    parameters = sum(weight.numel() for weight in ranker.parameters())
    del ranker  # with its tables, which may be most of the memory
    baseline, baseline_curve = fit_ranker(task.linear, linear_fit, *data, begin.baseline, task.checkpoint("baseline"))
    if model is not None:
        save_ranker(baseline, model / "logistic_regression")
    retriever, losses = fit_retriever(
        config, task.towers, task.spec, task.training, begin.retriever, task.checkpoint("retriever")
    )
    if model is not None:
        save_retriever(retriever, model / "retriever")
    digests["retriever"] = weights_digest(retriever)
    sources = None if model is None else task.sources(retriever)  # the first process fits them, and the others wait
    if sources is not None and model is not None:
        digests |= save_sources(sources, model)
    record: dict[str, Any] = {
        "ranker": curve,
        "logistic_regression": baseline_curve,
        "retriever": losses,
        "digests": digests,
        "labels": task.labels,
        "warm_start": begin.record,
        "conversion_loss": told_loss(config),
        "task_weights": config.training.task_weights,
        SOURCES_KEY: None if sources is None else sources.names,
    }
    if why_no_control(config) is None:
        control, record[CONTROL] = fit_control(task.spec, task.fit, *data, task.checkpoint(CONTROL))
        digests[CONTROL] = weights_digest(control)
        if model is not None:
            with replaced_folder(task.folder / "control") as draft:
                save_ranker(control, draft)
    return record, parameters


def told_loss(config: Config) -> str:
    """Return how conversions were supervised, and whether that is unstable."""
    name = config.training.conversion_loss
    return f"{name} (unstable)" if name in UNSTABLE else name


def _outcome(task: Task, epochs: int, parameters: int) -> Outcome:
    rows = sum(block.rows for day in task.training for block in day.blocks())
    notes = {
        "parameters": parameters,
        "epochs": epochs,
        "body": task.config.model.body,
        "left_out_of_conversion_loss": sum(task.labels["training"]["click_and_conversion"]["left_out"].values()),
        "epoch_selected_by": task.labels["epoch_selected_by"],
        "conversion_loss": told_loss(task.config),
    }
    return Outcome(rows, rows, notes)
