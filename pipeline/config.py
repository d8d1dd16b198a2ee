"""One TOML file into frozen models: every error at once, with its key, its value and what was expected."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.feed_sections import FeedSection, ServeSection
from pipeline.gate_section import Gate
from pipeline.ranking_section import Ranking
from pipeline.retrieval_section import Retrieval
from pipeline.sections import (
    HIDDEN,
    Calibration,
    Context,
    Engine,
    Evaluation,
    Features,
    Gates,
    Labels,
    Model,
    Retriever,
    Section,
    SideTable,
    Source,
    Split,
)
from pipeline.text_section import Text
from pipeline.tracking_section import Tracking
from pipeline.training_section import Training
from pipeline.uris import without_credentials
from pipeline.watch_section import Watch

OWN_LOSSES = {
    "click",
    "click_and_conversion",
    "conversion",
    "imputation",
    "counterfactual",
    "counterfactual_prior",
}
"""`models.losses.LOSS_NAMES`, without loading torch."""

WITHOUT_EFFECT: dict[str, Any] = {
    "engine": True,
    "feed": True,
    "gate": True,
    "serve": True,
    "training": {"checkpoint_rows"},
    "watch": True,
}
"""Keys that decide where and how fast a run is made, not what it computes: they are no part of its name."""


class Config(Section):
    """A whole run."""

    name: str = Field(description="name of the data set; a workspace holds one")
    seed: int = Field(default=1, ge=0)
    source: Source
    labels: Labels = Labels()
    gates: Gates = Gates()
    gate: Gate = Gate()
    users: SideTable = SideTable(id="user_id")
    items: SideTable = SideTable(id="item_id")
    text: Text = Text()
    context: Context = Context()
    features: Features = Features()
    split: Split = Split()
    model: Model = Model()
    training: Training = Training()
    calibration: Calibration = Calibration()
    retriever: Retriever = Retriever()
    retrieval: Retrieval = Retrieval()
    ranking: Ranking = Ranking()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    engine: Engine = Engine()
    feed: FeedSection = FeedSection()
    serve: ServeSection = ServeSection()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        problems = [*_source_problems(self), *_task_problems(self), *_clashes(self), *_unknown_keys(self)]
        problems += _text_problems(self)
        if self.features.item_age and self.items.available_from is None:
            problems.append("features.item_age = true needs items.available_from")
        if self.model.sequence == "attention" and not self.features.sequence_length:
            problems.append("model.sequence = 'attention' needs features.sequence_length above 0: set both or neither")
        if self.evaluation.ks[-1] > self.ranking.list_length:
            problems.append(
                f"evaluation.ks = {self.evaluation.ks} reaches beyond ranking.list_length = {self.ranking.list_length}"
            )
        problems += self.ranking.problems(self.retrieval.candidates, categorical_columns(self.items))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def digest(self) -> str:
        """Return the first eight hexadecimal digits of the SHA-256 of all values that change what a run computes."""
        text = json.dumps(self.model_dump(mode="json", exclude=WITHOUT_EFFECT), sort_keys=True)
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
    "click_counted_at",
    "conversion_counted_at",
    "label_matures_at",
    "valid_from",
    "value",
    "event_id",
    "file",
    "row",
    "broken",
    "reason",
    "kind",
    "known_at",
    "known_on",
    "propensity",
)


def side_columns(table: SideTable) -> list[str]:
    """Return the feature columns of a side table, multi-valued ones by their own and their first value."""
    return [*table.categorical, *table.numeric, *table.multi, *(f"first_{name}" for name in table.multi)]


def categorical_columns(table: SideTable) -> list[str]:
    """Return the columns of a side table that have one of some values, multi-valued ones by their first."""
    return [*table.categorical, *(f"first_{name}" for name in table.multi)]


def _clashes(config: Config) -> list[str]:
    names = [
        *RESERVED,
        *side_columns(config.users),
        *side_columns(config.items),
        *config.context.columns,
        *(["hour"] if config.context.hour is not None else []),
        *(f"label_{name}" for name in config.labels.tasks),
    ]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [
        f"column '{name}' is declared twice or is the pipeline's own: rename it (users, items, context)"
        for name in repeated
    ]


def _task_problems(config: Config) -> list[str]:
    """Return what is wrong with tasks beyond click and conversion, and with the weights of the score."""
    tasks = config.labels.tasks
    problems = [
        f"labels.tasks.{name} is the pipeline's own name: choose another" for name in sorted(set(tasks) & OWN_LOSSES)
    ]
    for name, task in tasks.items():
        if task.label == "value" and (task.kind, task.space) != ("value", "conversion"):
            problems.append(f"labels.tasks.{name}: label 'value' needs kind = 'value' and space = 'conversion'")
        if task.label != "value" and config.source.streams:
            problems.append(
                f"labels.tasks.{name}.label = {task.label!r} reads columns of a labelled log, but the source is raw "
                "events: expected 'value', the value of a conversion"
            )
        if task.kind == "value" and config.training.task_weights in {"uncertainty", "gradnorm"}:
            problems.append(
                f"training.task_weights = {config.training.task_weights!r} needs losses that are never negative, "
                f"and that of the number labels.tasks.{name} may be: use 'static' or 'pcgrad'"
            )
    if config.training.conversion_loss == "escm2_dr" and config.training.task_weights in {"uncertainty", "gradnorm"}:
        problems.append(
            f"training.task_weights = {config.training.task_weights!r} needs losses that are never negative, and that "
            "of training.conversion_loss = 'escm2_dr' may be: use 'static' or 'pcgrad'"
        )
    outputs = {"p_click", "p_conversion", "p_click_and_conversion"}
    outputs |= {f"{'p' if task.kind == 'binary' else 'expected'}_{name}" for name, task in tasks.items()}
    if strangers := sorted(set(config.ranking.weights) - outputs):
        problems.append(f"ranking.weights names {strangers}, which are no outputs: expected some of {sorted(outputs)}")
    return problems


def _source_problems(config: Config) -> list[str]:
    problems = []
    if (config.source.interactions is None) == (not config.source.streams):
        problems.append("source needs either interactions (a labelled log) or streams (raw events), not both")
    if config.training.propensity_clip is not None and not config.source.has_propensity():
        problems.append(
            f"training.propensity_clip = {config.training.propensity_clip} needs source.columns.propensity (or that of "
            "a stream), the column with the probability of being shown: name it, or leave the clip out"
        )
    for name, table in (("users", config.users), ("items", config.items)):
        if table.file is not None and table.static == (table.valid_from is not None):
            problems.append(
                f"{name}.file needs either static = true (its columns do not change over time) or valid_from (the "
                "column with the time from which a row holds), so that features know only what was known"
            )
    return problems


def _text_problems(config: Config) -> list[str]:
    text, items = config.text, config.items
    problems = []
    if text.column is not None and text.column not in items.multi:
        problems.append(
            f"text.column = {text.column!r} is no column of items.multi: expected one of {list(items.multi)}"
        )
    if text.category is not None and text.column is None:
        problems.append(f"text.category = {text.category!r} needs text.column, the column of the texts: name it")
    if text.category is not None and text.category not in items.categorical:
        problems.append(
            f"text.category = {text.category!r} is no column of items.categorical: expected one of {items.categorical}"
        )
    return problems


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
        shown = f" = {without_credentials(repr(item['input']))}"
        if item["type"] in {"missing", HIDDEN} or (item["type"] == "value_error" and not item["loc"]):
            shown = ""
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}{shown}: remove it or correct its name")
        else:
            lines.append(f"{key}{shown}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
