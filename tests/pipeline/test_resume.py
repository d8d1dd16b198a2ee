"""A fit that is killed goes on at its last checkpoint, to the weights of one that nothing disturbed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from models.serialization import weights_digest
from models.task_weights import TASK_WEIGHTS
from pipeline.checkpoint import Checkpoint
from pipeline.config import load_config
from pipeline.dataset import Block, Examples, retriever_spec
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.fit import Fit, fit_of, fit_ranker
from pipeline.fit_retriever import fit_retriever
from pipeline.ingest import ingest
from pipeline.label_sums import LabelSums
from pipeline.study_data import Study
from pipeline.train import train
from pipeline.workspace import Workspace, read_json

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Fuse:
    """Ends the process at one of its reads."""

    reads_left: int

    def read(self, examples: Examples) -> Examples:
        """Return the rows, or end the process."""
        self.reads_left -= 1
        if not self.reads_left:
            raise Killed
        return examples


@dataclass(frozen=True)
class ShortBlocks:
    """A day of 400 rows in four blocks, whose reads a fuse may end."""

    held: Examples
    fuse: Fuse

    def blocks(self) -> list[Block]:
        """Return the blocks."""
        return [self._block(start) for start in range(0, 400, 100)]

    def _block(self, start: int) -> Block:
        held, rows = self.held, torch.arange(start, start + 100)
        targets = held.supervision.targets.select(rows, torch.device("cpu"))
        part = Examples(
            held.features.slice(rows),
            held.clicks[rows],
            held.conversions[rows],
            held.frame[start : start + 100],
            replace(held.supervision, targets=targets),
        )
        return Block(100, int(part.clicks.sum()), lambda: self.fuse.read(part))

    def label_sums(self) -> LabelSums:
        """Return what the labels sum to."""
        return self.held.label_sums()

    def item_clicks(self) -> pl.DataFrame:
        """Return the clicks of each item."""
        return self.held.item_clicks()


NEVER = 10**9


def _days(study: Study, fuse: Fuse) -> list[ShortBlocks]:
    return [ShortBlocks(day, fuse) for day in study.training]


def _checkpoint(folder: Path, *, every_rows: int = 1) -> Checkpoint:
    return Checkpoint(folder / "model.safetensors", {}, every_rows)


def _fit(study: Study, way: str, shards: int = 1) -> Fit:
    fit = replace(fit_of(study.config), epochs=3, batch_size=64, shards=shards)
    return replace(fit, balancing=replace(fit.balancing, way=way))


@pytest.mark.parametrize(("way", "shards"), [*((way, 1) for way in TASK_WEIGHTS), ("static", 2)])
def test_a_ranker_killed_within_an_epoch_ends_with_the_weights_of_an_undisturbed_one(
    way: str, shards: int, small_study: Study, tmp_path: Path
) -> None:
    spec = replace(small_study.spec("ple", 1), dropout=0.2)
    fit, validation = _fit(small_study, way, shards), small_study.validation
    undisturbed, curve = fit_ranker(spec, fit, _days(small_study, Fuse(NEVER)), validation)
    for reads in (7, 9, 13):  # after 6 rounds of the 12 of the first epoch, after 2 of the second, after 2 of the third
        with pytest.raises(Killed):
            fit_ranker(spec, fit, _days(small_study, Fuse(reads)), validation, checkpoint=_checkpoint(tmp_path))
    again, its_curve = fit_ranker(spec, fit, _days(small_study, Fuse(11)), validation, checkpoint=_checkpoint(tmp_path))
    assert weights_digest(again) == weights_digest(undisturbed)
    assert its_curve == curve
    kept, kept_curve = fit_ranker(spec, fit, _days(small_study, Fuse(1)), validation, checkpoint=_checkpoint(tmp_path))
    assert weights_digest(kept) == weights_digest(undisturbed)
    assert kept_curve == curve


def test_a_retriever_killed_within_its_epochs_ends_with_the_weights_of_an_undisturbed_one(
    small_study: Study, tmp_path: Path
) -> None:
    settings = small_study.config.retriever.model_copy(update={"epochs": 3, "batch_size": 64})
    config = small_study.config.model_copy(update={"retriever": settings})
    towers = retriever_spec(config, small_study.plan, small_study.encoder, 1)
    columns = small_study.spec("linear", 1)
    undisturbed, losses = fit_retriever(config, towers, columns, _days(small_study, Fuse(NEVER)))
    with pytest.raises(Killed):
        fit_retriever(config, towers, columns, _days(small_study, Fuse(20)), checkpoint=_checkpoint(tmp_path))
    again, its_losses = fit_retriever(
        config, towers, columns, _days(small_study, Fuse(26)), checkpoint=_checkpoint(tmp_path)
    )
    assert weights_digest(again) == weights_digest(undisturbed)
    assert its_losses == losses


def test_checkpoints_are_as_far_apart_as_is_asked_for(small_study: Study, tmp_path: Path) -> None:
    spec, fit = small_study.spec("linear", 1), _fit(small_study, "static")
    days = _days(small_study, Fuse(11))
    with pytest.raises(Killed):
        fit_ranker(spec, fit, days, [], checkpoint=_checkpoint(tmp_path, every_rows=400))
    kept = _checkpoint(tmp_path).load()
    assert kept is not None
    assert (kept.values["epoch"], kept.values["done"]) == (0, 8)


OVERRIDES = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [16, 8],
    "training.batch_size": 64,
    "training.checkpoint_rows": 1,
    "training.epochs": 3,
    "retriever.epochs": 2,
}


@pytest.fixture(scope="module")
def featurized(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    """Return what copies a featurized workspace."""
    config = load_config(EXAMPLE, OVERRIDES)
    workspace = Workspace(tmp_path_factory.mktemp("featurized") / "workspace")
    ingest(config, workspace, simulated_source)
    featurize(config, workspace, days_of(config, workspace, None))

    def copy() -> Workspace:
        place = tmp_path_factory.mktemp("copy") / "workspace"
        shutil.copytree(workspace.root, place)
        return Workspace(place)

    return copy


def _arguments(workspace: Workspace) -> list[str]:
    sets = [part for key, value in OVERRIDES.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["-m", "pipeline", "train", "--config", str(EXAMPLE), "--workspace", str(workspace.root), *sets]


def test_train_killed_with_signal_9_within_an_epoch_goes_on_to_the_models_of_an_undisturbed_train(
    featurized: Callable[[], Workspace],
) -> None:
    config, workspace, undisturbed = load_config(EXAMPLE, OVERRIDES), featurized(), featurized()
    days = days_of(config, undisturbed, None)
    train(config, undisturbed, days)
    checkpoint = run_folder(config, workspace, days) / "checkpoint"
    process = subprocess.Popen([sys.executable, *_arguments(workspace)])
    while not (checkpoint / "ranker.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (checkpoint / "baseline.safetensors").exists()
    again = subprocess.run([sys.executable, *_arguments(workspace)], check=True, capture_output=True, text=True)
    assert "ranker.safetensors: training goes on in epoch" in again.stderr
    assert not checkpoint.exists()
    records = [
        read_json(run_folder(config, place, days) / "model" / "training.json", "train")
        for place in (workspace, undisturbed)
    ]
    assert records[0] == records[1]
