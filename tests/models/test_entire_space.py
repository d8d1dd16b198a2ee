"""Log-space probabilities against exact decimal arithmetic."""

from decimal import Decimal, getcontext
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.entire_space import entire_space, entire_space_probabilities

LOGITS = [-50.0, -20.0, -7.0, -1.0, 0.0, 0.3, 2.0, 9.0, 20.0, 50.0]


def _exact(click: float, conversion: float) -> tuple[float, float, float]:
    """The logs of p_click, of the product and of its complement, with 80 digits."""
    getcontext().prec = 80
    p_click = 1 / (1 + (-Decimal(click)).exp())
    p_both = p_click / (1 + (-Decimal(conversion)).exp())
    return float(p_click.ln()), float(p_both.ln()), float((1 - p_both).ln())


def test_log_probabilities_are_exact_at_every_pair_of_logits() -> None:
    pairs = list(product(LOGITS, LOGITS))
    space = entire_space(torch.tensor(pairs))
    expected = np.array([_exact(*pair) for pair in pairs])
    # A logarithm of -100 has an error of 4e-6 in float32, which its exponential shows as a relative one.
    np.testing.assert_allclose(torch.stack(space, dim=1).numpy(), expected, rtol=1e-5, atol=1e-37)


@given(st.floats(-12, 12), st.floats(-12, 12))
def test_probabilities_equal_the_naive_ones(click: float, conversion: float) -> None:
    p_click, p_conversion = 1 / (1 + np.exp(-click)), 1 / (1 + np.exp(-conversion))
    probabilities_B3 = entire_space_probabilities(torch.tensor([[click, conversion]]))
    expected = [[p_click, p_conversion, p_click * p_conversion]]
    np.testing.assert_allclose(probabilities_B3.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [50.0, 500.0])
def test_values_and_gradients_are_finite_at_extreme_logits(size: float) -> None:
    logits_BT = torch.tensor(list(product([-size, 0.0, size], repeat=2)), requires_grad=True)
    for log_B in entire_space(logits_BT):
        assert log_B.isfinite().all()
        (gradient_BT,) = torch.autograd.grad(log_B.sum(), logits_BT, retain_graph=True)
        assert gradient_BT.isfinite().all()
        assert gradient_BT.abs().max() <= 1.0 + 1e-6


def test_the_complements_gradient_is_exact_on_both_sides_of_one_half() -> None:
    # d log(1 - s(a) s(b)) / da = -s(a) s(b) (1 - s(a)) / (1 - s(a) s(b)).
    pairs = [(-6.0, -7.0), (0.8, 0.9), (0.88, 0.9), (3.0, 2.0), (-40.0, 3.0), (12.0, 12.0)]
    logits_BT = torch.tensor(pairs, requires_grad=True)
    torch.autograd.backward(entire_space(logits_BT).no_click_and_conversion_B.sum())
    a, b = np.array(pairs, dtype=np.float64).T
    p_click, p_conversion = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    not_both = (np.exp(-a) + np.exp(-b) + np.exp(-a - b)) * p_click * p_conversion
    expected = -p_click * p_conversion * (1 / (1 + np.exp(a))) / not_both
    assert logits_BT.grad is not None
    np.testing.assert_allclose(logits_BT.grad[:, 0].numpy(), expected, rtol=1e-5)
