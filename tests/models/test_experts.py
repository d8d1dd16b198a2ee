"""Each body against loops over samples, tasks and experts, written from its paper's equations."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.experts import (
    BODIES,
    PLE,
    BodySize,
    ExpertLayers,
    ExtractionLevel,
    GroupedLinear,
    MMoE,
    SharedBottom,
    SingleTask,
)

Array = NDArray[np.float64]
INPUT_WIDTH = 6
HIDDEN = (5, 4)


def _array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().numpy()
    return values


def _linear(layer: GroupedLinear, group: int, x: Array) -> Array:
    weight, bias = _array(layer.weight_GIO)[group], _array(layer.bias_GO)[group]
    return np.array([x @ weight[:, unit] + bias[unit] for unit in range(len(bias))])


def _network(layers: ExpertLayers, expert: int, x: Array) -> Array:
    for layer in layers.layers:
        assert isinstance(layer, GroupedLinear)
        x = np.maximum(_linear(layer, expert, x), 0.0)
    return x


def _softmax(logits: Array) -> Array:
    weights: Array = np.exp(logits) / np.exp(logits).sum()
    return weights


def _mixture(weights: Array, outputs: list[Array]) -> Array:
    assert len(weights) == len(outputs)
    mixed: Array = np.sum([weight * output for weight, output in zip(weights, outputs, strict=True)], axis=0)
    return mixed


def _ple_level(level: ExtractionLevel, size: BodySize, inputs: list[Array], *, last: bool) -> list[Array]:
    """Tang et al. 2020, equations 3 to 6; `inputs` are those of the tasks, then the shared experts'."""
    count, shared_at = size.task_experts, size.tasks * size.task_experts
    own = [
        [_network(level.experts, task * count + expert, inputs[task]) for expert in range(count)]
        for task in range(size.tasks)
    ]
    shared = [_network(level.experts, shared_at + expert, inputs[-1]) for expert in range(size.experts)]
    outputs = []
    for task in range(size.tasks):
        logits = _linear(level.gate, task, inputs[task])
        seen = np.concatenate([logits[task * count : (task + 1) * count], logits[shared_at:]])
        outputs.append(_mixture(_softmax(seen), own[task] + shared))
    if not last:
        weights = _softmax(_linear(level.gate, size.tasks, inputs[-1]))
        outputs.append(_mixture(weights, [expert for experts in own for expert in experts] + shared))
    return outputs


def _reference(body: nn.Module, size: BodySize, x: Array) -> list[Array]:
    """The output of every task for one sample."""
    tasks = range(size.tasks)
    if isinstance(body, SingleTask):
        return [_network(body.networks, task, x) for task in tasks]
    if isinstance(body, SharedBottom):
        return [_network(body.network, 0, x) for _ in tasks]
    if isinstance(body, MMoE):
        experts = [_network(body.experts, expert, x) for expert in range(size.experts)]
        return [_mixture(_softmax(_linear(body.gate, task, x)), experts) for task in tasks]
    assert isinstance(body, PLE)
    inputs = [x] * (size.tasks + 1)
    for depth, level in enumerate(body.levels):
        assert isinstance(level, ExtractionLevel)
        inputs = _ple_level(level, size, inputs, last=depth == size.levels - 1)
    return inputs


def _build(name: str, size: BodySize) -> nn.Module:
    """In float64 and with biases, which start at 0, away from it."""
    body = BODIES[name](size).double()
    for weight in body.parameters():
        nn.init.normal_(weight, std=0.5)
    return body


def _size(*, tasks: int = 2, experts: int = 3, task_experts: int = 2, levels: int = 2) -> BodySize:
    return BodySize(
        input_width=INPUT_WIDTH,
        tasks=tasks,
        hidden=HIDDEN,
        experts=experts,
        task_experts=task_experts,
        levels=levels,
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("single_task", _size()),
        ("single_task", _size(tasks=3)),
        ("shared_bottom", _size()),
        ("mmoe", _size()),
        ("mmoe", _size(tasks=3, experts=1)),
        ("ple", _size(levels=1)),
        ("ple", _size()),
        ("ple", _size(tasks=3, experts=1, task_experts=3, levels=3)),
    ],
)
def test_a_body_equals_its_papers_equations(name: str, size: BodySize) -> None:
    body = _build(name, size)
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    expected_BTD = np.array([_reference(body, size, x) for x in _array(x_BD)])
    output_BTD = _array(body(x_BD))
    assert output_BTD.shape == (7, size.tasks, HIDDEN[-1])
    np.testing.assert_allclose(output_BTD, expected_BTD, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BODIES)
def test_rows_do_not_see_each_other(name: str) -> None:
    body = _build(name, _size())
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    alone_BTD = torch.cat([body(x_1D) for x_1D in x_BD.unsqueeze(1)])
    torch.testing.assert_close(body(x_BD), alone_BTD)


def test_mmoe_gates_are_a_distribution_over_experts_for_each_task() -> None:
    size = _size(tasks=3)
    body = _build("mmoe", size)
    assert isinstance(body, MMoE)
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    (gates_BTE,) = body.gates(x_BD)
    expected = [[_softmax(_linear(body.gate, task, x)) for task in range(3)] for x in _array(x_BD)]
    np.testing.assert_allclose(_array(gates_BTE), expected)


def test_ple_gates_see_their_own_and_the_shared_experts_only() -> None:
    body = _build("ple", _size(experts=1))
    assert isinstance(body, PLE)
    first_BNE, last_BNE = body.gates(torch.randn(7, INPUT_WIDTH, dtype=torch.float64))
    # Experts: two of task 0, two of task 1, one shared. Gates: task 0, task 1, below the last level shared.
    seen = [[True, True, False, False, True], [False, False, True, True, True]]
    assert (first_BNE > 0).all(0).tolist() == [*seen, [True] * 5]
    assert (last_BNE > 0).all(0).tolist() == seen
    for gates_BNE in (first_BNE, last_BNE):
        torch.testing.assert_close(gates_BNE.sum(-1), torch.ones_like(gates_BNE.sum(-1)))


def test_a_task_in_ple_does_not_train_the_other_tasks_experts() -> None:
    body = _build("ple", _size(levels=1))
    assert isinstance(body, PLE)
    torch.autograd.backward(body(torch.randn(7, INPUT_WIDTH, dtype=torch.float64))[:, 0].sum())
    weight = body.get_parameter("levels.0.experts.layers.0.weight_GIO")
    assert weight.grad is not None
    trained = weight.grad.abs().sum((1, 2)) > 0
    assert trained.tolist() == [True, True, False, False, True, True, True]


def test_dropout_acts_in_training_alone() -> None:
    layers = ExpertLayers(experts=2, input_width=INPUT_WIDTH, hidden=(200,), dropout=0.5)
    x_BD = torch.rand(50, INPUT_WIDTH)
    dropped, kept = layers(x_BD), layers.eval()(x_BD)
    torch.testing.assert_close(kept, layers(x_BD), rtol=0, atol=0)
    active = kept > 0
    share = float((dropped[active] == 0).float().mean())
    # At least 5000 activations: five standard errors of a share of one half are 0.035.
    assert active.sum() > 5000
    assert share == pytest.approx(0.5, abs=0.035)


def test_experts_with_an_input_each_equal_experts_with_the_same_input() -> None:
    layers = ExpertLayers(experts=3, input_width=INPUT_WIDTH, hidden=HIDDEN).double()
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layers(x_BD.unsqueeze(1).expand(-1, 3, -1)), layers(x_BD))
