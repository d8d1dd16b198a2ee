"""Diagnostics against loops over rows and pairs, and on rankers whose faults are built in."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.diagnostics import activations, dead_share, gate_use, gates_of, gradient_cosines, linear_cka
from models.experts import BODIES
from models.inputs import Features
from models.layers import ExpertLayers
from models.losses import Targets, task_losses
from models.ranker import DeepScorer, Ranker, RankerSpec

SPEC = RankerSpec(
    body="ple",
    categorical_cardinalities={"user": 20, "item": 15, "position": 4},
    numeric=["price"],
    bins=4,
    pooled={"clicked_items": "item"},
    single=["user", "position", "item"],
    context=["position"],
    context_numeric=[],
    embedding_width=4,
    numeric_width=2,
    experts=1,
    task_experts=2,
    hidden=(8, 4),
    tower=(4,),
)
ROWS = 60


def _features() -> Features:
    single = [torch.randint(1, SPEC.categorical_cardinalities[name], (ROWS,)) for name in SPEC.single]
    return Features(
        torch.stack(single, dim=1), torch.rand(ROWS, 1) * 4, {"clicked_items": torch.randint(0, 15, (ROWS, 3))}
    )


def _targets() -> Targets:
    clicks_B = (torch.rand(ROWS) < 0.5).float()
    ones_B = torch.ones(ROWS)
    return Targets(clicks_B, clicks_B * (torch.rand(ROWS) < 0.5), ones_B, ones_B)


def _ranker(body: str = "ple") -> Ranker:
    ranker = Ranker(replace(SPEC, body=body))
    for weight in ranker.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return ranker.eval()


def _losses(ranker: Ranker, features: Features, targets: Targets) -> dict[str, Tensor]:
    return task_losses(ranker(features), targets)


def test_utilisation_and_entropy_are_means_over_rows_of_each_gates_own_experts() -> None:
    visible_NE = torch.tensor([[True, True, False], [True, True, True], [False, False, True]])
    gates_BNE = torch.randn(7, 3, 3).masked_fill(~visible_NE, -torch.inf).softmax(-1)
    use = gate_use(gates_BNE, visible_NE)
    for gate in range(2):
        entropy = 0.0
        for row in gates_BNE[:, gate].tolist():
            entropy -= sum(weight * math.log(weight) for weight in row if weight > 0) / 7
        assert float(use.entropy_N[gate]) == pytest.approx(entropy, rel=1e-5)
        assert float(use.normalised_entropy_N[gate]) == pytest.approx(entropy / math.log(2 + gate), rel=1e-5)
        assert use.utilisation_NE[gate].tolist() == pytest.approx(gates_BNE[:, gate].mean(0).tolist())
    assert use.utilisation_NE[2].tolist() == [0, 0, 1]
    assert use.entropy_N[2] == 0
    assert use.normalised_entropy_N[2].isnan()


def test_equal_weights_have_the_entropy_of_the_number_of_experts() -> None:
    use = gate_use(torch.full((3, 1, 4), 0.25), torch.ones(1, 4, dtype=torch.bool))
    assert float(use.entropy_N) == pytest.approx(math.log(4))
    assert float(use.normalised_entropy_N) == pytest.approx(1)


def test_cka_equals_the_hilbert_schmidt_criterion_of_centred_gram_matrices() -> None:
    outputs_BEO = torch.randn(30, 3, 5).relu()
    rows = outputs_BEO.shape[0]
    centre = torch.eye(rows, dtype=torch.float64) - 1 / rows
    grams = [centre @ (x := outputs_BEO[:, expert].double()) @ x.T @ centre for expert in range(3)]
    similarity = linear_cka(outputs_BEO)
    for i, one in enumerate(grams):
        for j, other in enumerate(grams):
            expected = (one * other).sum() / ((one * one).sum() * (other * other).sum()).sqrt()
            assert float(similarity[i, j]) == pytest.approx(float(expected), rel=1e-9)


def test_cka_is_one_for_a_rotated_scaled_and_shifted_copy_and_undefined_for_a_constant() -> None:
    one = torch.randn(200, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    outputs_BEO = torch.stack([one, 3 * one @ rotation + 5, torch.randn(200, 4), torch.full((200, 4), 2.0)], dim=1)
    similarity = linear_cka(outputs_BEO)
    assert float(similarity[0, 1]) == pytest.approx(1, abs=1e-6)
    assert float(similarity[0, 2]) < 0.2
    assert similarity[3].isnan().all()


def test_a_unit_is_dead_where_no_row_activates_it() -> None:
    outputs_BEU = torch.zeros(5, 2, 4)
    outputs_BEU[3, 0, 1] = 0.1
    outputs_BEU[2, 1, :2] = torch.tensor([-0.2, 1e-8])
    assert dead_share(outputs_BEU).tolist() == [0.75, 0.75]


@pytest.mark.parametrize("body", BODIES)
@torch.inference_mode()
def test_activations_are_what_the_layers_give_when_run_by_hand(body: str) -> None:
    ranker, features = _ranker(body), _features()
    scorer = ranker.scorer
    assert isinstance(scorer, DeepScorer)
    found = activations(ranker.train(), features)
    assert ranker.training
    networks = [layer for part in (scorer.body, scorer.towers) for layer in part.modules() if _is_network(layer)]
    for recorded, network in zip(found, networks, strict=True):
        assert not network._forward_hooks  # noqa: SLF001
        for number, layer in enumerate(list(network.layers)[1:], start=1):
            assert not layer._forward_pre_hooks  # noqa: SLF001
            torch.testing.assert_close(recorded.layers[number], layer(recorded.layers[number - 1]).relu())
    of_body, (towers,) = ([network for network in found if network.part == part] for part in ("body", "towers"))
    body_output = scorer.body(scorer.inputs(features, scorer.table))
    torch.testing.assert_close(towers.layers[0], scorer.towers.layers(body_output))
    if body in {"single_task", "shared_embedding", "shared_bottom"}:
        torch.testing.assert_close(of_body[0].layers[-1].expand_as(body_output), body_output)


def _is_network(layer: torch.nn.Module) -> bool:
    return isinstance(layer, ExpertLayers)


def test_the_linear_ranker_has_neither_experts_nor_gates() -> None:
    ranker = _ranker("linear")
    assert activations(ranker, _features()) == []
    assert gates_of(ranker, _features()) == []


def _naive_cosine(ranker: Ranker, features: Features, targets: Targets, *, embedding: bool) -> float:
    """By two backward passes, dense copies of every gradient and a loop over elements."""
    gradients: list[list[float]] = []
    for name in ("click", "click_and_conversion"):
        ranker.zero_grad()
        _losses(ranker, features, targets)[name].backward()  # type: ignore[no-untyped-call]
        elements: list[float] = []
        for parameter, weight in ranker.scorer.named_parameters():
            if parameter.startswith(("towers", "context")) or parameter.startswith("table") != embedding:
                continue
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
            elements += gradient.flatten().tolist()
        gradients.append(elements)
    ranker.zero_grad()
    shared = [(one, other) for one, other in zip(*gradients, strict=True) if one != 0 and other != 0]
    norms = [math.sqrt(sum(pair[side] ** 2 for pair in shared)) for side in (0, 1)]
    return sum(one * other for one, other in shared) / (norms[0] * norms[1])


@pytest.mark.parametrize("body", ["ple", "mmoe", "shared_bottom"])
def test_gradient_cosines_equal_those_of_two_backward_passes(body: str) -> None:
    ranker, batches = _ranker(body), [(_features(), _targets()) for _ in range(3)]
    found = gradient_cosines(ranker, batches, _losses)["click", "click_and_conversion"]
    assert all(weight.grad is None for weight in ranker.parameters())
    for kind, cosine in found.items():
        expected = [_naive_cosine(ranker, *batch, embedding=kind == "embedding") for batch in batches]
        mean = sum(expected) / 3
        assert cosine.mean == pytest.approx(mean, rel=1e-4, abs=1e-6)
        spread = math.sqrt(sum((value - mean) ** 2 for value in expected) / 2)
        assert cosine.standard_error == pytest.approx(spread / math.sqrt(3), rel=1e-3, abs=1e-6)
        assert cosine.conflicts == sum(value < 0 for value in expected) / 3
        assert cosine.batches == 3


def test_equal_losses_have_a_cosine_of_one_and_opposite_ones_conflict() -> None:
    def losses(ranker: Ranker, features: Features, _targets: Targets) -> dict[str, Tensor]:
        logits_BT = ranker(features)
        return {"one": logits_BT.sum(), "same": 2 * logits_BT.sum(), "opposite": -logits_BT.sum()}

    found = gradient_cosines(_ranker(), [(_features(), _targets())], losses)
    for kind in ("dense", "embedding"):
        same, opposite = found["one", "same"][kind], found["one", "opposite"][kind]
        assert (same.mean, same.conflicts) == (pytest.approx(1), 0)
        assert (opposite.mean, opposite.conflicts) == (pytest.approx(-1), 1)
        assert same.standard_error is None


def test_tasks_that_share_nothing_have_no_cosine() -> None:
    def losses(ranker: Ranker, features: Features, _targets: Targets) -> dict[str, Tensor]:
        logits_BT = ranker(features)
        return {"click": logits_BT[:, 0].sum(), "conversion": logits_BT[:, 1].sum()}

    batches = [(_features(), _targets())]
    for kind in gradient_cosines(_ranker("single_task"), batches, losses)["click", "conversion"].values():
        assert (kind.mean, kind.standard_error, kind.conflicts, kind.batches) == (None, None, None, 0)
    shared = gradient_cosines(_ranker("shared_embedding"), batches, losses)["click", "conversion"]
    assert shared["embedding"].batches == 1


def test_a_batch_in_which_a_loss_keeps_no_row_has_no_cosine() -> None:
    targets = _targets()
    without = replace(targets, conversion_mask_B=torch.zeros(ROWS))
    batches = [(_features(), targets), (_features(), without)]
    found = gradient_cosines(_ranker(), batches, _losses)["click", "click_and_conversion"]
    assert [cosine.batches for cosine in found.values()] == [1, 1]
