"""Watch: what the lists of the last days came to, how old the live ones are, and what has drifted.

It needs interactions and nothing else: of a run that ended half-way it names what is missing.
"""

import datetime as dt
import math
from typing import Any

from pipeline import tracking
from pipeline.config import Config
from pipeline.featurize import run_folder
from pipeline.html_report import write_run_report
from pipeline.report_watch import write_watch_page
from pipeline.split import Days
from pipeline.stage import LOG, Outcome
from pipeline.watch_alarms import alarms_of
from pipeline.watch_drift import feature_drift, prediction_drift
from pipeline.watch_lists import AT_REFERENCE, CONTEXT, UNREADABLE, copies, realised, summed
from pipeline.watch_metrics import EXPOSED, exposition, mlflow_figures, samples_of
from pipeline.watch_rates import day_figures, segment_figures, task_figures
from pipeline.watch_state import (
    data_days,
    freshness,
    impressions_by_day,
    last_runs,
    last_success,
    quarantined,
    stage_times,
)
from pipeline.workspace import Workspace, write_json

RECORD, PAGE = "watch.json", "watch.html"
DIGITS = 9
UNREAD = "a file cannot be read ({}): `counterpoise doctor --deep` names it"


def watch(config: Config, workspace: Workspace, days: Days, asked: dt.date | None = None) -> Outcome:
    """Write runs/<id>/watch.json, watch.html, metrics.prom, MLflow's figures of each day, and the run's report again.

    A rerun replaces what it wrote; MLflow keeps a day's figures as they were first measured.

    Args:
        config: its table `watch` holds the limits.
        workspace: where the log, the runs and the published lists are.
        days: of the newest run, however far it came.
        asked: the last day of data that the night was to use, later than those days where its log has not come; None
            for theirs.

    Raises:
        ValueError: there are no interactions, or the registry does not answer.
    """
    folder = run_folder(config, workspace, days)
    found = observe(config, workspace, days, dt.datetime.now(dt.UTC), asked)
    found = {**found, "alarms": [alarm.as_dict() for alarm in alarms_of(config.watch, found)]}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, found)
    write_watch_page(found, workspace.root / PAGE)
    if (folder / "evaluation" / "evaluation.json").exists():
        write_run_report(folder, folder / "evaluation" / "report.html")
    text = exposition(samples_of(found, last_success(workspace)))
    draft = workspace.root / f".{EXPOSED}.draft"
    draft.write_text(text, encoding="utf-8")
    draft.replace(workspace.root / EXPOSED)
    for alarm in found["alarms"]:
        LOG.warning("watch: %s", alarm["sentence"])
    logged = tracking.log_days(config, tracking.connect(config, workspace), mlflow_figures(found))
    rows = sum(day["impressions"] for day in found["days"])
    explained = sum(day.get("explained", 0) for day in found["days"])
    notes = {"alarms": len(found["alarms"]), "logged": logged, "lists": found["freshness"]["sentence"]}
    return Outcome(rows, explained, notes)


def observe(
    config: Config, workspace: Workspace, days: Days, now: dt.datetime, asked: dt.date | None = None
) -> dict[str, Any]:
    """Return all figures that a watch has; a part that cannot be measured has a `reason`.

    Args:
        config: the whole configuration.
        workspace: where the log, the runs and the published lists are.
        days: of the newest run.
        now: the moment, for the age of the lists.
        asked: as in `watch`.

    Returns:
        What watch.json holds but for its alarms.
    """
    folder = run_folder(config, workspace, days)
    runs = last_runs(workspace, folder)
    figures = {
        "data_set": config.name,
        "run": folder.name,
        "watched_at": now.isoformat(timespec="seconds"),
        "newest_day": str(days.test[-1]),
        "asked_day": str(max(asked or days.test[-1], days.test[-1])),
        "freshness": freshness(config, workspace, folder, (days, asked), now),
        **_rates(config, workspace, days),
        "drift": {
            "features": feature_drift(config, workspace, folder, days),
            "predictions": _prediction_drift(config, workspace),
        },
        "quarantine": quarantined(workspace, runs),
        "stages": stage_times(runs),
    }
    rounded: dict[str, Any] = _rounded(figures)
    return rounded


def _rates(config: Config, workspace: Workspace, days: Days) -> dict[str, Any]:
    watched = data_days(workspace, days.test[-1], config.watch.days)
    try:
        found, labels = realised(config, workspace, watched)
    except (ValueError, *UNREADABLE) as error:
        reason = str(error) if isinstance(error, ValueError) else UNREAD.format(error)
        counts = impressions_by_day(workspace, watched)
        told = [{"day": str(day), "impressions": rows, "reason": reason} for day, rows in counts.items()]
        return {"days": told, "labels": reason, "tasks": {}, "at_reference": {}, "segments": []}
    sums = summed(found)
    return {
        "days": [day_figures(config, result) for result in found],
        "labels": labels,
        "tasks": task_figures(config, sums),
        "at_reference": task_figures(config, sums, CONTEXT, AT_REFERENCE),
        "segments": segment_figures(config, sums),
    }


def _prediction_drift(config: Config, workspace: Workspace) -> dict[str, Any]:
    try:
        return prediction_drift(config, copies(config, workspace))
    except UNREADABLE as error:
        return {"reason": UNREAD.format(error)}


def _rounded(value: Any) -> Any:
    """Round floats, whose last digits depend on the number of cores that added them up; NaN, no JSON, becomes None."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value
