"""Options of the body, turned on through the ranker's spec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.experts import BODIES, GatedBody
from models.gating import load_balance_loss
from models.inputs import Features
from models.ranker import DeepScorer, Ranker, RankerSpec, load_ranker, predict, save_ranker

SPEC = RankerSpec(
    body="ple",
    categorical_cardinalities={"user": 9, "item": 7, "surface": 5},
    numeric=["price"],
    bins=4,
    pooled={"clicked_items": "item"},
    single=["user", "item", "surface"],
    context=["surface"],
    context_numeric=[],
    embedding_width=4,
    numeric_width=3,
    hidden=(6, 5),
    tower=(4,),
    experts=2,
    task_experts=1,
)
ALL_OPTIONS = {
    "expert_activation": "swish",
    "expert_norm": "batch",
    "gate_dropout": 0.3,
    "gate_temperature": 2.0,
    "load_balance": 0.1,
}
THREE_TASKS = replace(SPEC, binary_tasks={"like": "impression"})


def _features(rows: int = 40) -> Features:
    single = [torch.randint(1, SPEC.categorical_cardinalities[name], (rows,)) for name in SPEC.single]
    pooled = {"clicked_items": torch.randint(0, 7, (rows, 3))}
    return Features(torch.stack(single, dim=1), torch.rand(rows, 1) * SPEC.bins, pooled)


def _ranker(spec: RankerSpec) -> Ranker:
    """With weights large enough that every option matters."""
    ranker = Ranker(spec)
    for weight in ranker.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return ranker


@pytest.mark.parametrize("spec", [SPEC, THREE_TASKS])
@pytest.mark.parametrize("body", ["linear", *BODIES])
def test_logits_and_gates_of_one_pass_are_those_of_two(body: str, spec: RankerSpec) -> None:
    ranker, features = _ranker(replace(spec, body=body)).eval(), _features()
    logits_BT, gates = ranker.forward_with_gates(features)
    assert logits_BT.shape == (40, spec.heads)
    assert torch.equal(logits_BT, ranker(features))
    shapes = [(40, len(names), len(experts)) for names, experts in zip(*_names(ranker), strict=True)]
    assert [tuple(level.shape) for level in gates] == shapes
    for ours, theirs in zip(gates, ranker.gates(features), strict=True):
        assert torch.equal(ours, theirs)


def _names(ranker: Ranker) -> tuple[list[list[str]], list[list[str]]]:
    return ranker.gate_names(), ranker.expert_names()


def test_gates_and_experts_carry_the_names_of_the_tasks() -> None:
    assert _names(Ranker(replace(SPEC, body="mmoe"))) == ([["click", "conversion"]], [["shared 1", "shared 2"]])
    gates, experts = _names(Ranker(THREE_TASKS))
    assert gates == [["click", "conversion", "like", "shared"], ["click", "conversion", "like"]]
    assert experts == [["click 1", "conversion 1", "like 1", "shared 1", "shared 2"]] * 2
    assert _names(Ranker(replace(SPEC, body="shared_bottom"))) == ([], [])


@pytest.mark.parametrize("body", BODIES)
def test_every_body_trains_and_is_saved_with_all_options(body: str, tmp_path: Path) -> None:
    ranker, features = _ranker(replace(THREE_TASKS, body=body, **ALL_OPTIONS)), _features()  # type: ignore[arg-type]
    logits_BT, gates = ranker.train().forward_with_gates(features)
    loss = logits_BT.square().mean() + load_balance_loss(gates, ranker.gate_levels())
    torch.autograd.backward(loss)
    assert all(
        bool(weight.grad.to_dense().isfinite().all()) for weight in ranker.parameters() if weight.grad is not None
    )
    save_ranker(ranker, tmp_path)
    np.testing.assert_array_equal(predict(load_ranker(tmp_path), features, 9), predict(ranker, features, 9))


@pytest.mark.parametrize("option", [name for name in ALL_OPTIONS if name != "load_balance"])
def test_each_option_changes_what_a_body_with_gates_gives_in_training(option: str) -> None:
    features = _features()
    plain, changed = Ranker(SPEC).train(), Ranker(replace(SPEC, **{option: ALL_OPTIONS[option]})).train()  # type: ignore[arg-type]
    torch.nn.init.normal_(plain.scorer.get_parameter("table.table.weight"))
    changed.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(plain(features), changed(features), atol=1e-5)


def test_gate_dropout_is_left_out_in_evaluation() -> None:
    features, spec = _features(), replace(SPEC, gate_dropout=0.5)
    ranker, plain = Ranker(spec), Ranker(SPEC)
    assert not torch.equal(ranker.train()(features), ranker(features))
    assert torch.equal(ranker.eval()(features), plain.eval()(features))


@pytest.mark.parametrize(("body", "task_embeddings"), [("stem", False), ("ple", True), ("cgc", True)])
def test_each_task_and_what_they_share_have_embeddings_of_their_own(body: str, task_embeddings: bool) -> None:  # noqa: FBT001
    spec = replace(SPEC, body=body, levels=1, task_embeddings=task_embeddings)
    ranker, features = _ranker(spec).eval(), _features()
    scorer = ranker.scorer
    assert isinstance(scorer, DeepScorer)
    assert isinstance(scorer.body, GatedBody)
    weight = scorer.table.table.weight
    gradients = [torch.autograd.grad(ranker(features)[:, task].sum(), weight)[0].to_dense() for task in range(2)]
    reached = [(gradient.unflatten(1, (3, 4)) != 0).any(0).any(1).tolist() for gradient in gradients]
    assert reached == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize("body", ["adatt", "ple"])
def test_task_embeddings_widen_the_table_of_bodies_with_task_experts_alone(body: str) -> None:
    def width(name: str) -> int:
        return (
            Ranker(replace(SPEC, body=name, task_embeddings=True)).scorer.get_parameter("table.table.weight").shape[1]
        )

    assert width(body) == 3 * width("mmoe") == 3 * width("shared_bottom")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_activation": "gelu"}, r"expert_activation is 'gelu', expected one of \['relu', 'swish'\]"),
        ({"expert_norm": "group"}, r"expert_norm is 'group', expected one of \['none', 'layer', 'batch'\]"),
        ({"gate_dropout": 1.0}, "gate_dropout is 1.0, expected a probability from 0 to below 1"),
        ({"gate_temperature": 0.0}, "gate_temperature is 0.0, expected a number above 0"),
        ({"load_balance": -1.0}, "load_balance is -1.0, expected 0 or more"),
        ({"experts": 0}, "experts is 0, expected at least 1 with body 'ple': only adatt does without"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)  # type: ignore[arg-type]


def test_adatt_works_without_shared_experts() -> None:
    ranker = Ranker(replace(SPEC, body="adatt", experts=0))
    assert ranker.expert_names() == [["click 1", "conversion 1"]] * 2
    assert predict(ranker, _features(), 16).shape == (40, 3)
