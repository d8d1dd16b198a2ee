"""The control of a run: what it is, where it lies, and what is said with and without it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.ranker import Ranker, save_ranker
from models.serialization import weights_digest
from pipeline.calibrate import calibrate
from pipeline.config import Config
from pipeline.control import load_control, why_no_control
from pipeline.diagnose import REPORTED
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.fit import fit_of, fit_ranker
from pipeline.study_data import load_study
from pipeline.train import train
from pipeline.workspace import Workspace, read_json

VERDICTS = ["seesaw", "constant_predictions", "dead_task", "one_expert", "experts_alike", "dead_units"]


def _small(config: Config, **training: object) -> Config:
    model = config.model.model_copy(update={"hidden": [16, 8]})
    retriever = config.retriever.model_copy(update={"epochs": 1})
    evaluation = config.evaluation.model_copy(update={"replicates": 20, "importance": False})
    changed = config.training.model_copy(update={"batch_size": 128, "learning_rate": 1e-2, **training})
    return config.model_copy(
        update={"model": model, "training": changed, "retriever": retriever, "evaluation": evaluation}
    )


def _evaluated(config: Config, workspace: Workspace, source: Path) -> tuple[Path, dict[str, Any]]:
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    train(config, workspace, days)
    calibrate(config, workspace, days)
    evaluate(config, workspace, days, source)
    folder = run_folder(config, workspace, days)
    return folder, json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workspace(study_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("diagnose") / "workspace"
    shutil.copytree(study_workspace.root, root)
    return Workspace(root)


def test_a_run_keeps_its_control_beside_the_model_and_says_whether_a_task_pays(
    simulated_config: Config, simulated_source: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    config = _small(simulated_config)
    with caplog.at_level(logging.WARNING, logger="counterpoise"):
        folder, result = _evaluated(config, workspace, simulated_source)
    record = read_json(folder / "model" / "training.json", "train")
    assert [set(point) for point in record["single_task"]] == [set(point) for point in record["ranker"]]
    assert {path.name for path in (folder / "model").iterdir() if path.is_dir()} == {
        "ranker",
        "logistic_regression",
        "retriever",
    }
    found = result["diagnostics"]
    assert set(found) == set(REPORTED)
    assert [verdict["name"] for verdict in found["verdicts"]] == VERDICTS
    assert set(found["seesaw"]) == {"click", "click_and_conversion", "conversion"}
    assert "joint - single-task: click AUC" in found["verdicts"][0]["sentence"]
    whole = read_json(folder / "evaluation" / "diagnostics.json", "evaluate")
    assert whole["rows"] == 400
    assert {key: whole[key] for key in REPORTED} == found
    assert [level["gates"] for level in found["gates"]] == [["click", "conversion"]]
    alarms = [f"evaluate: {verdict['sentence']}" for verdict in found["verdicts"] if verdict["alarm"]]
    assert alarms == [text for text in caplog.messages if text.startswith("evaluate: ")]
    study = load_study(config, workspace, on="test", run=folder.name)
    alone, _ = fit_ranker(study.spec("single_task", config.seed), fit_of(config), study.training, study.validation)
    control = load_control(folder)
    assert control is not None
    assert weights_digest(control) == weights_digest(alone)
    save_ranker(Ranker(alone.spec), folder / "control")
    with pytest.raises(ValueError, match=r"control is not the control that .*training\.json records"):
        load_control(folder)


def test_without_a_control_the_run_says_so(
    simulated_config: Config, simulated_source: Path, workspace: Workspace
) -> None:
    folder, result = _evaluated(_small(simulated_config, control=False), workspace, simulated_source)
    assert not (folder / "control").exists()
    assert load_control(folder) is None
    assert result["diagnostics"]["seesaw"] == {}
    assert result["diagnostics"]["verdicts"][0]["sentence"] == "Seesaw not measured: training.control is false."


def test_single_task_and_a_warm_start_have_no_control(simulated_config: Config) -> None:
    single = simulated_config.model_copy(
        update={"model": simulated_config.model.model_copy(update={"body": "single_task"})}
    )
    assert why_no_control(single) == "the body is single_task itself"
    assert "warm start" in str(why_no_control(_small(simulated_config, warm_start=True)))
    assert why_no_control(simulated_config) is None
