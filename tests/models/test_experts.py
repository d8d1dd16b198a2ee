"""Each body against loops over samples, tasks and experts, written from its paper's equations."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adatt import FusionLevel
from models.body import BodySize
from models.cross_stitch import CrossStitch
from models.experts import BODIES, GatedBody, MMoE, SharedBottom, SingleTask, input_groups
from models.extraction import ExtractionLevel
from models.layers import ExpertLayers, GroupedLinear
from models.levels import Levels
from models.stem import STEMLevel

Array = NDArray[np.float64]
INPUT_WIDTH = 6
HIDDEN = (5, 4)
TASKS = ("click", "conversion", "like")


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


def _outputs(
    level: ExtractionLevel | FusionLevel | STEMLevel, size: BodySize, inputs: list[Array]
) -> list[list[Array]]:
    """The outputs of each task's experts, then of the shared ones; `inputs` are in the same order."""
    owners = [task for task in range(size.tasks) for _ in range(size.task_experts)] + [size.tasks] * size.experts
    outputs: list[list[Array]] = [[] for _ in range(size.tasks + 1)]
    for expert, owner in enumerate(owners):
        outputs[owner].append(_network(level.experts, expert, inputs[owner]))
    return outputs


def _flat(lists: list[list[Array]]) -> list[Array]:
    return [one for some in lists for one in some]


def _ple_level(level: ExtractionLevel, size: BodySize, inputs: list[Array], gates: int) -> list[Array]:
    """Tang et al. 2020, equations 3 to 6."""
    outputs, count = _outputs(level, size, inputs), size.task_experts
    mixed = []
    for task in range(size.tasks):
        logits = _linear(level.gate, task, inputs[task])
        seen = np.concatenate([logits[task * count : (task + 1) * count], logits[size.tasks * count :]])
        mixed.append(_mixture(_softmax(seen), outputs[task] + outputs[-1]))
    if gates > size.tasks:
        mixed.append(_mixture(_softmax(_linear(level.gate, size.tasks, inputs[-1])), _flat(outputs)))
    return mixed


def _adatt_level(level: FusionLevel, size: BodySize, inputs: list[Array], gates: int) -> list[Array]:
    """Li et al. 2023: AllExpertGF + NativeExpertLF; a native expert alone has weight 1."""
    outputs, learned = _outputs(level, size, inputs), list(_array(level.native_weight))
    mixed = []
    for unit in range(gates):
        fused = _mixture(_softmax(_linear(level.gate, unit, inputs[unit])), _flat(outputs))
        native = outputs[unit]
        weights = [learned.pop(0) for _ in native] if len(native) > 1 else [1.0]
        mixed.append(fused + _mixture(np.array(weights), native))
    assert not learned
    return mixed


def _stem_level(level: STEMLevel, size: BodySize, inputs: list[Array], gates: int) -> list[Array]:
    """Su et al. 2024: every gate mixes all experts; a task's reads its input plus the shared one."""
    experts = _flat(_outputs(level, size, inputs))
    read = [own + inputs[-1] for own in inputs[:-1]] + [inputs[-1]]
    return [_mixture(_softmax(_linear(level.gate, gate, read[gate])), experts) for gate in range(gates)]


def _cross_stitch(body: CrossStitch, x: Array) -> list[Array]:
    """Misra et al. 2016, equation 1, for each unit on its own."""
    own = [x for _ in range(body.stitches[0].shape[0])]
    for layer, stitch in zip(body.layers, body.stitches, strict=True):
        assert isinstance(layer, ExpertLayers)
        activations, alpha = [_network(layer, task, x) for task, x in enumerate(own)], _array(stitch)
        own = [sum(alpha[task, other] * given for other, given in enumerate(activations)) for task in range(len(own))]
    return own


def _reference(body: nn.Module, size: BodySize, x: Array) -> list[Array]:
    """The output of every task for one sample, with one input (I), or one a group (G, I)."""
    tasks = range(size.tasks)
    if isinstance(body, SingleTask):
        return [_network(body.networks, task, x if x.ndim == 1 else x[task]) for task in tasks]
    if isinstance(body, SharedBottom):
        return [_network(body.network, 0, x) for _ in tasks]
    if isinstance(body, CrossStitch):
        return _cross_stitch(body, x)
    if isinstance(body, MMoE):
        experts = [_network(body.experts, expert, x) for expert in range(size.experts)]
        gates = [0 if body.gate_count == 1 else task for task in tasks]
        return [_mixture(_softmax(_linear(body.gate, gate, x)), experts) for gate in gates]
    assert isinstance(body, Levels)
    inputs = list(x) if x.ndim > 1 else [x] * (size.tasks + 1)
    for depth, level in enumerate(body.levels):
        gates_count = size.tasks + (depth < len(body.levels) - 1 and size.experts > 0)
        if isinstance(level, ExtractionLevel):
            inputs = _ple_level(level, size, inputs, gates_count)
        elif isinstance(level, FusionLevel):
            inputs = _adatt_level(level, size, inputs, gates_count)
        else:
            assert isinstance(level, STEMLevel)
            inputs = _stem_level(level, size, inputs, gates_count)
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


def _inputs(name: str, tasks: int) -> Tensor:
    """Seven rows: one input of all, or those of the body's groups."""
    groups = input_groups(name, tasks, task_embeddings=False)
    shape = (7, INPUT_WIDTH) if groups == 1 else (7, groups, INPUT_WIDTH)
    return torch.randn(shape, dtype=torch.float64)


SIZES = (
    _size(),
    _size(tasks=1),
    _size(tasks=1, levels=1, task_experts=1),
    _size(levels=1),
    _size(tasks=3, experts=1, task_experts=3, levels=3),
    _size(tasks=3, experts=2, task_experts=1),
)
WITHOUT_SHARED_EXPERTS = (_size(experts=0), _size(tasks=3, experts=0, task_experts=1, levels=3))


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in BODIES for size in SIZES] + [("adatt", size) for size in WITHOUT_SHARED_EXPERTS],
)
def test_a_body_equals_its_papers_equations(name: str, size: BodySize) -> None:
    body, x = _build(name, size), _inputs(name, size.tasks)
    expected_BTD = np.array([_reference(body, size, row) for row in _array(x)])
    output_BTD = _array(body(x))
    assert output_BTD.shape == (7, size.tasks, HIDDEN[-1])
    np.testing.assert_allclose(output_BTD, expected_BTD, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BODIES)
def test_rows_do_not_see_each_other(name: str) -> None:
    body, x = _build(name, _size()), _inputs(name, 2)
    torch.testing.assert_close(body(x), torch.cat([body(row) for row in x.split(1)]))


@pytest.mark.parametrize(("one", "other"), [("shared_bottom", "single_task"), ("moe", "mmoe"), ("cgc", "ple")])
def test_with_one_task_and_one_level_bodies_that_differ_in_sharing_are_one(one: str, other: str) -> None:
    size = _size(tasks=1, levels=1)
    body, twin = _build(one, size), BODIES[other](size).double()
    twin.load_state_dict({name.replace("network.", "networks."): w for name, w in body.state_dict().items()})
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    torch.testing.assert_close(body(x_BD), twin(x_BD), rtol=0, atol=0)


def test_cgc_has_one_level_whatever_the_size_says() -> None:
    body, ple = BODIES["cgc"](_size(levels=3)), BODIES["ple"](_size(levels=1))
    assert {name: w.shape for name, w in body.state_dict().items()} == {
        name: w.shape for name, w in ple.state_dict().items()
    }


@pytest.mark.parametrize("name", ["moe", "mmoe", "cgc", "ple", "adatt", "stem"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_gates_are_distributions_over_the_experts_that_their_level_says_they_see(name: str, tasks: int) -> None:
    body, x = _build(name, _size(tasks=tasks)), _inputs(name, tasks)
    assert isinstance(body, GatedBody)
    output_BTD, gates = body.forward_with_gates(x)
    torch.testing.assert_close(output_BTD, body(x), rtol=0, atol=0)
    for gates_BNE, level in zip(gates, body.gate_levels(TASKS[:tasks]), strict=True):
        assert gates_BNE.shape == (7, len(level.gates), len(level.experts))
        assert torch.equal(gates_BNE > 0, level.visible_NE.expand(7, -1, -1))
        torch.testing.assert_close(gates_BNE.sum(-1), torch.ones_like(gates_BNE.sum(-1)))


def test_gates_and_experts_are_named_level_by_level() -> None:
    def named(name: str, experts: int = 1) -> list[tuple[list[str], list[str]]]:
        body = BODIES[name](_size(tasks=2, experts=experts))
        assert isinstance(body, GatedBody)
        return [(level.gates, level.experts) for level in body.gate_levels(TASKS[:2])]

    tasks, own = ["click", "conversion"], ["click 1", "click 2", "conversion 1", "conversion 2"]
    assert named("moe", 2) == [(["all tasks"], ["shared 1", "shared 2"])]
    assert named("mmoe") == [(tasks, ["shared 1"])]
    assert named("cgc") == [(tasks, [*own, "shared 1"])]
    assert named("ple") == named("stem") == [([*tasks, "shared"], [*own, "shared 1"]), (tasks, [*own, "shared 1"])]
    assert named("adatt", 0) == [(tasks, own)] * 2


def test_ple_gates_see_their_own_and_the_shared_experts_only() -> None:
    body = _build("ple", _size(experts=1))
    assert isinstance(body, Levels)
    _, (first_BNE, last_BNE) = body.forward_with_gates(_inputs("ple", 2))
    # Experts: two of task 0, two of task 1, one shared. Gates: task 0, task 1, below the last level shared.
    seen = [[True, True, False, False, True], [False, False, True, True, True]]
    assert (first_BNE > 0).all(0).tolist() == [*seen, [True] * 5]
    assert (last_BNE > 0).all(0).tolist() == seen


@pytest.mark.parametrize(("name", "trained"), [("cgc", [1, 0, 0, 1]), ("stem", [1, 0, 0, 1]), ("adatt", [1, 1, 1, 1])])
def test_whose_experts_a_task_trains(name: str, trained: list[int]) -> None:
    body = _build(name, _size(tasks=3, experts=1, task_experts=1, levels=1))
    torch.autograd.backward(body(_inputs(name, 3))[:, 0].sum())
    weight = body.get_parameter("levels.0.experts.layers.0.weight_GIO")
    assert weight.grad is not None
    assert (weight.grad.abs().sum((1, 2)) > 0).int().tolist() == trained


def test_a_task_in_stem_trains_its_own_and_the_shared_input_alone_though_it_reads_all() -> None:
    body, x_BGI = _build("stem", _size(tasks=3, levels=1)), _inputs("stem", 3).requires_grad_()
    output_BD = body(x_BGI)[:, 0]
    (gradient_BGI,) = torch.autograd.grad(output_BD.sum(), x_BGI)
    assert (gradient_BGI.abs().sum((0, 2)) > 0).tolist() == [True, False, False, True]
    for group in range(4):
        other_BGI = x_BGI.detach().clone()
        other_BGI[:, group] += 1.0
        assert not torch.allclose(body(other_BGI)[:, 0], output_BD)


def test_cross_stitch_begins_near_the_identity_and_its_mixtures_are_convex() -> None:
    body = BODIES["cross_stitch"](_size(tasks=3))
    assert isinstance(body, CrossStitch)
    for stitch_TUD, width in zip(body.stitches, HIDDEN, strict=True):
        expected = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
        torch.testing.assert_close(stitch_TUD.detach(), expected.unsqueeze(-1).expand(-1, -1, width))
