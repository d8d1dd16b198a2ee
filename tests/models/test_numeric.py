"""The numeric encoding against the paper's, written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.numeric import PiecewiseLinear

BINS = 5


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
    layer = PiecewiseLinear(features=2, bins=BINS, width=3).double()
    edges_FK = torch.rand(2, BINS + 1, dtype=torch.float64).cumsum(1)
    values_BF = edges_FK[:, 0] + torch.rand(40, 2, dtype=torch.float64) * (edges_FK[:, -1] - edges_FK[:, 0])
    values_BF[0], values_BF[1], values_BF[2] = edges_FK[:, 0], edges_FK[:, -1], edges_FK[:, 2]

    bins_BF = torch.searchsorted(edges_FK[:, 1:-1].contiguous(), values_BF.T.contiguous(), right=True).T
    low_BF, high_BF = edges_FK.T.gather(0, bins_BF), edges_FK.T.gather(0, bins_BF + 1)
    encoded_BFD = layer(bins_BF + (values_BF - low_BF) / (high_BF - low_BF))

    for feature in range(2):
        expected_BD = _paper(values_BF[:, feature], edges_FK[feature], layer.weight_FKD[feature].detach())
        torch.testing.assert_close(encoded_BFD[:, feature].detach(), expected_BD)


def test_values_and_gradients_equal_the_hat_basis_times_the_weights() -> None:
    layer = PiecewiseLinear(features=3, bins=BINS, width=2).double()
    positions_BF = torch.rand(30, 3, dtype=torch.float64) * BINS
    positions_BF[:5] = BINS + 1
    positions_BF[5:8] = BINS
    factor_BFD = torch.randn(30, 3, 2, dtype=torch.float64)

    knots_K = torch.arange(BINS + 2)
    basis_BFK = torch.relu(1 - (positions_BF.unsqueeze(-1) - knots_K).abs())
    expected_BFD = torch.einsum("bfk,fkd->bfd", basis_BFK, layer.weight_FKD)
    torch.testing.assert_close(layer(positions_BF), expected_BFD)

    (expected_gradient,) = torch.autograd.grad((expected_BFD * factor_BFD).sum(), layer.weight_FKD)
    (gradient,) = torch.autograd.grad((layer(positions_BF) * factor_BFD).sum(), layer.weight_FKD)
    torch.testing.assert_close(gradient, expected_gradient)


@given(st.floats(0, BINS, width=32) | st.just(float(BINS + 1)))
def test_the_basis_sums_to_one(position: float) -> None:
    layer = PiecewiseLinear(features=1, bins=BINS, width=1)
    torch.nn.init.ones_(layer.weight_FKD)
    assert layer(torch.tensor([[position]])).item() == pytest.approx(1.0, abs=1e-6)


def test_a_missing_value_has_a_knot_of_its_own() -> None:
    layer = PiecewiseLinear(features=1, bins=BINS, width=1)
    torch.autograd.backward(layer(torch.tensor([[BINS + 1.0]])).sum())
    assert layer.weight_FKD.grad is not None
    assert layer.weight_FKD.grad.flatten().tolist() == [0.0] * (BINS + 1) + [1.0]


@pytest.mark.parametrize("position", [-0.1, BINS + 0.5, BINS + 2.0, float("nan")])
def test_a_position_that_is_no_coordinate_fails(position: float) -> None:
    layer = PiecewiseLinear(features=1, bins=BINS, width=1)
    with pytest.raises(AssertionError):
        layer(torch.tensor([[position]]))
