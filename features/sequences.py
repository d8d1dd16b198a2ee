"""The last N clicked and converted items of each user, newest last, as of the start of a day."""

import polars as pl

from features.plan import ACTIONS, ITEM, USER

KINDS = dict(zip(ACTIONS, ("click", "conversion"), strict=True))


def advance_sequences(state: pl.DataFrame | None, known: pl.DataFrame, length: int) -> pl.DataFrame:
    """Append what became known on a day, ordered by the time of knowledge and then by item.

    Args:
        state: user_id, last_clicked_items, last_converted_items (List[String], at most `length`), or None.
        known: user_id, item_id, kind, known_at of one day.
        length: items kept.
    """
    ordered = known.filter(pl.col("kind") != "impression").sort("known_at", ITEM)
    today = ordered.group_by(USER, maintain_order=True).agg(
        pl.col(ITEM).filter(pl.col("kind") == kind).alias(f"last_{action}_items") for action, kind in KINDS.items()
    )
    if state is None:
        joined = today.with_columns(
            pl.col(f"last_{action}_items").alias(f"last_{action}_items:new") for action in ACTIONS
        )
        joined = joined.with_columns(
            pl.lit([], dtype=pl.List(pl.String)).alias(f"last_{action}_items") for action in ACTIONS
        )
    else:
        joined = state.join(today, on=USER, how="full", coalesce=True, suffix=":new")
    empty = pl.lit([], dtype=pl.List(pl.String))
    return joined.select(
        USER,
        *(
            pl.concat_list(
                pl.col(f"last_{action}_items").fill_null(empty),
                pl.col(f"last_{action}_items:new").fill_null(empty),
            )
            .list.tail(length)
            .alias(f"last_{action}_items")
            for action in ACTIONS
        ),
    ).sort(USER)
