"""Weights as safetensors, the spec that rebuilds the module as JSON, and a digest of the weights."""

import hashlib
import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import DataclassInstance

    Spec = TypeVar("Spec", bound=DataclassInstance)
Module = TypeVar("Module", bound=nn.Module)

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "spec.json"
REMEDY = "train and save the model again, or restore the folder"


def weights_digest(module: nn.Module) -> str:
    """Returns the sha256, in hexadecimal, over names, types, shapes and bytes of the module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_module(module: nn.Module, spec: "DataclassInstance", folder: Path) -> None:
    """Writes the weights and the spec with the weights' digest into a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    document = {"type": type(spec).__name__, "weights_sha256": weights_digest(module), "spec": asdict(spec)}
    (folder / SPEC_FILE).write_text(json.dumps(document, indent=2) + "\n")


def load_module(folder: Path, spec_type: "type[Spec]", build: "Callable[[Spec], Module]") -> Module:
    """Rebuilds on the CPU the module that `save_module` wrote.

    Raises ValueError, naming the file, when a file is missing or damaged, or when weights and spec do not
    belong together.
    """
    document = _read_spec_file(folder / SPEC_FILE)
    if document["type"] != spec_type.__name__:
        raise ValueError(
            f"{folder / SPEC_FILE} describes a {document['type']}, expected a {spec_type.__name__}: "
            "load it with the function for its type, or give another folder"
        )
    module = build(_spec(spec_type, document["spec"], folder / SPEC_FILE))
    path = folder / WEIGHTS_FILE
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}") from error
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {SPEC_FILE} ({error}), another version of counterpoise may have written it: {REMEDY}"
        ) from error
    if weights_digest(module) != document["weights_sha256"]:
        raise ValueError(f"{path} is not the file that {SPEC_FILE} was written for (sha256 differs): {REMEDY}")
    return module


def _read_spec_file(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}") from error
    expected = {"type", "weights_sha256", "spec"}
    if not isinstance(document, dict) or set(document) != expected or not isinstance(document["spec"], dict):
        raise ValueError(f"{path} is no model's spec, expected the keys {sorted(expected)}: {REMEDY}")
    return document


def _spec(spec_type: "type[Spec]", values: dict[str, Any], path: Path) -> "Spec":
    known = {field.name: field for field in fields(spec_type)}
    required = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{path} has unknown keys {unknown}, expected {sorted(known)}: {REMEDY}")
    if missing := sorted(required - set(values)):
        raise ValueError(f"{path} lacks the keys {missing}: {REMEDY}")
    # JSON has no tuples: a list stands for one where the default is one.
    tuples = {name for name, field in known.items() if isinstance(field.default, tuple)}
    return spec_type(**{name: tuple(value) if name in tuples else value for name, value in values.items()})
