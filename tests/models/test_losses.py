"""The joint loss against cross-entropies written out."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses import joint_loss

# One row a reachable label: nothing, a click, a click with a conversion.
CLICKS = torch.tensor([0.0, 1.0, 1.0])
CONVERSIONS = torch.tensor([0.0, 0.0, 1.0])


def _cross_entropy(p: float, label: float) -> float:
    return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)))


def _naive(logits_BT: Tensor, conversion_weight: float) -> float:
    total = 0.0
    rows = zip(logits_BT.double().numpy(), CLICKS.tolist(), CONVERSIONS.tolist(), strict=True)
    for (a, b), click, conversion in rows:
        p_click, p_conversion = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        total += _cross_entropy(p_click, click)
        total += conversion_weight * _cross_entropy(p_click * p_conversion, conversion)
    return total / len(CLICKS)


@pytest.mark.parametrize("conversion_weight", [0.0, 1.0, 2.5])
def test_the_loss_equals_two_cross_entropies_over_all_impressions(conversion_weight: float) -> None:
    logits_BT = 3 * torch.randn(3, 2)
    loss = joint_loss(logits_BT, CLICKS, CONVERSIONS, conversion_weight=conversion_weight)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(_naive(logits_BT, conversion_weight), rel=1e-5)


def test_gradients_are_finite_for_every_label_at_extreme_logits() -> None:
    for pair in product([-50.0, 0.0, 50.0], repeat=2):
        logits_BT = torch.tensor([pair] * 3, requires_grad=True)
        loss = joint_loss(logits_BT, CLICKS, CONVERSIONS, conversion_weight=1.0)
        torch.autograd.backward(loss)
        assert loss.isfinite()
        assert logits_BT.grad is not None
        assert logits_BT.grad.isfinite().all()


def test_an_impression_without_a_click_also_teaches_conversion() -> None:
    logits_BT = torch.zeros(1, 2, requires_grad=True)
    torch.autograd.backward(joint_loss(logits_BT, torch.zeros(1), torch.zeros(1), conversion_weight=1.0))
    assert logits_BT.grad is not None
    # d -log(1 - s(a) s(b)) / db at 0: (1/4) (1/2) / (3/4).
    assert float(logits_BT.grad[0, 1]) == pytest.approx(1 / 6)


def test_a_conversion_without_a_click_counts_as_none() -> None:
    logits_BT = torch.randn(1, 2)
    losses = [
        joint_loss(logits_BT, torch.zeros(1), conversion, conversion_weight=1.0)
        for conversion in (torch.ones(1), torch.zeros(1))
    ]
    assert losses[0] == losses[1]
