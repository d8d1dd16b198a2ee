"""Encode raw features: ids of vocabularies and positions on quantile knots, fitted on training days only.

Ids are 0 padding, 1 missing, 2 unseen, 3.. known values by falling training count. A number becomes its
coordinate on the training quantiles (k + share of the way to knot k + 1), clipped to 0..bins; a missing one
is bins + 1. The ranker turns the coordinate into a piecewise-linear encoding (Gorishniy et al. 2022).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.plan import FeaturePlan

PADDING, MISSING, UNSEEN, FIRST_KNOWN = range(4)
LONGEST_LIST = 32
QUANTILE_ROWS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Fitted encodings by feature name.

    Attributes:
        vocabularies: field to its known values; the value at place n has id n + 3.
        knots: numeric feature to its increasing quantiles, at most bins + 1.
        lists: multi-valued feature to its vocabulary's field and its encoded length.
        bins: number of bins that positions refer to.
    """

    vocabularies: dict[str, list[str]]
    knots: dict[str, list[float]]
    lists: dict[str, tuple[str, int]]
    bins: int

    def cardinalities(self) -> dict[str, int]:
        """Return the number of ids of each field, padding, missing and unseen included."""
        return {name: FIRST_KNOWN + len(values) for name, values in self.vocabularies.items()}


def fit_encoder(raw: pl.LazyFrame, plan: FeaturePlan, *, min_count: int, bins: int) -> Encoder:
    """Fit vocabularies and quantiles on the raw features of the training rows.

    Args:
        raw: the training rows only.
        plan: the features.
        min_count: training rows that a value needs for an id of its own; rarer values are unseen.
        bins: quantile bins.
    """
    single = {name: _counts(raw.select(name), name, min_count) for name in plan.categorical()}
    multi = {name: _counts(raw.select(pl.col(name).list.explode()), name, min_count) for name in plan.multi()}
    lengths = {name: _longest(raw, name) for name in plan.multi()}
    lists = {name: (name, lengths[name]) for name in plan.multi()}
    lists |= dict.fromkeys(plan.sequences(), ("item_id", plan.sequence_length))
    knots = {name: _quantiles(raw, name, bins) for name in plan.numeric()}
    return Encoder(vocabularies={**single, **multi}, knots=knots, lists=lists, bins=bins)


def _counts(column: pl.LazyFrame, name: str, min_count: int) -> list[str]:
    counts = column.drop_nulls().group_by(name).len().filter(pl.col("len") >= min_count)
    ordered: list[str] = counts.sort(["len", name], descending=[True, False]).collect()[name].to_list()
    return ordered


def _longest(raw: pl.LazyFrame, name: str) -> int:
    longest = raw.select(pl.col(name).list.len().max()).collect().item()
    return max(1, min(int(longest or 1), LONGEST_LIST))


def _quantiles(raw: pl.LazyFrame, name: str, bins: int) -> list[float]:
    values = raw.select(pl.col(name).drop_nulls()).collect().to_series().to_numpy()
    stride = -(-len(values) // QUANTILE_ROWS) if len(values) else 1
    sample = np.sort(values[::stride].astype(np.float64))
    if not len(sample):
        return []
    places = np.linspace(0, len(sample) - 1, bins + 1).round().astype(np.int64)
    return [float(value) for value in np.unique(sample[places])]


def encode(frame: pl.DataFrame, encoder: Encoder) -> pl.DataFrame:
    """Return the encodings of all features that a frame holds, in its rows' order.

    Returns:
        `<name>_code` Int32 for a single value, List[Int32] of the encoder's length for a multi-valued one
        (padded with 0 at the end), `<name>_position` Float32 for a number.
    """
    columns: list[pl.Series] = []
    for name in frame.columns:
        if name in encoder.lists:
            columns.append(_encode_list(frame[name], *encoder.lists[name], encoder))
        elif name in encoder.vocabularies:
            columns.append(_encode_single(frame[name], encoder.vocabularies[name]))
        elif name in encoder.knots:
            columns.append(_encode_number(frame[name], encoder.knots[name], encoder.bins))
    return pl.DataFrame(columns)


def _encode_single(column: pl.Series, vocabulary: list[str]) -> pl.Series:
    known = column.cast(pl.Enum(vocabulary), strict=False).to_physical().cast(pl.Int32) + FIRST_KNOWN
    code = pl.when(column.is_null()).then(MISSING).otherwise(known.fill_null(UNSEEN))
    return pl.select(code.cast(pl.Int32)).to_series().alias(f"{column.name}_code")


def _encode_list(column: pl.Series, field: str, length: int, encoder: Encoder) -> pl.Series:
    name = f"{column.name}_code"
    trimmed = column.cast(pl.List(pl.String)).fill_null([]).list.tail(length)
    flat = trimmed.explode(empty_as_null=False) if trimmed.list.len().sum() else pl.Series([], dtype=pl.String)
    codes = _encode_single(flat, encoder.vocabularies[field]).to_numpy()
    counts = trimmed.list.len().to_numpy().astype(np.int64)
    padded = np.zeros((len(column), length), dtype=np.int32)
    filled = np.arange(length)[None, :] < counts[:, None]
    padded[filled] = codes
    return pl.Series(name, padded).cast(pl.List(pl.Int32))


def _encode_number(column: pl.Series, knots: list[float], bins: int) -> pl.Series:
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if knots:
        positions = np.interp(values, knots, np.arange(len(knots), dtype=np.float64))
    else:
        positions = np.full(len(values), np.nan)
    missing = float(bins + 1)
    return pl.Series(
        f"{column.name}_position", np.where(np.isnan(values) | np.isnan(positions), missing, positions)
    ).cast(pl.Float32)


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write an encoder as JSON."""
    path.write_text(json.dumps(asdict(encoder), ensure_ascii=False), encoding="utf-8")


def load_encoder(path: Path) -> Encoder:
    """Read an encoder that `save_encoder` wrote.

    Raises:
        ValueError: the file is missing or no encoder.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: (str(field), int(length)) for name, (field, length) in values["lists"].items()}
        return Encoder(
            vocabularies=values["vocabularies"], knots=values["knots"], lists=lists, bins=int(values["bins"])
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no encoder ({error}): run featurize again") from None
