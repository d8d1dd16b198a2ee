"""What a night left: how old the live lists are and why, refused rows, and what the stages took."""

import datetime as dt
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.config import Config
from pipeline.feed_records import Version
from pipeline.feed_store import open_store
from pipeline.publish import STATE
from pipeline.run_record import STEPS, read_record
from pipeline.split import Days
from pipeline.workspace import Workspace, read_json

WATCH = "watch"
LISTED_RUNS = 7
LEAST_SECONDS = 60.0
"""A stage that took less is not slow, whatever it took before."""


def freshness(
    config: Config, workspace: Workspace, folder: Path, when: tuple[Days, dt.date | None], now: dt.datetime
) -> dict[str, Any]:
    """Say which lists are live, how old they are, and why.

    Args:
        config: names the store.
        workspace: where a store of files lies.
        folder: of the newest run, whether or not it got there.
        when: the days of that run, whose lists are for `days.scored_for`; and the last day of data that the night was
            to use, which is later where its log has not come, None for that of the run.
        now: the moment of the watch.

    Returns:
        `version`, `scored_for`, `published_at`, `age_seconds` since publication, `behind_days` (days from the day of
        the lists to that which was asked for), `users`, and `sentence`; only `sentence` without live lists.
    """
    days, asked = when
    missing = max(0, (asked - days.test[-1]).days) if asked else 0
    try:
        live = open_store(config.feed.url, workspace.root).current()
    except ValueError as error:
        return {"sentence": f"The live lists cannot be read: {error}"}
    why = reason_of(folder, days, live)
    if missing:
        why = f"there is no log of {asked}, the newest day of data is {days.test[-1]}; {why}"
    if live is None:
        return {"sentence": f"Nothing was ever published to {config.feed.url}: {why}"}
    published = dt.datetime.fromisoformat(live.published_at)
    behind = (days.scored_for - dt.date.fromisoformat(live.scored_for)).days + missing
    told = "was asked for" if missing else "the newest data allow"
    age = f"{behind} day{'s' * (behind != 1)} older than {told}" if behind > 0 else "as new as the data"
    return {
        "version": live.name,
        "model_version": live.model_version,
        "run": live.run,
        "scored_for": live.scored_for,
        "published_at": live.published_at,
        "age_seconds": round((now - published).total_seconds(), 1),
        "behind_days": max(0, behind),
        "users": live.users,
        "sentence": (
            f"The lists for {live.scored_for} (version {live.name} of model {live.model_version}, published "
            f"{published:%Y-%m-%d %H:%M} UTC) are live, {age}: {why}"
        ),
    }


def reason_of(folder: Path, days: Days, live: Version | None) -> str:
    """Say in the words of the newest run why its lists are live, or why they are not."""
    record = read_record(folder)
    stages = [name for name in STEPS if name != WATCH]
    missing = [name for name in stages if name not in record]
    gate, published = _json(folder / "register.json"), _json(folder / STATE)
    if live is not None and live.scored_for == str(days.scored_for):
        if live.run == folder.name:
            return f"run {folder.name} made them."
        return f"run {live.run} made them; run {folder.name} is the newest."
    if gate.get("decision_gate") == "failed" and not published.get("kept"):
        first, _, more = str(gate["decision"]).removeprefix("challenger: ").partition(";")
        told = f"{first}{', and more' if more else ''}"
        return f"the gate of run {folder.name} refused version {gate['version']} ({told})."
    if not record:
        return f"run {folder.name} has finished no stage: `counterpoise run` with the same options begins it."
    if missing:
        ended = [name for name in stages if name in record]
        return (
            f"run {folder.name} has finished {ended[-1]} and not {missing[0]}: run `counterpoise {missing[0]}` again."
        )
    why = published.get("kept") or "its lists are not the live ones: run `counterpoise publish`"
    return f"run {folder.name} has finished: {why}."


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def quarantined(workspace: Workspace, folders: Sequence[Path]) -> dict[str, Any]:
    """Count the refused rows by reason: now, and as each of some runs found them.

    Returns:
        `now` by reason, and `runs`: run and rows by reason of what the runs' own version of the table held.
    """
    table = workspace.table("quarantine")
    found = []
    for folder in folders:
        path = folder / "features" / "versions.json"
        version = read_json(path, "featurize").get("quarantine") if path.exists() else None
        if version is not None:
            found.append({"run": folder.name, "rows": _by_reason(table, version)})
    return {"now": _by_reason(table, None) if tables.exists(table) else {}, "runs": found}


def _by_reason(table: Path, version: int | None) -> dict[str, int]:
    counts = tables.scan(table, version).group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    return dict(counts.collect().iter_rows())


def last_runs(workspace: Workspace, folder: Path) -> list[Path]:
    """Return the folders of the last runs of the same configuration up to a run, in the order of their test days."""
    digest = folder.name[len("YYYY-MM-DD-") :]
    found = [path for path in (workspace.root / "runs").glob(f"????-??-??-{digest}") if path.name <= folder.name]
    return sorted(found)[-LISTED_RUNS:]


def stage_times(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each stage the seconds of some runs, None where a run has not finished it, and the usual time.

    Returns:
        stage, `seconds` by run, and `usual`: the median of all runs but the last that finished it; None without one.
    """
    records = {folder.name: read_record(folder) for folder in folders}
    found = []
    for stage in STEPS:
        seconds = {run: record[stage]["seconds"] if stage in record else None for run, record in records.items()}
        before = [value for value in list(seconds.values())[:-1] if value is not None]
        if any(value is not None for value in seconds.values()):
            found.append({"stage": stage, "seconds": seconds, "usual": statistics.median(before) if before else None})
    return found


def last_success(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return when each stage last ended well in any run, in seconds since 1970, and how many seconds it took."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted((workspace.root / "runs").glob("[!.]*")):
        for stage, entry in read_record(folder).items():
            ended = dt.datetime.fromisoformat(entry["ended"]).timestamp()
            if ended >= found.get(stage, {"ended": 0.0})["ended"]:
                found[stage] = {"ended": ended, "seconds": entry["seconds"]}
    return found


def data_days(workspace: Workspace, newest: dt.date, count: int) -> list[dt.date]:
    """Return the last days with interactions up to one."""
    return [day for day in tables.days(workspace.table("interactions")) if day <= newest][-count:]


def impressions_by_day(workspace: Workspace, days: list[dt.date]) -> dict[dt.date, int]:
    """Count the impressions of some days."""
    rows = tables.scan(workspace.table("interactions")).filter(pl.col("date").is_in(days))
    return dict(rows.group_by("date").len().sort("date").collect().iter_rows())
