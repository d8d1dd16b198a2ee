"""Heads beyond click and conversion against formulas written out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.extra_tasks import check_spaces, extra_losses, extra_outputs, log_complement, sum_of_log_sigmoids
from models.losses import Targets

BINARY = {"like": "impression", "cart": "click", "review": "conversion"}
VALUES = {"watch_time": "impression", "price": "conversion"}


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _targets(rows: int) -> Targets:
    draw = torch.Generator().manual_seed(3)

    def bits() -> Tensor:
        return torch.randint(0, 2, (rows,), generator=draw).float()

    clicks, conversions = bits(), bits()
    extra = {name: (bits(), bits()) for name in BINARY}
    extra |= {name: (10 * torch.rand(rows, generator=draw), bits()) for name in VALUES}
    return Targets(clicks, conversions, torch.ones(rows), torch.ones(rows), extra)


def test_an_output_is_the_label_within_its_space_times_the_space() -> None:
    logits = torch.randn(6, 7)
    found = extra_outputs(logits, BINARY, VALUES).double().numpy()
    for row, heads in zip(found, logits.double().numpy(), strict=True):
        click, conversion, like, cart, review, watch_time, price = heads
        p_click, p_both = _sigmoid(click), _sigmoid(click) * _sigmoid(conversion)
        expected = [
            _sigmoid(like),
            p_click * _sigmoid(cart),
            p_both * _sigmoid(review),
            np.exp(watch_time),
            p_both * np.exp(price),
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_losses_equal_cross_entropy_and_poisson_quasi_likelihood_over_the_kept_rows() -> None:
    rows = 40
    logits, targets = torch.randn(rows, 7), _targets(rows)
    found = extra_losses(logits, targets, BINARY, VALUES)
    outputs = extra_outputs(logits, BINARY, VALUES).double().numpy()
    for column, name in enumerate(BINARY):
        labels, mask = (part.double().numpy() for part in targets.extra[name])
        p = outputs[:, column]
        expected = (mask * -(labels * np.log(p) + (1 - labels) * np.log1p(-p))).sum() / rows
        assert float(found[name]) == pytest.approx(expected, rel=1e-5)
    for head, name in enumerate(VALUES, start=5):
        labels, mask = (part.double().numpy() for part in targets.extra[name])
        log_mean = logits[:, head].double().numpy()
        expected = (mask * (np.exp(log_mean) - labels * log_mean)).sum() / rows
        assert float(found[name]) == pytest.approx(expected, rel=1e-5)


def test_the_value_loss_is_least_at_the_mean_whatever_the_distribution() -> None:
    labels = torch.tensor([0.0, 0.0, 0.0, 40.0, 2.0])
    targets = Targets(labels, labels, labels, labels, {"price": (labels, torch.ones(5))})
    log_mean = torch.zeros(5, 3, requires_grad=True)
    shifted = log_mean + labels.mean().log()
    (gradient,) = torch.autograd.grad(extra_losses(shifted, targets, {}, {"price": "impression"})["price"], log_mean)
    assert float(gradient[:, 2].sum()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("extreme", [-100.0, 100.0])
def test_extreme_logits_keep_losses_and_gradients_finite(extreme: float) -> None:
    logits = torch.full((40, 7), extreme, requires_grad=True)
    losses = extra_losses(logits, _targets(40), BINARY, VALUES)
    total = torch.stack(list(losses.values())).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert bool(total.isfinite())
    assert bool(gradient.isfinite().all())


def test_a_chain_and_its_complement_add_up_to_one() -> None:
    chain = [10 * torch.randn(200, dtype=torch.float64) for _ in range(3)]
    total = sum_of_log_sigmoids(chain).exp() + log_complement(chain).exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_a_space_that_does_not_exist_and_a_name_used_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'like' has the space 'view', expected one of \['impression'"):
        check_spaces({"like": "view"}, {})
    with pytest.raises(ValueError, match=r"\['like'\] are both binary and a value"):
        check_spaces({"like": "click"}, {"like": "click"})
