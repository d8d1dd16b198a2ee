"""New items with and without their text: AUC and recall on items younger than two days, over simulated worlds.

    python -m benchmarks.bench_cold_text --workspace FOLDER --worlds 5

Each world is simulated with its own seed, which also trains its models; half of its items are born during its days.
The last four days test, the day before validates. Three ways to read a title: not at all; its words' embeddings,
averaged, as examples/simulated.toml does; the same and the vector of the text encoder ([text]). Of the impressions of
items younger than 48 hours, and of the clicks on them, printed are means over worlds and the paired differences to
the words alone with a 95 % t-interval over worlds:

- AUC of click, and of click and conversion, by the labels and by the world's true probabilities,
- recall@k: the share of clicked (user, item) pairs whose item is among the k that the towers place nearest to the user
  of all items that are available on that day.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from scipy import stats

from benchmarks.truth import SoftAuc
from features.encoding import encode, load_encoder
from models.ranker import load_ranker, predict
from models.retriever import Retriever, load_retriever
from pipeline import threads
from pipeline.config import Config, load_config
from pipeline.dataset import examples_from
from pipeline.example_tasks import KEPT
from pipeline.featurize import days_of, run_folder
from pipeline.metrics import auc
from pipeline.retrieve import item_vectors, user_vectors
from pipeline.run import Span, run
from pipeline.scoring import load_day
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

EXAMPLE = Path(__file__).parent.parent / "examples" / "simulated.toml"
WORLD: dict[str, Any] = {
    "users": 3000,
    "items": 2000,
    "days": 12,
    "requests_per_day": 5000,
    "new_item_share": 0.5,
}
TEST_DAYS = ["2026-01-09", "2026-01-12"]
WAYS: dict[str, dict[str, Any]] = {
    "no title": {"items.multi": {}},
    "words": {},
    "words + text": {"text.column": "title", "text.category": "category"},
}
COLD_HOURS = 48
KS = (50, 100)


def measure(config: Config, workspace: Workspace, source: Path) -> dict[str, float]:
    """Train a way's models and return its figures on cold items."""
    run(config, workspace, str(source), None, Span(until="train"))
    days = days_of(config, workspace, None)
    folder = run_folder(config, workspace, days)
    encoder, ranker = load_encoder(folder / "features" / "encoder.json"), load_ranker(folder / "model" / "ranker")
    retriever = load_retriever(folder / "model" / "retriever")
    born = pl.read_csv(source / "items.csv").select(
        "item_id", pl.col("available_from").str.to_datetime(time_zone="UTC").alias("born")
    )
    rows, outputs, hits = [], [], []
    for day in days.test:
        raw = pl.read_parquet(folder / "features" / f"raw-{day}.parquet").join(born, on="item_id", how="left")
        age = pl.col("event_time") - pl.col("born")
        cold = raw.filter(age < pl.duration(hours=COLD_HOURS))
        encoded = pl.concat([cold.select(KEPT), encode(cold.drop("born"), encoder)], how="horizontal")
        examples = examples_from(encoded, ranker.spec, None)
        outputs.append(predict(ranker, examples.features, 4096))
        rows.append(examples.frame.select("impression_id").hstack([pl.Series("click", examples.clicks.numpy() > 0)]))
        rows[-1] = rows[-1].hstack([pl.Series("conversion", examples.conversions.numpy() > 0)])
        scored = load_day(config, workspace, folder / "features", day, encoder)
        clicked = cold.filter("click").select("user_id", "item_id").unique().sort("user_id", "item_id")
        hits.append(
            _places(config, retriever, (scored.users, scored.user_codes), (scored.items, scored.item_codes), clicked)
        )
    return _figures(pl.concat(rows), np.concatenate(outputs), np.concatenate(hits), source)


def _places(
    config: Config,
    retriever: Retriever,
    users: tuple[pl.DataFrame, pl.DataFrame],
    items: tuple[pl.DataFrame, pl.DataFrame],
    clicked: pl.DataFrame,
) -> NDArray[np.int64]:
    """Return the place of each clicked item among all items, nearest first."""
    numbered = [
        frame.select(name, pl.int_range(pl.len()).alias(f"{name}_number"))
        for frame, name in ((users[0], "user_id"), (items[0], "item_id"))
    ]
    pairs = clicked.join(numbered[0], on="user_id").join(numbered[1], on="item_id")
    queries = user_vectors(retriever, users[1][pairs["user_id_number"]], config.retrieval.conversion_weight)
    scores = queries @ item_vectors(retriever, items[1]).T
    own = scores[np.arange(len(scores)), pairs["item_id_number"].to_numpy()]
    places: NDArray[np.int64] = (scores > own[:, None]).sum(axis=1)
    return places


def _figures(
    rows: pl.DataFrame, outputs: NDArray[np.float32], places: NDArray[np.int64], source: Path
) -> dict[str, float]:
    truth = rows.join(pl.read_parquet(source / "truth.parquet"), on="impression_id", how="left", maintain_order="left")
    click, both = truth["p_click"].to_numpy(), (truth["p_click"] * truth["p_conversion"]).to_numpy()
    labels = rows["click"].to_numpy(), (rows["click"] & rows["conversion"]).to_numpy()
    figures = {
        "impressions": float(rows.height),
        "clicks": float(labels[0].sum()),
        "conversions": float(labels[1].sum()),
    }
    for name, label, soft, scores in (
        ("click", labels[0], click, outputs[:, 0].astype(np.float64)),
        ("click and conversion", labels[1], both, outputs[:, 2].astype(np.float64)),
    ):
        figures[f"{name} AUC"] = auc(label, scores)
        figures[f"{name} AUC by the truth"] = SoftAuc(scores)(soft, 1 - soft)
    return figures | {f"recall@{k}": float((places < k).mean()) for k in KS}


def main(
    workspace: Annotated[Path, typer.Option(help="Folder for sources, workspaces and figures.json.")],
    worlds: Annotated[int, typer.Option(min=2)] = 5,
) -> None:
    """Print the table."""
    threads.configure()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(1, worlds + 1):
        source = workspace / f"world-{seed}"
        if not source.exists():
            simulate(SimulatorConfig(seed=seed, **WORLD), source)
        for number, (way, keys) in enumerate(WAYS.items()):
            chosen = {"seed": seed, "split.test": TEST_DAYS, "training.control": False, **keys}
            figures = measure(load_config(EXAMPLE, chosen), Workspace(workspace / f"workspace-{seed}-{number}"), source)
            found[way].append(figures)
            print(seed, way, {name: round(value, 4) for name, value in figures.items()}, flush=True)
    (workspace / "figures.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    for name in found["words"][0]:
        values = {way: np.array([one[name] for one in many]) for way, many in found.items()}
        differences = {way: values[way] - values["words"] for way in WAYS if way != "words"}
        means = "  ".join(f"{way} {value.mean():.4f}" for way, value in values.items())
        print(f"{name}: {means}; " + ", ".join(f"{way} {_interval(value)}" for way, value in differences.items()))


def _interval(values: NDArray[np.float64]) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.4f} [{values.mean() - half:+.4f}, {values.mean() + half:+.4f}]"


if __name__ == "__main__":
    typer.run(main)
