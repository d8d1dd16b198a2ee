"""Positions of numbers on training quantiles, with bins of their own for zero and for missing values."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

QUANTILE_ROWS = 2_000_000


@dataclass(frozen=True)
class NumberScale:
    """What a number's position refers to.

    Attributes:
        knots: the increasing quantiles, at most bins + 1; none for a number that no training row has.
        zero_apart: whether zero has a bin of its own; the knots are then quantiles of the other values.
    """

    knots: list[float]
    zero_apart: bool


def fit_scale(column: pl.Series, *, bins: int, min_zeros: int) -> NumberScale:
    """Return the quantile knots of a number's training values.

    Zero has a bin of its own where at least `min_zeros` rows have it and others do not: in a count it means that
    nothing was counted, which is not a little less than the smallest count. A number without zeros, or of zeros
    alone, has plain quantiles.
    """
    values = column.drop_nulls().to_numpy().astype(np.float64)
    others = values[values != 0]
    zero_apart = bool(len(others)) and len(values) - len(others) >= min_zeros
    return NumberScale(_quantiles(others if zero_apart else values, bins), zero_apart)


def _quantiles(values: NDArray[np.float64], bins: int) -> list[float]:
    stride = -(-len(values) // QUANTILE_ROWS) if len(values) else 1
    sample = np.sort(values[::stride])
    if not len(sample):
        return []
    places = np.linspace(0, len(sample) - 1, bins + 1).round().astype(np.int64)
    return [float(value) for value in np.unique(sample[places])]


def number_positions(column: pl.Series, scale: NumberScale, bins: int) -> pl.Series:
    """Return positions as Float32: 0..bins on the knots, bins + 1 missing, bins + 2 a zero that is apart.

    A value beyond the outer knots is at the nearer one; every value of a number without knots is missing, and so
    is NaN.
    """
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if scale.knots:
        positions = np.interp(values, scale.knots, np.arange(len(scale.knots), dtype=np.float64))
    else:
        positions = np.full(len(values), np.nan)
    positions = np.where(np.isnan(values) | np.isnan(positions), float(bins + 1), positions)
    if scale.zero_apart:
        positions = np.where(values == 0, float(bins + 2), positions)
    return pl.Series(f"{column.name}_position", positions, dtype=pl.Float64).cast(pl.Float32)
