"""How well users and items were known before a day: their impressions until then, and deciles of these."""

import datetime as dt

import polars as pl

from pipeline import tables
from pipeline.config import Config
from pipeline.feature_plan import plan_of
from pipeline.workspace import Workspace

DECILES = 10
UNSEEN = "none"
NAMES = [UNSEEN, *(str(number) for number in range(1, DECILES + 1))]


def known_impressions(config: Config, workspace: Workspace, version: int, day: dt.date, key: str) -> pl.DataFrame:
    """Count the impressions of each user or item that happened and were known before a day began.

    Those are what the day's features were made from. Costs a scan of three columns of the history.

    Args:
        config: gives the business day.
        workspace: its tables.
        version: of tables/interactions.
        day: the day.
        key: user_id or item_id.

    Returns:
        The key and `impressions`, without what was never shown.
    """
    start = plan_of(config).start_of(day)
    history = tables.scan(workspace.table("interactions"), version)
    known = history.filter((pl.col("date") < day) & (pl.col("received_time") < start))
    return known.group_by(key).agg(pl.len().alias("impressions")).sort(key).collect()


def with_decile(known: pl.DataFrame) -> pl.DataFrame:
    """Append `decile` to counts of impressions: '1' has the tenth of the ids with the fewest, '10' with the most.

    Ids are counted once each, however often they were shown. Equal counts share a decile, that of their middle, so
    deciles may differ in size and some be empty.
    """
    # Multiplied before it is divided: a tenth of the way has to come out whole.
    number = (pl.col("impressions").rank("average") * DECILES / pl.len()).ceil().cast(pl.Int64).clip(1, DECILES)
    return known.with_columns(number.cast(pl.String).alias("decile"))


def deciles_of(ids: pl.Series, known: pl.DataFrame) -> pl.Series:
    """Return the decile of each id in a column named as the key of the counts, 'none' for ids without an impression."""
    joined = ids.to_frame().join(with_decile(known), on=ids.name, how="left", maintain_order="left")
    return joined["decile"].fill_null(UNSEEN)
