"""What tables/interactions was made from: the contract it was read by, and the digest of every file."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline import tables
from pipeline.config import Config
from pipeline.labelled_log import task_labels
from pipeline.sections import SideTable
from pipeline.source_files import SourceFile
from pipeline.workspace import Workspace

# Delta keeps a signed 64-bit number with each name.
DIGEST_CHARACTERS = 15


@dataclass(frozen=True)
class Survey:
    """The files of a source against what earlier runs read.

    Attributes:
        digests: name and SHA-256 of each file.
        records: the same shortened to a number, as a commit keeps it for good.
        new: names of files that were never read.
        changed: names of files that were read with other bytes.
    """

    digests: dict[str, str]
    records: dict[str, int]
    new: frozenset[str]
    changed: frozenset[str]

    def fresh(self) -> frozenset[str]:
        """Return the names of the files that were not read as they are."""
        return self.new | self.changed


def survey(workspace: Workspace, digests: dict[str, str]) -> Survey:
    """Compare digests by name with those that tables/interactions records."""
    records = {name: int(digest[:DIGEST_CHARACTERS], 16) for name, digest in digests.items()}
    known = tables.recorded(workspace.table("interactions"), records)
    new = frozenset(records.keys() - known.keys())
    changed = frozenset(name for name, number in known.items() if records[name] != number)
    return Survey(digests, records, new, changed)


def file_digests(files: Iterable[SourceFile]) -> dict[str, str]:
    """Return the digest of each file under the name that commits record it by."""
    return {f"file:{file.name}": file.digest() for file in files}


def side_digest(files: list[SourceFile], table: SideTable) -> str:
    """Return a digest of the bytes of what should be one file, and of what is read from it."""
    text = json.dumps(table.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(f"{[file.digest() for file in files]} {text}".encode()).hexdigest()


def table_note(config: Config) -> dict[str, str]:
    """Return what every commit of tables/interactions says of itself, see `check_contract`."""
    return {
        "data_set": config.name,
        "config_digest": config.digest(),
        "contract": json.dumps(contract_record(config), sort_keys=True),
    }


def contract_record(config: Config) -> dict[str, Any]:
    """Return what decides how a source's rows become interactions; not where they lie, nor what tunes a model."""
    source = config.source.model_dump(mode="json", include={"columns", "streams", "time_unit", "time_zone"})
    for columns in (source["columns"], *source["streams"]):
        if columns["propensity"] is None:
            del columns["propensity"]  # tables from before there was one are of the same contract
    streams = [{key: value for key, value in stream.items() if key != "files"} for stream in source.pop("streams")]
    if streams:
        source["columns"] = None
    labels = {"click_window", "conversion_window", "lateness"}
    labels |= set() if streams else {"click", "conversion", "numeric"}
    tasks = {task.name: [task.expression, task.number] for task in task_labels(config)}
    return {
        "source": {**source, "streams": sorted(streams, key=json.dumps)},
        "labels": config.labels.model_dump(mode="json", include=labels) | ({"tasks": tasks} if tasks else {}),
        "context": {"columns": sorted(config.context.columns), "hour": config.context.hour is not None},
    }


def check_contract(config: Config, workspace: Workspace) -> None:
    """Refuse interactions of another data set, of another contract or of an earlier version.

    Raises:
        ValueError: it does; the message names what differs.
    """
    table = workspace.table("interactions")
    if not tables.exists(table):
        return
    note = tables.metadata(table)
    if note.get("data_set") != config.name:
        raise ValueError(
            f"workspace {workspace.root} holds the data set {note.get('data_set')!r}, not {config.name!r}: give "
            "another --workspace"
        )
    if "contract" not in note:
        raise ValueError(
            f"workspace {workspace.root} was written by an earlier version of counterpoise: use a new --workspace"
        )
    before, now = _flat(json.loads(note["contract"])), _flat(contract_record(config))
    differing = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(
            f"workspace {workspace.root} holds interactions of another contract ({'; '.join(differing)}): "
            "use a new --workspace"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
