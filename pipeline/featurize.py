"""Featurize: raw features of each day from the feature store, the run's encoder, and its encoded examples."""

import datetime as dt
import os
import shutil
from pathlib import Path

import polars as pl

from features.encoding import Encoder, encode, fit_encoder, load_encoder, save_encoder, value_counts
from features.vocabulary import extend
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_store import FeatureStore, open_store, raw_day, raw_features, read_day, update
from pipeline.labelled_log import VALUE, task_labels
from pipeline.leakage import refuse_label_columns
from pipeline.source_record import check_contract
from pipeline.split import Days, resolve_days
from pipeline.stage import Outcome
from pipeline.states import state_folder
from pipeline.workspace import Workspace, read_json, replaced_folder, run_id, write_json, write_parquet

READ = ("interactions", "examples", "events", "quarantine", "unattributed", "users", "items")
BASE = "base"
KEPT = (
    "impression_id",
    "user_id",
    "item_id",
    "event_time",
    "received_time",
    "date",
    "click",
    "conversion",
    "click_known_at",
    "conversion_known_at",
    "label_matures_at",
)


def days_of(config: Config, workspace: Workspace, date: dt.date | None) -> Days:
    """Return the days of the split for the interactions that the workspace holds.

    Raises:
        ValueError: the workspace holds interactions of another configuration, or the split has no days.
    """
    check_contract(config, workspace)
    present = tables.days(workspace.table("interactions"))
    return resolve_days(config.split, present, date, config.ranking.scored_for)


def run_folder(config: Config, workspace: Workspace, days: Days) -> Path:
    """Return the folder of the run that this configuration and these days name."""
    return workspace.run(run_id(days.test[-1], config.digest()))


def featurize(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Write tables/examples, and the encoder, states and raw test rows of the run.

    The feature store makes what is missing of the days' raw features; the run's encoder is fitted on the training
    days and encodes all of its days. Memory holds a day, the states and, while the encoder is fitted, one column of
    the training days.

    Raises:
        ValueError: a column holds a label, a context reference is unknown, or a warm start has no champion.
    """
    store = open_store(config, workspace)
    updated = update(store, days.all(), {*days.test, days.scored_for}, None)
    made = run_folder(config, workspace, days) / "features"
    with replaced_folder(made) as folder:
        base = _copy_base(config, workspace, made, folder) if config.training.warm_start else None
        encoder = _fit_encoder(config, store, days, base)
        _check_references(config, encoder)
        refuse_label_columns(store, days, encoder)
        save_encoder(encoder, folder / "encoder.json")
        rows = _write_examples(config, workspace, store, days, encoder, folder / "spill")
        for day in days.test:
            write_parquet(labelled_day(config, store, day), folder / f"raw-{day}.parquet")
        for day in sorted({*days.test, days.scored_for}):
            # links: a state's files are never written to again, and a copy of all keys a night would add up
            shutil.copytree(state_folder(store.states, day), state_folder(folder, day), copy_function=os.link)
        read = {name: tables.version(workspace.table(name)) for name in READ if tables.exists(workspace.table(name))}
        write_json(folder / "versions.json", read)
    notes = {
        "embedding_ids": sum(encoder.cardinalities().values()),
        "numeric_features": len(encoder.knots),
        "days_counted": len(updated.counted),
        "days_featurized": len(updated.featurized),
    }
    return Outcome(updated.rows, rows, notes)


def _copy_base(config: Config, workspace: Workspace, earlier: Path, folder: Path) -> Encoder:
    """Copy the champion's model folder into the run, so that later stages of it begin from the same version.

    A rerun keeps the base that it had: the run's own model may be the champion by now.
    """
    if (earlier / "base.json").exists():
        shutil.copytree(earlier / BASE, folder / BASE)
        shutil.copy(earlier / "base.json", folder / "base.json")
        return load_encoder(folder / BASE / "encoder.json")
    from pipeline import tracking  # MLflow takes seconds to import, and only a warm start needs it

    client = tracking.connect(config, workspace)
    found = tracking.champion(config, client, folder / "download")
    if found is None:
        raise ValueError(
            f"training.warm_start needs a champion of {config.tracking.model!r}: train and register once without it"
        )
    shutil.copytree(found.folder, folder / BASE)
    shutil.rmtree(folder / "download")
    write_json(folder / "base.json", {"base_version": found.version})
    return load_encoder(folder / BASE / "encoder.json")


def _fit_encoder(config: Config, store: FeatureStore, days: Days, base: Encoder | None) -> Encoder:
    settings = config.features
    training = raw_features(store).filter(pl.col("date").is_in(days.train))
    table = store.table("vocabulary")
    known = tables.scan(table).collect() if tables.exists(table) else None
    vocabulary = extend(
        known,
        value_counts(training, store.plan),
        min_count=settings.min_count,
        max_ids=settings.max_ids,
        added_on=days.train[-1],
    )
    if known is None or vocabulary.height > known.height:
        tables.write_all(table, vocabulary, {"part": "vocabulary"})
    return fit_encoder(
        training,
        store.plan,
        vocabulary=vocabulary,
        min_count=settings.min_count,
        hash_buckets=settings.hash_buckets,
        max_ids=settings.max_ids,
        bins=settings.bins,
        base=base,
    )


def _check_references(config: Config, encoder: Encoder) -> None:
    for name, value in config.context.columns.items():
        known = encoder.vocabularies[name].values
        if value not in known:
            raise ValueError(
                f"context.columns.{name} = {value!r} does not occur on the training days: scoring would use an "
                f"untrained value; choose one of {known[:10]}"
            )


def task_columns(config: Config) -> list[str]:
    """Return the columns of tables/examples that hold the labels of tasks beyond click and conversion."""
    return [f"label_{name}" for name in config.labels.tasks]


def labelled_day(config: Config, store: FeatureStore, day: dt.date) -> pl.DataFrame:
    """Return a day's impressions with their labels as known now, context and raw features, in order."""
    rows, raw = read_day(store, day), raw_day(store, day)
    assert rows["impression_id"].equals(raw["impression_id"]), "features were made for the impressions of the day"
    given = {task.column for task in task_labels(config)}
    tasks = [pl.col(name if name in given else VALUE).alias(name) for name in task_columns(config)]
    kept = rows.select(*KEPT, *tasks, *store.plan.context)
    return pl.concat([kept, raw.drop(name for name in kept.columns if name in raw.columns)], how="horizontal")


def _write_examples(
    config: Config, workspace: Workspace, store: FeatureStore, days: Days, encoder: Encoder, spill: Path
) -> int:
    """Encode day by day to disk, then commit all days at once: a Delta write must not read a table meanwhile."""
    spill.mkdir()
    for day in days.all():
        raw = labelled_day(config, store, day)
        encoded = pl.concat([raw.select(*KEPT, *task_columns(config)), encode(raw, encoder)], how="horizontal")
        write_parquet(encoded, spill / f"{day}.parquet")
    frames = (pl.read_parquet(spill / f"{day}.parquet") for day in days.all())
    note = {"data_set": config.name, "config_digest": config.digest()}
    rows = tables.write_days(workspace.table("examples"), frames, days.all(), note=note)
    shutil.rmtree(spill)
    return rows


def table_versions(folder: Path) -> dict[str, int]:
    """Return the version of each table that the run's features were made from and written to.

    Other runs replace tables/examples; each reads the version that its own encoder made.

    Raises:
        ValueError: featurize has not run.
    """
    versions: dict[str, int] = read_json(folder / "features" / "versions.json", "featurize")
    return versions
