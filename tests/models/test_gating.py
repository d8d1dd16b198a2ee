"""What gates weigh, what their options change, and when the load is balanced."""

import pytest
import torch
from torch import Tensor

from models.gating import GateLevel, gate_weights, load_balance_loss, mix

VISIBLE_NE = torch.tensor([[True, True, False, True], [False, False, True, False]])


def _weights(logits_BNE: Tensor, *, temperature: float = 1.0, dropout: float = 0.0, training: bool = True) -> Tensor:
    return gate_weights(logits_BNE, visible_NE=VISIBLE_NE, temperature=temperature, dropout=dropout, training=training)


def _level(visible_NE: Tensor) -> GateLevel:
    gates, experts = visible_NE.shape
    return GateLevel([f"gate {n}" for n in range(gates)], [f"expert {n}" for n in range(experts)], visible_NE)


def test_a_gate_is_the_softmax_of_what_it_sees_over_the_temperature() -> None:
    logits_BNE = torch.randn(5, 2, 4, dtype=torch.float64)
    seen_B3 = logits_BNE[:, 0, [0, 1, 3]]
    for temperature in (0.5, 1.0, 3.0):
        weights_BNE = _weights(logits_BNE, temperature=temperature)
        powers_B3 = torch.exp(seen_B3 / temperature)
        torch.testing.assert_close(weights_BNE[:, 0, [0, 1, 3]], powers_B3 / powers_B3.sum(1, keepdim=True))
        assert (weights_BNE[:, 0, 2] == 0).all()
        assert torch.equal(weights_BNE[:, 1], VISIBLE_NE[1].double().expand(5, 4))


def test_gate_dropout_acts_in_training_alone_and_renormalises_what_is_left() -> None:
    logits_BNE = torch.randn(4000, 2, 4, dtype=torch.float64)
    whole_BNE = _weights(logits_BNE)
    assert torch.equal(_weights(logits_BNE, dropout=0.3, training=False), whole_BNE)
    dropped_BNE = _weights(logits_BNE, dropout=0.3)
    kept_BNE = dropped_BNE > 0
    expected_BNE = whole_BNE * kept_BNE / (whole_BNE * kept_BNE).sum(-1, keepdim=True)
    torch.testing.assert_close(dropped_BNE, expected_BNE)
    assert not kept_BNE[..., ~VISIBLE_NE[0]][:, 0].any()
    # A gate of three keeps an expert with 0.7, or, where all three would go (0.3 ** 3), all of them.
    share = kept_BNE[:, 0, VISIBLE_NE[0]].double().mean()
    assert float(share) == pytest.approx(0.7 + 0.3**3, abs=0.025)


def test_gate_dropout_leaves_a_gate_that_sees_one_expert_alone() -> None:
    assert torch.equal(_weights(torch.randn(500, 2, 4), dropout=0.9)[:, 1], VISIBLE_NE[1].float().expand(500, 4))


def test_the_load_is_balanced_at_zero_and_worst_at_the_number_of_experts_less_one() -> None:
    level = _level(torch.ones(1, 4, dtype=torch.bool))
    even = torch.eye(4).unsqueeze(1)
    one = torch.eye(4)[:1].expand(8, 4).unsqueeze(1)
    assert float(load_balance_loss([even], [level])) == pytest.approx(0.0, abs=1e-7)
    assert float(load_balance_loss([one], [level])) == pytest.approx(3.0)
    assert float(load_balance_loss([], [])) == 0.0


def test_the_load_balance_loss_is_the_mean_over_gates_of_the_squared_variation_among_the_experts_seen() -> None:
    """Shazeer et al. 2017, equations 6 and 7."""
    first_BNE = _weights(torch.randn(50, 2, 4, dtype=torch.float64))
    last_BNE = torch.randn(50, 1, 3, dtype=torch.float64).softmax(-1)
    levels = [_level(VISIBLE_NE), _level(torch.ones(1, 3, dtype=torch.bool))]
    expected = []
    for gates_BNE, level in zip((first_BNE, last_BNE), levels, strict=True):
        for gate in range(gates_BNE.shape[1]):
            importance = gates_BNE[:, gate, level.visible_NE[gate]].sum(0)
            expected.append(importance.var(unbiased=False) / importance.mean() ** 2)
    assert float(expected[1]) == 0.0
    torch.testing.assert_close(load_balance_loss([first_BNE, last_BNE], levels), torch.stack(expected).mean())


def test_descending_the_load_balance_loss_spreads_a_gate() -> None:
    logits_1NE = torch.tensor([[[4.0, 0.0, 0.0, 0.0], [0.0] * 4]], requires_grad=True)
    level = _level(VISIBLE_NE)
    for _ in range(200):
        loss = load_balance_loss([_weights(logits_1NE)], [level])
        (gradient,) = torch.autograd.grad(loss, logits_1NE)
        logits_1NE = (logits_1NE - gradient).detach().requires_grad_()
    torch.testing.assert_close(_weights(logits_1NE)[0, 0, [0, 1, 3]], torch.full((3,), 1 / 3), atol=0.02, rtol=0)


@pytest.mark.parametrize(("experts", "width"), [(4, 3), (5, 100)], ids=["by expert", "one product"])
def test_weights_and_mixtures_without_gradients_are_those_with(experts: int, width: int) -> None:
    logits_BNE, outputs_BEO = torch.randn(30, 2, experts), torch.randn(experts, 30, width).transpose(0, 1)
    visible_NE = torch.ones(2, experts, dtype=torch.bool)
    visible_NE[0, 1] = False
    made = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            gates_BNE = gate_weights(logits_BNE, visible_NE=visible_NE, temperature=2.0, dropout=0.0, training=False)
            made.append((gates_BNE, mix(gates_BNE, outputs_BEO)))
    for with_gradients, without in zip(*made, strict=True):
        torch.testing.assert_close(without, with_gradients, rtol=1e-5, atol=1e-6)
    assert not made[1][0][:, 0, 1].any()
