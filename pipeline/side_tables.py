"""Users and items: one row an id, or a history of rows an id; categorical, numeric and multi-valued columns."""

import datetime as dt
from pathlib import Path

import polars as pl

from features.schema import timestamp
from pipeline.readers import read_chunks
from pipeline.sections import SideTable
from pipeline.source_files import SourceFile, find_files
from pipeline.uris import shown


def read_side_table(source: str | Path, table: SideTable, key: str, time_unit: str, time_zone: str) -> pl.DataFrame:
    """Read a side table under the contract's types.

    Args:
        source: the folder or URI that the file lies under.
        table: its columns.
        key: name of the id in the pipeline: user_id or item_id.
        time_unit: unit of integer times in the availability columns.
        time_zone: of the business day that a moment of availability falls on; a date without a time stays.

    Returns:
        key (String), categorical (String), numeric (Float64), multi-valued (List[String]) and their
        `first_<name>`, available_from and available_until (Date), and valid_from (Datetime) where the table has a
        history. Empty text is missing. Sorted by key and valid_from.

    Raises:
        ValueError: a column is missing, an id is empty or repeated, a number is NaN, infinite or no number.
    """
    assert table.file is not None, "the caller asks for a side table only where the config has one"
    times = [("available_from", table.available_from), ("available_until", table.available_until)]
    wanted: dict[str, list[str]] = {table.id: [key]}
    history = [] if table.valid_from is None else ["valid_from"]
    if table.valid_from is not None:
        wanted.setdefault(table.valid_from, []).append("valid_from")
    for name in [*table.categorical, *table.numeric, *table.multi]:
        wanted.setdefault(name, []).append(f"{name}")
    for name, column in times:
        if column is not None:
            wanted.setdefault(column, []).append(name)
    file = _one_file(source, table.file)
    raw = pl.concat(list(read_chunks(file, wanted)))
    _refuse_broken(file, raw)
    since = [_moment(file, raw, time_unit)] if history else []
    _check_ids(file, raw, key, since)
    frame = raw.select(
        pl.col(key).cast(pl.String).str.strip_chars(),
        *since,
        *(_text(name) for name in table.categorical),
        *(_number(file, raw, name) for name in table.numeric),
        *(_multi(name, separator) for name, separator in table.multi.items()),
        *(_multi(name, separator).list.first().alias(f"first_{name}") for name, separator in table.multi.items()),
        *(_date(file, raw, name, (time_unit, time_zone)) for name, column in times if column),
    )
    assert frame.height == raw.height, "a side table loses no row"
    return frame.sort(key, *history)


def _one_file(source: str | Path, pattern: str) -> SourceFile:
    files = find_files(source, pattern)
    if len(files) > 1:
        raise ValueError(f"{shown(source)}: {pattern} matches {files[0].name} and {files[1].name}: name one file")
    return files[0]


def _refuse_broken(file: SourceFile, raw: pl.DataFrame) -> None:
    broken = raw.filter(pl.col("broken").is_not_null())
    if broken.height:
        raise ValueError(
            f"{file.name}: row {broken['row'][0]} cannot be read ({broken['broken'][0][:80]!r}): correct it"
        )


def _text(name: str) -> pl.Expr:
    stripped = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(stripped != "").then(stripped).alias(name)


def _multi(name: str, separator: str) -> pl.Expr:
    parts = pl.col(name).cast(pl.String).str.split(separator).list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(pl.element() != "")).alias(name)


def _check_ids(file: SourceFile, raw: pl.DataFrame, key: str, since: list[pl.Series]) -> None:
    ids = raw.select(pl.col(key).cast(pl.String).str.strip_chars(), "row", *since)
    empty = ids.filter(pl.col(key).is_null() | (pl.col(key) == ""))
    if empty.height:
        raise ValueError(f"{file.name}: row {empty['row'][0]}: {key} is empty; every row needs an id")
    distinct = [key, *(series.name for series in since)]
    repeated = ids.filter(pl.struct(distinct).is_duplicated())
    if repeated.height:
        same = repeated.filter(pl.all_horizontal(pl.col(name) == repeated[name][0] for name in distinct))
        first, second = same["row"].to_list()[:2]
        advice = "keep one row an id and valid_from" if since else "keep one row an id, or name valid_from"
        raise ValueError(
            f"{file.name}: {key} {repeated[key][0]!r} stands in rows {first} and {second} "
            f"({repeated[key].n_unique()} ids are repeated); {advice}"
        )


def _moment(file: SourceFile, raw: pl.DataFrame, unit: str) -> pl.Series:
    """Read from when on each row holds."""
    parsed = raw.select(timestamp(pl.col("valid_from"), raw.schema["valid_from"], unit).alias("valid_from")).to_series()
    wrong = raw.filter(parsed.is_null())
    if wrong.height:
        raise ValueError(
            f"{file.name}: row {wrong['row'][0]}: valid_from = {wrong['valid_from'][0]!r} is no time; every row needs "
            "the time from which it holds"
        )
    return parsed


def _number(file: SourceFile, raw: pl.DataFrame, name: str) -> pl.Series:
    column = raw.get_column(name)
    numbers = raw.select(
        _text(name).cast(pl.Float64, strict=False) if column.dtype == pl.String else pl.col(name).cast(pl.Float64)
    ).to_series()
    blank = column.is_null() | (column.cast(pl.String).str.strip_chars() == "")
    wrong = raw.filter((numbers.is_null() & ~blank) | ~numbers.is_finite().fill_null(value=True))
    if wrong.height:
        raise ValueError(
            f"{file.name}: row {wrong['row'][0]}: {name} = {wrong[name][0]!r} is no finite number ({wrong.height} "
            "such rows); correct it, or leave it empty where it is missing"
        )
    return numbers


def _date(file: SourceFile, raw: pl.DataFrame, name: str, time: tuple[str, str]) -> pl.Series:
    unit, zone = time
    moment = timestamp(pl.col(name), raw.schema[name], unit)
    midnight = moment.dt.time() == dt.time()
    local = pl.when(midnight).then(moment.dt.date()).otherwise(moment.dt.convert_time_zone(zone).dt.date())
    parsed = raw.select(local.alias(name)).to_series()
    given = raw.get_column(name).cast(pl.String)
    wrong = raw.filter(given.is_not_null() & (given != "") & parsed.is_null())
    if wrong.height:
        raise ValueError(
            f"{file.name}: row {wrong['row'][0]}: {name} = {wrong[name][0]!r} is no date; write YYYY-MM-DD"
        )
    return parsed
