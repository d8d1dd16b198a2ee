"""The two stages that make tomorrow's lists with the champion: retrieve candidates, rank them."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pipeline import tables, tracking
from pipeline.config import Config
from pipeline.engine import Engine, open_engine
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder
from pipeline.rank import weights_of
from pipeline.retrieve import make_index
from pipeline.scoring import Day, check_features, load_bundle, load_day
from pipeline.source_lists import undecodable_items
from pipeline.source_merge import TOWERS
from pipeline.sources import Sources
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.user_ranges import Loaded, Serving, forget, rank_range, retrieve_range, user_ranges
from pipeline.workspace import Workspace, join_parquet, read_json, replaced_folder, write_json


@contextmanager
def _champion(config: Config, workspace: Workspace, days: Days, engine: Engine, index: Path) -> Iterator[Serving]:
    """Give the champion and the serving day; workers find the champion's files in the workspace meanwhile.

    Raises:
        ValueError: there is no champion, or this configuration does not make its features.
    """
    features, scratch = run_folder(config, workspace, days) / "features", workspace.root / ".champion"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        found = tracking.champion(config, tracking.connect(config, workspace), scratch)
        if found is None:
            raise ValueError(
                f"no version of {config.tracking.model!r} is champion: run `counterpoise register` first; where its "
                "gate refused every model, `counterpoise history` says why: set [gate] to what you accept and give the "
                "night's command again, or make one champion by hand with `counterpoise promote VERSION --force`"
            )
        bundle = load_bundle(found.folder, found.version)
        check_features(bundle, plan_of(config))
        weights_of(config, bundle.ranker.spec.outputs(), bundle.version)
        held = None
        if engine.in_process:
            held = Loaded(bundle, load_day(config, workspace, features, days.scored_for, bundle.encoder))
        token = str(uuid.uuid4())
        yield Serving(token, config, workspace, features, found.folder, found.version, days.scored_for, index, held)
    finally:
        forget()
        shutil.rmtree(scratch)


def champion_version(config: Config, workspace: Workspace) -> str | None:
    """Return the version that is champion, None where there is none."""
    return tracking.champion_version(config, tracking.connect(config, workspace))


def retrieve(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Build the champion's index for the serving day and write runs/<id>/index with every user's candidates."""
    folder = run_folder(config, workspace, days)
    with (
        open_engine(config) as engine,
        replaced_folder(folder / "index") as index,
        _champion(config, workspace, days, engine, index) as serving,
    ):
        bundle, day = serving.loaded().bundle, serving.loaded().day
        spec = make_index(config, bundle, day, index)
        ranges = user_ranges(serving, day.users.height, index / "spill")
        found = sum(engine.map(retrieve_range, ranges, "retrieve"))
        join_parquet([part.file for part in ranges], index / "candidates.parquet")
        (index / "spill").rmdir()
        write_json(index / "model.json", {"version": bundle.version, "scored_for": str(days.scored_for)})
        told = {"sources": TOWERS} if bundle.sources is None else _told(bundle.sources, day, index)
    notes = {"index": spec.kind, "recall": round(spec.recall, 4), **told}
    return Outcome(day.users.height, found, notes)


def _told(sources: Sources, day: Day, index: Path) -> dict[str, str | int]:
    return {"sources": "+".join(sources.names), "undecodable_items": undecodable_items(sources, day, index)}


def rank(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Score the candidates with the champion and write the serving day of tables/candidates.

    Raises:
        ValueError: the champion changed since its candidates were retrieved.
    """
    index = run_folder(config, workspace, days) / "index"
    with open_engine(config) as engine, _champion(config, workspace, days, engine, index) as serving:
        made = read_json(index / "model.json", "retrieve")
        if made != {"version": serving.version, "scored_for": str(days.scored_for)}:
            raise ValueError(
                f"{index} is of {made}, the champion is {serving.version}: run `counterpoise retrieve` again"
            )
        users = pl.scan_parquet(index / "candidates.parquet").select(pl.len()).collect().item()
        ranges = user_ranges(serving, users, workspace.root / ".champion" / "lists")
        found = sum(engine.map(rank_range, ranges, "rank"))
        note = {"data_set": config.name, "config_digest": config.digest(), "model_version": serving.version}
        frames = (pl.read_parquet(part.file) for part in ranges)
        table = workspace.table("candidates")
        rows = tables.write_days(table, frames, [days.scored_for], column="scored_for", note=note)
    return Outcome(found, rows, {"users": users, "model_version": serving.version})
