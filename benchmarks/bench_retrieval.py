"""The 200 best of 10 thousand to a million items for each user: exact search beside FAISS, one thread, in turn.

    python -m benchmarks.bench_retrieval                                    # about 5 minutes
    python -m benchmarks.bench_retrieval --sizes 10000,100000 --rounds 3    # less than two
    python -m benchmarks.bench_retrieval --workspace W --run 2026-01-14-4bdf9c56 --config C.toml --day 2026-01-15

All vectors come out of towers that the pipeline trained, on a simulated log of 10,000 items or in a run of a workspace.
Where a size is not the catalogue's, its items are new: each draws every feature (an id together with its counters) from
a random item of the catalogue, and the item tower makes its vector. So the vectors lie where the towers put vectors,
closer together than another catalogue's might. Recall is against exact search, over users that no index was tuned on.

Each way to search gets all queries of a round in one call, 2,048 at 10,000 items down to 128 at a million. So FAISS
Flat, too, multiplies matrices (in float32, by BLAS): its fast way. One query a call took it 86 instead of 42 CPU-us at
10,000 items, 824 instead of 786 at 100,000 (AMD EPYC with AVX-512 VNNI). At 10,000 items an 8th of that is 5 us: the
rough scores and the maxima take half of it, and no code in Python picks and scores exactly 200 items in the rest.
"""

import datetime as dt
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray

from benchmarks.figures import Figure, show
from features.encoding import load_encoder
from models.retriever import Retriever, load_retriever
from pipeline import tables
from pipeline.blocks import stored_day
from pipeline.config import Config, load_config
from pipeline.dataset import ranker_spec, retriever_spec
from pipeline.exact_search import exact_search, fastest_precision, make_catalogue
from pipeline.feature_plan import plan_of
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.fit_retriever import fit_retriever
from pipeline.index import TARGET_RECALL, build_index, sample_of
from pipeline.ingest import ingest
from pipeline.maturity import maturity_of
from pipeline.retrieve import item_vectors, user_vectors
from pipeline.scoring import load_day
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

K = 200
SAMPLED, SEARCHED = 500, 2_048
TARGET = 8.0
WORLD = SimulatorConfig(users=10_000, items=10_000, days=9, requests_per_day=6_000)
PRODUCT_QUERIES = 64
Floats = NDArray[np.float32]
Search = Callable[[Floats], NDArray[np.int64]]


@dataclass(frozen=True)
class Trained:
    """Towers, encoded items and users of a day."""

    retriever: Retriever
    items: pl.DataFrame
    users: pl.DataFrame

    def vectors(self, items: int) -> Floats:
        """Embed the catalogue, or so many new items whose features are drawn from it."""
        if items == self.items.height:
            return item_vectors(self.retriever, self.items)
        generator = np.random.default_rng(0)
        together: dict[str, list[str]] = {}
        for name in self.items.columns:
            key = name.split("__")[0].removesuffix("_code").removesuffix("_position")
            together.setdefault(key, []).append(name)
        parts = []
        for start in range(0, items, 100_000):
            count = min(100_000, items - start)
            drawn = [
                self.items.select(names)[generator.integers(self.items.height, size=count)]
                for names in together.values()
            ]
            parts.append(item_vectors(self.retriever, pl.concat(drawn, how="horizontal").select(self.items.columns)))
        return np.concatenate(parts)


def trained_on_a_simulated_log(folder: Path) -> Trained:
    """Simulate, ingest, featurize, and train the towers as `counterpoise train` does."""
    config = load_config(Path("examples/simulated.toml"), {})
    workspace = Workspace(folder / "workspace")
    simulate(WORLD, folder / "source")
    ingest(config, workspace, folder / "source")
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    run = run_folder(config, workspace, days)
    encoder, plan = load_encoder(run / "features" / "encoder.json"), plan_of(config)
    table, version = workspace.table("examples"), table_versions(run)["examples"]
    rows = tables.scan(table, version).filter(pl.col("date").is_in(days.train))
    maturity = maturity_of(config, rows, plan.start_of(days.test[0]))
    columns = ranker_spec(config, plan, encoder, config.model.body, config.seed)
    training = [stored_day(table, version, day, columns, maturity) for day in days.train]
    retriever, _ = fit_retriever(config, retriever_spec(config, plan, encoder, config.seed), columns, training)
    day = load_day(config, workspace, run / "features", days.test[0], encoder)
    return Trained(retriever, day.item_codes, day.user_codes)


def trained_in_a_run(config: Config, workspace: Workspace, run: str, day: dt.date) -> Trained:
    """Read the towers of a run, and its users and items as of a day."""
    folder = workspace.run(run)
    encoder = load_encoder(folder / "model" / "encoder.json")
    loaded = load_day(config, workspace, folder / "features", day, encoder)
    return Trained(load_retriever(folder / "model" / "retriever"), loaded.item_codes, loaded.user_codes)


@dataclass
class Contestant:
    """A way to search, what it took to prepare, and its queries per CPU-second round by round."""

    name: str
    search: Search
    build_seconds: float
    mebibytes: float
    told: str
    speeds: list[float]

    @property
    def speed(self) -> float:
        """Return the median."""
        return statistics.median(self.speeds)

    def measure(self, queries: Floats) -> None:
        """Search once more."""
        start = time.process_time()
        self.search(queries)
        self.speeds.append(len(queries) / (time.process_time() - start))


def _contestants(vectors: Floats, tuning: Floats, *, with_hnsw: bool) -> dict[str, Contestant]:
    made = [_exact(vectors), _product(vectors), _faiss(vectors, tuning, "exact"), _faiss(vectors, tuning, "ivf")]
    if with_hnsw:
        made.append(_faiss(vectors, tuning, "hnsw"))
    return {one.name: one for one in made}


def _exact(vectors: Floats) -> Contestant:
    start = time.process_time()
    catalogue = make_catalogue(vectors)
    seconds = time.process_time() - start
    held = catalogue.vectors.nbytes + (catalogue.codes.nbytes if catalogue.codes is not catalogue.vectors else 0)
    told = f"first pass in {fastest_precision()}"
    return Contestant("exact search", lambda q: exact_search(catalogue, q, K)[1], seconds, held / 2**20, told, [])


def _product(vectors: Floats) -> Contestant:
    items = torch.from_numpy(vectors)

    def search(queries: Floats) -> NDArray[np.int64]:
        blocks = torch.from_numpy(queries).split(PRODUCT_QUERIES)  # type: ignore[no-untyped-call]
        return torch.cat([(block @ items.T).topk(K).indices for block in blocks]).numpy()

    return Contestant("product and topk", search, 0.0, vectors.nbytes / 2**20, f"{PRODUCT_QUERIES} queries at once", [])


def _faiss(vectors: Floats, tuning: Floats, kind: str) -> Contestant:
    sample = sample_of(vectors, tuning, K)
    start = time.process_time()
    index, spec = build_index(sample, kind=kind, towers="", exact_below=0)
    seconds = time.process_time() - start
    held = faiss.serialize_index(index).nbytes / 2**20
    told = ", ".join(f"{name} {value}" for name, value in spec.parameters.items())
    name = {"exact": "FAISS Flat", "ivf": "FAISS IVF,SQfp16", "hnsw": "FAISS HNSW"}[kind]
    return Contestant(name, lambda queries: index.search(queries, K)[1], seconds, held, told, [])


def _recall(best: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(best, found, strict=True)]))


def _figures(items: int, found: dict[str, Contestant], queries: Floats) -> list[Figure]:
    exact, flat = found["exact search"], found["FAISS Flat"]
    best = exact.search(queries)
    figures = [
        Figure(
            what=f"{items:,} items: exact search, times FAISS Flat",
            value=exact.speed / flat.speed,
            at_least=TARGET,
            peer=f"{exact.speed:,.0f} against {flat.speed:,.0f} queries per CPU-second, {len(queries):,} a call;"
            f" {exact.told}",
        )
    ]
    for name, one in found.items():
        said = f"build and tuning {one.build_seconds:.1f} CPU-seconds, {one.mebibytes:,.0f} MiB; {one.told}"
        figures.append(Figure(what=f"{items:,} items: {name}", value=one.speed, unit="queries/CPU-s", peer=said))
        figures.append(
            Figure(
                what=f"{items:,} items: recall@{K} of {name}",
                value=_recall(best, one.search(queries)),
                at_least=TARGET_RECALL if one is not exact else None,
            )
        )
    return figures


def main(  # noqa: PLR0913, PLR0917  # typer reads options from the signature
    sizes: Annotated[str, typer.Option(help="Numbers of items.")] = "10000,100000,1000000",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    hnsw_up_to: Annotated[int, typer.Option(help="HNSW of a million items takes 5 minutes to build.")] = 100_000,
    workspace: Annotated[Path | None, typer.Option(help="Take the towers of a run in it.")] = None,
    run: Annotated[str, typer.Option(help="The run.")] = "",
    config: Annotated[Path | None, typer.Option(help="Its configuration.")] = None,
    day: Annotated[str, typer.Option(help="The day whose users and items are embedded.")] = "",
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Measure all contestants at each size and print each figure beside its target."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if workspace is None:
        with tempfile.TemporaryDirectory() as folder:
            trained = trained_on_a_simulated_log(Path(folder))
    else:
        if config is None:
            raise typer.BadParameter("--workspace needs --config, --run and --day")
        trained = trained_in_a_run(load_config(config, {}), Workspace(workspace), run, dt.date.fromisoformat(day))
    users = user_vectors(trained.retriever, trained.users, 0.5)
    users = users[np.random.default_rng(1).permutation(len(users))]
    figures: list[Figure] = []
    for items in map(int, sizes.split(",")):
        queries = np.ascontiguousarray(users[SAMPLED:][: max(128, min(SEARCHED, SEARCHED * 25_000 // items))])
        found = _contestants(trained.vectors(items), users[:SAMPLED], with_hnsw=items <= hnsw_up_to)
        for _ in range(rounds):
            for contestant in found.values():
                contestant.measure(queries)
        figures += _figures(items, found, queries)
    show(f"retrieval of {K} items, medians of {rounds} rounds, one thread", figures, output)


if __name__ == "__main__":
    typer.run(main)
