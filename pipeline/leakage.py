"""Columns that hold a label, refused by name before anything trains on them."""

import datetime as dt

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.encoding import Encoder, encode
from pipeline.feature_store import FeatureStore, raw_day, read_day
from pipeline.metrics import auc
from pipeline.split import Days

CEILING = 0.99
SAMPLE_ROWS = 100_000
SMOOTHING = 1.0


def refuse_label_columns(store: FeatureStore, days: Days, encoder: Encoder) -> None:
    """Refuse a column that by itself nearly determines a label on the validation day.

    The label's rate for each value (or quantile bin) on the last training day predicts the validation day's label: an
    honest column does not come near an AUC of 0.99, a column that was filled in after the impression does. An id that
    merely repeats cannot pass for one, since the rates are of another day.

    Args:
        store: its raw features of both days.
        days: the run's days.
        encoder: the run's encoder.

    Raises:
        ValueError: names the column, the label and the AUC.
    """
    training, validation = _sample(store, days.train[-1], encoder), _sample(store, days.validation[-1], encoder)
    for label in ("click", "conversion"):
        known, target = training[label].to_numpy(), validation[label].to_numpy()
        if not (known.any() and target.any()) or target.all():
            continue
        for column in training.columns:
            if not column.endswith(("_code", "_position")):
                continue
            found = auc(target, _rates(training[column], known, validation[column]))
            if found > CEILING:
                name = column.removesuffix("_code").removesuffix("_position")
                raise ValueError(
                    f"column '{name}' determines the label '{label}' (AUC {found:.4f} on {days.validation[-1]} by its "
                    f"values alone, above {CEILING}): it is known only after the impression; remove it from the config"
                )


def _sample(store: FeatureStore, day: dt.date, encoder: Encoder) -> pl.DataFrame:
    """Return labels and codes of a day, at most SAMPLE_ROWS rows at equal distances."""
    labels = read_day(store, day).select("click", "conversion")
    step = -(-labels.height // SAMPLE_ROWS)
    raw = raw_day(store, day).gather_every(step)
    return pl.concat([labels.gather_every(step), encode(raw, encoder)], how="horizontal")


def _rates(values: pl.Series, labels: NDArray[np.bool_], wanted: pl.Series) -> NDArray[np.float64]:
    """Return the smoothed rate of a label by value, for the values of another day; of a list its highest."""
    codes, rows = _flat(values)
    asked, places = _flat(wanted)
    size = int(max(codes.max(initial=0), asked.max(initial=0))) + 1
    counts = np.bincount(codes, minlength=size)
    positives = np.bincount(codes, weights=labels[rows], minlength=size)
    rates = (positives + SMOOTHING * labels.mean()) / (counts + SMOOTHING)
    highest = np.zeros(len(wanted))
    np.maximum.at(highest, places, rates[asked])
    return highest


def _flat(column: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return codes (or bins) and the row of each; a list gives several."""
    rows = np.arange(len(column))
    if column.dtype == pl.List:
        rows = np.repeat(rows, column.list.len().to_numpy().astype(np.int64))
        column = column.explode(empty_as_null=False)
    return column.to_numpy().astype(np.int64), rows
