"""What a ranker can and cannot learn, and that its numbers are its spec's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.experts import BODIES
from models.inputs import Features
from models.losses import Targets, task_losses
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, load_ranker, predict, save_ranker
from models.serialization import weights_digest

SPEC = RankerSpec(
    body="mmoe",
    categorical_cardinalities={"user": 40, "tags": 6, "item": 30, "position": 8},
    numeric=["price", "hour", "age"],
    bins=4,
    pooled={"clicked_items": "item", "tags": "tags"},
    single=["user", "position", "item"],
    context=["position"],
    context_numeric=["hour"],
    embedding_width=4,
    numeric_width=3,
    hidden=(16, 8),
    tower=(8,),
)
ALL_BODIES = ["linear", *BODIES]


def _features(rows: int) -> Features:
    single = [torch.randint(1, SPEC.categorical_cardinalities[name], (rows,)) for name in SPEC.single]
    positions_BF = torch.rand(rows, 3) * SPEC.bins
    positions_BF[: rows // 4, 0] = SPEC.bins + 1
    pooled = {"clicked_items": torch.randint(0, 30, (rows, 5)), "tags": torch.randint(0, 6, (rows, 2))}
    return Features(torch.stack(single, dim=1), positions_BF, pooled)


def _ranker(body: str) -> Ranker:
    """With weights large enough that every input matters."""
    ranker = Ranker(replace(SPEC, body=body))
    for weight in ranker.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return ranker.eval()


def _with(features: Features, *, ids: dict[str, int], positions: dict[str, float]) -> Features:
    ids_BF, positions_BF = features.ids_BF.clone(), features.positions_BF.clone()
    for name, value in ids.items():
        ids_BF[:, SPEC.single.index(name)] = value
    for name, position in positions.items():
        positions_BF[:, SPEC.numeric.index(name)] = position
    return Features(ids_BF, positions_BF, features.pooled)


@pytest.mark.parametrize("body", ALL_BODIES)
def test_every_input_reaches_both_logits(body: str) -> None:
    ranker, features = _ranker(body), _features(8)
    logits_BT = ranker(features)
    assert logits_BT.shape == (8, 2)
    changed = [_with(features, ids={name: 2}, positions={}) for name in SPEC.single]
    changed += [_with(features, ids={}, positions={name: 1.7}) for name in SPEC.numeric]
    for name in SPEC.pooled:
        pooled = {**features.pooled, name: torch.ones(8, 3, dtype=torch.int64)}
        changed.append(Features(features.ids_BF, features.positions_BF, pooled))
    for other in changed:
        assert ((ranker(other) - logits_BT).abs() > 1e-6).any(0).all()


@pytest.mark.parametrize("body", ALL_BODIES)
def test_a_change_of_context_moves_all_candidates_alike(body: str) -> None:
    ranker, features = _ranker(body), _features(50)
    first = _with(features, ids={"position": 2}, positions={"hour": 0.5})
    second = _with(features, ids={"position": 7}, positions={"hour": 3.0})
    difference_BT = ranker(second) - ranker(first)
    assert (difference_BT[0].abs() > 1e-3).all()
    torch.testing.assert_close(difference_BT, difference_BT[:1].expand(50, 2), rtol=1e-4, atol=1e-4)


def _interaction(ranker: Ranker, features: Features) -> Tensor:
    """The largest second difference of the logits over pairs of columns."""
    changes: list[tuple[dict[str, int], dict[str, float]]] = [
        ({"user": 5}, {}),
        ({"item": 7}, {}),
        ({"position": 2}, {}),
        ({}, {"price": 1.3}),
        ({}, {"hour": 2.2}),
    ]
    base_BT, largest = ranker(features), torch.zeros(())
    for number, (ids, positions) in enumerate(changes):
        for other_ids, other_positions in changes[:number]:
            one_BT = ranker(_with(features, ids=ids, positions=positions))
            other_BT = ranker(_with(features, ids=other_ids, positions=other_positions))
            both = _with(features, ids=ids | other_ids, positions=positions | other_positions)
            largest = torch.maximum(largest, (ranker(both) - one_BT - other_BT + base_BT).abs().max())
    return largest


def test_the_linear_body_has_no_interactions_and_the_others_have() -> None:
    features = _features(20)
    assert _interaction(_ranker("linear"), features) < 1e-5
    for body in BODIES:
        assert _interaction(_ranker(body), features) > 1e-2


@pytest.mark.parametrize("body", ALL_BODIES)
def test_predictions_do_not_depend_on_the_batch(body: str) -> None:
    ranker, features = _ranker(body), _features(101)
    whole_N3 = predict(ranker, features, 101)
    assert whole_N3.dtype == np.float32
    assert whole_N3.shape == (101, 3)
    for batch_size in (1, 7, 64):
        np.testing.assert_allclose(predict(ranker, features, batch_size), whole_N3, atol=1e-6)
    order = torch.randperm(101)
    np.testing.assert_allclose(predict(ranker, features.slice(order), 10), whole_N3[order.numpy()], atol=1e-6)


def test_predicting_leaves_out_dropout_and_leaves_the_mode_alone() -> None:
    ranker, features = Ranker(replace(SPEC, dropout=0.5)), _features(20)
    ranker.train()
    assert not torch.equal(ranker(features), ranker(features))
    np.testing.assert_array_equal(predict(ranker, features, 8), predict(ranker, features, 8))
    assert ranker.training
    predict(ranker.eval(), features, 8)
    assert not ranker.training


def test_no_rows_give_no_predictions() -> None:
    assert predict(_ranker("mmoe"), _features(0), 8).shape == (0, 3)


@pytest.mark.parametrize("body", ALL_BODIES)
def test_a_saved_ranker_predicts_the_same(body: str, tmp_path: Path) -> None:
    ranker, features = _ranker(body), _features(30)
    save_ranker(ranker, tmp_path)
    np.testing.assert_array_equal(predict(load_ranker(tmp_path), features, 8), predict(ranker, features, 8))


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before() -> None:
    first = weights_digest(Ranker(SPEC))
    state = torch.get_rng_state()
    assert weights_digest(Ranker(SPEC)) == first
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert weights_digest(Ranker(SPEC)) == first
    assert weights_digest(Ranker(replace(SPEC, seed=1))) != first


def test_gates_are_given_level_by_level_and_only_by_bodies_that_have_them() -> None:
    features = _features(5)
    shapes = {body: [tuple(gates.shape) for gates in _ranker(body).gates(features)] for body in ALL_BODIES}
    assert shapes == {
        "linear": [],
        "single_task": [],
        "shared_embedding": [],
        "shared_bottom": [],
        "cross_stitch": [],
        "moe": [(5, 1, 4)],
        "mmoe": [(5, 2, 4)],
        "cgc": [(5, 2, 8)],
        "ple": [(5, 3, 8), (5, 2, 8)],
        "adatt": [(5, 3, 8), (5, 2, 8)],
        "stem": [(5, 3, 8), (5, 2, 8)],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": "mlp"}, r"body is 'mlp', expected one of \['linear', 'single_task'"),
        (
            {"single": ["user", "brand"], "context": []},
            r"fields \['brand'\] have no cardinality, expected some of",
        ),
        ({"pooled": {"clicked_items": "brand"}}, r"fields \['brand'\] have no cardinality"),
        ({"context": ["hour"]}, r"context names \['hour'\], which are no inputs: expected names among"),
        ({"context_numeric": ["position"]}, r"context_numeric names \['position'\], which are no inputs"),
        ({"single": ["position"], "numeric": ["hour"], "pooled": {}}, "every input is a context column"),
        ({"hidden": ()}, "hidden is empty, expected the width of at least one layer"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)  # type: ignore[arg-type]


def _area_under_curve(scores_N: NDArray[np.float64], labels_N: NDArray[np.float64]) -> float:
    ranks_N = scores_N.argsort().argsort() + 1.0
    positives = labels_N.sum()
    rank_sum = float(ranks_N[labels_N == 1].sum())
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(labels_N) - positives)))


def _true_logits(features: Features) -> Tensor:
    """Clicks need a match of user and item (an interaction) and a low price; conversions a low age."""
    user_B, item_B = features.ids_BF[:, 0], features.ids_BF[:, 2]
    match_B = 2.0 * ((user_B + item_B) % 2).float() - 1.0
    price_B, age_B = features.positions_BF[:, 0] / SPEC.bins, features.positions_BF[:, 2] / SPEC.bins
    return torch.stack([1.5 * match_B - 1.5 * price_B, 3.0 * (0.5 - age_B)], dim=1)


def _train(ranker: Ranker, features: Features, clicks_B: Tensor, conversions_B: Tensor) -> None:
    optimizers = build_optimizers(ranker, learning_rate=0.01, embedding_learning_rate=0.02, weight_decay=1e-4)
    for _ in range(8):
        for rows in torch.randperm(len(features)).view(-1, 500):
            optimizers.zero_grad()
            logits_BT = ranker(features.slice(rows))
            everywhere_B = torch.ones_like(clicks_B[rows])
            targets = Targets(clicks_B[rows], conversions_B[rows], everywhere_B, everywhere_B)
            loss = torch.stack(list(task_losses(logits_BT, targets).values())).sum()
            torch.autograd.backward(loss)
            optimizers.step()


def _measured(body: str) -> list[tuple[float, float]]:
    """On new rows, the AUC of the ranker and of the truth, for click and for conversion among clicks."""
    features, held_out = _features(20000), _features(10000)
    probabilities_BT = _true_logits(features).sigmoid()
    clicks_B = torch.bernoulli(probabilities_BT[:, 0])
    conversions_B = clicks_B * torch.bernoulli(probabilities_BT[:, 1])
    ranker = Ranker(replace(SPEC, body=body))
    _train(ranker, features, clicks_B, conversions_B)

    truth_NT = _true_logits(held_out).sigmoid()
    labels_NT = torch.bernoulli(truth_NT).double().numpy()
    predicted_N3 = predict(ranker, held_out, 4096).astype(np.float64)
    clicked_N = labels_NT[:, 0] == 1
    rows = (np.ones_like(clicked_N), clicked_N)
    return [
        (
            _area_under_curve(predicted_N3[chosen, task], labels_NT[chosen, task]),
            _area_under_curve(truth_NT.double().numpy()[chosen, task], labels_NT[chosen, task]),
        )
        for task, chosen in enumerate(rows)
    ]


@pytest.mark.parametrize("body", BODIES)
def test_a_body_learns_both_tasks_and_no_more_than_there_is_to_learn(body: str) -> None:
    for learned, possible in _measured(body):
        assert possible - 0.03 < learned < possible + 0.01


def test_the_linear_body_misses_the_interaction_alone() -> None:
    (click, possible_click), (conversion, possible_conversion) = _measured("linear")
    assert click < possible_click - 0.1
    assert possible_conversion - 0.03 < conversion < possible_conversion + 0.01


@pytest.mark.parametrize(("body", "shared"), [("single_task", False), ("shared_embedding", True)])
def test_single_task_shares_nothing_and_shared_embedding_its_inputs(body: str, shared: bool) -> None:  # noqa: FBT001
    ranker, features = _ranker(body), _features(20)
    weights = [weight for _, weight in ranker.named_parameters() if weight is not ranker.bias_T]
    reached = []
    for task in range(2):
        gradients = torch.autograd.grad(ranker(features)[:, task].sum(), weights, allow_unused=True)
        reached.append(
            [torch.zeros_like(w) if g is None else g.to_dense() for w, g in zip(weights, gradients, strict=True)]
        )
    both = any(bool(((a != 0) & (b != 0)).any()) for a, b in zip(*reached, strict=True))
    assert both == shared
