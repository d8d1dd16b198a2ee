"""The control of a run: separate networks on the same data and budget, which say what sharing gains or costs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.ranker import Ranker, RankerSpec, load_ranker
from models.serialization import weights_digest
from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.dataset import Day
from pipeline.fit import Fit, fit_ranker
from pipeline.workspace import read_json

CONTROL = "single_task"


def why_no_control(config: Config) -> str | None:
    """Return why a run of this configuration has no control, or None where it has one."""
    if config.model.body == CONTROL:
        return f"the body is {CONTROL} itself"
    if not config.training.control:
        return "training.control is false"
    if config.training.warm_start:
        # The champion's steps before this run would be counted for the joint model alone.
        return "a warm start begins from a champion that has no control of as many steps"
    return None


def fit_control(
    spec: RankerSpec, fit: Fit, training: Sequence[Day], validation: Sequence[Day], checkpoint: Checkpoint | None
) -> tuple[Ranker, list[dict[str, float]]]:
    """Fit the ranker's spec with separate networks and embeddings, and return it with its curve.

    Same rows, order, epochs, rates and seed: what differs is that nothing is shared. It costs about another fit, and
    as much memory in tables as there are tasks. It is no part of the registered model.
    """
    return fit_ranker(replace(spec, body=CONTROL), fit, training, validation, checkpoint=checkpoint)


def load_control(folder: Path) -> Ranker | None:
    """Read the control of a run's folder; None where train made none.

    Raises:
        ValueError: train has not run, or the control is not the one that it recorded.
    """
    recorded = read_json(folder / "model" / "training.json", "train")["digests"].get(CONTROL)
    if recorded is None:
        return None
    control = load_ranker(folder / "control")
    if weights_digest(control) != recorded:
        raise ValueError(
            f"{folder / 'control'} is not the control that {folder / 'model' / 'training.json'} records (sha256 "
            "differs): run `counterpoise train` again with the same options"
        )
    return control
