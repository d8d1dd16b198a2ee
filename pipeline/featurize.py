"""Featurize: point-in-time features of each day, an encoder fitted on training days, states for scoring."""

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from features.asof import FeatureState, advance_state, example_features, initial_state
from features.encoding import Encoder, encode, fit_encoder, save_encoder
from features.plan import CounterPlan, FeaturePlan, SidePlan
from pipeline import tables
from pipeline.config import Config
from pipeline.sections import SideTable
from pipeline.split import Days, resolve_days
from pipeline.stage import Outcome, progress
from pipeline.workspace import Workspace, read_json, replaced_folder, run_id, write_json, write_parquet

READ = ("interactions", "examples", "quarantine", "users", "items")
KEPT = (
    "impression_id",
    "user_id",
    "item_id",
    "event_time",
    "date",
    "click",
    "conversion",
    "click_known_at",
    "conversion_known_at",
    "label_matures_at",
)


def plan_of(config: Config) -> FeaturePlan:
    """Return the features that a configuration declares."""
    return FeaturePlan(
        users=_side_plan(config.users),
        items=_side_plan(config.items),
        context=tuple(config.context.references()),
        counters=tuple(
            CounterPlan(
                keys=tuple(counter.keys),
                half_lives_days=tuple(counter.half_lives_days),
                smoothing=counter.smoothing,
                recency=counter.recency,
            )
            for counter in config.features.counters
        ),
        sequence_length=config.features.sequence_length,
        item_age=config.features.item_age,
        time_zone=config.source.time_zone,
    )


def _side_plan(table: SideTable) -> SidePlan:
    return SidePlan(categorical=tuple(table.categorical), numeric=tuple(table.numeric), multi=tuple(table.multi))


def days_of(config: Config, workspace: Workspace, date: dt.date | None) -> Days:
    """Return the days of the split for the interactions that the workspace holds."""
    present = tables.days(workspace.table("interactions"))
    return resolve_days(config.split, present, date, config.ranking.scored_for)


def run_folder(config: Config, workspace: Workspace, days: Days) -> Path:
    """Return the folder of the run that this configuration and these days name."""
    return workspace.run(run_id(days.test[-1], config.digest()))


def side_frame(workspace: Workspace, name: str, table: SideTable) -> pl.DataFrame | None:
    """Read tables/users or tables/items, or None where the configuration has none."""
    return tables.scan(workspace.table(name)).collect() if table.file is not None else None


def featurize(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Write tables/examples, and the encoder, states and raw test rows of the run.

    One pass over the days: the state as of a day makes its raw features, then takes in its interactions.
    Memory holds a day, the states and, while the encoder is fitted, one column of the training days.
    """
    plan = plan_of(config)
    with replaced_folder(run_folder(config, workspace, days) / "features") as folder:
        spill = folder / "spill"
        spill.mkdir()
        rows_in = _raw_days(config, workspace, days, plan, folder)
        training = pl.scan_parquet([spill / f"{day}.parquet" for day in days.train])
        encoder = fit_encoder(training, plan, min_count=config.features.min_count, bins=config.features.bins)
        _check_references(config, encoder)
        save_encoder(encoder, folder / "encoder.json")
        note = {"data_set": config.name, "config_digest": config.digest()}
        frames = _encoded_days(spill, days, encoder)
        rows = tables.write_days(workspace.table("examples"), frames, days.all(), note=note)
        for day in days.test:
            (spill / f"{day}.parquet").rename(folder / f"raw-{day}.parquet")
        read = {name: tables.version(workspace.table(name)) for name in READ if tables.exists(workspace.table(name))}
        write_json(folder / "versions.json", read)
        shutil.rmtree(spill)
    sizes = sum(encoder.cardinalities().values())
    return Outcome(rows_in, rows, {"embedding_ids": sizes, "numeric_features": len(encoder.knots)})


def _check_references(config: Config, encoder: Encoder) -> None:
    for name, value in config.context.columns.items():
        known = encoder.vocabularies[name]
        if value not in known:
            raise ValueError(
                f"context.columns.{name} = {value!r} does not occur on the training days: scoring would use an "
                f"untrained value; choose one of {known[:10]}"
            )


def _raw_days(config: Config, workspace: Workspace, days: Days, plan: FeaturePlan, folder: Path) -> int:
    users = side_frame(workspace, "users", config.users)
    items = side_frame(workspace, "items", config.items)
    interactions = tables.scan(workspace.table("interactions"))
    first = tables.days(workspace.table("interactions"))[0]
    state = initial_state(first)
    wanted = set(days.all())
    snapshots = {*days.test, days.scored_for}
    rows = 0
    count = (max(days.test[-1], days.scored_for) - first).days + 1
    for day in progress((first + dt.timedelta(days=n) for n in range(count)), "featurize", count):
        if day in snapshots:
            save_state(state, folder / f"state-{day}")
        if day > days.test[-1]:
            break
        today = (
            interactions.filter(pl.col("date") == day)
            .collect()
            .sort("event_time", "user_id", "item_id", "impression_id")
        )
        rows += today.height
        if day in wanted:
            kept = today.select(*KEPT, *plan.context)
            write_parquet(example_features(state, kept, users, items, plan), folder / "spill" / f"{day}.parquet")
        state = advance_state(state, today, users, items, plan)
    return rows


def _encoded_days(spill: Path, days: Days, encoder: Encoder) -> Iterator[pl.DataFrame]:
    for day in days.all():
        raw = pl.read_parquet(spill / f"{day}.parquet")
        yield pl.concat([raw.select(KEPT), encode(raw, encoder)], how="horizontal")


def table_versions(folder: Path) -> dict[str, int]:
    """Return the version of each table that the run's features were made from and written to.

    Other runs replace tables/examples; each reads the version that its own encoder made.

    Raises:
        ValueError: featurize has not run.
    """
    versions: dict[str, int] = read_json(folder / "features" / "versions.json", "featurize")
    return versions


def save_state(state: FeatureState, folder: Path) -> None:
    """Write what scoring needs of a state: counters and sequences, one Parquet file each."""
    folder.mkdir(parents=True)
    for name, frame in state.counters.items():
        write_parquet(frame, folder / f"counter-{name}.parquet")
    if state.sequences is not None:
        write_parquet(state.sequences, folder / "sequences.parquet")


def load_state(folder: Path, day: dt.date) -> FeatureState:
    """Read the state as of a day.

    Raises:
        ValueError: featurize has not written it.
    """
    path = folder / f"state-{day}"
    if not path.is_dir():
        raise ValueError(f"{path} does not exist: run `counterpoise featurize` first with the same options")
    counters = {
        file.stem.removeprefix("counter-"): pl.read_parquet(file) for file in sorted(path.glob("counter-*.parquet"))
    }
    sequences = path / "sequences.parquet"
    return FeatureState(day, counters, pl.read_parquet(sequences) if sequences.exists() else None, None)
