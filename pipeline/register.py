"""Register: log the run, register its model, and make it champion only where it is no worse than the champion."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.encoding import encode, load_encoder
from pipeline import tracking
from pipeline.config import Config
from pipeline.dataset import examples_from, without_tasks
from pipeline.diagnose import logged
from pipeline.feature_plan import plan_of
from pipeline.featurize import KEPT, run_folder, table_versions
from pipeline.fit import PREDICT_ROWS
from pipeline.html_report import write_run_report
from pipeline.provenance import git_commit
from pipeline.report import HEADLINE
from pipeline.scoring import check_features, load_bundle, load_run_bundle
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace, read_json, write_json

REPORTS = ("report.md", "evaluation.json", "diagnostics.json")
"""What is logged as it is; report.html is logged once it holds the decision."""


def register(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Register the run's model; it becomes champion if its test log-loss of click-and-conversion is not worse.

    Both models score the same test impressions, each with its own encoder on the same raw features. Writes
    register.json, and report.html once more with the decision.

    Raises:
        ValueError: a stage before is missing, or the store does not answer.
    """
    folder = run_folder(config, workspace, days)
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    encoder = load_encoder(folder / "model" / "encoder.json")
    bundle = load_run_bundle(folder)
    client = tracking.connect(config, workspace)
    own = log_loss_on_test_days(config, folder, days, folder / "model", "this run")
    with tempfile.TemporaryDirectory() as scratch:
        current = tracking.champion(config, client, Path(scratch))
        promoted, decision = _decision(config, folder, days, own, current)
    record = {
        "run": folder.name,
        "data_set": config.name,
        "config_digest": config.digest(),
        "git_commit": git_commit(),
        "test_days": f"{days.test[0]} to {days.test[-1]}",
        **{f"table_{name}": version for name, version in table_versions(folder).items()},
    }
    diagnosed, tags = logged(evaluation["diagnostics"])
    version = tracking.log_version(
        config,
        model=folder / "model",
        sign=tracking.signature(bundle.ranker.spec, encoder),
        metrics=_metrics(evaluation) | diagnosed,
        record=record | tags,
        files=[folder / "evaluation" / name for name in REPORTS],
    )
    tracking.decide(config, client, version, {"run": folder.name, **decision}, promoted=promoted)
    write_json(folder / "register.json", {"version": version, "promoted": promoted, **decision, **record})
    page = folder / "evaluation" / "report.html"
    write_run_report(folder, page)
    tracking.log_file(config, client, version, page)
    return Outcome(1, 1, {"version": version, "decision": decision["decision"]})


def log_loss_on_test_days(config: Config, folder: Path, days: Days, model: Path, version: str) -> float:
    """Return a model's log-loss of click-and-conversion on the run's raw test impressions.

    Raises:
        ValueError: the model needs features that this configuration does not make.
    """
    bundle = load_bundle(model, version)
    check_features(bundle, plan_of(config))
    total, rows = 0.0, 0
    for day in days.test:
        raw = pl.read_parquet(folder / "features" / f"raw-{day}.parquet")
        encoded = pl.concat([raw.select(KEPT), encode(raw, bundle.encoder)], how="horizontal")
        examples = examples_from(encoded, without_tasks(bundle.ranker.spec), None)
        predicted = bundle.predict(examples.features, PREDICT_ROWS)[:, 2].astype(np.float64)
        clipped = np.clip(predicted, 1e-12, 1 - 1e-12)
        labels = examples.conversions.numpy() > 0
        total -= float(np.where(labels, np.log(clipped), np.log1p(-clipped)).sum())
        rows += len(labels)
    return total / rows


def _decision(
    config: Config, folder: Path, days: Days, own: float, current: tracking.Registered | None
) -> tuple[bool, dict[str, str]]:
    """Compare with the champion; a champion that cannot be scored on today's features stays."""
    measured = {"test_log_loss": f"{own:.6f}"}
    if current is None:
        return True, {"decision": "champion: the first version", **measured}
    try:
        theirs = log_loss_on_test_days(config, folder, days, current.folder, current.version)
    except ValueError as error:
        reason = f"challenger: champion {current.version} cannot be compared ({error})"
        return False, {"decision": reason, **measured}
    promoted = own <= theirs
    relation = "not worse than" if promoted else "worse than"
    verdict = f"test log-loss {own:.6f} is {relation} {theirs:.6f} of version {current.version}"
    return promoted, {"decision": f"{'champion' if promoted else 'challenger'}: {verdict}", **measured}


def _metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return evaluation.json's numbers as MLflow metrics; MLflow's names take no '@'."""
    uncalibrated = evaluation["baselines"]["uncalibrated"]["tasks"]
    headline = {task: {name: metrics[name] for name in HEADLINE} for task, metrics in uncalibrated.items()}
    verdicts = {verdict["name"]: {"alarm": verdict["alarm"]} for verdict in evaluation["diagnostics"]["verdicts"]}
    flat = tracking.flatten(
        {key: evaluation[key] for key in ("tasks", "extra_tasks", "retrieval", "lists")}
        | {"baselines": {"uncalibrated": {"tasks": headline}}, "verdict": verdicts}
    )
    return {
        key.replace(".", "/"): float(value)
        for key, value in flat.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
