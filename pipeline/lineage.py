"""From published lists back to what they were made of: model, examples, interactions, source files."""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.feed_copies import AUDIT
from pipeline.publish import STATE
from pipeline.report import feed_line
from pipeline.run_record import STEPS, read_record
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class RunLine:
    """A run in one line: its name, finished stages, last end, and what became of its model."""

    name: str
    stages: str
    ended: str
    seconds: float
    version: str
    decision: str


def runs(workspace: Workspace) -> list[RunLine]:
    """Return a line a run of the workspace, in order of their names, which begin with the last test day."""
    folders = sorted(path for path in (workspace.root / "runs").glob("*") if (path / "features").exists())
    return [_run_line(folder) for folder in folders]


def _run_line(folder: Path) -> RunLine:
    record, registered = read_record(folder), _registered(folder)
    finished = [name for name in STEPS if name in record]
    return RunLine(
        name=folder.name,
        stages="all" if len(finished) == len(STEPS) else ", ".join(finished) or "none recorded",
        ended=max((entry["ended"] for entry in record.values()), default=""),
        seconds=sum(entry["seconds"] for entry in record.values()),
        version=str(registered.get("version", "")),
        decision=str(registered.get("decision", "")),
    )


def find_run(workspace: Workspace, name: str) -> Path:
    """Return the folder of a run by its name, by the beginning of it, or by a version that was published from it.

    Raises:
        ValueError: none or several begin so.
    """
    name = find_copy(workspace, name).get("run", name)
    folders = sorted(path for path in (workspace.root / "runs").glob("*") if path.name.startswith(name))
    exact = [path for path in folders if path.name == name]
    if len(exact or folders) != 1:
        known = [path.name for path in folders] or sorted(path.name for path in (workspace.root / "runs").glob("*"))
        raise ValueError(f"run {name!r} is {'several' if folders else 'none'} of {known}: give one whole name")
    return (exact or folders)[0]


def find_copy(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return the record of a published version whose copy is kept; {} where there is none of that name."""
    return _json(workspace.root / AUDIT / name / "version.json")


def lineage(workspace: Workspace, folder: Path, name: str) -> list[str]:
    """Return a line for each thing that lists were made of, from what was published to the source's files.

    The lists are of the champion, which another run may have made: from the model on, the lines are of that run.

    Args:
        workspace: where it all is.
        folder: of the run.
        name: a version that the run published, whose own lists and model are told, although the run may have made
            others since; any other name for what the run made last.
    """
    copy = find_copy(workspace, name)
    lines = [_published_line(copy)] if copy else list(_published_lines(workspace, folder))
    maker = folder
    made = {**copy, "version": copy["model_version"]} if copy else _json(folder / "index" / "model.json")
    if made:
        day = dt.date.fromisoformat(made["scored_for"])
        lines.append(_lists_line(workspace, day, copy.get("candidates_version")))
        maker = _maker(workspace, str(made["version"])) or folder
        lines.append(f"model: version {made['version']}, made by run {maker.name}")
    training = _json(maker / "model" / "training.json")
    lines += [f"weights: {name} sha256 {digest}" for name, digest in training.get("digests", {}).items()]
    versions: dict[str, int] = _json(maker / "features" / "versions.json")
    lines += [f"table {name}: version {number}" for name, number in sorted(versions.items())]
    files = _source_files(workspace, versions.get("interactions"))
    return lines + [f"source {name.replace(':', ' ')}: sha256 {digest}" for name, digest in sorted(files.items())]


def _published_lines(workspace: Workspace, folder: Path) -> Iterator[str]:
    """Tell each version that the run published whose copy is kept, and what readers see where it is none of them."""
    for path in sorted((workspace.root / AUDIT).glob("[!.]*/version.json")):
        if (copy := _json(path))["run"] == folder.name:
            yield _published_line(copy)
    if (state := _json(folder / STATE)) and state["kept"]:
        yield feed_line(state)


def _published_line(copy: dict[str, Any]) -> str:
    return (
        f"published: version {copy['name']} to {copy['store']} at {copy['published_at']}: lists for "
        f"{copy['scored_for']}, from table candidates version {copy['candidates_version']}, model version "
        f"{copy['model_version']}"
    )


def _lists_line(workspace: Workspace, day: dt.date, version: int | None) -> str:
    rows = tables.scan(workspace.table("candidates"), version).filter(pl.col("scored_for") == day)
    counts = rows.select(pl.len(), pl.col("user_id").n_unique(), pl.col("model_version").first()).collect().row(0)
    return f"lists for {day}: {counts[0]:,} rows of {counts[1]:,} users, model version {counts[2]}"


def _maker(workspace: Workspace, version: str) -> Path | None:
    """Return the run that registered a version; None where it was made in another workspace, or its folder is gone."""
    for folder in sorted((workspace.root / "runs").glob("*")):
        if str(_registered(folder).get("version")) == version:
            return folder
    return None


def _source_files(workspace: Workspace, version: int | None) -> dict[str, str]:
    """Return the digest of each file that the interactions were read from, as of a version of them."""
    files: dict[str, str] = {}
    if version is not None:
        for note in tables.notes(workspace.table("interactions"), version):
            files |= json.loads(note.get("files", "{}"))
    return files


def _registered(folder: Path) -> dict[str, Any]:
    return _json(folder / "register.json")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
