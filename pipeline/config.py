"""One TOML file into frozen models: every error at once, with its key, its value and what was expected."""

import datetime as dt
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen table of the file that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Section):
    """Names of the source's columns for what the contract needs."""

    user: str = Field(default="user_id", description="column with the user's id")
    item: str = Field(default="item_id", description="column with the item's id")
    event_time: str = Field(default="event_time", description="time of the impression")
    received_time: str | None = Field(
        default=None, description="when the impression was known; default: event_time"
    )
    impression: str | None = Field(
        default=None, description="id of the impression; default: user, item and time"
    )
    click_known_at: str | None = Field(
        default=None, description="when the click was known; default: received_time"
    )
    conversion_known_at: str | None = Field(
        default=None, description="when the conversion was known; likewise"
    )


class Source(Section):
    """Files of the labelled log, relative to --source."""

    interactions: str = Field(description="glob of CSV, JSONL (plain, gz, zst) or Parquet files")
    columns: Columns = Columns()
    time_unit: Literal["s", "ms", "us"] = Field(
        default="us", description="unit of event times that are integers"
    )
    time_zone: str = Field(default="UTC", description="time zone of the business day, an IANA name")
    max_quarantine_share: Share = Field(
        default=0.01, description="share of quarantined rows that stops the run"
    )
    accepted_empty_days: list[dt.date] = Field(default=[], description="days that are known to have no rows")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            message = "expected an IANA time zone such as 'Asia/Shanghai'"
            raise ValueError(message) from None
        return zone


class Labels(Section):
    """What counts as a click and as a conversion, as SQL expressions over label columns."""

    click: str = Field(default="click", description="boolean expression, such as is_click")
    conversion: str = Field(default="conversion", description="such as long_view AND is_click")
    numeric: list[str] = Field(default=[], description="label columns that hold numbers, such as a rating")


class SideTable(Section):
    """A table of users or of items with one row an id."""

    file: str | None = Field(default=None, description="CSV, JSONL or Parquet file, relative to --source")
    id: str = Field(description="column with the id")
    categorical: list[str] = []
    numeric: list[str] = []
    multi: dict[str, str] = Field(default={}, description="multi-valued text columns and their separators")
    available_from: str | None = Field(default=None, description="column with the first day of an item")
    available_until: str | None = Field(default=None, description="column with the last day of an item")


class Context(Section):
    """What is known at the impression and unknown when a batch job scores."""

    columns: dict[str, str] = Field(default={}, description="column = reference value used at scoring")
    hour: int | None = Field(
        default=None, ge=0, le=23, description="adds the local hour; its reference value"
    )

    def references(self) -> dict[str, str]:
        """Return the reference value of each context column, the hour included."""
        hour = {} if self.hour is None else {"hour": str(self.hour)}
        return {**self.columns, **hour}


class Counter(Section):
    """Decayed counts of impressions, clicks and conversions for each value of some keys."""

    keys: list[str] = Field(
        min_length=1, description="user_id, item_id, side, first_<multi>, context columns"
    )
    half_lives_days: list[Rate] = Field(default=[7.0], min_length=1)
    smoothing: Rate = Field(default=20.0, description="impressions (or clicks) that the prior rate is worth")
    recency: bool = Field(default=False, description="adds hours since the last impression and click")


class Features(Section):
    """Declared features; each is known before the day it serves."""

    counters: list[Counter] = []
    sequence_length: int = Field(
        default=10, ge=0, description="last clicked and converted items; 0 switches off"
    )
    item_age: bool = Field(default=False, description="needs items.available_from")
    min_count: Positive = Field(
        default=2, description="training rows that an id needs for an embedding of its own"
    )
    bins: int = Field(default=20, ge=1, le=200, description="quantile bins of a numeric feature")


class Model(Section):
    """The ranker's body and sizes."""

    body: Literal["single_task", "shared_bottom", "mmoe", "ple"] = "ple"
    embedding_width: Positive = 16
    numeric_width: Positive = 8
    experts: Positive = 4
    task_experts: Positive = 2
    levels: Positive = 1
    hidden: list[Positive] = [128, 64]
    tower: list[Positive] = [32]
    dropout: Share = 0.0


class Training(Section):
    """How the ranker is fitted."""

    epochs: Positive = 1
    batch_size: Positive = 2048
    learning_rate: Rate = 1e-3
    embedding_learning_rate: Rate = 1e-3
    baseline_learning_rate: Rate = Field(default=5e-3, description="of the logistic-regression baseline")
    weight_decay: float = Field(default=0.0, ge=0)
    conversion_weight: Rate = Field(default=1.0, description="weight of the click-and-conversion loss")
    device: Literal["auto", "cpu", "cuda"] = "auto"


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


class Retrieval(Section):
    """Candidates for every user from the FAISS index."""

    candidates: Positive = 200
    index: Literal["auto", "exact", "ivf", "hnsw"] = "auto"
    exact_below: Positive = Field(default=50_000, description="items under which 'auto' is exact")
    conversion_weight: Share = Field(default=0.5, description="blend of the click and the conversion space")
    filter_seen: Literal["none", "impression", "click", "conversion"] = "click"


class Ranking(Section):
    """Lists for every user."""

    list_length: Positive = 50
    weights: dict[Literal["p_click", "p_conversion", "p_click_and_conversion"], float] = Field(
        default={"p_click_and_conversion": 1.0},
        min_length=1,
        description="score = weighted sum of probabilities",
    )
    scored_for: dt.date | None = Field(default=None, description="default: the day after the last test day")


class Evaluation(Section):
    """What the morning report holds."""

    ks: list[Positive] = [10, 50]
    replicates: int = Field(default=200, ge=20)
    truth: str | None = Field(
        default=None, description="file with impression_id, p_click, p_conversion (simulator)"
    )
    world: str | None = Field(
        default=None, description="the simulator's world, for expected conversions of lists"
    )

    @field_validator("ks")
    @classmethod
    def _increasing(cls, ks: list[int]) -> list[int]:
        if not ks or sorted(set(ks)) != ks:
            raise ValueError("expected increasing numbers such as [10, 50]")
        return ks


class Tracking(Section):
    """Where MLflow keeps runs and models."""

    uri: str | None = Field(default=None, description="default: SQLite in the workspace")
    experiment: str = "counterpoise"
    model: str = Field(default="counterpoise", description="name of the registered model")


Range = tuple[dt.date, dt.date]


class Split(Section):
    """First and last day of each part; by default the last day tests, the one before validates."""

    train: Range | None = None
    validation: Range | None = None
    test: Range | None = None


class Config(Section):
    """A whole run."""

    name: str = Field(description="name of the data set; a workspace holds one")
    seed: int = Field(default=1, ge=0)
    source: Source
    labels: Labels = Labels()
    users: SideTable = SideTable(id="user_id")
    items: SideTable = SideTable(id="item_id")
    context: Context = Context()
    features: Features = Features()
    split: Split = Split()
    model: Model = Model()
    training: Training = Training()
    retriever: Retriever = Retriever()
    retrieval: Retrieval = Retrieval()
    ranking: Ranking = Ranking()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        problems = [*_clashes(self), *_unknown_keys(self)]
        if self.features.item_age and self.items.available_from is None:
            problems.append("features.item_age = true needs items.available_from")
        if self.ranking.list_length > self.retrieval.candidates:
            problems.append(
                f"ranking.list_length = {self.ranking.list_length} is above retrieval.candidates = "
                f"{self.retrieval.candidates}: raise the candidates"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def digest(self) -> str:
        """Return the first eight hexadecimal digits of the SHA-256 of all values."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


RESERVED = (
    "user_id",
    "item_id",
    "impression_id",
    "event_time",
    "received_time",
    "date",
    "click",
    "conversion",
    "click_known_at",
    "conversion_known_at",
)


def side_columns(table: SideTable) -> list[str]:
    """Return the feature columns of a side table, multi-valued ones by their own and their first value."""
    return [*table.categorical, *table.numeric, *table.multi, *(f"first_{name}" for name in table.multi)]


def _clashes(config: Config) -> list[str]:
    names = [
        *RESERVED,
        *side_columns(config.users),
        *side_columns(config.items),
        *config.context.references(),
    ]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [
        f"column '{name}' is declared twice or is the pipeline's own: rename it (users, items, context)"
        for name in repeated
    ]


def _unknown_keys(config: Config) -> list[str]:
    known = {
        "user_id",
        "item_id",
        *(name for name in side_columns(config.users) if name not in config.users.numeric),
        *(name for name in side_columns(config.items) if name not in config.items.numeric),
        *config.context.references(),
    } - {*config.users.multi, *config.items.multi}
    counters = [tuple(sorted(counter.keys)) for counter in config.features.counters]
    repeated = sorted({keys for keys in counters if counters.count(keys) > 1 or len(set(keys)) < len(keys)})
    return [f"features.counters keys {list(keys)} are repeated: keep one" for keys in repeated] + [
        f"features.counters key '{key}' is not a declared column: expected one of {sorted(known)}"
        for counter in config.features.counters
        for key in counter.keys
        if key not in known
    ]


def load_config(path: Path, overrides: dict[str, Any]) -> Config:
    """Read a TOML file, apply dotted overrides and validate all of it.

    Raises:
        ValueError: the file is missing or no TOML, or some keys are wrong: all of them, one a line.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"config {path} does not exist: give --config a file such as examples/simulated.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is not TOML: {error}") from None
    for key, value in overrides.items():
        _set(values, key, value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"config {path}: {explain(error)}") from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE; the value is read as TOML and, where it is none, as text.

    Raises:
        ValueError: there is no '='.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text}: expected KEY=VALUE such as training.epochs=2")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return key.strip(), parsed


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: '{section}' is a value, not a table")  # noqa: TRY004
    values[name] = value


def explain(error: ValidationError) -> str:
    """Return all errors of a validation in one line: key, value and what was expected."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        shown = (
            "" if item["type"] in {"missing", "value_error"} and not item["loc"] else f" = {item['input']!r}"
        )
        if item["type"] == "missing":
            shown = ""
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}{shown}: remove it or correct its name")
        else:
            lines.append(f"{key}{shown}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
