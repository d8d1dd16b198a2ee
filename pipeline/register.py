"""Register: log the run, register its model, and make it champion only where the gate lets it."""

import datetime as dt
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.encoding import load_encoder
from pipeline import tracking
from pipeline.config import Config
from pipeline.diagnose import logged
from pipeline.featurize import run_folder, table_versions
from pipeline.gate import Judgement, Opponent, judge_run
from pipeline.html_report import write_run_report
from pipeline.promotion import REGISTER, champion_before, make_move, move_champion, moves, withdrawn
from pipeline.provenance import git_commit
from pipeline.registry import log_again, model_tags, set_alias, tag_version, version_made_by
from pipeline.report import HEADLINE
from pipeline.scoring import Bundle, load_bundle, load_run_bundle
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.tracking import metric_name
from pipeline.workspace import Workspace, read_json, write_json

REPORTS = ("report.md", "evaluation.json", "diagnostics.json")
"""What is logged as it is; report.html and register.json are logged once they hold the decision."""
FITTED_THROUGH = "fitted_through"
"""Tag of the last day whose labels trained a model, chose its epoch or calibrated it."""
STILL = "it stays so, `counterpoise rollback` ends that"
WITHDRAWN = "it was champion until a promote or rollback took that place"


@dataclass(frozen=True)
class Standing:
    """How a run's model stands in the registry before it is judged.

    Attributes:
        version: under which this run registered the same files before; None where it did not.
        champion: the version that is champion now.
        against: the version that it is held against.
        is_withdrawn: whether it was champion until a promote or a rollback.
    """

    version: str | None
    champion: str | None
    against: str | None
    is_withdrawn: bool


def register(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Register the run's model; it becomes champion if the gate passes, see `pipeline.gate.judge_run`.

    Files that this run has registered before keep their version: its decision is made anew, or finished where a kill
    came before it. Writes register.json, and report.html once more with the decision.

    Raises:
        ValueError: a stage before is missing, or the store does not answer.
    """
    folder = run_folder(config, workspace, days)
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    bundle = load_run_bundle(folder)
    client = tracking.connect(config, workspace)
    digest = tracking.files_digest(folder / "model")
    standing = _standing(config, workspace, client, version_made_by(config, client, folder.name, digest))
    judged = judge_run(
        config,
        workspace,
        days,
        bundle,
        _opponent(config, client, standing.against),
        evaluation["diagnostics"]["verdicts"],
    )
    record = _record(config, folder, days) | {tracking.FILES_DIGEST: digest}
    version = _logged(config, client, standing.version, (folder, bundle), record)
    decision = _decide(config, client, (version, standing), folder.name, judged)
    write_json(folder / "register.json", {"version": version, **decision, **_told(judged), **record})
    page = folder / "evaluation" / "report.html"
    write_run_report(folder, page)
    for path in (page, folder / "register.json"):
        tracking.log_file(config, client, version, path)
    return Outcome(1, 1, {"version": version, "decision": decision["decision"]})


def _record(config: Config, folder: Path, days: Days) -> dict[str, Any]:
    """Return what register.json and the tags of the MLflow run hold of a run."""
    return {
        "run": folder.name,
        "data_set": config.name,
        "config_digest": config.digest(),
        "git_commit": git_commit(),
        "test_days": f"{days.test[0]} to {days.test[-1]}",
        FITTED_THROUGH: str(days.validation[-1]),
        **{f"table_{name}": version for name, version in table_versions(folder).items()},
    }


def _standing(config: Config, workspace: Workspace, client: tracking.Client, version: str | None) -> Standing:
    """Tell what a run's model is held against: the champion, or where it is that itself, the champion before it."""
    champion = tracking.champion_version(config, client)
    against = champion
    if champion is not None and champion == version:
        against = champion_before(moves(model_tags(config, client), champion), champion)
    return Standing(version, champion, against, version in withdrawn(config, workspace))


def _logged(
    config: Config, client: tracking.Client, version: str | None, made: tuple[Path, Bundle], record: dict[str, Any]
) -> str:
    """Log what the run made, as a new version or once more for the one that it has; return the version."""
    folder, bundle = made
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    diagnosed, tags = logged(evaluation["diagnostics"])
    metrics, told = _metrics(evaluation) | diagnosed, record | tags
    files = [folder / "evaluation" / name for name in REPORTS]
    if version is not None:
        log_again(config, client, version, metrics=metrics, record=told, files=files)
        return version
    return tracking.log_version(
        config,
        model=folder / "model",
        sign=tracking.signature(bundle.ranker.spec, load_encoder(folder / "model" / "encoder.json")),
        metrics=metrics,
        record=told,
        files=files,
    )


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
    config: Config, client: tracking.Client, one: tuple[str, Standing], run: str, judged: Judgement
) -> dict[str, Any]:
    """Move the alias that the judgement names, write the decision on the version, and return it."""
    version, standing = one
    loss = {} if judged.log_loss is None else {"test_log_loss": f"{judged.log_loss:.6f}"}
    told = {"run": run, "gate": judged.outcome, "gate_reference": judged.reference, **loss}
    tag_version(config, client, version, told)
    tracking.log_figures(config, client, version, figures_of(judged))
    if version == standing.champion:
        promoted = judged.outcome == "passed"
        sentence = judged.sentence if promoted else f"{STILL}; {judged.sentence}"
    else:
        promoted, sentence = _moved(config, client, version, standing, judged)
    if not promoted and version != standing.champion:
        set_alias(config, client, tracking.CHALLENGER, version)
    kind = tracking.CHAMPION if promoted or version == standing.champion else tracking.CHALLENGER
    tag_version(config, client, version, {"decision": f"{kind}: {sentence}"})
    return {"promoted": promoted, "decision": f"{kind}: {sentence}", **loss}


def _moved(
    config: Config, client: tracking.Client, version: str, standing: Standing, judged: Judgement
) -> tuple[bool, str]:
    """Make a version champion that passed, unless a person took that place from it; say whether, and why."""
    if judged.outcome != "passed":
        return False, judged.sentence
    if standing.is_withdrawn:
        return False, f"{WITHDRAWN}, `counterpoise promote {version}` gives it back; {judged.sentence}"
    try:
        move_champion(config, client, make_move(version, standing.champion, by=REGISTER, reason=judged.sentence))
    except ValueError as error:  # the model is as good as it was, but no longer held against the champion
        return False, str(error)
    return True, judged.sentence


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
        if check.verdict != "not measured":
            values["failed"] = float(check.verdict == "failed")
        figures |= {metric_name("gate", check.name, key): value for key, value in values.items() if value is not None}
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
