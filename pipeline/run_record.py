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
from pipeline.feed_store import open_store
from pipeline.split import Days
from pipeline.stage import LOG, Measured, Outcome, measure
from pipeline.uris import shown
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
        makes_lists: whether it writes the serving day of tables/candidates.
        champion: whether it depends on which version is champion.
        gate: whether it asks what the table `gate` says, which is no part of the configuration's digest.
        publishes: whether it reads the serving day's lists and makes a version of the feed.
    """

    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    makes_lists: bool = False
    champion: bool = False
    gate: bool = False
    publishes: bool = False


LISTS = ("candidates", "scored_for")
FEATURES = ("features/versions.json", "features/encoder.json", "features/base.json")
STEPS = {
    "featurize": Step(tables=("interactions", "users", "items"), made=("features/*.json", "features/*.parquet")),
    "train": Step(files=FEATURES, made=("model/training.json", "model/sources.json", "model/*/*", "control/*")),
    "calibrate": Step(files=("model/training.json",), made=("model/calibration.json",)),
    "evaluate": Step(files=(*FEATURES, "model/*.json"), made=("evaluation/evaluation.json",)),
    # Which champion it met is history: one that came later is no reason to register the same model once more.
    "register": Step(files=("model/*.json", "evaluation/evaluation.json"), made=("register.json",), gate=True),
    "retrieve": Step(files=FEATURES, made=("index/*", "index/semantic_ids/*"), champion=True),
    "rank": Step(files=(*FEATURES, "index/*"), makes_lists=True, champion=True),
    "publish": Step(
        tables=("interactions",), files=("index/model.json", "register.json"), made=("published.json",), publishes=True
    ),
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
    known = read_record(job.folder).get(name)
    inputs = inputs_of(job, step)
    if name not in job.again and known is not None and _holds(job, step, known, inputs):
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


def _holds(job: Job, step: Step, known: dict[str, Any], inputs: dict[str, str]) -> bool:
    """Return whether a stage would make again what it made, and that is still there.

    Lists of a past day are history: a champion of today was fitted on what happened since, and makes none again.
    """
    if step.champion and any(day > job.days.scored_for for day in tables.days(job.workspace.table(LISTS[0]), LISTS[1])):
        inputs = inputs | {"champion": known["inputs"]["champion"]}
    return bool(known["inputs"] == inputs and known["made"] == _made(job, step))


def inputs_of(job: Job, step: Step) -> dict[str, str]:
    """Return what decides a stage's outcome, each as a short text."""
    found = {"config": job.config.digest(), "code": code_digest(), "days": _told(job.days), "source": shown(job.source)}
    for name in step.tables:
        table = job.workspace.table(name)
        found[f"table {name}"] = str(tables.version(table)) if tables.exists(table) else "none"
    found |= {f"file {name}": digest for name, digest in _digests(job.folder, step.files)}
    if step.champion:
        found["champion"] = str(job.champion())
    if step.gate:
        found["gate"] = job.config.gate.model_dump_json()
    if step.publishes:
        found["feed"] = job.config.feed.model_dump_json()
        found["lists"] = _lists(job)
    return found


def _lists(job: Job) -> str:
    return tables.fingerprints(job.workspace.table(LISTS[0]), LISTS[1]).get(job.days.scored_for, "none")


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
    if step.makes_lists:
        found[f"table {LISTS[0]}"] = _lists(job)
    if step.publishes:
        current = open_store(job.config.feed.url, job.workspace.root).current()
        found["feed"] = "none" if current is None else current.name
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
