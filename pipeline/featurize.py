"""Featurize: raw features of each day from the feature store, the run's encoder, and its encoded examples."""

import datetime as dt
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.encoding import Encoder, fit_encoder, load_encoder, save_encoder, sum_counts
from features.vocabulary import extend
from pipeline import tables
from pipeline.config import Config
from pipeline.engine import Engine, open_engine
from pipeline.example_tasks import ExampleTask, encode_bucket, encoder_file
from pipeline.feature_store import FeatureStore, commit_buckets, open_store, raw_features, update
from pipeline.feature_tasks import Bucket, ValueTask, buckets_of, count_values
from pipeline.item_text import with_item_text
from pipeline.leakage import refuse_label_columns
from pipeline.source_record import check_contract
from pipeline.split import Days, resolve_days
from pipeline.stage import Outcome
from pipeline.states import state_folder
from pipeline.workspace import Workspace, join_parquet, read_json, replaced_folder, run_id, write_json

READ = ("interactions", "examples", "events", "quarantine", "unattributed", "users", "items")
BASE = "base"


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


@dataclass(frozen=True)
class _Work:
    """What the steps of featurize share; `folder` is the draft of the run's."""

    config: Config
    workspace: Workspace
    store: FeatureStore
    days: Days
    buckets: dict[dt.date, list[Bucket]]
    engine: Engine
    folder: Path

    @property
    def spill(self) -> Path:
        """Return the folder of what only the driver reads."""
        return self.folder / "spill"


def featurize(config: Config, workspace: Workspace, days: Days) -> Outcome:
    """Write tables/examples, and the encoder, states and raw test rows of the run.

    The feature store makes what is missing of the days' raw features; the run's encoder is fitted on the training
    days and encodes all of its days. The engine works on days, or on buckets of large ones, whose rows no other
    process holds; this one holds the states and, while the encoder is fitted, one column of the training days.

    Raises:
        ValueError: a column holds a label, a context reference is unknown, or a warm start has no champion.
    """
    store = open_store(config, workspace)
    made = run_folder(config, workspace, days) / "features"
    with open_engine(config) as engine:
        updated = update(store, days.all(), _states(config, days), None, engine)
        with replaced_folder(made) as folder:
            buckets = buckets_of(store.interactions, days.all())
            work = _Work(config, workspace, store, days, buckets, engine, folder)
            work.spill.mkdir()
            base = _copy_base(config, workspace, made, folder) if config.training.warm_start else None
            encoder = with_item_text(config, store, days, _fit_encoder(work, base), made_before=base, folder=folder)
            _check_references(config, encoder)
            refuse_label_columns(store, days, encoder)
            save_encoder(encoder, folder / "encoder.json")
            rows = _write_examples(work, encoder)
            shutil.rmtree(work.spill)
            _link_states(work)
            names = [name for name in READ if tables.exists(workspace.table(name))]
            write_json(folder / "versions.json", {name: tables.version(workspace.table(name)) for name in names})
    notes = {
        "embedding_ids": sum(encoder.cardinalities().values()),
        "numeric_features": len(encoder.knots),
        "days_counted": len(updated.counted),
        "days_featurized": len(updated.featurized),
    }
    return Outcome(updated.rows, rows, notes)


def _states(config: Config, days: Days) -> set[dt.date]:
    """Return the days as of which later stages need a state: candidate sources learn their places on one more."""
    learned = {days.validation[-1]} if len(config.retrieval.sources) > 1 else set()
    return {*days.test, days.scored_for} | learned


def _link_states(work: _Work) -> None:
    for day in sorted(_states(work.config, work.days)):
        # links: a state's files are never written to again, and a copy of all keys a night would add up
        held = state_folder(work.store.states, day)
        shutil.copytree(held, state_folder(work.folder, day), copy_function=os.link)


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


def _count_values(work: _Work) -> pl.DataFrame:
    """Count the values of the training days, bucket by bucket."""
    tasks = [
        ValueTask(work.store.table("raw"), work.store.plan, bucket, work.spill / f"values-{bucket.name}.parquet")
        for day in work.days.train
        for bucket in work.buckets[day]
    ]
    return sum_counts(pl.scan_parquet(list(work.engine.map(count_values, tasks, "count values"))))


def _fit_encoder(work: _Work, base: Encoder | None) -> Encoder:
    settings, plan, table = work.config.features, work.store.plan, work.store.table("vocabulary")
    counts = _count_values(work)
    known = tables.scan(table).collect() if tables.exists(table) else None
    vocabulary = extend(
        known, counts, min_count=settings.min_count, max_ids=settings.max_ids, added_on=work.days.train[-1]
    )
    if known is None or vocabulary.height > known.height:
        tables.write_all(table, vocabulary, {"part": "vocabulary"})
    return fit_encoder(
        raw_features(work.store).filter(pl.col("date").is_in(work.days.train)),
        plan,
        vocabulary=vocabulary,
        min_count=settings.min_count,
        hash_buckets=settings.hash_buckets,
        max_ids=settings.max_ids,
        bins=settings.bins,
        base=base,
        counts=counts,
    )


def _check_references(config: Config, encoder: Encoder) -> None:
    for name, value in config.context.columns.items():
        known = encoder.vocabularies[name].values
        if value not in known:
            raise ValueError(
                f"context.columns.{name} = {value!r} does not occur on the training days: scoring would use an "
                f"untrained value; choose one of {known[:10]}"
            )


def _write_examples(work: _Work, encoder: Encoder) -> int:
    """Encode all days, then commit them at once; the test days' raw rows go into the run's folder."""
    table = work.workspace.table("examples")
    held = encoder if work.engine.in_process else encoder_file(work.folder / "encoder.json")
    tasks = [
        ExampleTask(
            config=work.config,
            interactions=work.store.interactions,
            raw=work.store.table("raw"),
            bucket=bucket,
            encoder=held,
            file=tables.new_file(table, day, number=bucket.number),
            raw_file=work.spill / f"raw-{bucket.name}.parquet" if day in work.days.test else None,
        )
        for day in work.days.all()
        for bucket in work.buckets[day]
    ]
    made = list(work.engine.map(encode_bucket, tasks, "encode"))
    commit_buckets(table, made, {"data_set": work.config.name, "config_digest": work.config.digest()})
    for day in work.days.test:
        parts = [work.spill / f"raw-{bucket.name}.parquet" for bucket in work.buckets[day]]
        join_parquet(parts, work.folder / f"raw-{day}.parquet")
    return sum(part.rows for part in made)


def table_versions(folder: Path) -> dict[str, int]:
    """Return the version of each table that the run's features were made from and written to.

    Other runs replace tables/examples; each reads the version that its own encoder made.

    Raises:
        ValueError: featurize has not run.
    """
    versions: dict[str, int] = read_json(folder / "features" / "versions.json", "featurize")
    return versions
