"""Drift: how far the newest day's features and the newest predictions lie from history, beside history's own noise.

The Jensen-Shannon divergence of two distributions p and q over the same bins, in bits (base 2, so within 0 and 1):
JSD = H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991). p is the newest day, q the days before it together, as many as half
of the history.

A sample's JSD is above 0 even without drift: with K bins that occur and n and m rows it is about
(K - 1) / (8 ln 2) * (1 / n + 1 / m) on average, since to second order JSD is the sum of (p - q)**2 / (p + q) over
4 ln 2. That is subtracted, so that days of different sizes compare; a value may thus be a little below 0. The floor is
an upper quantile of the same statistic of each day of the history's later half against as many days before it: it holds
what a day differs by from those before it anyway, a steady trend (items age, counters grow) included. Of h history days
an unchanged column exceeds the floor with a chance of about 1 / (h / 2 + 1) a night, so a handful of flags among many
columns is expected; the alarm's own limit is in bits above the floor.

Cost: at most `ROWS` rows of each day, every so many'th in the order of time, so 100 MB of encoded columns at a time.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encoding import FIRST_KNOWN, MISSING, PADDING, UNSEEN, Encoder, load_encoder
from pipeline import tables
from pipeline.config import Config
from pipeline.featurize import table_versions
from pipeline.split import Days
from pipeline.watch_lists import PREDICTED, Copy
from pipeline.watch_section import Watch
from pipeline.workspace import Workspace

ROWS = 262_144
LEAST_DAYS = 4
PREDICTION_BINS = 20
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Counted:
    """How often each value of a column occurs on a day: values ascending, and their counts."""

    values: NDArray[np.int64]
    counts: Counts

    def share(self, value: int, among: float) -> float:
        """Return the share of a value among so many rows."""
        return float(self.counts[self.values == value].sum() / among) if among else 0.0


def jensen_shannon(first_K: Counts, second_K: Counts) -> float:
    """Return the divergence of two rows of counts over the same bins, in bits, less what chance adds on average.

    NaN where one of them counts nothing.
    """
    rows, others = float(first_K.sum()), float(second_K.sum())
    if not (rows and others):
        return math.nan
    p_K, q_K = first_K / rows, second_K / others
    raw = _entropy((p_K + q_K) / 2) - (_entropy(p_K) + _entropy(q_K)) / 2
    bins = int(((first_K + second_K) > 0).sum())
    return raw - (bins - 1) / (8 * math.log(2)) * (1 / rows + 1 / others)


def _entropy(p_K: Counts) -> float:
    kept = p_K[p_K > 0]
    return float(-(kept * np.log2(kept)).sum())


def divergence(newest_K: Counts, history_HK: Counts, quantile: float) -> dict[str, float]:
    """Return the newest day's divergence from the days before it, the floor, and how far it is above that.

    Args:
        newest_K: counts by bin.
        history_HK: of each history day, in their order, at least two.
        quantile: of the history days' own divergence that is the floor.
    """
    before = len(history_HK) // 2
    own = [
        jensen_shannon(history_HK[day], history_HK[day - before : day].sum(axis=0))
        for day in range(before, len(history_HK))
    ]
    found = jensen_shannon(newest_K, history_HK[-before:].sum(axis=0))
    floor = float(np.quantile(own, quantile))
    return {"divergence": found, "floor": floor, "excess": found - floor}


def feature_drift(config: Config, workspace: Workspace, folder: Path, days: Days) -> dict[str, Any]:
    """Compare the examples of the last test day with those of the days before, column by column.

    Returns:
        `columns` (column, divergence, floor, excess in bits, rows; the largest excess first) against the training and
        validation days, `shares` (column, unseen and missing share on the newest day and on the training days) and
        `without_values` (columns that are empty on the newest day or on too many others), or `reason` where nothing is
        measured.
    """
    if not (folder / "features" / "versions.json").exists():
        return {"reason": f"run {folder.name} has no features: `counterpoise featurize` has not ended"}
    if len(days.train) < LEAST_DAYS:
        return {"reason": f"{len(days.train)} training days: {LEAST_DAYS} are needed for a noise floor"}
    version, encoder = table_versions(folder)["examples"], load_encoder(folder / "features" / "encoder.json")
    table = tables.scan(workspace.table("examples"), version)
    newest, training, validation = (
        [_day_counts(table.filter(pl.col("date") == day), encoder) for day in part]
        for part in (days.test[-1:], days.train, days.validation)
    )
    history = [*training, *validation]
    measured = {
        name: _column(config.watch, encoder, name, newest[0][name], [day[name] for day in history])
        for name in newest[0]
    }
    columns = [
        {"column": name, "rows": int(newest[0][name].counts.sum()), **found}
        for name, found in measured.items()
        if found is not None
    ]
    empty = [name for name, found in measured.items() if found is None]
    shares = [_shares(encoder, name, newest[0][name], [day[name] for day in training]) for name in newest[0]]
    return {"days": len(history), "columns": by_excess(columns), "shares": shares, "without_values": empty}


def by_excess(columns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order columns by how far they are above their floor."""
    return sorted(columns, key=lambda one: (-one["excess"], one["column"]))


def _day_counts(rows: pl.LazyFrame, encoder: Encoder) -> dict[str, Counted]:
    """Count the codes and bins of every column of a day's examples, of a large day by every so many'th row."""
    step = max(1, -(-rows.select(pl.len()).collect().item() // ROWS))
    names = [name for name in rows.collect_schema().names() if name.endswith(("_code", "_position"))]
    frame = rows.select(names).gather_every(step).collect()
    return {name.rpartition("_")[0]: _counted(frame[name], encoder) for name in names}


def _counted(column: pl.Series, encoder: Encoder) -> Counted:
    if column.name.endswith("_position"):
        found = column.to_numpy()
        # The last knot's own position is bins: it belongs to the last bin, and bins + 1 is missing.
        values = np.where(found == encoder.bins, encoder.bins - 1, np.floor(found)).astype(np.int64)
    elif isinstance(column.dtype, pl.List):
        values = column.explode(empty_as_null=False).to_numpy().astype(np.int64)
        values = values[values != PADDING]
    else:
        values = column.to_numpy().astype(np.int64)
    distinct, counts = np.unique(values, return_counts=True)
    return Counted(distinct, counts.astype(np.float64))


def _column(
    settings: Watch, encoder: Encoder, name: str, newest: Counted, history: Sequence[Counted]
) -> dict[str, float] | None:
    bins = _bins(settings, encoder, name, history)
    history_HK = np.stack([_in_bins(day, bins) for day in history])
    kept_HK = history_HK[history_HK.sum(axis=1) > 0]
    newest_K = _in_bins(newest, bins)
    if len(kept_HK) < LEAST_DAYS or not newest_K.sum():
        return None
    return divergence(newest_K, kept_HK, settings.floor_quantile)


def _bins(settings: Watch, encoder: Encoder, name: str, history: Sequence[Counted]) -> NDArray[np.int64]:
    """Return the values with a bin of their own: all bins of a number; missing, unseen and the top of a category."""
    if name in encoder.knots:
        return np.arange(encoder.bins + 3)
    values = np.concatenate([day.values for day in history])
    distinct, place = np.unique(values, return_inverse=True)
    totals = np.bincount(place, weights=np.concatenate([day.counts for day in history]), minlength=len(distinct))
    known = distinct >= FIRST_KNOWN
    order = np.lexsort((distinct[known], -totals[known]))[: settings.top_values]
    return np.sort(np.concatenate([[MISSING, UNSEEN], distinct[known][order]]))


def _in_bins(counted: Counted, bins: NDArray[np.int64]) -> Counts:
    """Return the counts by bin, the last one being that of all other values."""
    place = np.searchsorted(bins, counted.values).clip(max=len(bins) - 1)
    place = np.where(bins[place] == counted.values, place, len(bins))
    return np.bincount(place, weights=counted.counts, minlength=len(bins) + 1).astype(np.float64)


def _shares(encoder: Encoder, name: str, newest: Counted, history: Sequence[Counted]) -> dict[str, Any]:
    """Return the shares of unseen and missing values; a hash bucket is shared by values that are not known."""
    found: dict[str, Any] = {"column": name}
    parts = {"newest": [newest], "training": history}
    for part, days in parts.items():
        rows = sum(float(day.counts.sum()) for day in days)
        missing = encoder.bins + 1 if name in encoder.knots else MISSING
        found[f"missing_{part}"] = sum(day.share(missing, rows) for day in days)
        if name not in encoder.knots:
            buckets = _first_bucket(encoder, name)
            unseen = sum(
                day.counts[(day.values == UNSEEN) | ((buckets > 0) & (day.values >= buckets))].sum() for day in days
            )
            found[f"unseen_{part}"] = float(unseen / rows) if rows else 0.0
    return found


def _first_bucket(encoder: Encoder, name: str) -> int:
    """Return the id from which on a field's ids are hash buckets; 0 where it has none."""
    vocabulary = encoder.vocabularies[encoder.lists[name][0] if name in encoder.lists else name]
    return vocabulary.first_bucket if vocabulary.buckets else 0


def prediction_drift(config: Config, copies: Sequence[Copy]) -> dict[str, Any]:
    """Compare the predictions of the newest published lists with those of the days before, bins being quantiles.

    Another model is part of what is measured; the floor holds how much the nightly models differ anyway.
    """
    last_of_day = {copy.day: copy for copy in copies}
    days = sorted(last_of_day)
    if len(days) <= LEAST_DAYS:
        return {"reason": f"lists of {max(0, len(days) - 1)} earlier days are kept: {LEAST_DAYS} are needed"}
    samples = [_predictions(last_of_day[day]) for day in days]
    columns = []
    for name in PREDICTED.values():
        pooled = np.concatenate([sample[name].to_numpy() for sample in samples[:-1]])
        edges = np.unique(np.quantile(pooled, np.arange(1, PREDICTION_BINS) / PREDICTION_BINS))
        counts = [_histogram(sample[name], edges) for sample in samples]
        columns.append(
            {"column": name, "rows": samples[-1].height}
            | divergence(counts[-1], np.stack(counts[:-1]), config.watch.floor_quantile)
        )
    return {"day": str(days[-1]), "days": len(days) - 1, "columns": by_excess(columns)}


def _predictions(copy: Copy) -> pl.DataFrame:
    rows = pl.scan_parquet(copy.parts()).select(list(PREDICTED.values()))
    step = max(1, -(-int(copy.record["candidates"]) // ROWS))
    return rows.gather_every(step).collect()


def _histogram(values: pl.Series, edges: Counts) -> Counts:
    place = np.searchsorted(edges, values.to_numpy(), side="right")
    return np.bincount(place, minlength=len(edges) + 1).astype(np.float64)
