"""The contract of an interaction: typed columns from a raw frame, and a reason for each row that breaks it.

A raw frame holds the mapped source columns under the contract's names, as text or as the types that Parquet
kept, and `file` and `row` (1-based) of each row's origin.
"""

import datetime as dt
from dataclasses import dataclass

import polars as pl

EARLIEST = dt.datetime(1990, 1, 1, tzinfo=dt.UTC)
LATEST = dt.datetime(2101, 1, 1, tzinfo=dt.UTC)
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
TIMESTAMP = pl.Datetime("us", "UTC")
ORIGIN = ("file", "row")
PROPENSITY = "propensity"
"""Column of an impression: the probability with which what chose it shows this item to this user; null if not known."""
NO_PROBABILITY = "propensity is no probability above 0"
TRUE = ("1", "true", "t", "yes", "1.0")
FALSE = ("0", "false", "f", "no", "0.0")


@dataclass(frozen=True, kw_only=True)
class TaskLabel:
    """The label of a task beyond click and conversion: an SQL expression over label columns."""

    name: str
    expression: str
    number: bool
    """Whether it is a number, not negative, or else true or false."""

    @property
    def column(self) -> str:
        """Return the column of interactions that holds it, as a number; null where the log has none."""
        return f"label_{self.name}"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a raw frame must hold: text labels become booleans, or numbers where they are named so.

    `matures_after` is the time from the impression after which its labels do not change any more; None where they
    are final when the impression is received. `latest` is the moment from which a time lies in the future.
    """

    click: str
    conversion: str
    numeric_labels: tuple[str, ...]
    context: tuple[str, ...]
    hour: bool
    time_unit: str
    time_zone: str
    matures_after: dt.timedelta | None = None
    latest: dt.datetime = LATEST
    tasks: tuple[TaskLabel, ...] = ()
    propensity: bool = False
    """Whether the log says with which probability an impression was shown."""

    def label_columns(self) -> list[str]:
        """Return the source columns that the label expressions read.

        Raises:
            ValueError: an expression is no SQL expression.
        """
        names = [
            *parse_expression(self.click).meta.root_names(),
            *parse_expression(self.conversion).meta.root_names(),
            *(name for task in self.tasks for name in parse_expression(task.expression).meta.root_names()),
        ]
        return sorted(set(names))

    def task_numbers(self) -> set[str]:
        """Return the source columns that the labels of tasks read as numbers."""
        rules = [parse_expression(task.expression) for task in self.tasks if task.number]
        return {name for rule in rules for name in rule.meta.root_names()}


def parse_expression(text: str) -> pl.Expr:
    """Parse a label expression such as `long_view AND is_click`.

    Raises:
        ValueError: it is no SQL expression, or reads no column.
    """
    try:
        expression = pl.sql_expr(text)
    except (pl.exceptions.SQLInterfaceError, pl.exceptions.SQLSyntaxError) as error:
        raise ValueError(
            f"labels expression {text!r} is not valid: {error}; write it like long_view AND is_click"
        ) from None
    if not expression.meta.root_names():
        raise ValueError(f"labels expression {text!r} reads no column; write it like long_view AND is_click")
    return expression


def boolean(column: pl.Expr) -> pl.Expr:
    """Read 0/1, true/false, yes/no as booleans; anything else is null."""
    text = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    return pl.when(text.is_in(TRUE)).then(statement=True).when(text.is_in(FALSE)).then(statement=False)


def number(column: pl.Expr) -> pl.Expr:
    """Read finite numbers; anything else is null."""
    values = column.cast(pl.Float64, strict=False)
    return pl.when(values.is_finite()).then(values)


def probability(column: pl.Expr) -> pl.Expr:
    """Read probabilities above 0, up to 1; anything else is null."""
    values = number(column)
    return pl.when((values > 0) & (values <= 1)).then(values)


def timestamp(column: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    """Read a time as UTC: native timestamps, numbers in the unit, ISO 8601 text; anything else is null."""
    if isinstance(dtype, pl.Datetime):
        zoned = column if dtype.time_zone else column.dt.replace_time_zone("UTC")
        return zoned.cast(TIMESTAMP, strict=False)
    if dtype.is_integer() or dtype.is_float():
        return _from_number(column.cast(pl.Float64), unit)
    if dtype == pl.Date:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    text = column.cast(pl.String).str.strip_chars()
    return pl.coalesce(
        _from_number(text.cast(pl.Float64, strict=False), unit),
        text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False),
        text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False),
        text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False),
        text.str.to_datetime("%Y-%m-%d", time_unit="us", time_zone="UTC", strict=False),
    )


def read_times(column: pl.Series, unit: str) -> pl.Series:
    """Read times as `timestamp` does; text is tried in the usual format first, 7 times faster than in the others."""
    if column.dtype != pl.String:
        return column.to_frame().select(timestamp(pl.col(column.name), column.dtype, unit)).to_series()
    usual = column.str.to_datetime("%Y-%m-%dT%H:%M:%S.%6fZ", time_unit="us", time_zone="UTC", strict=False)
    other = (usual.is_null() & column.is_not_null()).arg_true()
    if other.is_empty():
        return usual
    rest = column.gather(other).to_frame().select(timestamp(pl.col(column.name), column.dtype, unit)).to_series()
    return usual.scatter(other, rest)


def _from_number(number: pl.Expr, unit: str) -> pl.Expr:
    micros = (number * MICROSECONDS[unit]).round()
    whole = pl.when(number.is_finite()).then(micros)
    return whole.cast(pl.Int64, strict=False).cast(TIMESTAMP, strict=False)


def parse_interactions(raw: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split raw rows into typed interactions and rejected rows.

    Returns:
        Interactions (impression_id, user_id, item_id, event_time, received_time, date, click, conversion,
        click_known_at, conversion_known_at, label_matures_at, click_counted_at, conversion_counted_at, value,
        the labels of tasks, propensity where the contract has one, context columns, file, row), and the rejected raw
        rows with a `reason`. Every raw row is in exactly one of them.
    """
    typed = pl.concat([_identified(raw, contract), _labels(raw, contract)], how="horizontal")
    typed = typed.with_columns(_reason(typed, contract).alias("reason"))
    reasons = typed.get_column("reason")
    rejected = raw.with_columns(reasons).filter(reasons.is_not_null())
    return _interactions(typed.filter(pl.col("reason").is_null()), contract), rejected


def _identified(raw: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    def time(name: str) -> pl.Expr:
        if name not in raw.columns:
            return pl.lit(None, dtype=TIMESTAMP).alias(name)
        return timestamp(pl.col(name), raw.schema[name], contract.time_unit).alias(name)

    def text(name: str) -> pl.Expr:
        stripped = pl.col(name).cast(pl.String).str.strip_chars()
        return pl.when(stripped != "").then(stripped).alias(name)

    given = [text("impression_id")] if "impression_id" in raw.columns else []
    times = [time(name) for name in ("event_time", "received_time", "click_known_at", "conversion_known_at")]
    unread = [
        (text(name).is_not_null() & (time(name).is_null() | _outside(time(name)))).alias(f"{name}:unread")
        for name in ("received_time", "click_known_at", "conversion_known_at")
        if name in raw.columns
    ]
    context = [text(name) for name in contract.context]
    value = number(pl.col("value")) if "value" in raw.columns else pl.lit(None, dtype=pl.Float64)
    if contract.propensity:
        read = probability(pl.col(PROPENSITY))
        context.append(read.alias(PROPENSITY))
        unread.append((text(PROPENSITY).is_not_null() & read.is_null()).alias(f"{PROPENSITY}:unread"))
    return raw.select(
        *ORIGIN, *given, text("user_id"), text("item_id"), *times, value.alias("value"), *context, *unread
    )


def _labels(raw: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    columns, numbers = contract.label_columns(), {*contract.numeric_labels, *contract.task_numbers()}
    values = raw.select(
        (number(pl.col(name)) if name in numbers else boolean(pl.col(name))).alias(name) for name in columns
    )
    unread = pl.concat_str(
        [pl.when(values[name].is_null()).then(pl.lit(name)) for name in columns],
        separator=", ",
        ignore_nulls=True,
    )
    rules = {"click": contract.click, "conversion": contract.conversion}
    tasks = [
        parse_expression(task.expression).cast(pl.Float64 if task.number else pl.Boolean).cast(pl.Float64)
        for task in contract.tasks
    ]
    try:
        return values.select(
            *(parse_expression(rule).cast(pl.Boolean).alias(label) for label, rule in rules.items()),
            *(label.alias(task.column) for label, task in zip(tasks, contract.tasks, strict=True)),
            unread.alias("labels:unread"),
            _no_number(raw, values, contract).alias("tasks:unread"),
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"labels {rules | {task.name: task.expression for task in contract.tasks}} cannot be computed: {reason}; "
            "name columns that hold numbers in labels.numeric"
        ) from None


def _no_number(raw: pl.DataFrame, values: pl.DataFrame, contract: Contract) -> pl.Series:
    """Return the columns of number tasks that are given and are no number; null where there is none."""
    columns = sorted(contract.task_numbers())
    given = raw.select(pl.col(name).cast(pl.String).str.strip_chars() for name in columns)
    named = [
        pl.when(given[name].is_not_null() & (given[name] != "") & values[name].is_null()).then(pl.lit(name))
        for name in columns
    ]
    if not named:
        return pl.Series("tasks:unread", [None], pl.String).new_from_index(0, raw.height)
    joined = pl.select(pl.concat_str(named, separator=", ", ignore_nulls=True).alias("found")).to_series()
    return joined.to_frame().select(pl.when(pl.col("found") != "").then(pl.col("found"))).to_series()


def _reason(typed: pl.DataFrame, contract: Contract) -> pl.Expr:
    """Return the first broken rule of each row, null where none is broken."""
    time = pl.col("event_time")
    unit = f"is source.time_unit = '{contract.time_unit}' right?"
    outside = f"event_time is outside {EARLIEST.year} to {LATEST.year - 1}: {unit}"
    labels = {"labels:unread", "tasks:unread"}
    unread = [name for name in typed.columns if name.endswith(":unread") and name not in labels]
    impression = [("impression_id is empty", pl.col("impression_id").is_null())]
    rules = [
        ("user_id is empty", pl.col("user_id").is_null()),
        ("item_id is empty", pl.col("item_id").is_null()),
        ("event_time is empty or no time", time.is_null()),
        (outside, _outside(time)),
        ("event_time is in the future", time >= contract.latest),
        ("received_time is in the future", pl.col("received_time") >= contract.latest),
        *(impression if "impression_id" in typed.columns else []),
        *((_unread_reason(name.removesuffix(":unread")), pl.col(name)) for name in unread),
    ]
    binary = ["click", "conversion", *(task.column for task in contract.tasks if not task.number)]
    unlabelled = pl.any_horizontal(pl.col(name).is_null() for name in binary)
    named = [pl.lit("label is neither true nor false: "), pl.col("labels:unread")]
    return pl.coalesce(
        *(pl.when(broken).then(pl.lit(reason)) for reason, broken in rules),
        pl.when(unlabelled).then(pl.concat_str(named, ignore_nulls=True)),
        pl.when(pl.col("received_time") < time).then(pl.lit("received_time is before event_time")),
        pl.when(pl.col("conversion") & ~pl.col("click")).then(pl.lit("conversion without a click")),
        pl.when(pl.col("tasks:unread").is_not_null()).then(pl.lit("label is no number: ") + pl.col("tasks:unread")),
        *(
            pl.when(pl.col(task.column) < 0).then(pl.lit(f"label of task {task.name} is negative"))
            for task in contract.tasks
        ),
    )


def _unread_reason(name: str) -> str:
    return NO_PROBABILITY if name == PROPENSITY else f"{name} is no time"


def _outside(time: pl.Expr) -> pl.Expr:
    return (time < EARLIEST) | (time >= LATEST)


def _interactions(typed: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    received = pl.coalesce("received_time", "event_time")
    click_known = pl.max_horizontal(pl.coalesce("click_known_at", received), received)
    conversion_known = pl.max_horizontal(pl.coalesce("conversion_known_at", received), click_known)
    local = pl.col("event_time").dt.convert_time_zone(contract.time_zone)
    made_id = pl.concat_str("user_id", "item_id", pl.col("event_time").dt.epoch("us"), separator="|")
    hour = [local.dt.hour().cast(pl.String).alias("hour")] if contract.hour else []
    return typed.select(
        (pl.col("impression_id") if "impression_id" in typed.columns else made_id).alias("impression_id"),
        "user_id",
        "item_id",
        "event_time",
        received.alias("received_time"),
        local.dt.date().alias("date"),
        "click",
        "conversion",
        pl.when(pl.col("click")).then(click_known).alias("click_known_at"),
        pl.when(pl.col("conversion")).then(conversion_known).alias("conversion_known_at"),
        (received if contract.matures_after is None else pl.col("event_time") + contract.matures_after).alias(
            "label_matures_at"
        ),
        pl.when(pl.col("click")).then(click_known).alias("click_counted_at"),
        pl.when(pl.col("conversion")).then(conversion_known).alias("conversion_counted_at"),
        pl.when(pl.col("conversion")).then(pl.col("value")).alias("value"),
        *(task.column for task in contract.tasks),
        *([PROPENSITY] if contract.propensity else []),
        *contract.context,
        *hour,
        *ORIGIN,
    )


def deduplicate(day: pl.DataFrame) -> tuple[pl.DataFrame, int, pl.DataFrame]:
    """Keep one row an impression of one day, in the order of time, user and item.

    Returns:
        The kept rows; the number of exact duplicates; and the rows that repeat an impression with other
        values, of which the first (by file and row) is kept.
    """
    ids = day["impression_id"].hash()
    if ids.n_unique() == day.height:
        return by_time(day), 0, day.clear()
    mask = ids.is_duplicated()
    values = [name for name in day.columns if name not in ORIGIN]
    copies = day.filter(mask).sort(*ORIGIN, maintain_order=True)
    distinct = copies.unique(values, keep="first", maintain_order=True).with_row_index(":place")
    kept = distinct.unique(["impression_id"], keep="first", maintain_order=True)
    repeats = distinct.join(kept.select(":place"), on=":place", how="anti").drop(":place")
    return by_time(pl.concat([day.filter(~mask), kept.drop(":place")])), copies.height - distinct.height, repeats


def by_time(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort interactions by time, user, item and impression."""
    return interactions.sort("event_time", "user_id", "item_id", "impression_id")
