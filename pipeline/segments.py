"""Metrics within segments of the test impressions: activity of the user, popularity of the item, new ids, surface.

Every test impression falls in exactly one value of each kind of segment.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.featurize import table_versions
from pipeline.metrics import evaluate_task
from pipeline.popularity import UNSEEN, deciles_of, known_impressions
from pipeline.scored import Scored, TaskRows
from pipeline.workspace import Workspace

METRICS = ("auc", "gauc", "log_loss", "pcoc")
SHOWN_VALUES = 12
# With 30 of a class the standard error of an AUC of 0.5 is sqrt(1 / (12 * 30)) = 0.05 even if the other has no end.
LEAST_OF_A_CLASS = 30
OTHERS, MISSING = "(others)", "(missing)"


def segments(config: Config, workspace: Workspace, folder: Path, scored: Scored) -> list[dict[str, Any]]:
    """Measure every task within every segment.

    Kinds: `activity decile` (of the user's impressions known before the test day), `item popularity decile`, `new
    users` and `new items` (no impression known before the test day, so that its features saw none), and one `surface`
    for each context column. Costs about one evaluation of the tasks for each kind.

    Returns:
        Rows of segment, value, rows, users, positives by task and, by task, METRICS as intervals; these are None, with
        a `reason`, where there are too few positives or negatives.
    """
    values = impression_segments(config, workspace, folder, scored.frames)
    return [
        _measured(config, scored, (kind, value), (values[kind] == value).to_numpy())
        for kind in values.columns
        for value in _in_order(values[kind])
    ]


def impression_segments(
    config: Config, workspace: Workspace, folder: Path, frames: Iterable[pl.DataFrame]
) -> pl.DataFrame:
    """Return the value of every kind of segment of each test impression, the frames of the test days in order."""
    return with_others(pl.concat(_day_values(config, workspace, folder, frames)))


def _day_values(
    config: Config, workspace: Workspace, folder: Path, frames: Iterable[pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    """Yield the segments of each test day's impressions, in order; each day has its own deciles."""
    version = table_versions(folder)["interactions"]
    context = list(config.context.references())
    for frame in frames:
        day = frame["date"][0]
        raw = pl.read_parquet(folder / "features" / f"raw-{day}.parquet", columns=["impression_id", *context])
        rows = frame.select("impression_id", "user_id", "item_id").join(
            raw, on="impression_id", how="left", maintain_order="left"
        )
        users, items = (known_impressions(config, workspace, version, day, key) for key in ("user_id", "item_id"))
        yield segment_values(rows, users, items, context)


def segment_values(rows: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, context: list[str]) -> pl.DataFrame:
    """Return the value of every kind of segment for each impression, none of them null.

    Args:
        rows: user_id, item_id and the context columns.
        users: user_id and `impressions` known before.
        items: item_id and `impressions` known before.
        context: names of the context columns.
    """
    return kinds_of(rows, deciles_of(rows["user_id"], users), deciles_of(rows["item_id"], items), context)


def kinds_of(rows: pl.DataFrame, activity: pl.Series, popularity: pl.Series, context: list[str]) -> pl.DataFrame:
    """Return the value of every kind of segment, from the deciles of the users and of the items of the rows."""
    surfaces = {f"surface: {name}": rows[name].cast(pl.String).fill_null(MISSING) for name in context}
    return pl.DataFrame(
        {
            "activity decile": activity,
            "new users": _newness(activity),
            "item popularity decile": popularity,
            "new items": _newness(popularity),
            **surfaces,
        }
    )


def _newness(decile: pl.Series) -> pl.Series:
    return pl.select(pl.when(decile == UNSEEN).then(pl.lit("new")).otherwise(pl.lit("known"))).to_series()


def with_others(values: pl.DataFrame) -> pl.DataFrame:
    """Put '(others)' for the values of a kind beyond its most frequent `SHOWN_VALUES`, ties by value."""
    return values.with_columns(
        pl.when(pl.col(kind).is_in(_most_frequent(values[kind])))
        .then(pl.col(kind))
        .otherwise(pl.lit(OTHERS))
        .alias(kind)
        for kind in values.columns
    )


def _most_frequent(column: pl.Series) -> list[str]:
    counts = column.rename("value").value_counts().sort(["count", "value"], descending=[True, False])
    return counts["value"].head(SHOWN_VALUES).to_list()


def _in_order(column: pl.Series) -> list[str]:
    """Return the values: 'none' and numbers rising, else by falling frequency; those put together come last."""
    found = _most_frequent(column.filter(column != OTHERS))
    if all(value == UNSEEN or value.isdecimal() for value in found):
        found.sort(key=lambda value: -1 if value == UNSEEN else int(value))
    return [*found, OTHERS] if (column == OTHERS).any() else found


def _measured(config: Config, scored: Scored, segment: tuple[str, str], among: NDArray[np.bool_]) -> dict[str, Any]:
    tasks = {name: scored.task(name, among) for name in scored.labels}
    return {
        "segment": segment[0],
        "value": segment[1],
        "rows": int(among.sum()),
        "users": int(np.unique(scored.users[among]).size),
        "positives": {name: int(rows.labels.sum()) for name, rows in tasks.items()},
        "tasks": {name: _metrics(config, rows) for name, rows in tasks.items()},
    }


def _metrics(config: Config, rows: TaskRows) -> dict[str, Any]:
    positives = int(rows.labels.sum())
    negatives = len(rows.labels) - positives
    if min(positives, negatives) < LEAST_OF_A_CLASS:
        reason = f"{positives} positives and {negatives} negatives: {LEAST_OF_A_CLASS} of each are needed"
        return {**dict.fromkeys(METRICS), "reason": reason}
    found = evaluate_task(
        labels=rows.labels,
        probabilities=rows.probabilities,
        users=rows.users,
        replicates=config.evaluation.replicates,
        seed=config.seed,
    )
    return {name: found[name].as_dict() for name in METRICS}
