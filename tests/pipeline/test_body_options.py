"""Bodies and their options, turned on through the configuration, trained on the small simulated source."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.experts import BODIES
from models.gating import load_balance_loss
from models.ranker import Ranker
from models.serialization import weights_digest
from pipeline.config import Config, load_config
from pipeline.fit import fit_of, fit_ranker
from pipeline.sections import Model
from pipeline.study_data import Study

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
OPTIONS = {
    "expert_activation": "swish",
    "expert_norm": "batch",
    "gate_dropout": 0.3,
    "gate_temperature": 2.0,
    "load_balance": 0.5,
}


def _with(study: Study, changes: Mapping[str, Any]) -> Study:
    # A day each: these tests ask what is wired, not what is learned.
    sizes = {"experts": 2, "task_experts": 1, "levels": 2} | dict(changes)
    model = Model.model_validate(study.config.model.model_dump() | sizes)
    config = study.config.model_copy(update={"model": model})
    return replace(study, config=config, training=study.training[-1:])


def _fitted(study: Study, *, drawn_before: int = 0) -> Ranker:
    torch.rand(drawn_before)
    config: Config = study.config
    return fit_ranker(study.spec(config.model.body, 1), fit_of(config), study.training, study.validation)[0]


@pytest.mark.parametrize("body", BODIES)
def test_every_body_trains_by_the_configuration_to_equal_bytes_with_all_options(small_study: Study, body: str) -> None:
    study = _with(small_study, {"body": body, **OPTIONS})
    first, second = _fitted(study), _fitted(study, drawn_before=3)
    assert first.spec.body == body
    assert {name: getattr(first.spec, name) for name in OPTIONS} == OPTIONS
    assert weights_digest(first) == weights_digest(second) != weights_digest(Ranker(first.spec))
    assert all(bool(weight.isfinite().all()) for weight in first.parameters())


def test_dropout_does_not_depend_on_what_was_drawn_before_a_fit_nor_change_what_is_drawn_after(
    small_study: Study,
) -> None:
    study = _with(small_study, {"dropout": 0.2})
    state = torch.get_rng_state()
    first = _fitted(study)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(first) == weights_digest(_fitted(study, drawn_before=5))


def test_the_load_balance_loss_spreads_the_experts_use(small_study: Study) -> None:
    def unevenness(weight: float) -> float:
        ranker = _fitted(_with(small_study, {"body": "mmoe", "experts": 4, "load_balance": weight}))
        gates = ranker.gates(small_study.training[-1].features)
        return float(load_balance_loss(gates, ranker.gate_levels()).detach())

    assert unevenness(10.0) < 0.5 * unevenness(0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.body": "linear"}, "model.body"),
        ({"model.expert_norm": "group"}, "model.expert_norm"),
        ({"model.gate_dropout": 1.0}, "model.gate_dropout"),
        ({"model.gate_temperature": 0.0}, "model.gate_temperature"),
        ({"model.load_balance": -1.0}, "model.load_balance"),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(EXAMPLE, changes)
