"""The joint loss against cross-entropies written out."""

from dataclasses import fields
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses import Targets, task_losses

# One row a reachable label: nothing, a click, a click with a conversion.
CLICKS = torch.tensor([0.0, 1.0, 1.0])
CONVERSIONS = torch.tensor([0.0, 0.0, 1.0])


def _joint_loss(logits_BT: Tensor, targets: Targets, *, conversion_weight: float) -> Tensor:
    """The sum that a fit with static weights takes."""
    losses = task_losses(logits_BT, targets)
    return losses["click"] + conversion_weight * losses["click_and_conversion"]


def unmasked(clicks_B: Tensor, conversions_B: Tensor) -> Targets:
    """Return targets of which every impression counts in both losses."""
    return Targets(clicks_B, conversions_B, torch.ones_like(clicks_B), torch.ones_like(clicks_B))


def _cross_entropy(p: float, label: float) -> float:
    return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)))


def _naive(logits_BT: Tensor, targets: Targets, conversion_weight: float) -> float:
    total = 0.0
    columns = [getattr(targets, field.name).tolist() for field in fields(targets) if field.name != "extra"]
    for (a, b), click, conversion, in_click, in_both in zip(logits_BT.double().numpy(), *columns, strict=True):
        p_click, p_conversion = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        total += in_click * _cross_entropy(p_click, click)
        total += in_both * conversion_weight * _cross_entropy(p_click * p_conversion, conversion)
    return total / len(logits_BT)


def _gradient(logits_BT: Tensor, targets: Targets) -> Tensor:
    leaf_BT = logits_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(_joint_loss(leaf_BT, targets, conversion_weight=1.0), leaf_BT)
    return gradient_BT


@pytest.mark.parametrize("conversion_weight", [0.0, 1.0, 2.5])
def test_the_loss_equals_two_cross_entropies_over_all_impressions(conversion_weight: float) -> None:
    logits_BT, targets = 3 * torch.randn(3, 2), unmasked(CLICKS, CONVERSIONS)
    loss = _joint_loss(logits_BT, targets, conversion_weight=conversion_weight)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(_naive(logits_BT, targets, conversion_weight), rel=1e-5)


def test_gradients_are_finite_for_every_label_at_extreme_logits() -> None:
    for pair in product([-50.0, 0.0, 50.0], repeat=2):
        logits_BT = torch.tensor([pair] * 3, requires_grad=True)
        loss = _joint_loss(logits_BT, unmasked(CLICKS, 10 * CONVERSIONS), conversion_weight=1.0)
        torch.autograd.backward(loss)
        assert loss.isfinite()
        assert logits_BT.grad is not None
        assert logits_BT.grad.isfinite().all()


def test_an_impression_without_a_click_also_teaches_conversion() -> None:
    gradient_BT = _gradient(torch.zeros(1, 2), unmasked(torch.zeros(1), torch.zeros(1)))
    # d -log(1 - s(a) s(b)) / db at 0: (1/4) (1/2) / (3/4).
    assert float(gradient_BT[0, 1]) == pytest.approx(1 / 6)


def test_a_conversion_without_a_click_counts_as_none() -> None:
    logits_BT = torch.randn(1, 2)
    losses = [
        _joint_loss(logits_BT, unmasked(torch.zeros(1), conversion), conversion_weight=1.0)
        for conversion in (torch.ones(1), torch.zeros(1))
    ]
    assert losses[0] == losses[1]


def test_each_mask_leaves_rows_out_of_its_own_loss_and_a_kept_row_weighs_the_same() -> None:
    logits_BT = torch.randn(3, 2)
    targets = Targets(CLICKS, CONVERSIONS, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    loss = _joint_loss(logits_BT, targets, conversion_weight=1.0)
    assert float(loss) == pytest.approx(_naive(logits_BT, targets, 1.0), rel=1e-5)
    gradient_BT = _gradient(logits_BT, targets)
    assert not gradient_BT[2].any()
    assert not gradient_BT[0, 1]
    assert torch.equal(gradient_BT[1], _gradient(logits_BT, unmasked(CLICKS, CONVERSIONS))[1])


def test_a_batch_without_a_kept_row_gives_no_loss_and_no_gradient() -> None:
    targets = Targets(CLICKS, CONVERSIONS, torch.zeros(3), torch.zeros(3))
    assert _joint_loss(torch.randn(3, 2), targets, conversion_weight=1.0) == 0
    assert not _gradient(torch.randn(3, 2), targets).any()


def test_a_known_quarter_of_conversions_at_four_times_the_target_gives_the_gradient_of_all() -> None:
    logits_BT = torch.randn(1, 2).expand(8, 2)
    clicks = torch.ones(8)
    final, known = torch.zeros(8), torch.zeros(8)
    final[:4], known[0] = 1.0, 4.0
    expected = _gradient(logits_BT, unmasked(clicks, final)).sum(0)
    torch.testing.assert_close(_gradient(logits_BT, unmasked(clicks, known)).sum(0), expected)
    assert not torch.allclose(_gradient(logits_BT, unmasked(clicks, known.clamp(max=1.0))).sum(0), expected)
