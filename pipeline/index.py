"""The FAISS index over item vectors: the only file that imports faiss.

Inner product of (n, 2S) float32 item vectors; exact under a size, IVF or HNSW above it, as thorough as the target
recall needs for users to tune on. The recall that is stated is that of other users.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.exact_search import exact_search, make_catalogue
from pipeline.workspace import read_json, write_json

TARGET_RECALL = 0.99
TUNED_RECALL = 0.992
"""What tuning users must reach, so that other users reach the target: the recall of 250 users is within 0.002."""
METRIC = "inner_product"
LARGEST_SHARE = 4
"""IVF must do with one list in so many, or HNSW is tried."""
ITERATIONS, POINTS_PER_LIST = 10, 64
CENTROID_ITERATIONS = 20
NEIGHBOURS, BUILD_EFFORT = 32, 100
SAME_SCORE = 1e-6
Floats = NDArray[np.float32]
Index = faiss.Index


@dataclass(frozen=True)
class IndexSpec:
    """What an index holds and how good it is."""

    kind: str
    metric: str
    items: int
    width: int
    towers: str
    """SHA-256 of the retriever's weights that made the vectors."""
    parameters: dict[str, int]
    """Of ivf: lists and nprobe; of hnsw: neighbours, build_effort (efConstruction) and search_effort (efSearch)."""
    recall: float
    """Share of the exact top k that the index finds, at `recall_k`, over sampled users that it was not tuned on."""
    tuned_recall: float
    """The same over the users that it was tuned on."""
    recall_k: int
    reason: str
    """Why it is of this kind."""
    file_digest: str = ""
    """SHA-256 of items.faiss."""


@dataclass(frozen=True)
class Sample:
    """Sampled users with the k-th best exact score of each: every second to tune on, the others to state the recall."""

    vectors: Floats
    queries: Floats
    worst: NDArray[np.float64]
    k: int

    def tuning(self, index: faiss.Index) -> float:
        """Return the recall over the users to tune on."""
        return self._recall(index, slice(0, None, 2))

    def stated(self, index: faiss.Index) -> float:
        """Return the recall over the other users; of a single user, over that one."""
        return self._recall(index, slice(1 if len(self.queries) > 1 else 0, None, 2))

    def _recall(self, index: faiss.Index, users: slice) -> float:
        queries = self.queries[users]
        found = search(index, queries, self.k)[1]
        # By score, not by number: of items that tie for the last place, any is right.
        scores = np.einsum("qkw,qw->qk", self.vectors[found].astype(np.float64), queries.astype(np.float64))
        hits = (found >= 0) & (scores >= (self.worst - SAME_SCORE * np.abs(self.worst))[users, None])
        return float(hits.mean())


def sample_of(vectors: Floats, queries: Floats, k: int) -> Sample:
    """Search the exact k best of at least one item's vectors (n, width) for sampled users (q, width), at least one."""
    scores = exact_search(make_catalogue(vectors), queries, k)[0]
    return Sample(vectors, queries, scores[:, -1].astype(np.float64), scores.shape[1])


def build_index(sample: Sample, *, kind: str, towers: str, exact_below: int) -> tuple[faiss.Index, IndexSpec]:
    """Build the index of a kind; 'auto' is exact under a size, then the first of ivf and hnsw to reach the target.

    Args:
        sample: the items, and users to tune on and to state the recall of.
        kind: auto, exact, ivf or hnsw.
        towers: digest of the weights behind both.
        exact_below: items under which 'auto' is exact.
    """
    faiss.omp_set_num_threads(1)  # the graph of HNSW depends on the order in which threads insert
    items, width = sample.vectors.shape
    base = IndexSpec(kind, METRIC, items, width, towers, {}, 1.0, 1.0, sample.k, "configured")
    if kind != "auto":
        return _BUILDERS[kind](sample, base)
    if items < exact_below:
        return _exact(sample, replace(base, kind="exact", reason=f"fewer than {exact_below} items"))
    return _auto(sample, base)


def _auto(sample: Sample, base: IndexSpec) -> tuple[faiss.Index, IndexSpec]:
    """Try IVF, which at this recall was three times as fast as HNSW and built in a tenth of its time, then HNSW."""
    tried: list[str] = []
    for kind in ("ivf", "hnsw"):
        index, spec = _BUILDERS[kind](sample, replace(base, kind=kind))
        parameters = spec.parameters
        share = parameters.get("nprobe", 0) * LARGEST_SHARE
        if min(spec.recall, spec.tuned_recall) >= TARGET_RECALL and share <= parameters.get("lists", share):
            return index, replace(spec, reason="; ".join([*tried, f"{kind} reaches recall {TARGET_RECALL}"]))
        tried.append(f"{kind} has recall {spec.recall:.4f} with {parameters}")
    reason = "; ".join([*tried, "exact, since neither is good and fast"])
    return _exact(sample, replace(base, kind="exact", reason=reason))


def _exact(sample: Sample, base: IndexSpec) -> tuple[faiss.Index, IndexSpec]:
    index = faiss.IndexFlatIP(base.width)
    index.add(sample.vectors)
    return index, replace(base, recall=sample.stated(index), tuned_recall=sample.tuning(index))


def _ivf(sample: Sample, base: IndexSpec) -> tuple[faiss.Index, IndexSpec]:
    """IVF,SQfp16 with about 2 sqrt(n) lists, quantised by a sample of the items."""
    lists = min(base.items, 1 << round(np.log2(2 * np.sqrt(base.items))))
    index = faiss.index_factory(base.width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    clustering = faiss.downcast_index(index).cp  # type: ignore[attr-defined]
    clustering.niter = ITERATIONS
    clustering.max_points_per_centroid, clustering.min_points_per_centroid = POINTS_PER_LIST, 1
    index.train(sample.vectors)
    index.add(sample.vectors)
    parameters = {"lists": lists, "nprobe": 1}
    return _tuned(index, sample, replace(base, parameters=parameters), (1, lists))


def _hnsw(sample: Sample, base: IndexSpec) -> tuple[faiss.Index, IndexSpec]:
    index = faiss.IndexHNSWFlat(base.width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.add(sample.vectors)
    parameters = {"neighbours": NEIGHBOURS, "build_effort": BUILD_EFFORT, "search_effort": base.recall_k}
    return _tuned(index, sample, replace(base, parameters=parameters), (base.recall_k, 16 * base.recall_k))


_BUILDERS: dict[str, Callable[[Sample, IndexSpec], tuple[faiss.Index, IndexSpec]]] = {
    "exact": _exact,
    "ivf": _ivf,
    "hnsw": _hnsw,
}
EFFORT = {"ivf": "nprobe", "hnsw": "search_effort"}


def _tuned(
    index: faiss.Index, sample: Sample, spec: IndexSpec, efforts: tuple[int, int]
) -> tuple[faiss.Index, IndexSpec]:
    """Find the least effort that gives the tuning users their recall, to a sixteenth; the largest where none does."""

    def enough(effort: int) -> bool:
        _apply(index, _with_effort(spec, effort))
        return sample.tuning(index) >= TUNED_RECALL

    low, most = efforts
    high = low
    while high < most and not enough(high):
        low, high = high, min(2 * high, most)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    spec = _with_effort(spec, high)
    _apply(index, spec)
    return index, replace(spec, tuned_recall=sample.tuning(index), recall=sample.stated(index))


def _with_effort(spec: IndexSpec, effort: int) -> IndexSpec:
    return replace(spec, parameters={**spec.parameters, EFFORT[spec.kind]: effort})


def _apply(index: faiss.Index, spec: IndexSpec) -> None:
    """Set how much of the index a search looks at."""
    if spec.kind == "ivf":
        faiss.downcast_index(index).nprobe = spec.parameters["nprobe"]  # type: ignore[attr-defined]
    elif spec.kind == "hnsw":
        faiss.downcast_index(index).hnsw.efSearch = spec.parameters["search_effort"]  # type: ignore[attr-defined]


def search(index: faiss.Index, queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return scores and item numbers (q, k), best first; -1 where an approximate index found fewer."""
    scores, items = index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    return scores, items


def centroids(vectors: Floats, count: int, seed: int) -> Floats:
    """Return (count, width) centres of vectors by k-means, or the vectors where there are no more of them."""
    if len(vectors) <= count:
        return vectors.copy()
    faiss.omp_set_num_threads(1)  # sums of a cluster depend on the order in which threads add
    means = faiss.Kmeans(
        vectors.shape[1], count, niter=CENTROID_ITERATIONS, seed=seed, min_points_per_centroid=1, gpu=False
    )
    means.train(np.ascontiguousarray(vectors))
    assert means.centroids is not None, "it was trained just now"
    return np.asarray(means.centroids, dtype=np.float32)


def stored_vectors(index: faiss.Index) -> Floats:
    """Return the vectors (n, width) of an exact index as they were added."""
    vectors: Floats = index.reconstruct_n(0, index.ntotal)
    return vectors


def save_index(index: faiss.Index, spec: IndexSpec, folder: Path) -> IndexSpec:
    """Write the index and what it holds; return that with the file's digest."""
    path = folder / "items.faiss"
    faiss.write_index(index, str(path))
    spec = replace(spec, file_digest=_digest(path))
    write_json(folder / "index.json", asdict(spec))
    return spec


def load_index(folder: Path, towers: str) -> tuple[faiss.Index, IndexSpec]:
    """Read an index for the queries of given towers.

    Raises:
        ValueError: it is missing, unreadable or another version's, its file is not the one that was written, it was
            built by other towers, or its metric or size is not as stated.
    """
    stated = read_json(folder / "index.json", "retrieve")
    if set(stated) != {field.name for field in fields(IndexSpec)}:
        raise ValueError(
            f"{folder / 'index.json'} was written by another version of counterpoise: run `counterpoise retrieve` again"
        )
    spec = IndexSpec(**stated)
    path = folder / "items.faiss"
    if not path.exists() or _digest(path) != spec.file_digest:
        raise ValueError(
            f"{path} is missing, damaged or exchanged, its SHA-256 is not {spec.file_digest[:12]}: "
            "run `counterpoise retrieve` again"
        )
    index = faiss.read_index(str(path))
    if spec.towers != towers:
        raise ValueError(
            f"{path} was built by towers {spec.towers[:12]}, the model has {towers[:12]}: "
            "run `counterpoise retrieve` again"
        )
    expected = (spec.items, spec.width, METRIC)
    metric = METRIC if index.metric_type == faiss.METRIC_INNER_PRODUCT else f"faiss metric {index.metric_type}"
    found = (index.ntotal, index.d, metric)
    if expected != found or spec.metric != METRIC:
        raise ValueError(f"{path} holds {found}, expected {expected}: run `counterpoise retrieve` again")
    _apply(index, spec)
    return index, spec


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_saved(folder: Path, towers: str, sample: Sample) -> None:
    """Read an index back and hold its answers against exact search: its recall must be the stated one."""
    index, spec = load_index(folder, towers)
    recall = sample.stated(index)
    assert recall == spec.recall, (recall, spec)
