"""Side tables that changed since the feature store read them, and the first day whose features that changes."""

import datetime as dt
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.stage import LOG
from pipeline.workspace import write_parquet

Sides = dict[str, pl.DataFrame | None]


def side_change(root: Path, interactions: Path, sides: Sides) -> dt.date | None:
    """Return the first day from which features are to be made again, None where no side table gives a reason.

    Rows that are new, gone or different matter from the first day on which their ids had an impression, and with a
    history not before the day from which they hold. A static table whose known rows changed is told: it is none.

    Args:
        root: folder of the store, with the tables as it read them last.
        interactions: the table.
        sides: key to table as it is now.
    """
    found = [_first_day(root, interactions, key, side) for key, side in sides.items() if side is not None]
    days = [day for day in found if day is not None]
    return min(days, default=None)


def keep_sides(root: Path, sides: Sides) -> None:
    """Keep the side tables as the store has read them."""
    for key, side in sides.items():
        if side is not None:
            write_parquet(side, root / f"side-{key}.parquet")


def _first_day(root: Path, interactions: Path, key: str, side: pl.DataFrame) -> dt.date | None:
    path = root / f"side-{key}.parquet"
    if not path.exists() or (before := pl.read_parquet(path)).equals(side):
        return None
    shared = [name for name in side.columns if name in before.columns]
    changed = pl.concat(
        [
            side.select(shared).join(before.select(shared), on=shared, how="anti", nulls_equal=True),
            before.select(shared).join(side.select(shared), on=shared, how="anti", nulls_equal=True),
        ]
    )
    first = (
        tables.scan(interactions)
        .join(changed.lazy().select(key).unique(), on=key, how="semi")
        .select(pl.col("date").min())
        .collect()
        .item()
    )
    if first is None:
        return None
    assert isinstance(first, dt.date), "days are dates"
    if "valid_from" in changed.columns:
        holds = changed["valid_from"].min()
        assert isinstance(holds, dt.datetime), "every row holds from a moment"
        return max(first, holds.date() - dt.timedelta(days=1))  # a day early, since business days begin elsewhere
    LOG.warning(
        "featurize: rows of %d %ss changed or joined after their impressions in a table that is static: features from "
        "%s on are made again; name valid_from if its values change over time",
        changed[key].n_unique(),
        key.removesuffix("_id"),
        first,
    )
    return first
