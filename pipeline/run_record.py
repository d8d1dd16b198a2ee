"""A run's record: what each stage read and made, and so whether a rerun may skip it."""

import datetime as dt
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import tables, torchrun
from pipeline.code_version import code_digest
from pipeline.config import Config
from pipeline.featurize import run_folder
from pipeline.split import Days
from pipeline.stage import LOG, Measured, Outcome, measure
from pipeline.workspace import Workspace, write_json

RECORD = "record.json"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """What decides the outcome of a stage beside configuration, code and days, and what it leaves.

    Attributes:
        tables: Delta tables whose version it reads.
        files: files of the run's folder that earlier stages made, as patterns.
        made: files of the run's folder that it makes, as patterns.
        made_days: table and partition column of which it writes the serving day.
        champion: whether it depends on which version is champion.
    """

    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    made_days: tuple[str, str] | None = None
    champion: bool = False


FEATURES = ("features/versions.json", "features/encoder.json", "features/base.json")
STEPS = {
    "featurize": Step(tables=("interactions", "users", "items"), made=("features/*.json", "features/*.parquet")),
    "train": Step(files=FEATURES, made=("model/training.json", "model/*/*", "control/*")),
    "calibrate": Step(files=("model/training.json",), made=("model/calibration.json",)),
    "evaluate": Step(files=(*FEATURES, "model/*.json"), made=("evaluation/evaluation.json",)),
    # Which champion it met is history: one that came later is no reason to register the same model once more.
    "register": Step(files=("model/*.json", "evaluation/evaluation.json"), made=("register.json",)),
    "retrieve": Step(files=FEATURES, made=("index/*",), champion=True),
    "rank": Step(files=(*FEATURES, "index/*"), made_days=("candidates", "scored_for"), champion=True),
}
"""The stages after ingest, in order. Ingest keeps its own record, in the table: which files it has read."""


@dataclass(frozen=True)
class Job:
    """One run of stages.

    Attributes:
        config: the whole configuration.
        workspace: where tables and runs are.
        days: of the split.
        source: where evaluate finds the simulator's truth.
        again: names of the stages that are run even where they are finished.
        champion: gives the version that is champion now, None where there is none.
    """

    config: Config
    workspace: Workspace
    days: Days
    source: str
    again: frozenset[str]
    champion: Callable[[], str | None]

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return run_folder(self.config, self.workspace, self.days)


def execute(job: Job, name: str, stage: Callable[[], Outcome]) -> Measured:
    """Run a stage and record it, or skip it where it is finished and what it reads is unchanged."""
    step = STEPS[name]
    inputs = inputs_of(job, step)
    known = read_record(job.folder).get(name)
    if name not in job.again and known is not None and known["inputs"] == inputs and known["made"] == _made(job, step):
        told = {"stage": name, "skipped": known["ended"]}
        LOG.info(
            "%-9s skipped: it ended at %s, and what it reads is unchanged", name, known["ended"], extra={"fields": told}
        )
        return Measured(name, Outcome(known["rows_in"], known["rows_out"], {"skipped": known["ended"]}), 0.0, 0.0)
    begun = _now()
    measured = measure(name, stage)
    if not torchrun.leads():
        return measured
    entry = {
        "inputs": inputs,
        "made": _made(job, step),
        "begun": begun,
        "ended": _now(),
        "host": platform.node(),
        **measured.as_dict(),
    }
    # What was made from this stage's earlier outcome is judged by its own inputs, so that it need not be forgotten.
    write_json(job.folder / RECORD, read_record(job.folder) | {name: entry})
    return measured


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of each stage by name, as far as the run has come."""
    path = folder / RECORD
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def inputs_of(job: Job, step: Step) -> dict[str, str]:
    """Return what decides a stage's outcome, each as a short text."""
    found = {"config": job.config.digest(), "code": code_digest(), "days": _told(job.days), "source": job.source}
    for name in step.tables:
        table = job.workspace.table(name)
        found[f"table {name}"] = str(tables.version(table)) if tables.exists(table) else "none"
    found |= {f"file {name}": digest for name, digest in _digests(job.folder, step.files)}
    if step.champion:
        found["champion"] = str(job.champion())
    return found


def _told(days: Days) -> str:
    """Return the days in words; a hole in a part makes another range."""
    parts = {"train": days.train, "validation": days.validation, "test": days.test}
    told = [f"{name} {', '.join(_ranges(part))}" for name, part in parts.items()]
    return "; ".join([*told, f"lists for {days.scored_for}"])


def _ranges(days: list[dt.date]) -> Iterator[str]:
    starts = [number for number, day in enumerate(days) if not number or (day - days[number - 1]).days > 1]
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        yield f"{days[start]} to {days[end - 1]}" if end - start > 1 else f"{days[start]}"


def _made(job: Job, step: Step) -> dict[str, str]:
    found = dict(_digests(job.folder, step.made))
    if step.made_days is not None:
        table, column = step.made_days
        days = tables.fingerprints(job.workspace.table(table), column)
        found[f"table {table}"] = days.get(job.days.scored_for, "none")
    return found


def _digests(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        yield path.relative_to(folder).as_posix(), _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
