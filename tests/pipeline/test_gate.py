"""Claims on the gate of a run with a champion: each guardrail refuses a challenger that is worse in its respect."""

import datetime as dt
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.calibration import Calibration, Platt
from pipeline.calibrate import calibrate
from pipeline.config import load_config
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.gate import Judgement, Opponent, judge_run
from pipeline.ingest import ingest
from pipeline.scoring import Bundle, load_run_bundle
from pipeline.simulate import simulate
from pipeline.split import Days
from pipeline.train import train
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [8],
    "training.control": False,
    "training.batch_size": 64,
    "training.epochs": 3,
    "training.learning_rate": 1e-2,
    "training.embedding_learning_rate": 1e-2,
    "retriever.epochs": 6,
    "retrieval.candidates": 20,
    "ranking.list_length": 10,
    "evaluation.ks": [5, 10],
    "evaluation.replicates": 20,
    "calibration.min_positives": 10,
    "gate.min_rows": 40,
    "gate.min_positives": 5,
}
ALARM = {"name": "dead_task", "alarm": True, "sentence": "Alarm: click is not learned."}


@dataclass(frozen=True)
class Trained:
    """A run's model, which is the champion too unless a test says otherwise."""

    workspace: Workspace
    days: Days
    model: Bundle

    def judge(
        self,
        challenger: Bundle | None = None,
        *,
        champion: Bundle | None = None,
        through: dt.date | None = None,
        verdicts: tuple[dict[str, Any], ...] = (),
        **gate: Any,
    ) -> Judgement:
        """Judge a challenger with some keys of [gate] changed."""
        config = load_config(EXAMPLE, {**SETTINGS, **{f"gate.{key}": value for key, value in gate.items()}})
        champion = replace(champion or self.model, version="7")
        opponent = Opponent("7", champion, through or self.days.validation[-1])
        return judge_run(config, self.workspace, self.days, challenger or self.model, opponent, verdicts)

    def with_users(self, change: Callable[[torch.nn.Linear], object]) -> Bundle:
        """Return the model with another last layer of the tower of users."""
        retriever = deepcopy(self.model.retriever)
        with torch.no_grad():
            change(retriever.user_tower.output)
        return replace(self.model, retriever=retriever)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train on five days of 240 users a day, many of whom come for the first time on the test day."""
    root = tmp_path_factory.mktemp("gate")
    world = SimulatorConfig(
        users=700,
        items=400,
        days=5,
        requests_per_day=300,
        slots=4,
        click_rate=0.3,
        conversion_rate=0.5,
        time_zone="Asia/Shanghai",
    )
    simulate(world, root / "source")
    config, workspace = load_config(EXAMPLE, SETTINGS), Workspace(root / "workspace")
    ingest(config, workspace, root / "source")
    days = days_of(config, workspace, None)
    for stage in (featurize, train, calibrate):
        stage(config, workspace, days)
    return Trained(workspace, days, load_run_bundle(run_folder(config, workspace, days)))


@pytest.fixture(scope="module")
def contrary(trained: Trained) -> Bundle:
    """Return the model with probabilities that fall where they should rise."""
    curves = {"click": Platt(-3.0, 2.0), "conversion": Platt(-3.0, 2.0)}
    return replace(trained.model, calibration=Calibration(method="platt", curves=curves))


def _failed(judged: Judgement) -> set[str]:
    return {check.name for check in judged.checks if check.verdict == "failed"}


def _segments(judged: Judgement) -> set[str]:
    return {check.name.partition(":")[0] for check in judged.checks if ": click log-loss" in check.name}


def test_the_champion_itself_passes_and_the_sentence_names_what_it_was_held_against(trained: Trained) -> None:
    judged = trained.judge()
    assert (judged.outcome, judged.reference, _failed(judged)) == ("passed", "version 7", set())
    assert "is not worse than" in judged.sentence


@pytest.mark.parametrize(
    "name",
    [
        "click log-loss",
        "click GAUC",
        "click PCOC",
        "new users new: click log-loss",
        "new items new: click log-loss",
        "surface home: click log-loss",
        "position 1: conversion log-loss",
    ],
)
def test_probabilities_that_are_worse_are_refused_of_all_rows_and_of_each_segment(
    trained: Trained, contrary: Bundle, name: str
) -> None:
    judged = trained.judge(contrary)
    assert judged.outcome == "failed"
    assert name in _failed(judged)


def test_segments_alone_refuse_a_model(trained: Trained, contrary: Bundle) -> None:
    """All that is asked of whole tasks is put out of force but for their log-loss, which segments share."""
    judged = trained.judge(contrary, **{"pcoc": (0.01, 100.0), "tolerance.gauc": 1.0})
    segments = {name for name in _failed(judged) if ":" in name}
    assert _failed(judged) - segments == {
        f"{task} log-loss" for task in ("click", "click and conversion", "conversion")
    }
    assert len(segments) > len(_segments(judged))  # of more than one task


def test_candidates_that_miss_what_is_clicked_are_refused_by_recall_alone(trained: Trained) -> None:
    def negated(layer: torch.nn.Linear) -> None:
        layer.weight.neg_()
        layer.bias.neg_()

    judged = trained.judge(trained.with_users(negated), min_rows=100_000)
    assert _failed(judged) == {f"recall of {label}s among the candidates" for label in ("click", "conversion")}
    assert judged.sentence.startswith("recall of clicks among the candidates 0.")
    assert trained.judge(trained.with_users(negated), **{"tolerance.recall": 1.0}).outcome == "passed"


def test_the_same_candidates_for_all_are_refused_by_coverage_alone(trained: Trained) -> None:
    generator = torch.Generator().manual_seed(1)
    various = trained.with_users(lambda layer: layer.weight.normal_(generator=generator))
    same = trained.with_users(lambda layer: layer.weight.zero_())
    judged = trained.judge(same, champion=various, **{"tolerance.recall": 1.0})
    assert (judged.outcome, _failed(judged)) == ("failed", {"coverage of the candidates"})
    assert trained.judge(same, champion=various, **{"tolerance.recall": 1.0, "tolerance.coverage": 1.0}).outcome == (
        "passed"
    )


def test_an_alarm_refuses_only_where_it_is_said_to_block(trained: Trained) -> None:
    judged = trained.judge(verdicts=(ALARM,))
    assert (judged.outcome, judged.sentence) == ("failed", "no alarm: dead task: Alarm: click is not learned")
    warned = trained.judge(verdicts=(ALARM,), blocking_alarms=[])
    assert warned.outcome == "passed"
    assert [check.name for check in warned.checks if check.verdict == "warned"] == ["no alarm: dead task"]


def test_a_champion_that_was_fitted_on_the_test_day_is_not_compared(trained: Trained, contrary: Bundle) -> None:
    day = trained.days.test[0]
    judged = trained.judge(through=day, pcoc=(0.01, 100.0))
    assert (judged.outcome, judged.reference) == ("not compared", "the popularity baseline")
    assert judged.sentence == (
        f"champion 7 cannot be compared: it was fitted on days through {day}, which holds the test day {day}; "
        "`counterpoise promote` decides by hand"
    )
    assert not _segments(judged)
    assert trained.judge(contrary, through=day).outcome == "failed"  # worse than popularity


def test_segments_of_fewer_rows_and_of_rarer_values_are_not_asked(trained: Trained) -> None:
    values = {
        "position": {"position 1", "position 2", "position 3"},
        "surface": {"surface home", "surface feed", "surface search"},
    }
    new = {"new users new", "new items new"}
    assert _segments(trained.judge()) == new | values["position"] | values["surface"]
    assert _segments(trained.judge(surfaces=1)) == new | {"position 1", "surface home"}
    assert _segments(trained.judge(surfaces=0)) == new
    assert _segments(trained.judge(min_rows=500)) == {"surface home"}
    assert not _segments(trained.judge(min_rows=100_000))


@pytest.mark.parametrize("has_champion", [True, False])
def test_a_model_of_which_nothing_was_measured_does_not_pass(trained: Trained, *, has_champion: bool) -> None:
    """Candidates are no answer to whether the probabilities are good; those of the first model are not even asked."""
    if has_champion:
        judged = trained.judge(min_positives=100_000)
    else:
        config = load_config(EXAMPLE, {**SETTINGS, "gate.min_positives": 100_000})
        judged = judge_run(config, trained.workspace, trained.days, trained.model, None, [])
    assert judged.log_loss is None
    assert judged.outcome == "not compared"
    assert judged.sentence.startswith(f"too few test labels to compare with {judged.reference}: collect more")
