"""What scoring a day needs: a model with its encoder, all users and the available items as of that day."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.asof import KNOWN_FROM, FeatureState, item_features, side_as_of, user_features
from features.encoding import Encoder, encode, load_encoder
from features.plan import FeaturePlan
from models.calibration import CALIBRATION_FILE, Calibration, load_calibration
from models.inputs import Features
from models.ranker import Ranker, load_ranker, predict
from models.retriever import Retriever, load_retriever
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of, side_frame
from pipeline.sources import SOURCES_KEY, Sources, load_sources
from pipeline.states import load_state
from pipeline.workspace import Workspace, read_json

PREDICT_PAIRS = 1_024  # larger batches leave the cache: 2.2 times slower with task embeddings; 5 % faster without
CALIBRATED_SINCE = "conversion_loss"
"""Key of training.json that came with calibration: a model that has it has one, an earlier model serves its own."""


@dataclass(frozen=True)
class Bundle:
    """A model as a run saved it or the registry gave it back."""

    encoder: Encoder
    ranker: Ranker
    retriever: Retriever
    calibration: Calibration
    version: str
    sources: Sources | None = None
    """What fills candidates beside the towers; None where they fill all."""

    def predict(self, features: Features, batch_size: int) -> NDArray[np.float32]:
        """Return the ranker's calibrated outputs, (N, O) in the order of its spec's: all that leaves a model."""
        return self.calibration.apply(predict(self.ranker, features, batch_size), self.ranker.spec)


@dataclass(frozen=True)
class Day:
    """Users and items as of a day, raw and encoded, in the order of their ids.

    Attributes:
        day: the day that is scored.
        state: what was known before it.
        users: raw features of all users.
        items: raw features of the available items.
        user_codes: encoded users.
        item_codes: encoded items.
        has_history: (U,) whether a user had an impression before the day.
        seen: sorted user number * items + item number of the pairs to leave out.
        popularity: (I,) item numbers, most clicks of the last seven days first.
        history: rows of tables/interactions of earlier days, for what only some models read.
    """

    day: dt.date
    state: FeatureState
    users: pl.DataFrame
    items: pl.DataFrame
    user_codes: pl.DataFrame
    item_codes: pl.DataFrame
    has_history: NDArray[np.bool_]
    seen: NDArray[np.int64]
    popularity: NDArray[np.int64]
    history: pl.LazyFrame


def load_bundle(folder: Path, version: str) -> Bundle:
    """Read a model folder; one without a calibration, such as a champion of version 0.2, serves its own probabilities.

    Raises:
        ValueError: a file of it is missing or damaged, or the calibration is missing or belongs to other weights.
    """
    encoder, ranker = load_encoder(folder / "encoder.json"), load_ranker(folder / "ranker")
    trained = read_json(folder / "training.json", "train")
    if CALIBRATED_SINCE in trained and not (folder / CALIBRATION_FILE).exists():
        raise ValueError(
            f"{folder / CALIBRATION_FILE} does not exist: run `counterpoise calibrate` first, or restore the folder"
        )
    calibration = load_calibration(folder / CALIBRATION_FILE, ranker)
    sources = load_sources(folder) if trained.get(SOURCES_KEY) else None
    return Bundle(encoder, ranker, load_retriever(folder / "retriever"), calibration, version, sources)


def load_run_bundle(folder: Path) -> Bundle:
    """Read the model of a run's folder.

    Raises:
        ValueError: as `load_bundle`, or the run was not calibrated.
    """
    bundle = load_bundle(folder / "model", "this run")
    read_json(folder / "model" / CALIBRATION_FILE, "calibrate")
    return bundle


def check_features(bundle: Bundle, plan: FeaturePlan) -> None:
    """Refuse a model whose features this configuration does not make.

    Raises:
        ValueError: names the missing features.
    """
    made = {*plan.categorical(), *plan.numeric(), *plan.multi(), *plan.sequences()}
    made |= {*bundle.encoder.text_columns()}  # made of a column of plan.multi
    spec = bundle.ranker.spec
    missing = sorted({*spec.single, *spec.numeric, *spec.pooled} - made)
    if missing:
        raise ValueError(
            f"model version {bundle.version} needs the features {missing}, which this configuration does not make: "
            "use its configuration, or promote a model of this one"
        )


def load_day(config: Config, workspace: Workspace, features: Path, day: dt.date, encoder: Encoder) -> Day:
    """Gather users, available items and what they did before a day."""
    plan = plan_of(config)
    state = load_state(features, day)
    start = plan.start_of(day)
    history = tables.scan(workspace.table("interactions")).filter(pl.col("date") < day)
    side_users = side_frame(workspace, "users", config.users)
    side_items = side_frame(workspace, "items", config.items)
    users = user_features(state, _known(state, "user", side_as_of(side_users, "user_id", start)), side_users, plan)
    available = _available(state, side_as_of(side_items, "item_id", start), day)
    items = item_features(state, available, side_items, plan)
    if items.is_empty():
        raise ValueError(f"no item is available on {day}: check items.available_from and items.available_until")
    return Day(
        day=day,
        state=state,
        users=users,
        items=items,
        user_codes=encode(users, encoder),
        item_codes=encode(items, encoder),
        has_history=users["user_id"].is_in(state.ids("user").implode()).to_numpy(),
        seen=_seen(config, history, users, items, day),
        popularity=popularity(history, items, day, start),
        history=history,
    )


def _known(state: FeatureState, kind: str, side: pl.DataFrame | None) -> pl.DataFrame:
    """Return all ids that had an impression or stand in the side table, sorted."""
    key = f"{kind}_id"
    shown = state.ids(kind).alias(key).to_frame()
    return shown if side is None else pl.concat([shown, side.select(key)]).unique().sort(key)


def _available(state: FeatureState, side_items: pl.DataFrame | None, day: dt.date) -> pl.DataFrame:
    if side_items is None:
        return _known(state, "item", None)
    frame = side_items
    if "available_from" in frame.columns:
        frame = frame.filter(pl.col("available_from").is_null() | (pl.col("available_from") <= day))
    if "available_until" in frame.columns:
        frame = frame.filter(pl.col("available_until").is_null() | (pl.col("available_until") >= day))
    return frame.select("item_id").sort("item_id")


def numbered(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the ids of a frame with their row numbers as `<name>_number`."""
    return frame.select(f"{name}_id", pl.int_range(pl.len(), dtype=pl.Int64).alias(f"{name}_number"))


def _seen(
    config: Config, history: pl.LazyFrame, users: pl.DataFrame, items: pl.DataFrame, day: dt.date
) -> NDArray[np.int64]:
    rule = config.retrieval.filter_seen
    if rule == "none":
        return np.zeros(0, dtype=np.int64)
    pairs = (
        history.filter(
            (pl.col("date") >= day - dt.timedelta(days=config.retrieval.seen_days))
            & (pl.col(KNOWN_FROM[rule]) < plan_of(config).start_of(day))
        )
        .select("user_id", "item_id")
        .unique()
        .join(numbered(users, "user").lazy(), on="user_id")
        .join(numbered(items, "item").lazy(), on="item_id")
        .select((pl.col("user_number") * items.height + pl.col("item_number")).alias("pair"))
        .collect()
    )
    return np.sort(pairs["pair"].to_numpy())


def popularity(history: pl.LazyFrame, items: pl.DataFrame, day: dt.date, start: dt.datetime) -> NDArray[np.int64]:
    """Return item numbers by clicks known in the seven days before a day, most first, ties by id."""
    clicked = history.filter((pl.col("date") >= day - dt.timedelta(days=7)) & (pl.col(KNOWN_FROM["click"]) < start))
    clicks = clicked.group_by("item_id").agg(pl.len().alias("clicks")).collect()
    counted = numbered(items, "item").join(clicks, on="item_id", how="left").with_columns(pl.col("clicks").fill_null(0))
    ordered: NDArray[np.int64] = counted.sort(["clicks", "item_id"], descending=[True, False])["item_number"].to_numpy()
    return ordered
