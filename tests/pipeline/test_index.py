"""FAISS agrees with brute force, and an index is refused where it does not belong."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.index import build_index, choose_kind, load_index, save_index, search

Matrix = NDArray[np.float32]


@pytest.fixture(scope="module")
def vectors() -> Matrix:
    return np.random.default_rng(1).standard_normal((3000, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> Matrix:
    return np.random.default_rng(2).standard_normal((50, 16)).astype(np.float32)


def _brute_force(vectors: Matrix, queries: Matrix, k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def test_the_exact_index_equals_brute_force(vectors: Matrix, queries: Matrix) -> None:
    index, spec = build_index(vectors, queries, kind="exact", k=20, towers="t")
    scores, found = search(index, queries, 20)
    assert (found == _brute_force(vectors, queries, 20)).all()
    np.testing.assert_allclose(scores[:, 0], (queries @ vectors.T).max(axis=1), rtol=1e-5)
    assert (spec.recall, spec.recall_k, spec.effort) == (1.0, 20, 0)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_recall_of_an_approximate_index_is_what_brute_force_says(
    kind: str, vectors: Matrix, queries: Matrix
) -> None:
    index, spec = build_index(vectors, queries, kind=kind, k=20, towers="t")
    found, truth = search(index, queries, 20)[1], _brute_force(vectors, queries, 20)
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    assert spec.recall == pytest.approx(sum(hits) / truth.size)
    assert spec.recall >= 0.95
    assert spec.effort > 0


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_a_loaded_index_finds_the_same(kind: str, vectors: Matrix, queries: Matrix, tmp_path: Path) -> None:
    index, spec = build_index(vectors, queries, kind=kind, k=20, towers="t")
    save_index(index, spec, tmp_path)
    loaded, loaded_spec = load_index(tmp_path, "t")
    assert loaded_spec == spec
    assert (search(loaded, queries, 20)[1] == search(index, queries, 20)[1]).all()


def test_auto_is_exact_when_small() -> None:
    assert choose_kind("auto", 999, 1000) == "exact"
    assert choose_kind("auto", 1000, 1000) == "hnsw"
    assert choose_kind("ivf", 10, 1000) == "ivf"


def test_an_index_of_other_towers_is_refused(vectors: Matrix, queries: Matrix, tmp_path: Path) -> None:
    save_index(*build_index(vectors, queries, kind="exact", k=5, towers="one"), tmp_path)
    with pytest.raises(ValueError, match="was built by towers one, the model has two"):
        load_index(tmp_path, "two")


def test_an_index_of_another_metric_or_size_is_refused(vectors: Matrix, queries: Matrix, tmp_path: Path) -> None:
    index, spec = build_index(vectors, queries, kind="exact", k=5, towers="t")
    save_index(index, spec, tmp_path)
    stated = json.loads((tmp_path / "index.json").read_text())
    for change in ({"items": 2999}, {"metric": "l2"}):
        (tmp_path / "index.json").write_text(json.dumps({**stated, **change}))
        with pytest.raises(ValueError, match="expected"):
            load_index(tmp_path, "t")


def test_a_damaged_index_is_named(vectors: Matrix, queries: Matrix, tmp_path: Path) -> None:
    save_index(*build_index(vectors, queries, kind="exact", k=5, towers="t"), tmp_path)
    (tmp_path / "items.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match=r"items\.faiss is no FAISS index"):
        load_index(tmp_path, "t")
