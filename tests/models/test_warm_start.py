"""What survives a warm start bit for bit, and where new ids begin."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.experts import BODIES
from models.inputs import Features
from models.ranker import Ranker, RankerSpec, predict
from models.retriever import Retriever, RetrieverSpec
from models.warm_start import warm_start

BASE = RankerSpec(
    body="mmoe",
    categorical_cardinalities={"user": 8, "tags": 6, "item": 7, "surface": 5},
    numeric=["price", "hour"],
    bins=4,
    pooled={"clicked_items": "item", "tags": "tags"},
    single=["user", "surface", "item"],
    context=["surface"],
    context_numeric=["hour"],
    embedding_width=4,
    numeric_width=3,
    hidden=(8,),
    tower=(4,),
)
# The item's id 4 is of a value that the base did not know: its row exists and means nothing.
KNOWN = {
    "user": torch.arange(3, 8),
    "tags": torch.arange(3, 6),
    "item": torch.tensor([3, 5, 6]),
    "surface": torch.tensor([3, 4]),
}
GROWN = replace(BASE, categorical_cardinalities={"user": 12, "tags": 6, "item": 9, "surface": 6}, seed=1)


def shaken(model: Ranker | Retriever) -> None:
    """Stand for training: give every weight a value that matters."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.5)
            if name.endswith("table.weight"):
                weight[0] = 0.0


def ranker(spec: RankerSpec) -> Ranker:
    model = Ranker(spec)
    shaken(model)
    return model


def rows_of(model: Ranker | Retriever, field: str) -> Tensor:
    """Return a field's embeddings by id, the padding's zeros included."""
    table = model.table if isinstance(model, Retriever) else model.scorer.table
    number = list(model.spec.categorical_cardinalities).index(field)
    ids = torch.arange(model.spec.categorical_cardinalities[field])
    return table(ids.unsqueeze(1), fields=torch.tensor([number])).detach().squeeze(1)


def features(rows: int, ids: dict[str, list[int]]) -> Features:
    def draw(name: str, *shape: int) -> Tensor:
        return torch.tensor(ids[name])[torch.randint(0, len(ids[name]), shape)]

    single = torch.stack([draw(name, rows) for name in BASE.single], dim=1)
    pooled = {"clicked_items": draw("item", rows, 3), "tags": draw("tags", rows, 2)}
    return Features(single, torch.rand(rows, 2) * BASE.bins, pooled)


@pytest.mark.parametrize("new_ids", ["mean", "seed"])
@pytest.mark.parametrize("body", ["linear", *BODIES])
def test_a_warm_started_ranker_predicts_as_its_base_on_ids_that_both_know(body: str, new_ids: Any) -> None:
    base, fresh = ranker(replace(BASE, body=body)), Ranker(replace(GROWN, body=body))
    warm_start(fresh, base=base, known=KNOWN, new_ids=new_ids)
    rows = features(64, {name: [0, 1, 2, *ids.tolist()] for name, ids in KNOWN.items()})
    assert np.array_equal(predict(fresh, rows, 64), predict(base, rows, 64))
    others = {name: weight for name, weight in base.state_dict().items() if not name.endswith("table.weight")}
    assert all(torch.equal(fresh.state_dict()[name], weight) for name, weight in others.items())


def test_what_acts_in_training_alone_may_change() -> None:
    base, fresh = ranker(BASE), Ranker(replace(GROWN, gate_dropout=0.2, load_balance=0.1, dropout=0.3))
    warm_start(fresh, base=base, known=KNOWN, new_ids="mean")
    rows = features(16, {name: ids.tolist() for name, ids in KNOWN.items()})
    assert np.array_equal(predict(fresh, rows, 16), predict(base, rows, 16))


def test_a_warm_start_brings_the_moments_of_batch_normalisation() -> None:
    base = ranker(replace(BASE, expert_norm="batch"))
    rows = features(64, {name: ids.tolist() for name, ids in KNOWN.items()})
    base.train()(rows)
    fresh = Ranker(replace(GROWN, expert_norm="batch"))
    warm_start(fresh, base=base, known=KNOWN, new_ids="mean")
    assert np.array_equal(predict(fresh, rows, 64), predict(base, rows, 64))


def test_new_ids_begin_at_the_mean_of_the_known_rows_of_their_field() -> None:
    base, fresh = ranker(BASE), Ranker(GROWN)
    warm_start(fresh, base=base, known=KNOWN, new_ids="mean")
    for field, new in {"user": [8, 9, 10, 11], "tags": [], "item": [4, 7, 8], "surface": [5]}.items():
        mean = rows_of(base, field)[KNOWN[field]].mean(0)
        for number in new:
            torch.testing.assert_close(rows_of(fresh, field)[number], mean)
        kept = torch.cat([torch.arange(3), KNOWN[field]])
        assert torch.equal(rows_of(fresh, field)[kept], rows_of(base, field)[kept])


def test_new_ids_begin_as_the_seed_drew_them_where_that_is_asked_or_nothing_is_known() -> None:
    base, fresh, drawn = ranker(BASE), Ranker(GROWN), Ranker(GROWN)
    warm_start(fresh, base=base, known=KNOWN, new_ids="seed")
    assert torch.equal(rows_of(fresh, "item")[[4, 7, 8]], rows_of(drawn, "item")[[4, 7, 8]])
    fresh, nothing = Ranker(GROWN), KNOWN | {"item": torch.arange(0)}
    warm_start(fresh, base=base, known=nothing, new_ids="mean")
    assert torch.equal(rows_of(fresh, "item")[3:], rows_of(drawn, "item")[3:])
    assert torch.equal(rows_of(fresh, "item")[:3], rows_of(base, "item")[:3])


def test_fields_are_matched_by_name_and_may_lose_rows() -> None:
    """Buckets of another number are no known ids, and the table may be smaller than the base's."""
    base = ranker(BASE)
    fresh = Ranker(replace(BASE, categorical_cardinalities={"item": 7, "surface": 5, "user": 6, "tags": 6}))
    warm_start(fresh, base=base, known=KNOWN | {"user": torch.tensor([3, 5])}, new_ids="mean")
    assert torch.equal(rows_of(fresh, "user")[[1, 2, 3, 5]], rows_of(base, "user")[[1, 2, 3, 5]])
    assert torch.equal(rows_of(fresh, "surface"), rows_of(base, "surface"))


def test_the_base_is_left_alone_and_shares_no_memory() -> None:
    base, fresh = ranker(BASE), Ranker(GROWN)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    warm_start(fresh, base=base, known=KNOWN, new_ids="mean")
    shaken(fresh)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_a_warm_started_retriever_places_known_ids_as_its_base_does() -> None:
    spec = RetrieverSpec(
        categorical_cardinalities={"user": 6, "item": 9},
        bins=4,
        user_single=["user"],
        item_single=["item"],
        user_numeric=[],
        item_numeric=["price"],
        user_pooled={"clicked_items": "item"},
        item_pooled={},
        hidden=(8,),
        space_width=5,
    )
    base = Retriever(spec)
    shaken(base)
    fresh = Retriever(replace(spec, categorical_cardinalities={"user": 7, "item": 14}, temperature=0.2))
    warm_start(fresh, base=base, known={"user": torch.arange(3, 6), "item": torch.arange(3, 9)}, new_ids="mean")
    clicked = {"clicked_items": torch.arange(10).reshape(5, 2) % 9}
    users = Features(torch.arange(1, 6).unsqueeze(1), torch.zeros(5, 0), clicked)
    items = Features(torch.arange(1, 9).unsqueeze(1), torch.rand(8, 1) * 4)
    assert torch.equal(fresh.users(users), base.users(users))
    assert torch.equal(fresh.items(items), base.items(items))
    torch.testing.assert_close(rows_of(fresh, "item")[13], rows_of(base, "item")[3:].mean(0))
    assert fresh.spec.temperature == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": "ple", "levels": 1}, r"body \(here 'ple', there 'mmoe'\); levels \(here 1, there 2\): undo"),
        ({"embedding_width": 8}, r"embedding_width \(here 8, there 4\)"),
        ({"hidden": (8, 8)}, r"hidden \(here \(8, 8\), there \(8,\)\)"),
        ({"bins": 5}, r"bins \(here 5, there 4\)"),
        ({"expert_norm": "batch"}, r"expert_norm \(here 'batch', there 'none'\)"),
        ({"gate_temperature": 2.0}, r"gate_temperature \(here 2.0, there 1.0\)"),
        ({"zero_bin": True}, r"zero_bin \(here True, there False\)"),
        ({"numeric_encoding": "periodic"}, r"numeric_encoding \(here 'periodic', there 'piecewise_linear'\)"),
        (
            {"attention": ["clicked_items"], "attention_target": "item"},
            r"attention \(only here \['clicked_items'\], only there \[\]\)",
        ),
        ({"numeric": ["price", "hour", "age"]}, r"numeric \(only here \['age'\], only there \[\]\)"),
        ({"numeric": ["hour", "price"]}, r"the order of numeric: undo the change, or train once without a warm"),
        (
            {"categorical_cardinalities": {**GROWN.categorical_cardinalities, "brand": 4}},
            r"fields \(only here \['brand'\], only there \[\]\)",
        ),
    ],
)
def test_a_base_that_differs_is_refused_and_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warm_start(Ranker(replace(GROWN, **change)), base=ranker(BASE), known=KNOWN, new_ids="mean")
