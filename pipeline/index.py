"""The FAISS index over item vectors: the only file that imports faiss.

Inner product of (n, 2S) float32 item vectors; exact under a size, IVF or HNSW above it, with its recall against
exact search measured and kept beside it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.workspace import read_json, write_json

TARGET_RECALL = 0.95
METRIC = "inner_product"


@dataclass(frozen=True)
class IndexSpec:
    """What an index holds and how good it is."""

    kind: str
    metric: str
    items: int
    width: int
    towers: str
    """SHA-256 of the retriever's weights that made the vectors."""
    effort: int
    """nprobe of IVF, efSearch of HNSW, 0 of exact."""
    recall: float
    """Share of the exact top k that the index finds, at `recall_k` over sampled users."""
    recall_k: int


def choose_kind(kind: str, items: int, exact_below: int) -> str:
    """Return the kind that 'auto' means for a number of items."""
    if kind != "auto":
        return kind
    return "exact" if items < exact_below else "hnsw"


def build_index(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], *, kind: str, k: int, towers: str
) -> tuple[faiss.Index, IndexSpec]:
    """Build an index and raise its search effort until the sampled queries reach the target recall.

    Args:
        vectors: items (n, width).
        queries: sampled users (q, width) that recall is measured on.
        kind: exact, ivf or hnsw.
        k: neighbours that recall is measured at.
        towers: digest of the weights behind both.
    """
    faiss.omp_set_num_threads(1)  # the graph of HNSW depends on the order in which threads insert
    count, width = vectors.shape
    k = min(k, count)
    exact = faiss.IndexFlatIP(width)
    exact.add(vectors)
    index: faiss.Index = exact
    efforts = [0]
    if kind == "ivf":
        lists = max(1, int(np.sqrt(count)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        efforts = [1 << power for power in range(2, lists.bit_length() + 1)]
    elif kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.add(vectors)
        index = graph
        efforts = [k << power for power in range(5)]
    truth = exact.search(queries, k)[1]
    effort, recall = 0, 0.0
    for effort in efforts:
        set_effort(index, kind, effort)
        recall = _recall(truth, index.search(queries, k)[1])
        if recall >= TARGET_RECALL:
            break
    return index, IndexSpec(kind, METRIC, count, width, towers, effort, recall, k)


def _recall(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    hits = [len(np.intersect1d(expected, got)) for expected, got in zip(truth, found, strict=True)]
    return float(np.sum(hits) / truth.size) if truth.size else 1.0


def set_effort(index: faiss.Index, kind: str, effort: int) -> None:
    """Set how much of the index a search looks at."""
    if kind == "ivf":
        faiss.downcast_index(index).nprobe = effort  # type: ignore[attr-defined]
    elif kind == "hnsw":
        faiss.downcast_index(index).hnsw.efSearch = effort  # type: ignore[attr-defined]


def search(index: faiss.Index, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and item numbers (q, k), best first; -1 where an approximate index found fewer."""
    scores, items = index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    return scores, items


def save_index(index: faiss.Index, spec: IndexSpec, folder: Path) -> None:
    """Write the index and what it holds."""
    faiss.write_index(index, str(folder / "items.faiss"))
    write_json(folder / "index.json", asdict(spec))


def load_index(folder: Path, towers: str) -> tuple[faiss.Index, IndexSpec]:
    """Read an index for the queries of given towers.

    Raises:
        ValueError: it is missing or unreadable, was built by other towers, or its metric or size is not as stated.
    """
    spec = IndexSpec(**read_json(folder / "index.json", "retrieve"))
    path = folder / "items.faiss"
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is no FAISS index: run `counterpoise retrieve` again") from error
    if spec.towers != towers:
        raise ValueError(
            f"{path} was built by towers {spec.towers[:12]}, the model has {towers[:12]}: "
            "run `counterpoise retrieve` again"
        )
    stated = (spec.items, spec.width, METRIC)
    metric = METRIC if index.metric_type == faiss.METRIC_INNER_PRODUCT else f"faiss metric {index.metric_type}"
    found = (index.ntotal, index.d, metric)
    if stated != found or spec.metric != METRIC:
        raise ValueError(f"{path} holds {found}, expected {stated}: run `counterpoise retrieve` again")
    set_effort(index, spec.kind, spec.effort)
    return index, spec
