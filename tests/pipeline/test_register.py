"""Claims on what MLflow and the reports hold once register has ended and nothing after it has begun, as in the DAG."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.calibrate import calibrate
from pipeline.config import load_config
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.register import register
from pipeline.report import HEADLINE, METRICS, interval
from pipeline.run_files import RunFiles, read_run
from pipeline.train import train
from pipeline.workspace import Workspace

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "labels.tasks": {"liked": {"label": "click OR conversion"}},
    "model.hidden": [8],
    "training.control": False,
    "training.batch_size": 64,
    "training.epochs": 3,
    "training.learning_rate": 1e-2,
    "training.embedding_learning_rate": 1e-2,
    "retriever.epochs": 1,
    "evaluation.ks": [5, 10],
    "evaluation.replicates": 20,
    "evaluation.importance": False,
    "calibration.min_positives": 10,
}


@dataclass(frozen=True)
class Registered:
    """A run that register was the last stage of, and the MLflow run of its version."""

    run: RunFiles
    client: MlflowClient
    logged: Run


@pytest.fixture(scope="module")
def registered(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    place = Workspace(tmp_path_factory.mktemp("register") / "workspace")
    config = load_config(EXAMPLES / "simulated.toml", SETTINGS)
    ingest(config, place, simulated_source, None)
    days = days_of(config, place, None)
    for stage in (featurize, train, calibrate):
        stage(config, place, days)
    evaluate(config, place, days, simulated_source)
    register(config, place, days)
    client = MlflowClient(f"sqlite:///{place.root / 'mlflow.db'}")
    run = client.get_model_version_by_alias(config.tracking.model, "champion").run_id
    assert run is not None
    return Registered(read_run(run_folder(config, place, days)), client, client.get_run(run))


def test_the_page_holds_the_decision_in_the_run_and_in_mlflow(registered: Registered, tmp_path: Path) -> None:
    page = (registered.run.folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "Version 1: champion: the first version, not worse than the popularity baseline; checks: " in page
    assert "Checks of" in page
    assert "Not registered yet" not in page
    run = registered.logged.info.run_id
    copy = Path(registered.client.download_artifacts(run, "report.html", str(tmp_path)))
    assert copy.read_text(encoding="utf-8") == page
    names = {file.path for file in registered.client.list_artifacts(run)}
    assert names >= {"report.html", "report.md", "evaluation.json", "diagnostics.json", "register.json"}


def test_mlflow_holds_figures_of_further_tasks_of_the_uncalibrated_ranker_and_of_verdicts(
    registered: Registered,
) -> None:
    metrics, evaluation = registered.logged.data.metrics, registered.run.evaluation
    for task, values in evaluation["baselines"]["uncalibrated"]["tasks"].items():
        for name in HEADLINE:
            logged = metrics[f"baselines/uncalibrated/tasks/{task}/{name}/value"]
            assert logged == pytest.approx(values[name]["value"])
        assert f"baselines/uncalibrated/tasks/{task}/ece/value" not in metrics
    liked = evaluation["extra_tasks"]["liked"]["auc"]
    assert metrics["extra_tasks/liked/auc/low"] == pytest.approx(liked["low"])
    alarms = {verdict["name"]: float(verdict["alarm"]) for verdict in evaluation["diagnostics"]["verdicts"]}
    assert alarms
    assert {name: metrics[f"verdict/{name}/alarm"] for name in alarms} == alarms


def test_the_difference_to_the_logistic_regression_is_named_as_that_of_the_uncalibrated_ranker(
    registered: Registered,
) -> None:
    report = (registered.run.folder / "evaluation" / "report.md").read_text(encoding="utf-8")
    for difference in registered.run.evaluation["difference_to_logistic_regression"].values():
        cells = " | ".join(interval(difference[metric]) for metric in METRICS)
        assert f"| uncalibrated - logistic regression | {cells} |" in report
    assert "| model - logistic regression" not in report
