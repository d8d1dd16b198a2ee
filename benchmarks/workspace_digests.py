"""Digests of what a workspace holds, without what counts on or is drawn by chance: equal after equal work."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

import polars as pl

from benchmarks.forked import answer_of
from pipeline import tables
from pipeline.checkpoint import FOLDER as CHECKPOINTS
from pipeline.config import Config
from pipeline.feed import Feed
from pipeline.feed_copies import AUDIT
from pipeline.feed_lmdb import LmdbStore
from pipeline.feed_store import lmdb_folder
from pipeline.run_record import RECORD
from pipeline.vacuum import tables_of
from pipeline.workspace import Workspace

# A registry counts on, and a table's versions too; what they hold is compared instead.
COUNTED = ("version", "model_version", "decision", "table_", "candidates_version", "name", "published_at")
FEED = "lmdb:feed"
CHANCE = re.compile(rf"({AUDIT}/\d{{4}}-\d\d-\d\d)-[0-9a-f]{{8}}")
PROMOTION = rb'<section id="section-\d+-promotion">.*?</section>'
DECISION = re.compile(PROMOTION + rb"|Version \d+: [^<]*|registered version</td><td>\d+|has version [^<]*", re.DOTALL)
NAMED_BY_CHANCE = ("published.json", "report.html")
"""Files of a run that hold the name of a published version."""
Digests = dict[str, str]


def name_of(workspace: Workspace, path: Path) -> str:
    """Return a path in the workspace."""
    return path.relative_to(workspace.root).as_posix()


def table_digest(path: Path, version: int | None = None) -> str:
    """Return the digest of a table's rows, in an order of their own; the model's version is left out."""
    frame = tables.scan(path, version).collect()
    frame = frame.select(sorted(set(frame.columns) - {"model_version"}))
    flat = [name for name, kind in frame.schema.items() if not kind.is_nested()]
    return tables.digest(frame.sort(flat, maintain_order=True, nulls_last=True))


def digests(workspace: Workspace, config: Config, stage: str) -> Digests:
    """Return a digest of every table and file; for register, of the champion too, for publish, of the feed.

    A run's record holds moments and numbers of versions; that a stage is skipped rightly is tested elsewhere.
    """
    found = {name_of(workspace, path): table_digest(path) for path in tables_of(workspace)}
    for folder in ("runs", "features", "tables", AUDIT):
        for file in (workspace.root / folder).rglob("*"):
            if (
                file.is_file()
                and file.name != RECORD
                and not (folder == "tables" and file.name.startswith("part-"))  # of no commit: vacuum takes it
                and not any((parent / "_delta_log").exists() for parent in file.parents)
            ):
                found[CHANCE.sub(r"\1", name_of(workspace, file))] = file_digest(workspace, file)
    if stage == "register":
        found["champion"] = answer_of(_champion_digest, workspace, config)  # MLflow keeps the database open
    if stage == "publish":
        found["feed"] = answer_of(feed_digest, workspace)
    return found


def feed_digest(workspace: Workspace) -> str:
    """Return a digest of what a reader of the feed gets for every user of tables/candidates, 'none' where it has none.

    Raises:
        ValueError: the feed is not whole.
    """
    if LmdbStore(lmdb_folder(FEED, workspace.root)).current() is None:
        return "none"
    users = tables.scan(workspace.table("candidates")).select(pl.col("user_id").unique().sort()).collect()
    feed = Feed.open(FEED, workspace.root)
    lists = [(one.user_id, one.items, one.outputs, one.is_fallback) for one in feed.lists(users["user_id"].to_list())]
    return hashlib.sha256(repr((feed.refused, feed.version.scored_for, lists)).encode()).hexdigest()


def file_digest(workspace: Workspace, file: Path) -> str:
    """Return the digest of a file, of JSON and of reports without what counts on."""
    content = file.read_bytes()
    if file.suffix == ".json":
        values = json.loads(content)
        if file.name == "versions.json":
            values = {name: table_digest(workspace.table(name), version) for name, version in values.items()}
        elif isinstance(values, dict):
            values = {key: value for key, value in values.items() if not key.startswith(COUNTED)}
        content = json.dumps(values, sort_keys=True).encode()
    elif file.suffix == ".html":
        content = DECISION.sub(b"", content)  # as of JSON: a registry counts on, and holds what was registered before
    return hashlib.sha256(content).hexdigest()


def _champion_digest(workspace: Workspace, config: Config) -> str:
    from pipeline import tracking

    with tempfile.TemporaryDirectory() as scratch:
        champion = tracking.champion(config, tracking.connect(config, workspace), Path(scratch))
        if champion is None:
            return "none"
        files = sorted(path for path in champion.folder.rglob("*") if path.is_file())
        return " ".join(f"{path.name} {file_digest(workspace, path)}" for path in files)


def run_outputs(workspace: Workspace) -> dict[str, Digests]:
    """Return the digests of the files of each output of a run, `runs/<id>/<output>`; drafts and records are none."""
    found: dict[str, Digests] = {}
    for file in sorted((workspace.root / "runs").rglob("*")):
        name = "/".join(file.relative_to(workspace.root).parts[:3])
        if file.is_file() and not Path(name).name.startswith(".") and Path(name).name not in {CHECKPOINTS, RECORD}:
            chance = file.name in NAMED_BY_CHANCE
            digest = file_digest(workspace, file) if chance else hashlib.sha256(file.read_bytes()).hexdigest()
            found.setdefault(name, {})[name_of(workspace, file)] = digest
    return found
