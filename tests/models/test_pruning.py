"""A ranker for scoring lacks what only training needs, and nothing else."""

from dataclasses import replace

import pytest
import torch

from models.experts import BODIES
from models.inputs import Features
from models.layers import ExpertLayers
from models.ranker import DeepScorer, Ranker, RankerSpec, for_scoring

SPEC = RankerSpec(
    body="ple",
    categorical_cardinalities={"user": 9, "item": 7},
    numeric=[],
    bins=4,
    pooled={},
    single=["user", "item"],
    context=["item"],
    context_numeric=[],
    embedding_width=4,
    hidden=(6, 5),
    tower=(4,),
    experts=1,
    task_experts=2,
    levels=1,
    conversion_loss="dcmt",
)


def _experts(ranker: Ranker) -> list[int]:
    scorer = ranker.scorer
    assert isinstance(scorer, DeepScorer)
    networks = [module for module in scorer.body.modules() if isinstance(module, ExpertLayers)]
    return [len(network.first.weight_GIO) for network in networks]


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({}, [7], [5]),
        ({"task_embeddings": True}, [7], [5]),
        ({"levels": 2}, [7, 7], [7, 5]),
        ({"body": "single_task"}, [3], [2]),
        ({"body": "adatt"}, [7], [7]),
        ({"body": "stem", "levels": 2}, [7, 7], [7, 7]),
        ({"body": "mmoe"}, [1], [1]),
    ],
)
def test_experts_that_no_output_reads_are_left_out(
    options: dict[str, object], before: list[int], after: list[int]
) -> None:
    ranker = Ranker(replace(SPEC, **options))  # type: ignore[arg-type]
    assert _experts(ranker) == before
    assert _experts(for_scoring(ranker)) == after
    assert _experts(ranker) == before


def test_the_embeddings_of_a_left_out_task_are_not_read() -> None:
    ranker = for_scoring(Ranker(replace(SPEC, task_embeddings=True)))
    assert isinstance(ranker.scorer, DeepScorer)
    assert ranker.scorer.inputs.kept == [0, 1, 3]


@pytest.mark.parametrize("body", ["linear", *BODIES])
def test_the_logits_that_are_left_are_the_first(body: str) -> None:
    ranker = Ranker(replace(SPEC, body=body)).eval()
    features = Features(torch.randint(1, 7, (20, 2)), torch.zeros(20, 0))
    with torch.inference_mode():
        every_BT, kept_BT = ranker(features), for_scoring(ranker)(features)
    torch.testing.assert_close(kept_BT[:, :2], every_BT[:, :2], rtol=1e-6, atol=1e-7)
    assert kept_BT.shape[1] == (3 if body == "linear" else 2)


def test_weights_are_shared_and_the_mode_of_the_trained_ranker_stays() -> None:
    ranker = Ranker(SPEC).train()
    scoring = for_scoring(ranker)
    assert ranker.training
    assert not scoring.training
    assert scoring.scorer.table.table.weight is ranker.scorer.table.table.weight
    assert sorted(ranker.state_dict()) == sorted(Ranker(SPEC).state_dict())
