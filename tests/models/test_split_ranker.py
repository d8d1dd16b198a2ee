"""A ranker in parts gives what whole rows give: every body, every option, and without what only training needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.experts import BODIES
from models.inputs import Features
from models.part_table import BLOCK_PAIRS, PartTable
from models.ranker import Ranker, RankerSpec, predict
from models.split_ranker import SplitRanker

USERS, ITEMS = 6, 9
SPEC = RankerSpec(
    body="mmoe",
    categorical_cardinalities={"user": 9, "item": 12, "city": 5, "surface": 5, "tag": 6},
    numeric=["age", "user_clicks_there", "price", "pair_clicks", "pair_rate"],
    bins=4,
    pooled={"clicked_items": "item", "tags": "tag"},
    single=["user", "item", "city", "surface"],
    context=["surface"],
    context_numeric=["user_clicks_there", "pair_rate"],
    embedding_width=4,
    numeric_width=3,
    zero_bin=True,
    hidden=(6, 5),
    tower=(4,),
    experts=2,
    task_experts=2,
    levels=1,
    attention_target="item",
)
USER = {"user", "city", "age", "user_clicks_there", "clicked_items"}
ITEM = {"item", "price", "tags"}
PAIR = {"pair_clicks", "pair_rate"}
CONTEXT = {"surface"}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "two levels": {"levels": 2},
    "task embeddings": {"task_embeddings": True},
    "task embeddings, two levels, dcmt": {"task_embeddings": True, "levels": 2, "conversion_loss": "dcmt"},
    "dcmt": {"conversion_loss": "dcmt", "task_embeddings": True},
    "escm2_dr and further tasks": {
        "conversion_loss": "escm2_dr",
        "binary_tasks": {"like": "impression"},
        "value_tasks": {"minutes": "click"},
    },
    "attention": {"attention": ["clicked_items"], "task_embeddings": True, "conversion_loss": "dcmt"},
    "layer norm, swish, tempered gates": {
        "expert_norm": "layer",
        "expert_activation": "swish",
        "gate_temperature": 2.0,
        "gate_dropout": 0.3,
        "dropout": 0.2,
    },
    "batch norm": {"expert_norm": "batch", "conversion_loss": "dcmt"},
    "waves": {"numeric_encoding": "periodic", "task_embeddings": True},
    "one layer, linear towers, no context": {"hidden": (5,), "tower": (), "context": [], "context_numeric": []},
}


def _ranker(spec: RankerSpec) -> Ranker:
    """With weights large enough that every part matters, and moments of batches that are no start values."""
    ranker = Ranker(spec)
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            torch.nn.init.normal_(weight, std=0.4)
            if name.endswith("table.weight"):
                weight[0].zero_()
        for name, buffer in ranker.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return ranker


def _rows() -> Features:
    """Rows of which the user columns, item columns and the rest are combined freely."""
    rows = max(USERS, ITEMS)
    ids = [torch.randint(0, SPEC.categorical_cardinalities[name], (rows,)) for name in SPEC.single]
    positions = (torch.rand(rows, len(SPEC.numeric)) * SPEC.bins).masked_fill(torch.rand(rows, 5) < 0.2, SPEC.bins + 1)
    clicked = torch.randint(0, 12, (rows, 3)) * torch.tensor([[1, 1, 0]])
    clicked[2] = 0
    return Features(torch.stack(ids, 1), positions, {"clicked_items": clicked, "tags": torch.randint(0, 6, (rows, 2))})


def _pairs(features: Features, of: dict[str, torch.Tensor]) -> Features:
    """Gathers each side's columns by row numbers of its own."""
    number = {name: of[side] for side, names in _SIDES.items() for name in names}
    ids = [features.ids_BF[number[name], place] for place, name in enumerate(SPEC.single)]
    positions = [features.positions_BF[number[name], place] for place, name in enumerate(SPEC.numeric)]
    pooled = {name: ids_BL[number[name]] for name, ids_BL in features.pooled.items()}
    return Features(torch.stack(ids, 1), torch.stack(positions, 1), pooled)


_SIDES = {"user": USER, "item": ITEM, "pair": PAIR, "context": CONTEXT}


def _chosen(part: object, features: Features) -> Features:
    single, numeric, pooled = (getattr(part, kind) for kind in ("single", "numeric", "pooled"))
    return Features(
        features.ids_BF[:, [SPEC.single.index(name) for name in single]],
        features.positions_BF[:, [SPEC.numeric.index(name) for name in numeric]],
        {name: features.pooled[name] for name in pooled},
    )


def _split_outputs(split: SplitRanker, features: Features, of: dict[str, torch.Tensor]) -> np.ndarray:
    first_NW = split.constant_W.repeat(len(of["user"]), 1)
    for side, names in _SIDES.items():
        part = split.part(names)
        first_NW += part(_chosen(part, features))[of[side]]
    if split.attention is not None:
        candidates_N = features.ids_BF[of["item"], SPEC.single.index("item")]
        split.attention.add_to(first_NW, features.pooled, of["user"], candidates_N)
    return split.outputs(first_NW).numpy()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("body", ["linear", *BODIES])
def test_parts_add_up_to_what_whole_rows_give(body: str, options: dict[str, object]) -> None:
    ranker, features = _ranker(replace(SPEC, body=body, **options)), _rows()  # type: ignore[arg-type]
    of = {"user": torch.arange(USERS).repeat_interleave(ITEMS), "item": torch.arange(ITEMS).repeat(USERS)}
    of |= {"pair": torch.randint(0, ITEMS, (USERS * ITEMS,)), "context": torch.full((USERS * ITEMS,), 3)}
    expected = _by_training_s_forward(ranker, _pairs(features, of))
    assert expected.std(0).min() > 1e-3
    np.testing.assert_allclose(_split_outputs(SplitRanker(ranker), features, of), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(predict(ranker, _pairs(features, of), 20), expected, rtol=2e-5, atol=1e-6)


def _by_training_s_forward(ranker: Ranker, features: Features) -> np.ndarray:
    """Computes the outputs by the plain pass of all heads, in the formulas' words."""
    spec = ranker.spec
    with torch.inference_mode():
        logits_NT = ranker.eval()(features).double()
    ranker.train()
    click, conversion = logits_NT[:, :2].sigmoid().T
    space = {"impression": torch.ones_like(click), "click": click, "conversion": click * conversion}
    binary = [space[kind] * logits_NT[:, 2 + n].sigmoid() for n, kind in enumerate(spec.binary_tasks.values())]
    first = 2 + len(binary)
    values = [space[kind] * logits_NT[:, first + n].exp() for n, kind in enumerate(spec.value_tasks.values())]
    return torch.stack([click, conversion, click * conversion, *binary, *values], dim=1).numpy()


def test_a_pair_s_outputs_are_those_of_the_sum_of_its_rows() -> None:
    split = SplitRanker(_ranker(SPEC))
    table = PartTable(split, rows=50)
    parts_RW = torch.randn(20, split.width)
    assert table.fill(7, parts_RW) == 27
    pairs = BLOCK_PAIRS + 5
    rows_NS = np.stack([np.arange(pairs) % 20 + 7, np.arange(pairs) % 3 * 9 - 1], axis=1)
    made = table.outputs(rows_NS)
    of_first_NW = parts_RW[rows_NS[:, 0] - 7]
    second_N = torch.from_numpy(rows_NS[:, 1])
    of_second_NW = torch.where((second_N >= 0)[:, None], parts_RW[(second_N - 7).clamp(min=0)], 0)
    np.testing.assert_allclose(made, split.outputs(of_first_NW + of_second_NW).numpy(), rtol=1e-5, atol=1e-7)
    more = table.outputs(rows_NS[:, :1], lambda first_NW, block: _ignore(first_NW.add_(of_second_NW[block])))
    np.testing.assert_allclose(more, made, rtol=1e-5, atol=1e-7)


def _ignore(_: object) -> None:
    """Takes what nobody reads."""
