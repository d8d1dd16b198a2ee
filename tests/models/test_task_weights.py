"""Balancing of tasks against the papers' algorithms on numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.inputs import Features
from models.ranker import Ranker, RankerSpec
from models.task_weights import (
    Balancing,
    GradNormWeights,
    ProjectedGradients,
    StaticWeights,
    UncertaintyWeights,
    build_balance,
    combine,
    last_expert_weight,
    shared_numbers,
    trunk,
    weight_gradient,
)

CPU = torch.device("cpu")
SPEC = RankerSpec(
    body="ple",
    categorical_cardinalities={"item_id": 10},
    numeric=["price"],
    bins=4,
    pooled={},
    single=["item_id"],
    context=[],
    context_numeric=[],
    embedding_width=3,
    numeric_width=2,
    hidden=(6, 4),
    tower=(3,),
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _ranker(body: str = "ple") -> Ranker:
    """With weights large enough that the two losses work against each other."""
    ranker = Ranker(replace(SPEC, body=body))
    for weight in ranker.parameters():
        nn.init.normal_(weight, std=0.5)
    return ranker


def _losses(ranker: Ranker) -> dict[str, Tensor]:
    logits_BT = ranker(Features(torch.arange(1, 9).unsqueeze(1), torch.linspace(0, 4, 8).unsqueeze(1)))
    return {"click": (logits_BT[:, 0] - 1).square().mean(), "conversion": (logits_BT[:, 1] + 3).square().mean()}


def _gradients(ranker: Ranker, way: str) -> dict[str, Tensor]:
    ranker.zero_grad()
    balance = build_balance(Balancing(way=way), ranker, ["click", "conversion"], _generator())
    balance.backward(_losses(ranker))
    return {name: weight.grad.to_dense() for name, weight in ranker.named_parameters() if weight.grad is not None}


def test_a_gradient_in_conflict_is_projected_onto_the_normal_plane_of_the_other() -> None:
    gradients_TP = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
    # g1.g2 = -1: g1 + g2 / 2 = (1.5, 1.5) and g2 + g1 / 5 = (-0.6, 1.2).
    torch.testing.assert_close(combine(gradients_TP, _generator()), torch.tensor([0.9, 2.7]))


def test_gradients_without_a_conflict_are_summed() -> None:
    gradients_TP = torch.tensor([[2.0, 1.0, 0.0], [1.0, -1.0, 3.0]])
    assert torch.equal(combine(gradients_TP, _generator()), gradients_TP.sum(0))


def _naive_projection(gradients: list[list[float]], order: list[list[int]]) -> Tensor:
    """Follow algorithm 1 of Yu et al. 2020 with a given order of the others."""
    originals = [torch.tensor(gradient, dtype=torch.float64) for gradient in gradients]
    total = torch.zeros_like(originals[0])
    for task, others in enumerate(order):
        mine = originals[task].clone()
        for other in others:
            if other != task and float(mine @ originals[other]) < 0:
                mine = mine - (mine @ originals[other]) / (originals[other] @ originals[other]) * originals[other]
        total += mine
    return total


def test_three_gradients_are_projected_one_after_the_other_in_an_order_that_the_generator_draws() -> None:
    gradients = [[1.0, 2.0, -3.0], [-2.0, 1.0, 1.0], [1.0, -3.0, 0.5]]
    generator = _generator()
    order = [torch.randperm(3, generator=generator).tolist() for _ in gradients]
    actual = combine(torch.tensor(gradients), _generator())
    torch.testing.assert_close(actual.double(), _naive_projection(gradients, order), rtol=1e-5, atol=1e-6)
    others = {tuple(combine(torch.tensor(gradients), generator).tolist()) for _ in range(20)}
    assert len(others) > 1


def test_numbers_that_one_task_alone_reaches_keep_its_gradient_and_do_not_count() -> None:
    shared_TP = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
    own_TP = torch.tensor([[5.0, 0.0], [0.0, -7.0]])
    assert shared_numbers(torch.cat([shared_TP, own_TP], dim=1)).tolist() == [True, True, False, False]
    combined_P = combine(torch.cat([shared_TP, own_TP], dim=1), _generator())
    torch.testing.assert_close(combined_P, torch.tensor([0.9, 2.7, 5.0, -7.0]))


def test_projection_changes_the_trunk_alone() -> None:
    ranker = _ranker()
    summed, projected = _gradients(ranker, "static"), _gradients(ranker, "pcgrad")
    assert summed.keys() == projected.keys()
    in_trunk = {id(weight) for weight in trunk(ranker)}
    names = {name for name, weight in ranker.named_parameters() if id(weight) in in_trunk}
    assert {name.split(".")[1] for name in names} == {"inputs", "body"}
    for name in summed.keys() - names:
        torch.testing.assert_close(projected[name], summed[name])
    assert any(not torch.allclose(projected[name], summed[name]) for name in names)


def test_experts_of_one_task_keep_its_gradient() -> None:
    ranker = _ranker()
    own = slice(0, 2 * SPEC.task_experts)
    weight = last_expert_weight(ranker)
    (name,) = [name for name, other in ranker.named_parameters() if other is weight]
    summed, projected = _gradients(ranker, "static")[name], _gradients(ranker, "pcgrad")[name]
    torch.testing.assert_close(projected[own], summed[own])
    assert not torch.allclose(projected[own.stop :], summed[own.stop :])


@pytest.mark.parametrize("body", ["single_task", "linear"])
@pytest.mark.parametrize("way", ["pcgrad", "gradnorm"])
def test_where_nothing_is_shared_there_is_nothing_to_balance(body: str, way: str) -> None:
    ranker = _ranker(body)
    summed, balanced = _gradients(ranker, "static"), _gradients(ranker, way)
    for name, gradient in summed.items():
        torch.testing.assert_close(balanced[name], gradient)
    balance = build_balance(Balancing(way=way), ranker, ["click", "conversion"], _generator())
    balance.backward(_losses(ranker))
    assert set(balance.weights().values()) <= {1.0}


def test_a_loss_that_is_no_task_s_is_added_in_every_way_and_not_projected() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    coefficients = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
    ways = (
        (StaticWeights(), [1.0, 2.0]),
        (ProjectedGradients([weight], _generator()), [0.9, 2.7]),
        (UncertaintyWeights(["a", "b"], Balancing(), CPU), [1.0, 2.0]),
        (GradNormWeights(["a", "b"], Balancing(), weight, torch.device("cpu")), [1.0, 2.0]),
    )
    for balance, expected in ways:
        nn.ParameterList([weight]).zero_grad()
        losses = {name: row @ weight for name, row in zip("ab", coefficients, strict=True)}
        total = balance.backward(losses, 10 * weight[0])
        assert float(total) == pytest.approx(3.0 + 0.0 + 10.0)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.tensor(expected) + torch.tensor([10.0, 0.0]))


def test_uncertainty_weighs_each_loss_by_its_own_variance_and_ends_at_half_its_inverse() -> None:
    balance = UncertaintyWeights(["click", "conversion"], Balancing(learning_rate=0.05), CPU)
    x = nn.Parameter(torch.tensor(1.0))
    total = balance.backward({"click": 0.25 * x, "conversion": 4.0 * x})
    assert float(total) == 4.25
    assert float(x.grad or 0) == 4.25
    for _ in range(400):
        balance.backward({"click": torch.tensor(0.25), "conversion": torch.tensor(4.0)})
    assert balance.weights() == pytest.approx({"click": 2.0, "conversion": 0.125}, rel=0.02)
    x.grad = None
    balance.backward({"click": 0.25 * x, "conversion": 4.0 * x})
    assert float(x.grad or 0) == pytest.approx(2.0 * 0.25 + 0.125 * 4.0, rel=0.02)


def test_the_gradient_of_gradnorm_s_weights_is_that_of_its_loss() -> None:
    settings = Balancing(asymmetry=1.5)
    weight_T = torch.tensor([0.5, 1.2, 1.3], dtype=torch.float64, requires_grad=True)
    norms_T = torch.tensor([2.0, 0.3, 1.0], dtype=torch.float64)
    progress_T = torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    norm_T = weight_T * norms_T
    target_T = norm_T.mean().detach() * (progress_T / progress_T.mean()) ** 1.5
    (expected_T,) = torch.autograd.grad((norm_T - target_T).abs().sum(), weight_T)
    torch.testing.assert_close(weight_gradient(weight_T.detach(), norms_T, progress_T, settings), expected_T)


def test_gradnorm_turns_down_the_task_whose_gradient_is_large_and_keeps_the_sum() -> None:
    shared = nn.Parameter(torch.tensor([1.0, 1.0]))
    balance = GradNormWeights(
        ["large", "small"], Balancing(learning_rate=0.02, asymmetry=0.0), shared, torch.device("cpu")
    )
    for _ in range(300):
        balance.backward({"large": 9 * shared.square().sum(), "small": shared.square().sum()})
    weights = balance.weights()
    assert sum(weights.values()) == pytest.approx(2.0)
    assert weights == pytest.approx({"large": 0.2, "small": 1.8}, abs=0.05)


def test_gradnorm_turns_up_the_task_that_learns_slowly() -> None:
    shared = nn.Parameter(torch.tensor([1.0]))
    balance = GradNormWeights(["fast", "slow"], Balancing(), shared, torch.device("cpu"))
    balance.backward({"fast": shared.sum(), "slow": shared.sum()})
    assert balance.weights() == {"fast": 1.0, "slow": 1.0}
    balance.backward({"fast": shared.sum() - 0.9, "slow": shared.sum()})
    assert balance.weights()["slow"] > 1.0


def test_gradnorm_learns_nothing_from_a_batch_in_which_a_task_has_no_row() -> None:
    shared = nn.Parameter(torch.tensor([1.0]))
    balance = GradNormWeights(["click", "conversion"], Balancing(), shared, torch.device("cpu"))
    balance.backward({"click": 2 * shared.sum(), "conversion": 0 * shared.sum()})
    assert balance.weights() == {"click": 1.0, "conversion": 1.0}


def test_weights_of_a_ranker_that_shares_nothing_lie_where_its_losses_do() -> None:
    device = torch.device("meta")
    balance = GradNormWeights(["a", "b"], Balancing(), None, device)
    weight = torch.ones(1, device=device, requires_grad=True)
    assert balance.backward({"a": weight.sum(), "b": 2 * weight.sum()}).device == device
