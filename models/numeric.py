"""Encodings of numeric features: piecewise-linear and periodic, with knots apart for missing values and zeros.

Shapes: B batch, F features, G groups, K knots, N frequencies, A knots apart, D width, R = B * F rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NumericSize:
    """How numeric columns are encoded."""

    bins: int
    """Quantile bins: a present value lies in 0..bins, a missing one at bins + 1."""
    width: int
    """Outputs a column, of each group."""
    zero_bin: bool = False
    """Whether a zero may lie apart, at bins + 2."""
    encoding: str = "piecewise_linear"
    """piecewise_linear or periodic."""
    frequencies: int = 16
    """Frequencies of a column (periodic)."""
    frequency_scale: float = 1.0
    """Standard deviation of the initial frequencies, in periods over all bins (periodic)."""

    @property
    def knots(self) -> int:
        """Number of knots K of a piecewise-linear curve: the bins' edges, and those apart."""
        return self.bins + 1 + self.apart

    @property
    def apart(self) -> int:
        """Number of knots A that lie apart: missing, then zero where it has a bin."""
        return 2 if self.zero_bin else 1


class PiecewiseLinear(nn.Module):
    """Gives each numeric feature a learned piecewise-linear curve in D dimensions.

    Each feature has bins + 2 knots: the bins' edges, and one apart for a missing value; with a zero bin one more.
    The output is the hat basis relu(1 - |position - knot|) times a weight matrix per feature: the piecewise-linear
    encoding of Gorishniy et al. 2022 (equation 1) followed by a linear layer, written in the values at the knots.
    """

    starts_F: Tensor

    def __init__(self, size: NumericSize, *, features: int, groups: int = 1) -> None:
        super().__init__()
        assert size.bins >= 1, size.bins
        self.size = size
        self.weight_FKD = nn.Parameter(torch.randn(features, size.knots, groups * size.width) * 0.1)
        self.register_buffer("starts_F", torch.arange(features) * size.knots, persistent=False)

    def forward(self, positions_BF: Tensor) -> Tensor:
        """Encodes coordinates on the quantile knots: (B, F) float32 to (B, F, G x D) float32.

        A present value lies in 0..bins (bin number plus the fraction within it), a missing one at bins + 1, a zero
        that is apart at bins + 2.
        """
        assert positions_BF.device.type != "cpu" or _in_range(positions_BF, self.size)
        lower_BF = positions_BF.floor()
        fraction_BF1 = (positions_BF - lower_BF).unsqueeze(-1)
        output_shape = (*positions_BF.shape, self.weight_FKD.shape[-1])
        rows_R = (lower_BF.long() + self.starts_F).flatten()
        # A gather of value and slope. Forward and backward at B 4096, F 60, K 22, D 8, one thread: 10 ms;
        # the same by nn.functional.embedding 18 ms, hat basis and bmm 54 ms, hat basis and einsum 92 ms.
        value_BFD = _gather(self.weight_FKD, rows_R).view(output_shape)
        # No position lies between the last edge and the knots apart, so that their slopes do not matter.
        slope_FKD = nn.functional.pad(self.weight_FKD.diff(dim=1), (0, 0, 0, 1))
        slope_BFD = _gather(slope_FKD, rows_R).view(output_shape)
        return torch.addcmul(value_BFD, slope_BFD, fraction_BF1)


class Periodic(nn.Module):
    """Encodes each numeric feature by waves of learned frequencies, a linear layer and ReLU.

    This is PLR of Gorishniy et al. 2022 (section 3.3): v = 2 pi c x, then concat(sin v, cos v), with frequencies c
    that begin as N(0, scale), then a linear layer a feature. The value x is position / bins, in 0..1: where no
    quantiles coincide, the share of the training rows below it. Missing values and zeros apart have no place on a
    wave: each has a learned vector. Each group has frequencies of its own.
    """

    starts_F: Tensor

    def __init__(self, size: NumericSize, *, features: int, groups: int = 1) -> None:
        super().__init__()
        self.size = size
        waves, bound = 2 * size.frequencies, 1.0 / math.sqrt(2 * size.frequencies)
        self.frequency_FGN = nn.Parameter(torch.randn(features, groups, size.frequencies) * size.frequency_scale)
        self.weight_FGND = nn.Parameter(torch.empty(features, groups, waves, size.width).uniform_(-bound, bound))
        self.bias_FGD = nn.Parameter(torch.zeros(features, groups, size.width))
        self.apart_FAD = nn.Parameter(torch.randn(features, size.apart, groups * size.width) * 0.1)
        self.register_buffer("starts_F", torch.arange(features) * size.apart, persistent=False)

    def forward(self, positions_BF: Tensor) -> Tensor:
        """Encodes coordinates as `PiecewiseLinear` does: (B, F) float32 to (B, F, G x D) float32."""
        assert positions_BF.device.type != "cpu" or _in_range(positions_BF, self.size)
        apart_BF = (positions_BF - (self.size.bins + 1)).clamp(min=0).long()
        rows_R = (apart_BF + self.starts_F).flatten()
        apart_BFD = _gather(self.apart_FAD, rows_R).view(*positions_BF.shape, self.apart_FAD.shape[-1])
        is_apart_BF1 = (positions_BF > self.size.bins).unsqueeze(-1)
        return torch.where(is_apart_BF1, apart_BFD, self._waves(positions_BF / self.size.bins))

    def _waves(self, x_BF: Tensor) -> Tensor:
        v_BFGN = 2 * math.pi * x_BF.unsqueeze(-1).unsqueeze(-1) * self.frequency_FGN
        waves_BFGN = torch.cat([v_BFGN.sin(), v_BFGN.cos()], dim=-1)
        # One product a feature and group, its rows the batch.
        by_feature_XBN = waves_BFGN.flatten(1, 2).transpose(0, 1)
        bias_X1D = self.bias_FGD.flatten(0, 1).unsqueeze(1)
        encoded_XBD = torch.baddbmm(bias_X1D, by_feature_XBN, self.weight_FGND.flatten(0, 1)).relu()
        return encoded_XBD.transpose(0, 1).reshape(*x_BF.shape, self.apart_FAD.shape[-1])


NUMERIC_ENCODINGS: dict[str, type[PiecewiseLinear] | type[Periodic]] = {
    "piecewise_linear": PiecewiseLinear,
    "periodic": Periodic,
}


def check_numeric(size: NumericSize) -> None:
    """Raises ValueError for an encoding that does not exist, or without frequencies."""
    if size.encoding not in NUMERIC_ENCODINGS:
        raise ValueError(f"numeric_encoding is {size.encoding!r}, expected one of {list(NUMERIC_ENCODINGS)}")
    if size.frequencies < 1 or not size.frequency_scale > 0:
        raise ValueError(
            f"frequencies is {size.frequencies} and frequency_scale {size.frequency_scale}, expected at least 1 and a "
            "number above 0, such as 16 and 1.0"
        )


def _gather(table_FKD: Tensor, rows_R: Tensor) -> Tensor:
    return table_FKD.flatten(0, 1).index_select(0, rows_R)


def _in_range(positions_BF: Tensor, size: NumericSize) -> bool:
    present_BF = (positions_BF >= 0) & (positions_BF <= size.bins)
    whole_BF = positions_BF == positions_BF.floor()
    apart_BF = whole_BF & (positions_BF > size.bins) & (positions_BF < size.knots)
    return bool((present_BF | apart_BF).all())
