"""What each process that a test starts with torchrun does: fit models on rows that lie unevenly in blocks.

torchrun --nproc-per-node 2 shared_steps.py WORKSPACE OUTPUT.json
"""

import json
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import torch

from pipeline.config import Config, load_config
from pipeline.dataset import Block, Examples, retriever_spec
from pipeline.distributed import join, leave
from pipeline.fit import fit_of, fit_ranker
from pipeline.fit_retriever import fit_retriever
from pipeline.label_sums import LabelSums
from pipeline.study_data import load_study
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
CPU = torch.device("cpu")
BATCH_ROWS = 128
ENDS = (0, 250, 251, 400)
"""With two shards the first two blocks are a round, whose second piece has one row; the third block is cut."""


@dataclass(frozen=True)
class UnevenBlocks:
    """A day of 400 rows in blocks of 250, 1 and 149."""

    held: Examples

    def blocks(self) -> list[Block]:
        """Return the blocks."""
        return [self._block(start, stop) for start, stop in pairwise(ENDS)]

    def _block(self, start: int, stop: int) -> Block:
        held, rows = self.held, torch.arange(start, stop)
        supervision = replace(held.supervision, targets=held.supervision.targets.select(rows, CPU))
        clicks, conversions = held.clicks[rows], held.conversions[rows]
        part = Examples(held.features.slice(rows), clicks, conversions, held.frame[start:stop], supervision)
        return Block(stop - start, int(clicks.sum()), lambda: part)

    def label_sums(self) -> LabelSums:
        """Return what the labels sum to."""
        return self.held.label_sums()

    def item_clicks(self) -> pl.DataFrame:
        """Return the clicks of each item."""
        return self.held.item_clicks()


def config_of(loss: str) -> Config:
    """Return a configuration of small models, one of them with dropout."""
    small = {"hidden": [16, 8], "embedding_width": 4, "numeric_width": 2}
    values: dict[str, Any] = {f"model.{name}": value for name, value in small.items()}
    values |= {"training.conversion_loss": loss, "training.learning_rate": 1e-2, "training.batch_size": BATCH_ROWS}
    values |= {"retriever.epochs": 3, "retriever.batch_size": 64, "training.shards": 2, "training.epochs": 4}
    values |= {"model.dropout": 0.3, "model.gate_dropout": 0.3} if loss == "dcmt" else {}
    return load_config(EXAMPLE, {**values, "source.time_zone": "Asia/Shanghai"})


def fit_models(workspace: Workspace) -> dict[str, Any]:
    """Fit a ranker with each kind of loss and a retriever, and return losses and weights."""
    run, found = next((workspace.root / "runs").iterdir()).name, {}
    for loss in ("esmm", "dcmt"):
        config = config_of(loss)
        study = load_study(config, workspace, run=run)
        days = [UnevenBlocks(day) for day in study.training]
        ranker, curve = fit_ranker(study.spec("ple", 1), fit_of(config), days, study.validation)
        found[loss] = {"losses": curve, "weights": _weights(ranker)}
    columns = study.spec("ple", 1)
    retriever, losses = fit_retriever(config, retriever_spec(config, study.plan, study.encoder, 1), columns, days)
    found["retriever"] = {"losses": [{"training": loss} for loss in losses], "weights": _weights(retriever)}
    return found


def _weights(model: torch.nn.Module) -> list[float]:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).tolist()


if __name__ == "__main__":
    world = join(CPU)
    made = fit_models(Workspace(Path(sys.argv[1])))
    output = Path(sys.argv[2])
    output.with_name(f"{world.rank}-{output.name}").write_text(json.dumps(made), encoding="utf-8")
    leave()
