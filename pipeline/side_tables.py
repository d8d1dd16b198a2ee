"""Users and items: one row an id, categorical, numeric and multi-valued columns, all checked."""

import datetime as dt
from pathlib import Path

import polars as pl

from features.schema import timestamp
from pipeline.readers import find_files, read_chunks
from pipeline.sections import SideTable


def read_side_table(source: Path, table: SideTable, key: str, time_unit: str, time_zone: str) -> pl.DataFrame:
    """Read a side table under the contract's types.

    Args:
        source: the folder that the file lies in.
        table: its columns.
        key: name of the id in the pipeline: user_id or item_id.
        time_unit: unit of integer times in the availability columns.
        time_zone: of the business day that a moment of availability falls on; a date without a time stays.

    Returns:
        key (String), categorical (String), numeric (Float64), multi-valued (List[String]) and their
        `first_<name>`, available_from and available_until (Date). Empty text is missing. Sorted by key.

    Raises:
        ValueError: a column is missing, an id is empty or repeated, a number is NaN, infinite or no number.
    """
    assert table.file is not None, "the caller asks for a side table only where the config has one"
    times = [("available_from", table.available_from), ("available_until", table.available_until)]
    wanted: dict[str, list[str]] = {table.id: [key]}
    for name in [*table.categorical, *table.numeric, *table.multi]:
        wanted.setdefault(name, []).append(f"{name}")
    for name, column in times:
        if column is not None:
            wanted.setdefault(column, []).append(name)
    path = _one_file(source, table.file)
    raw = pl.concat(list(read_chunks(path, wanted)))
    _refuse_broken(path, raw)
    _check_ids(path, raw, key)
    frame = raw.select(
        pl.col(key).cast(pl.String).str.strip_chars(),
        *(_text(name) for name in table.categorical),
        *(_number(path, raw, name) for name in table.numeric),
        *(_multi(name, separator) for name, separator in table.multi.items()),
        *(_multi(name, separator).list.first().alias(f"first_{name}") for name, separator in table.multi.items()),
        *(_date(path, raw, name, (time_unit, time_zone)) for name, column in times if column),
    )
    assert frame.height == raw.height, "a side table loses no row"
    return frame.sort(key)


def _one_file(source: Path, pattern: str) -> Path:
    paths = find_files(source, pattern)
    if len(paths) > 1:
        raise ValueError(f"{source}: {pattern} matches {paths[0].name} and {paths[1].name}: name one file")
    return paths[0]


def _refuse_broken(path: Path, raw: pl.DataFrame) -> None:
    broken = raw.filter(pl.col("broken").is_not_null())
    if broken.height:
        raise ValueError(f"{path}: row {broken['row'][0]} is no JSON object: correct it")


def _text(name: str) -> pl.Expr:
    stripped = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(stripped != "").then(stripped).alias(name)


def _multi(name: str, separator: str) -> pl.Expr:
    parts = pl.col(name).cast(pl.String).str.split(separator).list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(pl.element() != "")).alias(name)


def _check_ids(path: Path, raw: pl.DataFrame, key: str) -> None:
    ids = raw.select(pl.col(key).cast(pl.String).str.strip_chars(), "row")
    empty = ids.filter(pl.col(key).is_null() | (pl.col(key) == ""))
    if empty.height:
        raise ValueError(f"{path}: row {empty['row'][0]}: {key} is empty; every row needs an id")
    repeated = ids.filter(pl.col(key).is_duplicated())
    if repeated.height:
        value = repeated[key][0]
        first, second = repeated.filter(pl.col(key) == value)["row"].to_list()[:2]
        raise ValueError(
            f"{path}: {key} {value!r} stands in rows {first} and {second} ({repeated[key].n_unique()} ids "
            "are repeated); keep one row an id"
        )


def _number(path: Path, raw: pl.DataFrame, name: str) -> pl.Series:
    column = raw.get_column(name)
    numbers = raw.select(
        _text(name).cast(pl.Float64, strict=False) if column.dtype == pl.String else pl.col(name).cast(pl.Float64)
    ).to_series()
    blank = column.is_null() | (column.cast(pl.String).str.strip_chars() == "")
    wrong = raw.filter((numbers.is_null() & ~blank) | ~numbers.is_finite().fill_null(value=True))
    if wrong.height:
        raise ValueError(
            f"{path}: row {wrong['row'][0]}: {name} = {wrong[name][0]!r} is no finite number ({wrong.height} "
            "such rows); correct it, or leave it empty where it is missing"
        )
    return numbers


def _date(path: Path, raw: pl.DataFrame, name: str, time: tuple[str, str]) -> pl.Series:
    unit, zone = time
    moment = timestamp(pl.col(name), raw.schema[name], unit)
    midnight = moment.dt.time() == dt.time()
    local = pl.when(midnight).then(moment.dt.date()).otherwise(moment.dt.convert_time_zone(zone).dt.date())
    parsed = raw.select(local.alias(name)).to_series()
    given = raw.get_column(name).cast(pl.String)
    wrong = raw.filter(given.is_not_null() & (given != "") & parsed.is_null())
    if wrong.height:
        raise ValueError(f"{path}: row {wrong['row'][0]}: {name} = {wrong[name][0]!r} is no date; write YYYY-MM-DD")
    return parsed
