"""Register: log the run, register its model, and make it champion only where the gate lets it."""

import datetime as dt
import math
import tempfile
from pathlib import Path
from typing import Any

from features.encoding import load_encoder
from pipeline import tracking
from pipeline.config import Config
from pipeline.diagnose import logged
from pipeline.featurize import run_folder, table_versions
from pipeline.gate import Judgement, Opponent, judge_run
from pipeline.html_report import write_run_report
from pipeline.promotion import make_move, move_champion
from pipeline.provenance import git_commit
from pipeline.registry import set_alias, tag_version
from pipeline.report import HEADLINE
from pipeline.scoring import load_bundle, load_run_bundle
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace, read_json, write_json

REPORTS = ("report.md", "evaluation.json", "diagnostics.json")
"""What is logged as it is; report.html and register.json are logged once they hold the decision."""
FITTED_THROUGH = "fitted_through"
"""Tag of the last day whose labels trained a model, chose its epoch or calibrated it."""


def register(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Register the run's model; it becomes champion if the gate passes, see `pipeline.gate.judge_run`.

    Writes register.json, and report.html once more with the decision.

    Raises:
        ValueError: a stage before is missing, or the store does not answer.
    """
    folder = run_folder(config, workspace, days)
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    encoder = load_encoder(folder / "model" / "encoder.json")
    bundle = load_run_bundle(folder)
    client = tracking.connect(config, workspace)
    champion = tracking.champion_version(config, client)
    judged = judge_run(
        config, workspace, days, bundle, _opponent(config, client, champion), evaluation["diagnostics"]["verdicts"]
    )
    record = {
        "run": folder.name,
        "data_set": config.name,
        "config_digest": config.digest(),
        "git_commit": git_commit(),
        "test_days": f"{days.test[0]} to {days.test[-1]}",
        FITTED_THROUGH: str(days.validation[-1]),
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
    decision = _decide(config, client, (version, champion), folder.name, judged)
    write_json(folder / "register.json", {"version": version, **decision, **_told(judged), **record})
    page = folder / "evaluation" / "report.html"
    write_run_report(folder, page)
    for path in (page, folder / "register.json"):
        tracking.log_file(config, client, version, path)
    return Outcome(1, 1, {"version": version, "decision": decision["decision"]})


def _opponent(config: Config, client: tracking.Client, version: str | None) -> Opponent | None:
    """Load the champion, with the last day that it was fitted on; one that cannot be loaded is none to compare with."""
    if version is None:
        return None
    through = _fitted_through(tracking.run_tags(config, client, version))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = tracking.fetch(config, client, version, Path(scratch))
            return Opponent(version, load_bundle(found.folder, version), through)
    except ValueError as error:
        return Opponent(version, None, through, str(error))


def _fitted_through(tags: dict[str, str]) -> dt.date | None:
    """Read the last day that a registered model was fitted on; before 0.4 that is known to lie before its test days."""
    if FITTED_THROUGH in tags:
        return dt.date.fromisoformat(tags[FITTED_THROUGH])
    if "test_days" in tags:
        return dt.date.fromisoformat(tags["test_days"].split(" to ")[0]) - dt.timedelta(days=1)
    return None


def _decide(
    config: Config, client: tracking.Client, moved: tuple[str, str | None], run: str, judged: Judgement
) -> dict[str, Any]:
    """Move the alias that the judgement names, write the decision on the version, and return it."""
    version, champion = moved
    promoted, sentence = judged.outcome == "passed", judged.sentence
    loss = {} if judged.log_loss is None else {"test_log_loss": f"{judged.log_loss:.6f}"}
    told = {"run": run, "gate": judged.outcome, "gate_reference": judged.reference, **loss}
    tag_version(config, client, version, told)
    tracking.log_figures(config, client, version, figures_of(judged))
    if promoted:
        try:
            move_champion(config, client, make_move(version, champion, by="register", reason=sentence))
        except ValueError as error:  # the model is as good as it was, but no longer held against the champion
            promoted, sentence = False, str(error)
    if not promoted:
        set_alias(config, client, tracking.CHALLENGER, version)
    decision = f"{'champion' if promoted else 'challenger'}: {sentence}"
    tag_version(config, client, version, {"decision": decision})
    return {"promoted": promoted, "decision": decision, **loss}


def _told(judged: Judgement) -> dict[str, Any]:
    return {
        "decision_gate": judged.outcome,
        "decision_reference": judged.reference,
        "decision_checks": [check.as_dict() for check in judged.checks],
    }


def figures_of(judged: Judgement) -> dict[str, float]:
    """Return the figures of every check as MLflow metrics; `failed` is 1 or 0 where a check was measured."""
    figures: dict[str, float] = {}
    for check in judged.checks:
        values = {"challenger": check.challenger, "reference": check.reference, "difference": check.difference}
        values |= {"low": check.low, "high": check.high, "p_holm": check.p_holm}
        figures |= {f"gate/{check.name}/{key}": value for key, value in values.items() if value is not None}
        if check.verdict != "not measured":
            figures[f"gate/{check.name}/failed"] = float(check.verdict == "failed")
    return figures


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
