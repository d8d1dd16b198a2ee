"""Train one model of a study, predict with it, and keep both, so that a killed study goes on where it was."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from models.inputs import Features
from models.ranker import Ranker, RankerSpec, predict
from pipeline.dataset import Examples
from pipeline.fit import PREDICT_ROWS, Fit, fit_ranker
from pipeline.stage import Outcome, measure
from pipeline.workspace import read_json, replaced_folder, write_json, write_parquet

OUTPUTS = ("p_click", "p_conversion", "p_click_and_conversion")
SOURCE_FOLDER = Path(__file__).parent.parent
CODE = (
    "models/*.py",
    "pipeline/fit.py",
    "pipeline/objective.py",
    "pipeline/rounds.py",
    "pipeline/label_sums.py",
    "pipeline/baselines.py",
)
"""What decides, beside its inputs, how a model is trained; `train` takes what else does."""

Predictor = Callable[[Features], NDArray[Any]]


@dataclass(frozen=True)
class Material:
    """What one model is trained, selected and measured on."""

    training: list[Examples]
    validation: list[Examples]
    measured: Mapping[str, list[Examples]]
    """Sets of days by name; each is predicted."""
    label: str = ""
    """What the log says of it."""


@dataclass(frozen=True)
class Fitted:
    """A trained model, and what there is to say of it."""

    predictor: Predictor
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """Predictions of one trained model, and what it cost."""

    predictions: dict[str, NDArray[np.float32]]
    """Of each measured set, (N, 3): p_click, p_conversion, p_click_and_conversion."""
    record: dict[str, Any]
    """Seconds, rows a second, MiB, parameters and the validation curve."""


def train_ranker(spec: RankerSpec, fit: Fit, material: Material, cache: Path | None) -> Trained:
    """Train a ranker and predict every measured set; equal arguments give equal predictions.

    With a cache folder the predictions are kept under a digest of the spec, the fit, all rows and the code of the
    models, and read from there where they are.
    """

    def make() -> Fitted:
        ranker, curve = fit_ranker(spec, fit, material.training, material.validation)
        return Fitted(lambda features: predict(ranker, features, PREDICT_ROWS), {"curve": curve, **sizes(ranker)})

    return train(f"{spec.body} seed {spec.seed}", [asdict(spec), asdict(fit)], material, cache, make)


def train(
    name: str,
    settings: Any,
    material: Material,
    cache: Path | None,
    make: Callable[[], Fitted],
    *,
    code: Sequence[Path] = (),
) -> Trained:
    """Train by `make` and predict every measured set, or read what an earlier call with equal settings kept.

    code: files, beyond those of `CODE`, that decide what `make` makes; where one has changed, it is trained again.
    """
    if cache is None:
        return _train(name, material, make)
    folder = cache / f"{name.replace(' ', '-')}-{_digest(settings, material, code)}"
    if not folder.exists():
        trained = _train(name, material, make)
        cache.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as draft:
            for measured, values in trained.predictions.items():
                write_parquet(pl.DataFrame(values, schema=list(OUTPUTS)), draft / f"{measured}.parquet")
            write_json(draft / "record.json", trained.record)
    predictions = {
        measured: pl.read_parquet(folder / f"{measured}.parquet").to_numpy() for measured in material.measured
    }
    return Trained(predictions, read_json(folder / "record.json", "compare"))


def sizes(ranker: Ranker) -> dict[str, int]:
    """Return the number of weights, and of those outside the embedding tables, which only rows that occur read."""
    tables = [layer for layer in ranker.modules() if isinstance(layer, torch.nn.Embedding) and layer.sparse]
    parameters = sum(weight.numel() for weight in ranker.parameters())
    in_tables = sum(layer.weight.numel() for layer in tables)
    return {"parameters": parameters, "parameters_outside_tables": parameters - in_tables}


def _train(name: str, material: Material, make: Callable[[], Fitted]) -> Trained:
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # see pipeline.train
    made: list[Fitted] = []
    rows = sum(len(day.clicks) for day in material.training)

    def fit() -> Outcome:
        made.append(make())
        return Outcome(rows, rows)

    start = time.process_time()
    measured = measure(f"{name} {material.label}".strip(), fit)
    trained_cpu = time.process_time() - start
    start = time.process_time()
    predictions = {
        key: np.concatenate([made[0].predictor(day.features) for day in days])[:, : len(OUTPUTS)].astype(np.float32)
        for key, days in material.measured.items()
    }
    record = {
        **made[0].record,
        "training_rows": rows,
        "training_cpu_seconds": round(trained_cpu, 3),
        "training_seconds": round(measured.seconds, 3),
        "peak_mib": round(measured.peak_mib, 1),
        "scored_rows": sum(len(values) for values in predictions.values()),
        "scoring_cpu_seconds": round(time.process_time() - start, 4),
    }
    return Trained(predictions, record)


def _digest(settings: Any, material: Material, code: Sequence[Path]) -> str:
    """Return sixteen hexadecimal digits of all that decides a prediction."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in [*(path for pattern in CODE for path in sorted(SOURCE_FOLDER.glob(pattern))), *code]:
        digest.update(path.read_bytes())
    for part, days in {"training": material.training, "validation": material.validation, **material.measured}.items():
        digest.update(part.encode())
        for day in days:
            for array in _arrays(day):
                digest.update(f"{array.shape} {array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _arrays(day: Examples) -> Iterator[NDArray[Any]]:
    features, targets = day.features, day.supervision.targets
    yield features.ids_BF.numpy()
    yield features.positions_BF.numpy()
    for name in sorted(features.pooled):
        yield features.pooled[name].numpy()
    for label_B in (targets.clicks_B, targets.conversions_B, targets.click_mask_B, targets.conversion_mask_B):
        yield label_B.numpy()
    for name in sorted(targets.extra):
        yield from (part_B.numpy() for part_B in targets.extra[name])
