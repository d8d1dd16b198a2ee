"""The ways to supervise conversions against the papers' formulas, written out row by row."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from models.losses import AUXILIARY_HEADS, LOSS_NAMES, Propensity, Targets, task_losses

ROWS = 40
FLOOR = 0.2
PLAIN = Propensity(floor=FLOOR, self_normalised=False)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _error(p: float, label: float) -> float:
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


@pytest.fixture
def targets() -> Targets:
    """Return clicked and unclicked rows, some left out, some conversions that stand for more than one."""
    clicks_B = (torch.rand(ROWS) < 0.5).float()
    conversions_B = clicks_B * (torch.rand(ROWS) < 0.4).float() * torch.tensor([1.0, 2.5]).repeat(ROWS // 2)
    return Targets(clicks_B, conversions_B, (torch.rand(ROWS) < 0.8).float(), (torch.rand(ROWS) < 0.7).float())


@pytest.fixture(name="logits_BT")
def some_logits() -> Tensor:
    """Return logits of click, of conversion and of an auxiliary head; some propensities are below the floor."""
    return 2 * torch.randn(ROWS, 3)


def _losses(loss: str, logits_BT: Tensor, targets: Targets, propensity: Propensity = PLAIN) -> dict[str, Tensor]:
    auxiliary_B = logits_BT[:, 2] if AUXILIARY_HEADS[loss] else None
    return task_losses(logits_BT, targets, conversion_loss=loss, auxiliary_B=auxiliary_B, propensity=propensity)


def _mean_over_rows(targets: Targets, logits_BT: Tensor, of_row: Callable[..., float]) -> float:
    """Average f(p_click, p_conversion, p_auxiliary, click, conversion) over all rows, 0 where the mask leaves out."""
    columns = (targets.clicks_B.tolist(), targets.conversions_B.tolist(), targets.conversion_mask_B.tolist())
    rows = zip(logits_BT.double().tolist(), *columns, strict=True)
    total: float = sum(mask * of_row(*map(_sigmoid, logits), o, r) for logits, o, r, mask in rows)
    return total / len(logits_BT)


def _naive_ips(p: float, c: float, _: float, o: float, r: float) -> float:
    return o * _error(c, r) / max(p, FLOOR)


def _naive_risk(p: float, c: float, m: float, o: float, r: float) -> float:
    return _error(c, m) + o * (_error(c, r) - _error(c, m)) / max(p, FLOOR)


def _naive_imputation(p: float, c: float, m: float, o: float, r: float) -> float:
    return o * (_error(c, r) - _error(c, m)) ** 2 / max(p, FLOOR)


def _naive_counterfactual(p: float, _: float, m: float, o: float, _r: float) -> float:
    return (1 - o) * _error(m, 1) / max(1 - p, FLOOR)


def _naive_prior(_: float, c: float, m: float, _o: float, _r: float) -> float:
    return abs(1 - (c + m))


REFERENCES = {
    ("click_only", "conversion"): lambda _p, c, _m, o, r: o * _error(c, r),
    ("escm2_ips", "conversion"): _naive_ips,
    ("escm2_dr", "conversion"): _naive_risk,
    ("escm2_dr", "imputation"): _naive_imputation,
    ("dcmt", "conversion"): _naive_ips,
    ("dcmt", "counterfactual"): _naive_counterfactual,
    ("dcmt", "counterfactual_prior"): _naive_prior,
}


@pytest.mark.parametrize(("loss", "name"), REFERENCES)
def test_each_loss_equals_its_formula_row_by_row(loss: str, name: str, logits_BT: Tensor, targets: Targets) -> None:
    expected = _mean_over_rows(targets, logits_BT, REFERENCES[loss, name])
    assert float(_losses(loss, logits_BT, targets)[name]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
def test_click_and_its_product_are_esmm_s_in_every_way_that_has_them(
    loss: str, logits_BT: Tensor, targets: Targets
) -> None:
    losses, esmm = _losses(loss, logits_BT, targets), _losses("esmm", logits_BT, targets)
    assert set(losses) <= LOSS_NAMES
    assert ("click_and_conversion" in losses) == (loss != "click_only")
    for name in esmm.keys() & losses.keys():
        assert losses[name] == esmm[name]


def test_self_normalised_weights_sum_to_the_rows_that_count_and_keep_their_ratios() -> None:
    seen_B, mask_B = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    probability_B = torch.tensor([0.5, 0.1, 0.3, 0.2])
    plain_B = PLAIN.weights(seen_B, probability_B, mask_B)
    torch.testing.assert_close(plain_B, torch.tensor([2.0, 5.0, 0.0, 0.0]))
    torch.testing.assert_close(Propensity(floor=FLOOR).weights(seen_B, probability_B, mask_B), plain_B * 3 / 7)


def test_parts_of_a_batch_that_know_each_others_sums_weigh_as_the_whole_batch() -> None:
    seen_B, mask_B = torch.tensor([1.0, 0, 1, 1, 0]), torch.tensor([1.0, 1, 1, 0, 1])
    probability_B = torch.tensor([0.2, 0.3, 0.5, 0.9, 0.1])
    whole_B = Propensity().weights(seen_B, probability_B, mask_B)
    # Weights 1 / 0.2 and 1 / 0.5, for four rows that count.
    propensity = Propensity(over_batch=lambda _: torch.tensor([7.0, 4.0]))
    halves = (slice(0, 2), slice(2, 5))
    parts = [propensity.weights(seen_B[rows], probability_B[rows], mask_B[rows]) for rows in halves]
    torch.testing.assert_close(torch.cat(parts), whole_B)


@pytest.mark.parametrize("loss", ["escm2_ips", "dcmt"])
def test_self_normalisation_divides_by_the_sum_of_the_inverse_propensities(
    loss: str, logits_BT: Tensor, targets: Targets
) -> None:
    errors = _mean_over_rows(targets, logits_BT, _naive_ips)
    weights = _mean_over_rows(targets, logits_BT, lambda p, _c, _m, o, _r: o / max(p, FLOOR))
    kept = float(targets.conversion_mask_B.mean())
    actual = _losses(loss, logits_BT, targets, Propensity(floor=FLOOR))["conversion"]
    assert float(actual) == pytest.approx(kept * errors / weights, rel=1e-4)


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
@pytest.mark.parametrize("self_normalised", [True, False])
def test_losses_and_gradients_are_finite_at_extreme_logits(loss: str, *, self_normalised: bool) -> None:
    targets = Targets(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 10.0]), torch.ones(3), torch.ones(3))
    for triple in product([-100.0, 0.0, 100.0], repeat=3):
        logits_BT = torch.tensor([triple] * 3, requires_grad=True)
        losses = _losses(loss, logits_BT, targets, Propensity(self_normalised=self_normalised))
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(total)
        assert total.isfinite()
        assert logits_BT.grad is not None
        assert logits_BT.grad.isfinite().all()


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
@pytest.mark.parametrize("clicked", [True, False])
def test_rows_that_masks_leave_out_and_batches_without_clicks_or_with_them_alone_are_no_trouble(
    loss: str, *, clicked: bool
) -> None:
    clicks_B, logits_BT = torch.full((4,), float(clicked)), torch.randn(4, 3, requires_grad=True)
    none = Targets(clicks_B, clicks_B, torch.zeros(4), torch.zeros(4))
    assert not torch.stack(list(_losses(loss, logits_BT, none, Propensity()).values())).any()
    kept = Targets(clicks_B, clicks_B, torch.ones(4), torch.ones(4))
    assert torch.stack(list(_losses(loss, logits_BT, kept, Propensity()).values())).isfinite().all()


@pytest.mark.parametrize(("loss", "name"), [key for key in REFERENCES if key[0] != "click_only"])
def test_no_correction_teaches_the_click(loss: str, name: str, logits_BT: Tensor, targets: Targets) -> None:
    leaf_BT = logits_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(_losses(loss, leaf_BT, targets)[name], leaf_BT)
    assert not gradient_BT[:, 0].any()
    assert gradient_BT[:, 1:].any()


@pytest.mark.parametrize(("name", "own"), [("conversion", 1), ("imputation", 2)])
def test_doubly_robust_losses_teach_their_own_head_only(
    name: str, own: int, logits_BT: Tensor, targets: Targets
) -> None:
    leaf_BT = logits_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(_losses("escm2_dr", leaf_BT, targets)[name], leaf_BT)
    assert gradient_BT[:, own].any()
    assert not gradient_BT[:, [head for head in range(3) if head != own]].any()


@pytest.mark.parametrize(("right", "wrong"), [("imputation", "propensity"), ("propensity", "imputation")])
def test_the_doubly_robust_risk_is_right_on_average_where_either_part_is(right: str, wrong: str) -> None:
    """Of rows alike: p_click 0.25, p_conversion 0.4, predicted 0.7."""
    assert right != wrong
    label = 0.4 if right == "imputation" else 0.9
    p_click = 0.25 if right == "propensity" else 0.6
    logits_BT = torch.logit(torch.tensor([[p_click, 0.7, label]])).expand(400, 3)
    clicks_B, conversions_B = torch.zeros(400), torch.zeros(400)
    clicks_B[:100], conversions_B[:40] = 1.0, 1.0
    targets = Targets(clicks_B, conversions_B, torch.ones(400), torch.ones(400))
    assert float(_losses("escm2_dr", logits_BT, targets)["conversion"]) == pytest.approx(_error(0.7, 0.4), rel=1e-4)


@pytest.mark.parametrize("loss", [loss for loss in AUXILIARY_HEADS if loss != "esmm"])
def test_a_known_quarter_of_conversions_at_four_times_the_target_gives_the_gradient_of_all(loss: str) -> None:
    logits_BT = torch.randn(1, 3).expand(8, 3)
    final, known = torch.zeros(8), torch.zeros(8)
    final[:4], known[0] = 1.0, 4.0
    gradients = []
    for conversions_B in (final, known):
        leaf_BT = logits_BT.clone().requires_grad_()
        targets = Targets(torch.ones(8), conversions_B, torch.ones(8), torch.ones(8))
        total = torch.stack(list(_losses(loss, leaf_BT, targets).values())).sum()
        gradients.append(torch.autograd.grad(total, leaf_BT)[0].sum(0))
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("loss", AUXILIARY_HEADS)
def test_separate_networks_leave_the_click_to_its_own_loss(loss: str, logits_BT: Tensor, targets: Targets) -> None:
    auxiliary_B = logits_BT[:, 2] if AUXILIARY_HEADS[loss] else None
    leaf_BT = logits_BT.clone().requires_grad_()
    losses = task_losses(leaf_BT, targets, conversion_loss=loss, auxiliary_B=auxiliary_B, separate=True)
    (all_BT,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaf_BT, retain_graph=True)
    (click_BT,) = torch.autograd.grad(losses["click"], leaf_BT)
    assert torch.equal(all_BT[:, 0], click_BT[:, 0])
    assert not click_BT[:, 1].any()
    assert all_BT[:, 1].any()
