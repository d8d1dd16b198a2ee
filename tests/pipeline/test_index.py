"""FAISS agrees with exact search as far as is stated, and an index is refused where it does not belong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.exact_search import exact_search, make_catalogue
from pipeline.index import (
    TARGET_RECALL,
    Index,
    IndexSpec,
    Sample,
    build_index,
    check_saved,
    load_index,
    sample_of,
    save_index,
    search,
    stored_vectors,
)

Matrix = NDArray[np.float32]
K = 20


def drawn(rows: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return sample_of(drawn(3000, 1), drawn(50, 2), K)


def built(sample: Sample, kind: str, *, towers: str = "t", exact_below: int = 1000) -> tuple[Index, IndexSpec]:
    return build_index(sample, kind=kind, towers=towers, exact_below=exact_below)


def best(sample: Sample, queries: Matrix) -> NDArray[np.int64]:
    return exact_search(make_catalogue(sample.vectors), queries, K)[1]


def test_the_exact_index_and_exact_search_find_the_same(sample: Sample) -> None:
    index, spec = built(sample, "exact")
    scores, found = search(index, sample.queries, K)
    expected_scores, expected = exact_search(make_catalogue(stored_vectors(index)), sample.queries, K)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_array_equal(stored_vectors(index), sample.vectors)
    assert (spec.recall, spec.tuned_recall, spec.recall_k, spec.parameters) == (1.0, 1.0, K, {})


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_recall_is_that_of_users_that_the_index_was_not_tuned_on(kind: str, sample: Sample) -> None:
    index, spec = built(sample, kind)
    for queries, stated in ((sample.queries[1::2], spec.recall), (sample.queries[::2], spec.tuned_recall)):
        found, truth = search(index, queries, K)[1], best(sample, queries)
        hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
        assert stated == pytest.approx(sum(hits) / truth.size)
    assert spec.tuned_recall >= TARGET_RECALL
    assert spec.reason == "configured"


def test_the_least_effort_that_reaches_the_target_is_kept(sample: Sample) -> None:
    index, spec = built(sample, "ivf")
    effort = spec.parameters["nprobe"]
    assert 1 < effort < spec.parameters["lists"]
    index.nprobe = effort - max(2, effort // 8)  # type: ignore[attr-defined]
    assert sample.tuning(index) < spec.tuned_recall


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_a_loaded_index_finds_the_same_and_two_builds_are_equal_bytes(
    kind: str, sample: Sample, tmp_path: Path
) -> None:
    index, spec = built(sample, kind)
    saved = save_index(index, spec, tmp_path)
    loaded, loaded_spec = load_index(tmp_path, "t")
    assert loaded_spec == saved == replace(spec, file_digest=saved.file_digest)
    np.testing.assert_array_equal(search(loaded, sample.queries, K)[1], search(index, sample.queries, K)[1])
    check_saved(tmp_path, "t", sample)
    again = tmp_path / "again"
    again.mkdir()
    assert save_index(*built(sample, kind), again).file_digest == saved.file_digest


def test_a_recall_that_is_not_the_files_is_noticed(sample: Sample, tmp_path: Path) -> None:
    index, spec = built(sample, "ivf")
    save_index(index, replace(spec, recall=0.5), tmp_path)
    with pytest.raises(AssertionError, match=r"recall=0\.5"):
        check_saved(tmp_path, "t", sample)


def test_auto_is_exact_when_small_and_approximate_when_large(sample: Sample) -> None:
    small = built(sample, "auto", exact_below=3001)[1]
    assert (small.kind, small.reason) == ("exact", "fewer than 3001 items")


def test_auto_takes_ivf_where_few_lists_reach_the_target() -> None:
    centres = drawn(60, 3)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.repeat(centres, 50, axis=0) + np.float32(0.02) * drawn(3000, 4)
    queries = centres + np.float32(0.02) * drawn(60, 5)
    spec = built(sample_of(vectors, queries, K), "auto")[1]
    assert spec.kind == "ivf"
    assert spec.recall >= TARGET_RECALL
    assert spec.parameters["nprobe"] * 4 <= spec.parameters["lists"]
    assert spec.reason == "ivf reaches recall 0.99"


def test_auto_takes_hnsw_where_ivf_must_look_at_most_lists(sample: Sample) -> None:
    spec = built(sample, "auto")[1]
    assert spec.kind == "hnsw"
    assert spec.reason.startswith("ivf has recall ")
    assert spec.reason.endswith("hnsw reaches recall 0.99")


def test_auto_is_exact_and_says_so_where_neither_reaches_the_target(sample: Sample) -> None:
    unreachable = replace(sample, worst=np.full_like(sample.worst, 1e9))
    spec = built(unreachable, "auto")[1]
    assert spec.kind == "exact"
    assert "hnsw has recall 0.0000" in spec.reason
    assert spec.reason.endswith("exact, since neither is good and fast")


@pytest.mark.parametrize("kind", ["auto", "exact", "ivf", "hnsw"])
def test_one_item_and_one_user_are_enough(kind: str) -> None:
    only = sample_of(drawn(1, 1), drawn(1, 2), K)
    index, spec = built(only, kind)
    assert search(index, only.queries, 1)[1].tolist() == [[0]]
    assert (spec.recall, spec.tuned_recall, spec.recall_k) == (1.0, 1.0, 1)


def test_an_index_of_other_towers_is_refused(sample: Sample, tmp_path: Path) -> None:
    save_index(*built(sample, "exact", towers="one"), tmp_path)
    with pytest.raises(ValueError, match="was built by towers one, the model has two"):
        load_index(tmp_path, "two")


def test_an_index_of_another_metric_or_size_is_refused(sample: Sample, tmp_path: Path) -> None:
    save_index(*built(sample, "exact"), tmp_path)
    stated = json.loads((tmp_path / "index.json").read_text())
    for change in ({"items": 2999}, {"metric": "l2"}):
        (tmp_path / "index.json").write_text(json.dumps({**stated, **change}))
        with pytest.raises(ValueError, match="expected"):
            load_index(tmp_path, "t")


def test_a_damaged_exchanged_or_missing_file_is_named(sample: Sample, tmp_path: Path) -> None:
    save_index(*built(sample, "exact"), tmp_path)
    path = tmp_path / "items.faiss"
    whole = path.read_bytes()
    for content in (b"no index", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"items\.faiss is missing, damaged or exchanged"):
            load_index(tmp_path, "t")
    path.unlink()
    with pytest.raises(ValueError, match=r"items\.faiss is missing, damaged or exchanged"):
        load_index(tmp_path, "t")


def test_a_record_of_another_version_is_refused(sample: Sample, tmp_path: Path) -> None:
    save_index(*built(sample, "exact"), tmp_path)
    stated = json.loads((tmp_path / "index.json").read_text())
    del stated["parameters"]
    (tmp_path / "index.json").write_text(json.dumps({**stated, "effort": 0}))
    with pytest.raises(ValueError, match=r"index\.json was written by another version"):
        load_index(tmp_path, "t")
