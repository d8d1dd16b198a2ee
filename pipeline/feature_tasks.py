"""The work of featurize on one bucket of a day's rows: pure functions that the engine maps over days and buckets.

A bucket holds the users whose hash falls into it, so that memory is bounded by the bucket and not by the day, and a
worker on another machine reads only its users' counters. Whatever the number of buckets, the rows are the same.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.asof import ACTIONS, ENTITIES, KNOWN_ON, FeatureState, Partials, day_partials, example_features
from features.encoding import value_counts
from features.plan import ITEM, USER, FeaturePlan
from pipeline import tables
from pipeline.partials import long_partials
from pipeline.states import load_state
from pipeline.workspace import write_parquet_whole

ORDER = ("event_time", USER, ITEM, "impression_id")
SHOWN = ("impression_id", USER, ITEM, "event_time", "date")
ROWS_PER_BUCKET = 2_000_000


@dataclass(frozen=True)
class Bucket:
    """The rows of a day whose user falls into one of some hash buckets; by default all of them."""

    day: dt.date
    number: int = 0
    of: int = 1

    @property
    def name(self) -> str:
        """Return a name for the bucket's files, in the order of days and buckets."""
        return f"{self.day}-{self.number:04d}"

    def users(self) -> pl.Expr:
        """Return which rows are the bucket's."""
        return pl.lit(value=True) if self.of == 1 else pl.col(USER).hash(seed=0) % self.of == self.number

    def rows(self) -> pl.Expr:
        """Return which rows of a table by days are the bucket's."""
        return (pl.col("date") == self.day) & self.users()


def buckets_of(interactions: Path, days: list[dt.date]) -> dict[dt.date, list[Bucket]]:
    """Divide days by their rows: a bucket for each ROWS_PER_BUCKET, so that most days have one."""
    if not days:
        return {}
    counts = tables.scan(interactions).filter(pl.col("date").is_in(days)).group_by("date").len().collect()
    rows = dict(counts.iter_rows())
    numbers = {day: max(1, -(-rows.get(day, 0) // ROWS_PER_BUCKET)) for day in days}
    return {day: [Bucket(day, number, of) for number in range(of)] for day, of in numbers.items()}


@dataclass(frozen=True)
class Inputs:
    """What tasks read. Side tables are frames where tasks run in the driver's process, and paths elsewhere."""

    interactions: Path
    raw: Path
    plan: FeaturePlan
    users: pl.DataFrame | Path | None
    items: pl.DataFrame | Path | None

    def sides(self) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
        """Return the side tables of users and items."""
        users, items = (pl.read_parquet(side) if isinstance(side, Path) else side for side in (self.users, self.items))
        return users, items


def read_bucket(table: Path, bucket: Bucket) -> pl.DataFrame:
    """Read a bucket of tables/interactions or of raw features, in the order of the features."""
    return tables.scan(table).filter(bucket.rows()).collect().sort(ORDER)


@dataclass(frozen=True)
class CountTask:
    """Count a bucket into `<folder>/partials-<bucket>.parquet` and `actions-<bucket>.parquet`."""

    inputs: Inputs
    bucket: Bucket
    folder: Path

    def file(self, name: str) -> Path:
        """Return the file of its partial counts or of its actions."""
        return self.folder / f"{name}-{self.bucket.name}.parquet"


@dataclass(frozen=True)
class Counted:
    """A bucket's rows, the digest of its impressions without labels, and the last day on which it became known."""

    task: CountTask
    rows: int
    shown: str
    last_known: dt.date


def count_bucket(task: CountTask) -> Counted:
    """Write the partial counts and actions of a bucket's rows."""
    plan, day = task.inputs.plan, task.bucket.day
    rows = read_bucket(task.inputs.interactions, task.bucket)
    partials = day_partials(rows, *task.inputs.sides(), plan)
    for name, frame in (("partials", long_partials(partials, plan)), (ACTIONS, partials[ACTIONS])):
        write_parquet_whole(frame.with_columns(pl.lit(day).alias("date")), task.file(name))
    shown = tables.digest(rows.select(*SHOWN, *plan.context))
    return Counted(task, rows.height, shown, _last_known(partials, day))


def _last_known(partials: Partials, day: dt.date) -> dt.date:
    last = pl.concat([partials[ENTITIES].select(KNOWN_ON), partials[ACTIONS].select(KNOWN_ON)])[KNOWN_ON].max()
    assert last is None or isinstance(last, dt.date), "a day of knowledge is a date"
    return last or day


@dataclass(frozen=True)
class FeatureTask:
    """Featurize a bucket into a file of the raw features; its state is in memory where it runs in the driver."""

    inputs: Inputs
    bucket: Bucket
    state: FeatureState | Path
    file: Path


@dataclass(frozen=True)
class Featurized:
    """A file of a bucket's rows, not yet a part of its table, and the table's columns."""

    bucket: Bucket
    file: Path
    rows: int
    schema: pl.Schema


def featurize_bucket(task: FeatureTask) -> Featurized:
    """Write the raw features of a bucket's rows, without labels."""
    plan, day = task.inputs.plan, task.bucket.day
    shown = read_bucket(task.inputs.interactions, task.bucket).select(*SHOWN, *plan.context)
    state = task.state
    if isinstance(state, Path):
        state = load_state(state, day) if task.bucket.of == 1 else load_state(state, day, task.bucket.users())
    features = example_features(state, shown, *task.inputs.sides(), plan)
    write_parquet_whole(features.drop("date"), task.file, row_group_rows=tables.ROW_GROUP_ROWS)
    return Featurized(task.bucket, task.file, features.height, features.schema)


@dataclass(frozen=True)
class ValueTask:
    """Count the values of a bucket's categorical features into a file."""

    raw: Path
    plan: FeaturePlan
    bucket: Bucket
    file: Path


def count_values(task: ValueTask) -> Path:
    """Write field, value and rows of a bucket's raw features."""
    plan = task.plan
    columns = [*plan.categorical(), *plan.multi()]
    rows = tables.scan(task.raw).filter(task.bucket.rows()).select(columns).collect()
    write_parquet_whole(value_counts(rows.lazy(), plan), task.file)
    return task.file
