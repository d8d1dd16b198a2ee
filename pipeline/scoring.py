"""What scoring a day needs: a model with its encoder, all users and the available items as of that day."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.asof import KNOWN_FROM, FeatureState, item_features, pair_features, side_as_of, user_features
from features.encoding import Encoder, encode, load_encoder
from features.plan import FeaturePlan
from models.calibration import CALIBRATION_FILE, Calibration, load_calibration
from models.inputs import Features
from models.ranker import Ranker, load_ranker, predict
from models.retriever import Retriever, load_retriever
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import lists, tensors
from pipeline.feature_plan import plan_of, side_frame
from pipeline.states import load_state
from pipeline.workspace import Workspace, read_json

PAIRS = 65_536
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
    return Bundle(encoder, ranker, load_retriever(folder / "retriever"), calibration, version)


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


def score_pairs(
    config: Config, bundle: Bundle, day: Day, users: NDArray[np.int64], items: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Score (user number, item number) pairs with the context at its reference values.

    Args:
        config: names the context's reference values.
        bundle: the model.
        day: users and items.
        users: (N,) row numbers in day.users.
        items: (N,) row numbers in day.items.

    Yields:
        Slices of the pairs and their p_click, p_conversion, p_click_and_conversion (n, 3).
    """
    plan = plan_of(config)
    references = config.context.references()
    blocks = _PairColumns(day, bundle, encode(pl.DataFrame({k: [v] for k, v in references.items()}), bundle.encoder))
    keys = (sorted(plan.key_columns("user")), sorted(plan.key_columns("item")))
    user_keys, item_keys = day.users.select("user_id", *keys[0]), day.items.select("item_id", *keys[1])
    for start in range(0, len(users), PAIRS):
        rows = slice(start, start + PAIRS)
        pairs = pl.concat([user_keys[users[rows]], item_keys[items[rows]]], how="horizontal")
        pairs = pairs.with_columns(pl.lit(value).alias(name) for name, value in references.items())
        codes = encode(pair_features(day.state, pairs, plan).select(plan.pair_columns()), bundle.encoder)
        features = blocks.features(users[rows], items[rows], codes)
        yield rows, bundle.predict(features, PREDICT_PAIRS)


class _PairColumns:
    """Encoded columns of users, items and context as matrices, gathered into the ranker's order pair by pair."""

    def __init__(self, day: Day, bundle: Bundle, context: pl.DataFrame) -> None:
        spec = bundle.ranker.spec
        self.spec = spec
        self.sides = {
            "user": _matrices(day.user_codes, spec.single, spec.numeric),
            "item": _matrices(day.item_codes, spec.single, spec.numeric),
        }
        self.context = {name: int(context[f"{name}_code"][0]) for name in spec.context}
        self.pooled = {
            name: (side, lists(codes[f"{name}_code"]))
            for name in spec.pooled
            for side, codes in (("user", day.user_codes), ("item", day.item_codes))
            if f"{name}_code" in codes.columns
        }

    def features(self, users: NDArray[np.int64], items: NDArray[np.int64], pairs: pl.DataFrame) -> Features:
        """Return the features of pairs in the ranker's column order."""
        spec, count = self.spec, len(users)
        ids = np.empty((count, len(spec.single)), dtype=np.int64)
        positions = np.empty((count, len(spec.numeric)), dtype=np.float32)
        for rows, side in ((users, "user"), (items, "item")):
            (single, codes), (numeric, numbers) = self.sides[side]
            ids[:, single] = codes[rows]
            positions[:, numeric] = numbers[rows]
        for name, code in self.context.items():
            ids[:, spec.single.index(name)] = code
        for column in pairs.columns:
            positions[:, spec.numeric.index(column.removesuffix("_position"))] = pairs[column].to_numpy()
        numbers_of = {"user": users, "item": items}
        pooled = {name: torch.from_numpy(ids_NL[numbers_of[side]]) for name, (side, ids_NL) in self.pooled.items()}
        return Features(torch.from_numpy(ids), torch.from_numpy(positions), pooled)


Matrix = tuple[list[int], NDArray[np.generic]]


def _matrices(codes: pl.DataFrame, single: list[str], numeric: list[str]) -> tuple[Matrix, Matrix]:
    """Return the places and values of the single-valued and of the numeric columns that a side holds."""
    names = [name for name in single if f"{name}_code" in codes.columns]
    numbers = [name for name in numeric if f"{name}_position" in codes.columns]
    features = tensors(codes, single=names, numeric=numbers, pooled=[])
    return (
        ([single.index(name) for name in names], features.ids_BF.numpy()),
        ([numeric.index(name) for name in numbers], features.positions_BF.numpy()),
    )
