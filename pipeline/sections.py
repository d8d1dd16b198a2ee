"""The tables of a configuration file: what each key means, its default and its bounds."""

import datetime as dt
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def parse_duration(value: object) -> object:
    """Read '90m', '24h' or '7d' as a duration; what is none is left to pydantic's own message.

    Raises:
        ValueError: it is text in another form.
    """
    if not isinstance(value, str):
        return value
    number, unit = value.strip()[:-1], value.strip()[-1:]
    if unit not in SECONDS or not number.isdecimal():
        raise ValueError("expected minutes, hours or days such as '90m', '24h' or '7d'")
    return dt.timedelta(seconds=int(number) * SECONDS[unit])


Duration = Annotated[dt.timedelta, BeforeValidator(parse_duration), Field(ge=dt.timedelta(0))]
Kind = Literal["impression", "click", "conversion"]


HIDDEN = "hidden"
"""Type of an error whose value is not to be shown."""


class Section(BaseModel):
    """A frozen table of the file that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """Names of the source's columns for what the contract needs."""

    user: str = Field(default="user_id", description="column with the user's id")
    item: str = Field(default="item_id", description="column with the item's id")
    event_time: str = Field(default="event_time", description="time of the impression")
    received_time: str | None = Field(default=None, description="when the impression was known; default: event_time")
    impression: str | None = Field(default=None, description="id of the impression; default: user, item and time")
    click_known_at: str | None = Field(default=None, description="when the click was known; default: received_time")
    conversion_known_at: str | None = Field(default=None, description="when the conversion was known; likewise")
    value: str | None = Field(default=None, description="value of the conversion, a number")
    propensity: str | None = Field(default=None, description="probability with which the impression was shown")


class Stream(Section):
    """Files of raw events, relative to --source: one kind, or a column that tells the kind."""

    files: str = Field(description="glob of CSV, JSONL (plain, gz, zst) or Parquet files")
    kind: Kind | None = Field(default=None, description="kind of every row; default: read from `type`")
    type: str = Field(default="event", description="column with the kind's name")
    names: dict[Kind, list[str]] = Field(
        default={"impression": ["impression"], "click": ["click"], "conversion": ["conversion"]},
        description="names of each kind in `type`, such as conversion = ['purchase']",
    )
    event_id: str = Field(default="event_id", description="column with the event's id: one id counts once")
    event_time: str = Field(default="event_time", description="when it happened")
    received_time: str | None = Field(default=None, description="when it was known; default: event_time")
    user: str = Field(default="user_id", description="column with the user's id")
    item: str = Field(default="item_id", description="column with the item's id")
    impression: str | None = Field(default=None, description="id of the impression that the event belongs to")
    request: str | None = Field(default=None, description="id of the request; with the item it names an impression")
    value: str | None = Field(default=None, description="value of a conversion, a number")
    propensity: str | None = Field(default=None, description="probability with which an impression was shown")


class Source(Section):
    """Files of a labelled log, or of raw events, relative to --source."""

    interactions: str | None = Field(default=None, description="labelled log: glob of CSV, JSONL or Parquet files")
    columns: Columns = Columns()
    streams: list[Stream] = Field(default=[], description="raw events, instead of a labelled log")
    time_unit: Literal["s", "ms", "us"] = Field(default="us", description="unit of event times that are integers")
    time_zone: str = Field(default="UTC", description="time zone of the business day, an IANA name")
    max_quarantine_share: Share = Field(default=0.01, description="share of quarantined rows that stops the run")
    accept_fewer_rows: bool = Field(
        default=False, description="lets a source replace a day by fewer rows than the table holds"
    )
    accepted_empty_days: list[dt.date] = Field(default=[], description="days that are known to have no rows")

    def labels_arrive_later(self) -> bool:
        """Return whether labels become known after their impression; else they are final when it is received."""
        columns = self.columns
        return bool(self.streams) or columns.click_known_at is not None or columns.conversion_known_at is not None

    def has_propensity(self) -> bool:
        """Return whether impressions come with the probability with which they were shown."""
        given = [stream.propensity for stream in self.streams] or [self.columns.propensity]
        return any(column is not None for column in given)

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            message = "expected an IANA time zone such as 'Asia/Shanghai'"
            raise ValueError(message) from None
        return zone


class Task(Section):
    """A task beyond click and conversion, that the joint model predicts too."""

    label: str = Field(description="SQL expression over label columns, or 'value': the value of a conversion")
    kind: Literal["binary", "value"] = Field(default="binary", description="true or false, or a number's mean")
    space: Literal["impression", "click", "conversion"] = Field(
        default="impression", description="where the label exists"
    )
    weight: Rate = Field(default=1.0, description="weight of its loss; that of a number is divided by its mean")


class Labels(Section):
    """What counts as a click and as a conversion, as SQL expressions over label columns."""

    click: str = Field(default="click", description="boolean expression, such as is_click")
    conversion: str = Field(default="conversion", description="such as long_view AND is_click")
    numeric: list[str] = Field(default=[], description="label columns that hold numbers, such as a rating")
    tasks: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Task] = Field(
        default={}, description="further tasks by name, such as like or watch_time"
    )
    click_window: Duration = Field(default=dt.timedelta(hours=1), description="longest time to a click: '1h'")
    conversion_window: Duration = Field(default=dt.timedelta(days=7), description="from the click on: '7d'")
    lateness: Duration = Field(default=dt.timedelta(hours=1), description="how late events usually arrive: '1h'")
    immature: Literal["drop", "weight", "keep"] = Field(
        default="weight",
        description="conversions that may still come, in training: correct them by the fitted delay (weight), leave "
        "those impressions out of the conversion loss (drop), or take them as negatives (keep)",
    )
    min_known_share: Rate = Field(
        default=0.1, le=1, description="'weight' leaves out impressions whose conversions are known to less than this"
    )


class SideTable(Section):
    """A table of users or of items: one row an id, or with `valid_from` one for each time from which it holds."""

    file: str | None = Field(default=None, description="CSV, JSONL or Parquet file, relative to --source")
    id: str = Field(description="column with the id")
    static: bool = Field(default=False, description="says that the columns do not change over time")
    valid_from: str | None = Field(default=None, description="column with the time from which a row holds")
    categorical: list[str] = []
    numeric: list[str] = []
    multi: dict[str, str] = Field(default={}, description="multi-valued text columns and their separators")
    available_from: str | None = Field(default=None, description="column with the first day of an item")
    available_until: str | None = Field(default=None, description="column with the last day of an item")


class Context(Section):
    """What is known at the impression and unknown when a batch job scores."""

    columns: dict[str, str] = Field(default={}, description="column = reference value used at scoring")
    hour: int | None = Field(default=None, ge=0, le=23, description="adds the local hour; its reference value")

    def references(self) -> dict[str, str]:
        """Return the reference value of each context column, the hour included."""
        hour = {} if self.hour is None else {"hour": str(self.hour)}
        return {**self.columns, **hour}


class Counter(Section):
    """Decayed counts of impressions, clicks and conversions for each value of some keys."""

    keys: list[str] = Field(min_length=1, description="user_id, item_id, side, first_<multi>, context columns")
    half_lives_days: list[Rate] = Field(default=[7.0], min_length=1)
    smoothing: Rate = Field(default=20.0, description="impressions (or clicks) that the prior rate is worth")
    recency: bool = Field(default=False, description="adds hours since the last impression and click")


class Features(Section):
    """Declared features; each is known before the day it serves."""

    counters: list[Counter] = []
    sequence_length: int = Field(default=10, ge=0, description="last clicked and converted items; 0 switches off")
    item_age: bool = Field(default=False, description="needs items.available_from")
    min_count: Positive = Field(default=2, description="training rows that an id needs for an embedding of its own")
    max_ids: Positive = Field(default=2_000_000, description="ids of a field; beyond, the tail is hashed")
    hash_buckets: Positive = Field(default=1024, description="buckets of the tail of a field that is full")
    bins: int = Field(default=20, ge=1, le=200, description="quantile bins of a numeric feature")


class Model(Section):
    """The ranker's body and sizes."""

    body: Literal[
        "single_task",
        "shared_embedding",
        "shared_bottom",
        "cross_stitch",
        "moe",
        "mmoe",
        "cgc",
        "ple",
        "adatt",
        "stem",
    ] = Field(default="ple", description="who shares what; each body reads the sizes that it has")
    embedding_width: Positive = 16
    task_embeddings: bool = Field(
        default=False, description="experts of a task read embeddings of their own (cgc, ple, adatt; stem always)"
    )
    numeric_width: Positive = 8
    numeric_encoding: Literal["piecewise_linear", "periodic"] = Field(
        default="piecewise_linear", description="of a number's place among the training quantiles"
    )
    frequencies: Positive = Field(default=16, description="waves of a number, with periodic")
    frequency_scale: Rate = Field(default=1.0, description="spread of their initial frequencies, in periods")
    sequence: Literal["mean", "attention"] = Field(
        default="mean", description="last clicked and converted items: averaged, or weighted by the candidate"
    )
    experts: int = Field(default=4, ge=0, description="that all tasks share; only adatt does without")
    task_experts: Positive = Field(default=2, description="of each task alone: cgc, ple, adatt, stem")
    levels: Positive = Field(default=1, description="of experts: ple, adatt, stem; cgc has one")
    hidden: list[Positive] = [128, 64]
    tower: list[Positive] = [32]
    dropout: Share = 0.0
    expert_activation: Literal["relu", "swish"] = "relu"
    expert_norm: Literal["none", "layer", "batch"] = Field(default="none", description="before each activation")
    gate_dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a gate loses an expert")
    gate_temperature: Rate = Field(default=1.0, description="divides the gates' logits; above 1 mixes more evenly")
    load_balance: float = Field(default=0.0, ge=0, description="weight of a loss on experts' uneven use")


class Calibration(Section):
    """From the ranker's probabilities to rates that hold, fitted on the validation days."""

    method: Literal["platt", "isotonic", "none"] = Field(
        default="platt", description="a line in log-odds, an increasing curve, or nothing"
    )
    min_positives: Positive = Field(
        default=200, description="positives, and negatives, that a task needs; with fewer it is left as it is"
    )


class Retriever(Section):
    """The two towers."""

    embedding_width: Positive = 16
    numeric_width: Positive = 8
    hidden: list[Positive] = [64]
    space_width: Positive = 32
    temperature: Rate = 0.1
    epochs: Positive = 4
    batch_size: Positive = 1024
    learning_rate: Rate = 1e-3
    embedding_learning_rate: Rate = 1e-3


class Evaluation(Section):
    """What the morning report holds."""

    ks: list[Positive] = [10, 50]
    replicates: int = Field(default=200, ge=20)
    truth: str | None = Field(default=None, description="file with impression_id, p_click, p_conversion (simulator)")
    world: str | None = Field(default=None, description="the simulator's world, for expected conversions of lists")
    importance: bool = Field(default=True, description="permutes every feature of a sample of the test impressions")
    importance_rows: Positive = Field(default=5_000, description="impressions of that sample")
    importance_repeats: Positive = Field(default=2, description="permutations that an importance is the mean of")

    @field_validator("ks")
    @classmethod
    def _increasing(cls, ks: list[int]) -> list[int]:
        if not ks or sorted(set(ks)) != ks:
            raise ValueError("expected increasing numbers such as [10, 50]")
        return ks


Range = tuple[dt.date, dt.date]


class Gates(Section):
    """When a day is too far from its own history to go on."""

    min_history_days: Positive = Field(default=7, description="earlier days that a comparison needs")
    max_volume_ratio: float = Field(default=3.0, gt=1, description="impressions of a day against the median, both ways")
    max_rate_ratio: float = Field(default=2.0, gt=1, description="click and conversion rate, likewise")
    max_staleness: Duration = Field(
        default=dt.timedelta(hours=12), description="with --date: from the last event received to the day's end"
    )
    accepted_days: list[dt.date] = Field(default=[], description="days that are known to be unusual")


class Split(Section):
    """First and last day of each part; by default the last day tests, the one before validates."""

    train_days: Positive | None = Field(default=None, description="at most so many days train, the latest")
    train: Range | None = None
    validation: Range | None = None
    test: Range | None = None


class Engine(Section):
    """Where the work of ingest, featurize, retrieve and rank runs; it changes no result, and no run's name."""

    kind: Literal["local", "dask"] = Field(default="local", description="processes of this machine, or a Dask cluster")
    workers: Positive = Field(
        default=1, description="processes on this machine, one thread each; with local, 1 is this process"
    )
    address: str | None = Field(
        default=None, description="of a Dask scheduler, such as 'tcp://host:8786'; its cluster has its own workers"
    )

    @model_validator(mode="after")
    def _address_of_dask(self) -> Self:
        if self.address is not None and self.kind != "dask":
            raise ValueError(f"engine.address = {self.address!r} needs engine.kind = 'dask': set it, or leave it out")
        return self
