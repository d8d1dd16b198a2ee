"""The numeric encodings against the paper's, written out."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.numeric import NUMERIC_ENCODINGS, NumericSize, Periodic, PiecewiseLinear

BINS = 5
SIZE = NumericSize(bins=BINS, width=3, frequencies=4)
WITH_ZERO = replace(SIZE, zero_bin=True)
SIZES = pytest.mark.parametrize("size", [SIZE, WITH_ZERO], ids=["missing", "missing_and_zero"])
ENCODINGS = pytest.mark.parametrize("encoding", NUMERIC_ENCODINGS)


def _paper(values_B: Tensor, edges_K: Tensor, weight_KD: Tensor) -> Tensor:
    """Gorishniy et al. 2022, equation 1, then a linear layer with bias: component t of a value's encoding.

    It is 0 below bin t, 1 above it, and the fraction inside. That the outer bins are open does not matter to
    values within the edges.
    """
    rows = []
    for value in values_B.tolist():
        output_D = weight_KD[0].clone()
        for t in range(1, BINS + 1):
            low, high = float(edges_K[t - 1]), float(edges_K[t])
            component = 0.0 if value < low else 1.0 if value >= high else (value - low) / (high - low)
            output_D += component * (weight_KD[t] - weight_KD[t - 1])
        rows.append(output_D)
    return torch.stack(rows)


def test_the_encoding_equals_the_papers_followed_by_a_linear_layer() -> None:
    layer = PiecewiseLinear(SIZE, features=2).double()
    edges_FK = torch.rand(2, BINS + 1, dtype=torch.float64).cumsum(1)
    values_BF = edges_FK[:, 0] + torch.rand(40, 2, dtype=torch.float64) * (edges_FK[:, -1] - edges_FK[:, 0])
    values_BF[0], values_BF[1], values_BF[2] = edges_FK[:, 0], edges_FK[:, -1], edges_FK[:, 2]

    bins_BF = torch.searchsorted(edges_FK[:, 1:-1].contiguous(), values_BF.T.contiguous(), right=True).T
    low_BF, high_BF = edges_FK.T.gather(0, bins_BF), edges_FK.T.gather(0, bins_BF + 1)
    encoded_BFD = layer(bins_BF + (values_BF - low_BF) / (high_BF - low_BF))

    for feature in range(2):
        expected_BD = _paper(values_BF[:, feature], edges_FK[feature], layer.weight_FKD[feature].detach())
        torch.testing.assert_close(encoded_BFD[:, feature].detach(), expected_BD)


@SIZES
def test_values_and_gradients_equal_the_hat_basis_times_the_weights(size: NumericSize) -> None:
    layer = PiecewiseLinear(size, features=3, groups=2).double()
    positions_BF = torch.rand(30, 3, dtype=torch.float64) * BINS
    positions_BF[:5] = size.knots - 1
    positions_BF[5:8] = BINS
    positions_BF[8:10] = BINS + 1
    factor_BFD = torch.randn(30, 3, 6, dtype=torch.float64)

    knots_K = torch.arange(size.knots)
    basis_BFK = torch.relu(1 - (positions_BF.unsqueeze(-1) - knots_K).abs())
    expected_BFD = torch.einsum("bfk,fkd->bfd", basis_BFK, layer.weight_FKD)
    torch.testing.assert_close(layer(positions_BF), expected_BFD)

    (expected_gradient,) = torch.autograd.grad((expected_BFD * factor_BFD).sum(), layer.weight_FKD)
    (gradient,) = torch.autograd.grad((layer(positions_BF) * factor_BFD).sum(), layer.weight_FKD)
    torch.testing.assert_close(gradient, expected_gradient)


@given(st.floats(0, BINS, width=32) | st.sampled_from([BINS + 1.0, BINS + 2.0]))
def test_the_basis_sums_to_one(position: float) -> None:
    layer = PiecewiseLinear(replace(WITH_ZERO, width=1), features=1)
    torch.nn.init.ones_(layer.weight_FKD)
    assert layer(torch.tensor([[position]])).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("position", "knot"), [(BINS + 1.0, BINS + 1), (BINS + 2.0, BINS + 2)])
def test_a_missing_value_and_a_zero_apart_have_knots_of_their_own(position: float, knot: int) -> None:
    layer = PiecewiseLinear(replace(WITH_ZERO, width=1), features=1)
    torch.autograd.backward(layer(torch.tensor([[position]])).sum())
    assert layer.weight_FKD.grad is not None
    assert layer.weight_FKD.grad.flatten().tolist() == [float(k == knot) for k in range(BINS + 3)]


@ENCODINGS
@pytest.mark.parametrize("position", [-0.1, BINS + 0.5, BINS + 2.0, float("nan")])
def test_a_position_that_is_no_coordinate_fails(encoding: str, position: float) -> None:
    layer = NUMERIC_ENCODINGS[encoding](SIZE, features=1)
    with pytest.raises(AssertionError):
        layer(torch.tensor([[position]]))


def _waves(x: float, layer: Periodic, feature: int, group: int) -> Tensor:
    """Gorishniy et al. 2022, section 3.3: ReLU(Linear(Periodic(x))) of one number, wave by wave."""
    frequencies = layer.frequency_FGN[feature, group].tolist()
    waves = [math.sin(2 * math.pi * c * x) for c in frequencies] + [math.cos(2 * math.pi * c * x) for c in frequencies]
    output_D = layer.bias_FGD[feature, group].detach().clone()
    for wave, weight_D in zip(waves, layer.weight_FGND[feature, group].detach(), strict=True):
        output_D += wave * weight_D
    return output_D.clamp(min=0)


@SIZES
def test_the_periodic_encoding_equals_the_papers_and_has_vectors_for_what_lies_apart(size: NumericSize) -> None:
    layer = Periodic(size, features=2, groups=3).double()
    torch.nn.init.normal_(layer.bias_FGD)
    positions_BF = torch.rand(12, 2, dtype=torch.float64) * BINS
    positions_BF[0], positions_BF[1], positions_BF[2:4], positions_BF[4:6] = 0, BINS, BINS + 1, size.knots - 1
    encoded_BFD = layer(positions_BF)
    assert encoded_BFD.shape == (12, 2, 9)
    for row, feature in ((row, feature) for row in range(12) for feature in range(2)):
        position = float(positions_BF[row, feature])
        if position > BINS:
            expected_D = layer.apart_FAD[feature, int(position) - BINS - 1].detach()
        else:
            expected_D = torch.cat([_waves(position / BINS, layer, feature, group) for group in range(3)])
        torch.testing.assert_close(encoded_BFD[row, feature].detach(), expected_D)


def test_what_lies_apart_teaches_no_wave_and_a_present_value_nothing_that_lies_apart() -> None:
    layer = Periodic(WITH_ZERO, features=1)
    for position, apart in ((BINS + 1.0, [1.0, 0.0]), (BINS + 2.0, [0.0, 1.0]), (2.5, [0.0, 0.0])):
        layer.zero_grad()
        torch.autograd.backward(layer(torch.tensor([[position]])).sum())
        gradients = {name: weight.grad for name, weight in layer.named_parameters()}
        assert gradients["apart_FAD"] is not None
        assert gradients["apart_FAD"][0, :, 0].tolist() == apart
        for name in ("frequency_FGN", "weight_FGND", "bias_FGD"):
            assert gradients[name] is not None
            assert bool(gradients[name].any()) == (position <= BINS), name


def test_frequencies_begin_with_the_spread_that_is_asked_for() -> None:
    layer = Periodic(replace(SIZE, frequencies=400, frequency_scale=0.3), features=5)
    assert layer.frequency_FGN.std().item() == pytest.approx(0.3, rel=0.1)


@ENCODINGS
def test_no_numbers_give_no_columns(encoding: str) -> None:
    assert NUMERIC_ENCODINGS[encoding](SIZE, features=0, groups=2)(torch.zeros(4, 0)).shape == (4, 0, 6)
