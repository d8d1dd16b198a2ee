"""Diagnostics of a healthy ranker, and of the same one with faults built in."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.experts import MMoE
from models.inputs import Features
from models.losses import Targets, task_losses
from models.optimizer import build_optimizers
from models.ranker import DeepScorer, Ranker, RankerSpec, predict
from pipeline.config import Config
from pipeline.diagnose import Evaluated, judge, model_figures
from pipeline.metrics import evaluate_task
from pipeline.scored import Scored
from pipeline.verdicts import Verdict

SPEC = RankerSpec(
    body="mmoe",
    categorical_cardinalities={"user": 43, "item": 23},
    numeric=["price"],
    bins=4,
    pooled={},
    single=["user", "item"],
    context=[],
    context_numeric=[],
    embedding_width=4,
    numeric_width=2,
    experts=3,
    hidden=(32, 16),
    tower=(8,),
)
ROWS = 3000
NAMES = ["seesaw", "constant_predictions", "dead_task", "one_expert", "experts_alike", "dead_units"]


@pytest.fixture(scope="module")
def world() -> tuple[Features, Targets]:
    """Return rows whose clicks depend on the user's and the item's parity, and whose conversions on the item's."""
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randint(3, size, (ROWS,), generator=generator) for size in (43, 23))
    clicks_B = (torch.rand(ROWS, generator=generator) < 0.15 + 0.35 * (user % 2) + 0.35 * (item % 2)).float()
    bought_B = (torch.rand(ROWS, generator=generator) < 0.2 + 0.5 * (item % 2)).float()
    positions_BF = torch.rand(ROWS, 1, generator=generator) * 4
    ones_B = torch.ones(ROWS)
    return Features(torch.stack([user, item], dim=1), positions_BF), Targets(
        clicks_B, clicks_B * bought_B, ones_B, ones_B
    )


@pytest.fixture(scope="module")
def healthy(world: tuple[Features, Targets]) -> Ranker:
    """Return a ranker after 150 steps on the world."""
    features, targets = world
    ranker = Ranker(SPEC)
    ranker.start_at(click_rate=0.5, conversion_rate=0.45)
    optimizers = build_optimizers(ranker, learning_rate=3e-3, embedding_learning_rate=1e-2, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        rows = torch.randint(ROWS, (256,), generator=generator)
        optimizers.zero_grad()
        batch = targets.select(rows, torch.device("cpu"))
        torch.stack(list(task_losses(ranker(features.slice(rows)), batch).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizers.step()
    return ranker.eval()


def _judged(config: Config, ranker: Ranker, world: tuple[Features, Targets]) -> dict[str, Verdict]:
    features, targets = world
    outputs = predict(ranker, features, 1024).astype(np.float64)
    clicks, conversions = targets.clicks_B.numpy() > 0, targets.conversions_B.numpy() > 0
    users, everywhere = features.ids_BF[:, 0].numpy(), np.ones(ROWS, dtype=np.bool_)
    scored = Scored(
        [],
        [features],
        users,
        {"click": clicks, "click_and_conversion": conversions, "conversion": conversions},
        {"click": everywhere, "click_and_conversion": everywhere, "conversion": clicks},
        {"click": outputs[:, 0], "click_and_conversion": outputs[:, 2], "conversion": outputs[:, 1]},
    )
    tasks: dict[str, Any] = {
        name: {
            metric: interval.as_dict()
            for metric, interval in evaluate_task(**rows.arrays, replicates=50, seed=0).items()
        }
        for name, rows in scored.tasks().items()
    }
    found = model_figures(ranker, features, targets, seed=0) | {"seesaw": {}}
    verdicts = judge(config, found, Evaluated(scored, scored.probabilities, tasks))
    return {verdict.name: verdict for verdict in verdicts}


def _alarms(verdicts: dict[str, Verdict]) -> list[str]:
    return [name for name, verdict in verdicts.items() if verdict.alarm]


def _spoiled(ranker: Ranker, spoil: Callable[[DeepScorer, MMoE], None]) -> Ranker:
    spoiled = copy.deepcopy(ranker)
    scorer = spoiled.scorer
    assert isinstance(scorer, DeepScorer)
    assert isinstance(scorer.body, MMoE)
    with torch.no_grad():
        spoil(scorer, scorer.body)
    return spoiled


def test_a_healthy_ranker_raises_no_alarm_and_every_verdict_has_a_sentence(
    healthy: Ranker, world: tuple[Features, Targets], simulated_config: Config
) -> None:
    verdicts = _judged(simulated_config, healthy, world)
    assert list(verdicts) == NAMES
    assert _alarms(verdicts) == [], [verdict.sentence for verdict in verdicts.values()]
    assert all(verdict.sentence.endswith(".") for verdict in verdicts.values())


def test_a_constant_head_is_constant_and_dead(
    healthy: Ranker, world: tuple[Features, Targets], simulated_config: Config
) -> None:
    def spoil(scorer: DeepScorer, _body: MMoE) -> None:
        scorer.towers.output.weight_GIO[1].zero_()

    verdicts = _judged(simulated_config, _spoiled(healthy, spoil), world)
    assert _alarms(verdicts) == ["constant_predictions", "dead_task"]
    assert verdicts["constant_predictions"].sentence.startswith("Constant predictions of conversion: ")
    assert "AUC of conversion is 0.500 [0.500, 0.500], which reaches 0.5" in verdicts["dead_task"].sentence


def test_a_gate_that_prefers_one_expert_by_far_lets_it_take_all(
    healthy: Ranker, world: tuple[Features, Targets], simulated_config: Config
) -> None:
    def spoil(_scorer: DeepScorer, body: MMoE) -> None:
        body.gate.bias_GO[0, 2] += 20

    verdict = _judged(simulated_config, _spoiled(healthy, spoil), world)["one_expert"]
    assert verdict.alarm
    said = "One expert takes all: click of level 1 gives shared 3 100.0%, entropy 0.00 of the most even."
    assert verdict.sentence == said


def test_an_expert_of_zeros_is_dead_and_is_compared_with_none(
    healthy: Ranker, world: tuple[Features, Targets], simulated_config: Config
) -> None:
    def spoil(_scorer: DeepScorer, body: MMoE) -> None:
        last = body.experts.layers[-1]
        last.weight_GIO[1].zero_()  # type: ignore[index, union-attr, operator]
        last.bias_GO[1].zero_()  # type: ignore[index, union-attr, operator]

    spoiled = _spoiled(healthy, spoil)
    verdict = _judged(simulated_config, spoiled, world)["dead_units"]
    assert verdict.alarm
    assert "level 1 layer 2 of shared 2, 100% of whose units are active for no row" in verdict.sentence
    similarity = model_figures(spoiled, *world, seed=0)["cka"][0]["similarity"]
    assert similarity[1] == [None, None, None]
    assert similarity[0][2] is not None


def test_copies_of_one_expert_are_alike(
    healthy: Ranker, world: tuple[Features, Targets], simulated_config: Config
) -> None:
    def spoil(_scorer: DeepScorer, body: MMoE) -> None:
        for weight in body.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight))

    verdicts = _judged(simulated_config, _spoiled(healthy, spoil), world)
    assert "experts_alike" in _alarms(verdicts)
    assert "mean CKA of their outputs is 1.000 in level 1" in verdicts["experts_alike"].sentence


def test_a_body_without_gates_names_a_network_after_its_task(world: tuple[Features, Targets]) -> None:
    found = model_figures(Ranker(replace(SPEC, body="single_task")), *world, seed=0)
    assert found["gates"] == []
    assert found["cka"][0]["experts"] == ["click", "conversion"]
    shared = model_figures(Ranker(replace(SPEC, body="shared_bottom")), *world, seed=0)
    assert shared["cka"] == []
    layers = [(row["layer"], row["expert"]) for row in shared["dead_units"]]
    assert layers == [
        ("level 1 layer 1", "shared 1"),
        ("level 1 layer 2", "shared 1"),
        ("tower layer 1", "click"),
        ("tower layer 1", "conversion"),
    ]


@pytest.mark.parametrize(
    ("conversion_loss", "losses"),
    [
        ("esmm", ["click", "click_and_conversion"]),
        ("click_only", ["click", "conversion"]),
        ("escm2_ips", ["click", "click_and_conversion"]),
    ],
)
def test_the_gradient_of_clicks_is_held_against_that_of_conversions(
    conversion_loss: str, losses: list[str], world: tuple[Features, Targets]
) -> None:
    found = model_figures(Ranker(replace(SPEC, conversion_loss=conversion_loss)), *world, seed=0)
    expected = next(pair for pair in found["gradient_cosine_of_pairs"] if pair["tasks"] == losses)
    assert found["gradient_cosine"] == {kind: expected[kind] for kind in ("dense", "embedding")}
    assert found["gradient_cosine"]["dense"]["batches"] == 8


def test_heads_that_only_training_needs_are_named_too(world: tuple[Features, Targets]) -> None:
    found = model_figures(Ranker(replace(SPEC, conversion_loss="dcmt")), *world, seed=0)
    assert {row["expert"] for row in found["dead_units"]} >= {"click", "conversion", "counterfactual"}
