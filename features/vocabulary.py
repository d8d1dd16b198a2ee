"""The vocabulary of a feature plan: each known value's id in its field, given once and never changed.

A frame of field (String), value (String), id (Int32) and added_on (Date), by field and id. Rows are only ever added
behind a field's last one, so that models of different days agree on what an id means.
"""

import datetime as dt

import polars as pl

from features.encoding import FIRST_KNOWN

SCHEMA = {"field": pl.String, "value": pl.String, "id": pl.Int32, "added_on": pl.Date}


def extend(
    vocabulary: pl.DataFrame | None, counts: pl.DataFrame, *, min_count: int, max_ids: int, added_on: dt.date
) -> pl.DataFrame:
    """Return the vocabulary with an id for each value that has none yet and enough rows.

    New ids follow a field's last one, by falling rows, then by value. Extending again with the same counts adds
    nothing.

    Args:
        vocabulary: what an earlier call returned, in any order of rows; None where there is none.
        counts: field, value and rows, as `features.encoding.value_counts` returns them.
        min_count: rows that a value needs for an id.
        max_ids: values at which a field is full: it then takes no more.
        added_on: the day that the new rows bear.

    Raises:
        ValueError: a field holds more than max_ids values already.
    """
    known = pl.DataFrame(schema=SCHEMA) if vocabulary is None else vocabulary
    _check(known)
    sizes = known.group_by("field").agg(pl.len().cast(pl.Int64).alias("size"))
    _check_sizes(sizes, max_ids)
    new = (
        counts.filter(pl.col("rows") >= min_count)
        .join(known, on=["field", "value"], how="anti")
        .join(sizes, on="field", how="left")
        .sort("field", "rows", "value", descending=[False, True, False])
        .with_columns(pl.col("size").fill_null(0) + pl.int_range(pl.len()).over("field"))
        .filter(pl.col("size") < max_ids)
        .select("field", "value", (pl.col("size") + FIRST_KNOWN).cast(pl.Int32).alias("id"))
        .with_columns(pl.lit(added_on, dtype=pl.Date).alias("added_on"))
    )
    extended = pl.concat([known, new]).sort("field", "id")
    _check(extended)
    return extended


def _check_sizes(sizes: pl.DataFrame, max_ids: int) -> None:
    largest = sizes.sort("size", "field", descending=[True, False]).row(0) if sizes.height else ("", 0)
    if largest[1] > max_ids:
        raise ValueError(
            f"features.max_ids = {max_ids} but the vocabulary of {largest[0]} holds {largest[1]} values: an id is "
            f"never taken back; set features.max_ids to at least {largest[1]}, or use a new --workspace"
        )


def _check(vocabulary: pl.DataFrame) -> None:
    assert dict(vocabulary.schema) == SCHEMA, vocabulary.schema
    assert not vocabulary.select("field", "value").is_duplicated().any()
    # Tables do not keep the order of rows, so the check brings its own.
    place = pl.int_range(FIRST_KNOWN, pl.len() + FIRST_KNOWN).over("field")
    assert vocabulary.sort("field", "id").select((pl.col("id") == place).all()).item()
