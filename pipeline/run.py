"""A whole run, top to bottom, one call a stage."""

import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from models.calibration import CALIBRATION_FILE
from pipeline import tables
from pipeline.calibrate import calibrate
from pipeline.config import Config
from pipeline.engine import open_engine
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.html_report import write_run_report
from pipeline.ingest import ingest
from pipeline.publish import STATE, publish
from pipeline.register import register
from pipeline.run_record import STEPS, Job, execute
from pipeline.serve_lists import champion_version, rank, retrieve
from pipeline.split import Days
from pipeline.stage import LOG, Measured, Outcome, measure
from pipeline.train import train
from pipeline.watch import watch
from pipeline.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

WATCH = "watch"
STAGES = ["ingest", *STEPS, WATCH]
FAILURES = (Exception, pl.exceptions.PanicException)
"""What may end a stage, but for an interruption; polars panics on some damaged files, past Exception."""


@dataclass(frozen=True)
class Span:
    """Which stages a run runs: by default all, but for those that are finished and read nothing new.

    Attributes:
        until: the last stage; None for the last of all.
        again: the first of the stages that are run even where they are finished; None for none of them.
    """

    until: str | None = None
    again: str | None = None

    def __post_init__(self) -> None:
        """Refuse a span that would run nothing again.

        Raises:
            ValueError: the first of the stages to be run again comes after the last.
        """
        if self.again and self.until and STAGES.index(self.again) > STAGES.index(self.until):
            raise ValueError(
                f"--from {self.again} comes after --until {self.until}, so nothing would be run again: the order is "
                f"{', '.join(STAGES)} (--force is --from featurize)"
            )

    def names(self) -> list[str]:
        """Return the names of the stages up to the last."""
        return STAGES[: STAGES.index(self.until) + 1] if self.until else STAGES

    def forced(self) -> frozenset[str]:
        """Return the names of the stages that are run whatever their record says."""
        return frozenset(STAGES[STAGES.index(self.again) :] if self.again else [])


def run(
    config: Config, workspace: Workspace, source: str | Path, date: dt.date | None = None, span: Span = Span()
) -> dict[str, Any]:
    """Run the stages in order and return the summary that `--summary` writes.

    Args:
        config: the whole configuration.
        workspace: where tables, runs and the registry are.
        source: folder or URI of the interaction logs.
        date: last day to use, by default the last day that has rows.
        span: which stages, and which of them again.

    Returns:
        Where the span ends before the last stage only the run's name and the stages.

    Raises:
        ValueError: a stage failed; watch, if it is among the stages, has told what readers have instead.
    """
    with open_engine(config), _watched_failure(config, workspace, date, span):  # one engine, whose processes all share
        measured = [measure("ingest", lambda: ingest(config, workspace, source, date))]
        if span.until == "ingest":
            return {"run": None, "stages": {"ingest": measured[0].as_dict()}}
        days = days_of(config, workspace, date)
        measured += _stages(config, workspace, source, days, span)
    if WATCH in span.names():
        measured.append(measure(WATCH, lambda: watch(config, workspace, days, date)))
        return summarise(config, workspace, days, measured)
    stages = {stage.name: stage.as_dict() for stage in measured}
    return {"run": run_folder(config, workspace, days).name, "stages": stages}


@contextmanager
def _watched_failure(config: Config, workspace: Workspace, date: dt.date | None, span: Span) -> Iterator[None]:
    """Watch after a failure, so that what readers have instead is told; the failure stays what it was."""
    try:
        yield
    except FAILURES:
        if WATCH in span.names() and tables.exists(workspace.table("interactions")):
            try:
                measure(WATCH, lambda: watch(config, workspace, watched_days(config, workspace, date), date))
            except FAILURES as error:  # the failure that is reported is the first
                LOG.warning("watch: %s: %s", type(error).__name__, error)
        raise


def watched_days(config: Config, workspace: Workspace, date: dt.date | None) -> Days:
    """Return the days of a night; where the log of its day has not come, those of the night before.

    Raises:
        ValueError: no night can have been.
    """
    present = tables.days(workspace.table("interactions"))
    before = [day for day in present if date is not None and day <= date]
    return days_of(config, workspace, before[-1] if before else date)


def _stages(config: Config, workspace: Workspace, source: str | Path, days: Days, span: Span) -> list[Measured]:
    job = job_of(config, workspace, days, source, span)
    stages: dict[str, Callable[[], Outcome]] = {
        "featurize": lambda: featurize(config, workspace, days),
        "train": lambda: train(config, workspace, days),
        "calibrate": lambda: calibrate(config, workspace, days),
        "evaluate": lambda: evaluate(config, workspace, days, source),
        "register": lambda: register(config, workspace, days),
        "retrieve": lambda: retrieve(config, workspace, days),
        "rank": lambda: rank(config, workspace, days),
        "publish": lambda: publish(config, workspace, days),  # its refusals hold even where stages are run again
    }
    return [execute(job, name, stage) for name, stage in stages.items() if name in span.names()]


def job_of(config: Config, workspace: Workspace, days: Days, source: str | Path, span: Span) -> Job:
    """Return what the stages of one run have in common."""
    return Job(config, workspace, days, str(source), span.forced(), lambda: champion_version(config, workspace))


def summarise(config: Config, workspace: Workspace, days: Days, stages: list[Measured]) -> dict[str, Any]:
    """Gather what a run made, and write it beside the run."""
    folder = run_folder(config, workspace, days)
    lists = tables.scan(workspace.table("candidates")).filter(pl.col("scored_for") == days.scored_for)
    counts = (
        lists.select(pl.len().alias("rows"), pl.col("user_id").n_unique().alias("users")).collect().row(0, named=True)
    )
    registered = read_json(folder / "register.json", "register")
    summary = {
        "run": folder.name,
        "stages": {stage.name: stage.as_dict() for stage in stages},
        "seconds": round(sum(stage.seconds for stage in stages), 3),
        "peak_mib": round(max(stage.peak_mib for stage in stages), 1),
        "registered_version": registered["version"],
        "promoted": registered["promoted"],
        "decision": registered["decision"],
        "model_version": str(lists.select("model_version").first().collect().item()),
        "digest": run_digest(workspace, folder, days),
        "candidates": {
            "path": str(workspace.table("candidates")),
            "scored_for": str(days.scored_for),
            **counts,
        },
        "published": read_json(folder / STATE, "publish"),
        "evaluation": read_json(folder / "evaluation" / "evaluation.json", "evaluate"),
        "report": str(folder / "evaluation" / "report.html"),
        "config": config.model_dump(mode="json"),
    }
    write_json(folder / "summary.json", summary)
    write_run_report(folder, folder / "evaluation" / "report.html")  # once more, now that the decision is known
    return summary


def run_digest(workspace: Workspace, folder: Path, days: Days) -> str:
    """Return one SHA-256 over rows of the tables, weights and calibration: equal for equal source, config and seed.

    The version number of the model is left out, since a registry counts on.
    """
    digest = hashlib.sha256()
    for name, column, wanted in (
        ("interactions", "date", days.all()),
        ("examples", "date", days.all()),
        ("candidates", "scored_for", [days.scored_for]),
    ):
        version = table_versions(folder)["examples"] if name == "examples" else None
        for day in wanted:
            frame = tables.scan(workspace.table(name), version).filter(pl.col(column) == day).collect()
            keys = ["user_id", "rank"] if name == "candidates" else ["impression_id"]
            rows = frame.select(sorted(set(frame.columns) - {"model_version"})).sort(keys)
            digest.update(f"{name} {day} {tables.digest(rows)}\n".encode())
    weights = read_json(folder / "model" / "training.json", "train")["digests"]
    digest.update(f"{sorted(weights.items())}".encode())
    calibration = read_json(folder / "model" / CALIBRATION_FILE, "calibrate")
    digest.update(json.dumps(calibration, sort_keys=True).encode())
    return digest.hexdigest()
