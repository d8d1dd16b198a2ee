"""How a ranker reads numbers and sequences: zeros apart, periodic encodings and target attention."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.inputs import Features
from models.optimizer import build_optimizers
from models.ranker import Ranker, RankerSpec, load_ranker, predict, save_ranker
from models.serialization import SPEC_FILE, weights_digest

ITEMS = 30
SPEC = RankerSpec(
    body="ple",
    categorical_cardinalities={"user": 12, "item": ITEMS, "surface": 4},
    numeric=["price", "hour"],
    bins=4,
    pooled={"clicked_items": "item", "seen_items": "item"},
    single=["user", "surface", "item"],
    context=["surface"],
    context_numeric=["hour"],
    embedding_width=4,
    numeric_width=3,
    experts=1,
    task_experts=1,
    hidden=(16, 8),
    tower=(8,),
    levels=1,
)
WITH_ALL = replace(
    SPEC,
    zero_bin=True,
    numeric_encoding="periodic",
    frequencies=5,
    attention=["clicked_items"],
    attention_target="item",
)
BODIES = pytest.mark.parametrize("body", ["single_task", "shared_bottom", "mmoe", "ple"])


def _features(rows: int) -> Features:
    single = [torch.randint(1, SPEC.categorical_cardinalities[name], (rows,)) for name in SPEC.single]
    positions_BF = torch.rand(rows, 2) * SPEC.bins
    positions_BF[: rows // 4, 0], positions_BF[: rows // 8, 1] = SPEC.bins + 1, SPEC.bins + 1
    pooled = {name: torch.randint(0, ITEMS, (rows, 4)) for name in SPEC.pooled}
    return Features(torch.stack(single, dim=1), positions_BF, pooled)


def _ranker(spec: RankerSpec) -> Ranker:
    """With weights large enough that every input matters."""
    ranker = Ranker(spec)
    for weight in ranker.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    with torch.no_grad():
        ranker.scorer.table.table.weight[0] = 0.0
    return ranker.eval()


def _with_history(features: Features, name: str, ids_BL: Tensor) -> Features:
    return Features(features.ids_BF, features.positions_BF, {**features.pooled, name: ids_BL})


@BODIES
def test_zeros_and_the_items_of_a_sequence_reach_both_logits(body: str) -> None:
    ranker, features = _ranker(replace(WITH_ALL, body=body)), _features(16)
    logits_BT = ranker(features)
    changed = [_with_history(features, name, torch.full((16, 2), 7)) for name in SPEC.pooled]
    for column in range(2):
        positions_BF = features.positions_BF.clone()
        positions_BF[:, column] = SPEC.bins + 2
        changed.append(replace(features, positions_BF=positions_BF))
    for other in changed:
        assert ((ranker(other) - logits_BT).abs() > 1e-6).any(0).all()


@BODIES
def test_a_change_of_context_moves_all_candidates_alike(body: str) -> None:
    ranker, features = _ranker(replace(WITH_ALL, body=body)), _features(30)
    logits = []
    for surface, hour in ((1, 0.5), (3, SPEC.bins + 2.0)):
        ids_BF, positions_BF = features.ids_BF.clone(), features.positions_BF.clone()
        ids_BF[:, SPEC.single.index("surface")], positions_BF[:, SPEC.numeric.index("hour")] = surface, hour
        logits.append(ranker(Features(ids_BF, positions_BF, features.pooled)))
    difference_BT = logits[1] - logits[0]
    assert (difference_BT[0].abs() > 1e-3).all()
    torch.testing.assert_close(difference_BT, difference_BT[:1].expand(30, 2), rtol=1e-3, atol=1e-3)


def test_attention_sums_what_a_mean_averages() -> None:
    once, twice = torch.full((16, 1), 7), torch.full((16, 2), 7)
    features = _features(16)
    for name, is_attended in (("clicked_items", True), ("seen_items", False)):
        one, two = (_ranker_output(_with_history(features, name, ids_BL)) for ids_BL in (once, twice))
        assert torch.allclose(one, two, atol=1e-5) != is_attended


def _ranker_output(features: Features) -> Tensor:
    torch.manual_seed(0)
    logits_BT: Tensor = _ranker(WITH_ALL)(features)
    return logits_BT


def test_the_order_of_a_sequence_and_its_padding_do_not_matter() -> None:
    ranker, features = _ranker(WITH_ALL), _features(16)
    shuffled_BL = torch.cat([features.pooled["clicked_items"].flip(1), torch.zeros(16, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(ranker(_with_history(features, "clicked_items", shuffled_BL)), ranker(features))


@BODIES
def test_a_saved_ranker_predicts_the_same_in_any_batch(body: str, tmp_path: Path) -> None:
    ranker, features = _ranker(replace(WITH_ALL, body=body)), _features(40)
    save_ranker(ranker, tmp_path)
    loaded = load_ranker(tmp_path)
    assert loaded.spec == ranker.spec
    expected_NO = predict(ranker, features, 40)
    np.testing.assert_array_equal(predict(loaded, features, 40), expected_NO)
    np.testing.assert_allclose(predict(loaded, features, 7), expected_NO, rtol=1e-4)


def test_a_ranker_that_was_saved_before_these_options_reads_as_it_did(tmp_path: Path) -> None:
    ranker, features = _ranker(SPEC), _features(30)
    save_ranker(ranker, tmp_path)
    document = json.loads((tmp_path / SPEC_FILE).read_text())
    for name in ("zero_bin", "numeric_encoding", "frequencies", "frequency_scale", "attention", "attention_target"):
        del document["spec"][name]
    (tmp_path / SPEC_FILE).write_text(json.dumps(document))
    np.testing.assert_array_equal(predict(load_ranker(tmp_path), features, 8), predict(ranker, features, 8))
    with pytest.raises(AssertionError):
        predict(ranker, replace(features, positions_BF=torch.full((30, 2), SPEC.bins + 2.0)), 8)


def test_logistic_regression_has_one_weight_a_knot_and_averages_sequences_whatever_the_options() -> None:
    linear = replace(SPEC, body="linear", zero_bin=True)
    assert weights_digest(Ranker(replace(WITH_ALL, body="linear"))) == weights_digest(Ranker(linear))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numeric_encoding": "spline"}, r"numeric_encoding is 'spline', expected one of \['piecewise_linear', 'per"),
        ({"frequencies": 0}, "frequencies is 0 and frequency_scale 1.0, expected at least 1 and a number above 0"),
        ({"frequency_scale": 0.0}, "frequencies is 16 and frequency_scale 0.0, expected at least 1"),
        ({"attention": ["clicked_items"]}, "attention_target is 'item_id', expected a column of the candidate"),
        ({"attention": ["clicks"], "attention_target": "item"}, r"attention names \['clicks'\], which hold no ids of"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)  # type: ignore[arg-type]


def _error(attention: list[str]) -> float:
    """Train on whether the candidate stands in the user's sequence, and return the error rate on new rows."""
    ranker = Ranker(replace(WITH_ALL, attention=attention, body="shared_bottom", embedding_width=8))
    optimizers = build_optimizers(ranker, learning_rate=0.01, embedding_learning_rate=0.02, weight_decay=0.0)
    for _ in range(250):
        features, is_in_B = _with_or_without(256)
        optimizers.zero_grad()
        loss = binary_cross_entropy_with_logits(ranker(features)[:, 0], is_in_B)
        torch.autograd.backward(loss)
        optimizers.step()
    features, is_in_B = _with_or_without(2000)
    return float(((ranker(features)[:, 0] > 0) != is_in_B.bool()).float().mean())


def _with_or_without(rows: int) -> tuple[Features, Tensor]:
    """Rows of which at least half have the candidate in their sequence."""
    features = _features(rows)
    ids_BL = torch.rand(rows, ITEMS - 3).argsort(1)[:, :4] + 3
    is_in_B = torch.rand(rows) < 0.5
    item_B = torch.where(is_in_B, ids_BL[:, 2], torch.randint(3, ITEMS, (rows,)))
    is_in_B = (ids_BL == item_B.unsqueeze(1)).any(1)
    ids_BF = features.ids_BF.clone()
    ids_BF[:, SPEC.single.index("item")] = item_B
    return _with_history(replace(features, ids_BF=ids_BF), "clicked_items", ids_BL), is_in_B.float()


def test_attention_finds_the_candidate_in_a_sequence_where_a_mean_blurs_it() -> None:
    attended, averaged = _error(["clicked_items"]), _error([])
    assert attended < 0.05
    assert averaged > 0.15
