"""The two stages that make tomorrow's lists with the champion: retrieve candidates, rank them."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from pipeline import tables, tracking
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.featurize import run_folder
from pipeline.rank import lists_frame, rank_lists
from pipeline.retrieve import Candidates, candidates_for, make_index
from pipeline.scoring import Bundle, check_features, load_bundle, load_day
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace, read_json, replaced_folder, write_json, write_parquet


def champion_bundle(config: Config, workspace: Workspace) -> Bundle:
    """Load the champion from the registry.

    Raises:
        ValueError: there is none, or this configuration does not make its features.
    """
    client = tracking.connect(config, workspace)
    with tempfile.TemporaryDirectory() as scratch:
        found = tracking.champion(config, client, Path(scratch))
        if found is None:
            raise ValueError(f"no version of {config.tracking.model!r} is champion: run `counterpoise register` first")
        bundle = load_bundle(found.folder, found.version)
    check_features(bundle, plan_of(config))
    return bundle


def retrieve(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Build the champion's index for the serving day and write runs/<id>/index with every user's candidates."""
    bundle = champion_bundle(config, workspace)
    folder = run_folder(config, workspace, days)
    day = load_day(config, workspace, folder / "features", days.scored_for, bundle.encoder)
    with replaced_folder(folder / "index") as index:
        spec = make_index(config, bundle, day, index)
        found = candidates_for(config, bundle, day, index)
        frame = pl.DataFrame({"items": found.items, "from_towers": found.from_towers})
        write_parquet(frame, index / "candidates.parquet")
        write_json(index / "model.json", {"version": bundle.version, "scored_for": str(days.scored_for)})
    return Outcome(
        day.users.height, int((found.items >= 0).sum()), {"index": spec.kind, "recall": round(spec.recall, 4)}
    )


def rank(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Score the candidates with the champion and write the serving day of tables/candidates.

    Raises:
        ValueError: the champion changed since its candidates were retrieved.
    """
    bundle = champion_bundle(config, workspace)
    folder = run_folder(config, workspace, days)
    made = read_json(folder / "index" / "model.json", "retrieve")
    if made != {"version": bundle.version, "scored_for": str(days.scored_for)}:
        raise ValueError(
            f"{folder / 'index'} is of {made}, the champion is {bundle.version}: run `counterpoise retrieve` again"
        )
    day = load_day(config, workspace, folder / "features", days.scored_for, bundle.encoder)
    kept = pl.read_parquet(folder / "index" / "candidates.parquet")
    found = Candidates(np.array(kept["items"].to_numpy()), kept["from_towers"].to_numpy())
    lists = lists_frame(rank_lists(config, bundle, day, found), day, bundle.version)
    note = {"data_set": config.name, "config_digest": config.digest(), "model_version": bundle.version}
    rows = tables.write_days(workspace.table("candidates"), [lists], [day.day], column="scored_for", note=note)
    return Outcome(int((found.items >= 0).sum()), rows, {"users": day.users.height, "model_version": bundle.version})
