"""Checkpoints of training: where a killed `train` goes on, in one file a model, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.stage import LOG

FOLDER = "checkpoint"
"""Of a run; it is there only while the run trains, or after train was killed."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one model.

    Attributes:
        path: its file.
        made_by: what decides how the model is trained, by name; another checkpoint's is no use.
        every_rows: rows that are trained on between two of its writes.
        writes: whether this process writes it; all read it.
    """

    path: Path
    made_by: Mapping[str, str]
    every_rows: int
    writes: bool = True

    def save(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Replace the checkpoint: the disk has the new one whole before the old one goes."""
        if not self.writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.draft")
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        document = {"made_by": dict(self.made_by), "values": dict(values)}
        save_file(whole, draft, metadata={"checkpoint": json.dumps(document)})
        _to_disk(draft)
        draft.replace(self.path)
        _to_disk(self.path.parent)

    def load(self) -> Kept | None:
        """Return what was kept; None where nothing was, or where it is of another training, which is logged.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                document = json.loads(file.metadata()["checkpoint"])
                changed = sorted(
                    name
                    for name in {*self.made_by, *document["made_by"]}
                    if self.made_by.get(name) != document["made_by"].get(name)
                )
                if changed:
                    LOG.info("%s is ignored: made with another %s; training begins anew", self.path, ", ".join(changed))
                    return None
                # A copy, since the file that these are mapped from is replaced while they are in use.
                return Kept({name: file.get_tensor(name).clone() for name in file.keys()}, document["values"])  # noqa: SIM118  # no mapping
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint {self.path} cannot be read ({error}): remove it and train again") from error


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
