"""The examples of one bucket of a day: labels joined to raw features, and encoded; a pure function for the engine."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import polars as pl

from features.encoding import Encoder, encode, load_encoder
from features.schema import PROPENSITY
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_tasks import Bucket, Featurized, read_bucket
from pipeline.labelled_log import VALUE, task_labels
from pipeline.workspace import write_parquet_whole

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


@dataclass(frozen=True)
class EncoderFile:
    """An encoder by its path, and by its digest, since a worker keeps the one that it read last."""

    path: Path
    digest: str


def encoder_file(path: Path) -> EncoderFile:
    """Name an encoder that `save_encoder` wrote."""
    return EncoderFile(path, hashlib.sha256(path.read_bytes()).hexdigest())


@dataclass(frozen=True)
class ExampleTask:
    """Encode a bucket into a file of tables/examples, and keep its raw rows in another where there is one."""

    config: Config
    interactions: Path
    raw: Path
    bucket: Bucket
    encoder: Encoder | EncoderFile
    file: Path
    raw_file: Path | None


def encode_bucket(task: ExampleTask) -> Featurized:
    """Write a bucket's examples."""
    raw = labelled_rows(task)
    encoder = task.encoder if isinstance(task.encoder, Encoder) else _encoder(task.encoder)
    examples = pl.concat(
        [raw.select(*KEPT, *task_columns(task.config), *given_columns(task.config)), encode(raw, encoder)],
        how="horizontal",
    )
    write_parquet_whole(examples.drop("date"), task.file, row_group_rows=tables.ROW_GROUP_ROWS)
    if task.raw_file is not None:
        write_parquet_whole(raw, task.raw_file)
    return Featurized(task.bucket, task.file, examples.height, examples.schema)


def labelled_rows(task: ExampleTask) -> pl.DataFrame:
    """Return a bucket's impressions with their labels as known now, context and raw features, in order."""
    rows, raw = read_bucket(task.interactions, task.bucket), read_bucket(task.raw, task.bucket)
    assert rows["impression_id"].equals(raw["impression_id"]), "features were made for the impressions of the day"
    given = {label.column for label in task_labels(task.config)}
    labels = [pl.col(name if name in given else VALUE).alias(name) for name in task_columns(task.config)]
    kept = rows.select(*KEPT, *labels, *given_columns(task.config), *task.config.context.references())
    return pl.concat([kept, raw.drop(name for name in kept.columns if name in raw.columns)], how="horizontal")


def task_columns(config: Config) -> list[str]:
    """Return the columns of tables/examples that hold the labels of tasks beyond click and conversion."""
    return [f"label_{name}" for name in config.labels.tasks]


def given_columns(config: Config) -> list[str]:
    """Return the columns that examples take from interactions as they are, beside those that all have."""
    return [PROPENSITY] if config.source.has_propensity() else []


@lru_cache(maxsize=1)
def _encoder(file: EncoderFile) -> Encoder:
    return load_encoder(file.path)
