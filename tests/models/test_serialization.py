"""Saving, loading, and every way in which a saved model can be broken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models.ranker import Ranker, RankerSpec, load_ranker, save_ranker
from models.retriever import Retriever, RetrieverSpec, load_retriever, save_retriever
from models.serialization import SPEC_FILE, WEIGHTS_FILE, weights_digest


def _ranker(*, seed: int = 0, hidden: tuple[int, ...] = (8,)) -> Ranker:
    spec = RankerSpec(
        body="mmoe",
        categorical_cardinalities={"user": 9, "item": 7},
        numeric=["price"],
        bins=4,
        pooled={"clicked_items": "item"},
        single=["user", "item"],
        context=[],
        context_numeric=[],
        hidden=hidden,
        seed=seed,
    )
    return Ranker(spec)


def _retriever() -> Retriever:
    spec = RetrieverSpec(
        categorical_cardinalities={"user": 9, "item": 7},
        bins=4,
        user_single=["user"],
        item_single=["item"],
        user_numeric=[],
        item_numeric=["price"],
        user_pooled={"clicked_items": "item"},
        item_pooled={},
        hidden=(8,),
    )
    return Retriever(spec)


def test_a_ranker_is_read_back_with_its_spec_and_its_bytes(tmp_path: Path) -> None:
    ranker = _ranker()
    save_ranker(ranker, tmp_path / "new" / "folder")
    loaded = load_ranker(tmp_path / "new" / "folder")
    assert loaded.spec == ranker.spec
    assert list(loaded.spec.categorical_cardinalities) == ["user", "item"]
    assert weights_digest(loaded) == weights_digest(ranker)


def test_a_retriever_is_read_back_with_its_spec_and_its_bytes(tmp_path: Path) -> None:
    retriever = _retriever()
    save_retriever(retriever, tmp_path)
    loaded = load_retriever(tmp_path)
    assert loaded.spec == retriever.spec
    assert weights_digest(loaded) == weights_digest(retriever)


def test_the_folder_holds_json_and_safetensors_alone(tmp_path: Path) -> None:
    save_ranker(_ranker(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [SPEC_FILE, WEIGHTS_FILE]


def test_the_digest_sees_names_shapes_types_and_bytes() -> None:
    def digest(name: str, tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return weights_digest(module)

    zeros = torch.zeros(2, 3)
    one = zeros.clone()
    one[1, 2] = 1.0
    variants = [("a", zeros), ("b", zeros), ("a", zeros.T), ("a", zeros.int()), ("a", one)]
    assert len({digest(name, tensor) for name, tensor in variants}) == len(variants)
    assert digest("a", zeros) == digest("a", zeros.clone())
    assert digest("a", one.T.contiguous().T) == digest("a", one)


def _edit_spec(folder: Path, edit: Callable[[dict[str, object]], object]) -> None:
    document = json.loads((folder / SPEC_FILE).read_text())
    edit(document["spec"])
    (folder / SPEC_FILE).write_text(json.dumps(document))


def _truncate(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-8])


def _flip_a_bit(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / SPEC_FILE).unlink(), r"spec\.json cannot be read .*: train and save"),
        (
            lambda folder: (folder / SPEC_FILE).write_text("{"),
            r"spec\.json cannot be read .*: train and save",
        ),
        (
            lambda folder: (folder / SPEC_FILE).write_text("[]"),
            r"spec\.json is no model's spec, expected the keys",
        ),
        (lambda folder: (folder / SPEC_FILE).write_text('{"type": 1}'), r"spec\.json is no model's spec"),
        (
            lambda folder: _edit_spec(folder, lambda spec: spec.pop("bins")),
            r"spec\.json lacks the keys \['bins'\]",
        ),
        (
            lambda folder: _edit_spec(folder, lambda spec: spec.update(depth=3)),
            r"spec\.json has unknown keys \['depth'\]",
        ),
        (
            lambda folder: _edit_spec(folder, lambda spec: spec.update(hidden=[9])),
            r"weights\.safetensors does not fit spec\.json .*: train and save",
        ),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), r"weights\.safetensors cannot be read"),
        (_truncate, r"weights\.safetensors cannot be read"),
        (_flip_a_bit, r"weights\.safetensors is not the file that spec\.json was written for"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    save_ranker(_ranker(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){tmp_path}/{message}"):
        load_ranker(tmp_path)


def test_weights_of_another_model_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    save_ranker(_ranker(), tmp_path / "one")
    save_ranker(_ranker(seed=1), tmp_path / "two")
    (tmp_path / "one" / WEIGHTS_FILE).replace(tmp_path / "two" / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"sha256 differs"):
        load_ranker(tmp_path / "two")


def test_a_retriever_is_no_ranker(tmp_path: Path) -> None:
    save_retriever(_retriever(), tmp_path)
    with pytest.raises(ValueError, match=r"spec\.json describes a RetrieverSpec, expected a RankerSpec: load it"):
        load_ranker(tmp_path)
