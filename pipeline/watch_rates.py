"""Predicted against realised rates, with intervals over groups of users, from the sums of `pipeline.watch_lists`."""

from typing import Any

import numpy as np
import polars as pl

from pipeline.config import Config
from pipeline.metrics import Floats, user_bootstrap
from pipeline.segments import LEAST_OF_A_CLASS, OTHERS
from pipeline.watch_lists import ALL, PREDICTED, Realised, summed


def day_figures(config: Config, result: Realised) -> dict[str, Any]:
    """Return the figures of one day for watch.json; without lists only its counts, and a reason."""
    told: dict[str, Any] = {"day": str(result.day), "impressions": result.impressions}
    if result.copy is None:
        return told | {"reason": f"no lists were published for {result.day}"}
    record = result.copy.record
    return {
        **told,
        "version": {name: record[name] for name in ("name", "model_version", "run", "published_at")},
        "explained": result.explained,
        "explained_share": result.explained / max(1, result.impressions),
        "active_users": result.users,
        "active_users_share": result.users_with_list / max(1, result.users),
        "list_users": record["users"],
        "list_items": result.copy.items(),
        "immature": result.immature,
        "tasks": task_figures(config, summed([result])),
    }


def task_figures(config: Config, sums: pl.DataFrame | None, segment: str = ALL, value: str = ALL) -> dict[str, Any]:
    """Return rows, hits, PCOC and log-loss of every task within a segment.

    PCOC is predicted over realised, the sum of probabilities over that of the labels; the log-loss is in nats. The
    interval is a percentile bootstrap over groups of users. Both are None with a reason where one class has too few
    rows.
    """
    found = {}
    for task in PREDICTED:
        chosen = (pl.col("task") == task) & (pl.col("segment") == segment) & (pl.col("value") == value)
        found[task] = _figures(config, None if sums is None else sums.filter(chosen))
    return found


def segment_figures(config: Config, sums: pl.DataFrame | None) -> list[dict[str, Any]]:
    """Return a row for every value of every kind of segment: segment, value, tasks."""
    if sums is None:
        return []
    order = [pl.col("segment"), pl.col("value") == OTHERS, pl.col("value").cast(pl.Int64, strict=False), "value"]
    values = sums.filter(pl.col("segment") != ALL).select("segment", "value").unique().sort(order, nulls_last=False)
    return [
        {"segment": segment, "value": value, "tasks": task_figures(config, sums, segment, value)}
        for segment, value in values.iter_rows()
    ]


def _figures(config: Config, sums: pl.DataFrame | None) -> dict[str, Any]:
    rows, hits = (0, 0) if sums is None else (int(sums["rows"].sum()), int(sums["hits"].sum()))
    told = {"rows": rows, "positives": hits}
    if sums is None or min(hits, rows - hits) < LEAST_OF_A_CLASS:
        reason = f"{hits} positives and {rows - hits} negatives: {LEAST_OF_A_CLASS} of each are needed"
        return {**told, "pcoc": None, "log_loss": None, "reason": reason}
    sums_GS = sums.select("rows", "positives", "predicted", "loss").to_numpy().astype(np.float64)
    intervals = user_bootstrap(
        lambda counts_RG: _values(counts_RG @ sums_GS),
        sums_GS[:, :2],
        replicates=config.evaluation.replicates,
        seed=config.seed,
    )
    return {**told, "pcoc": intervals[0].as_dict(), "log_loss": intervals[1].as_dict()}


def _values(totals_RS: Floats) -> Floats:
    rows_R, positives_R, predicted_R, loss_R = totals_RS.T
    return np.stack([predicted_R / positives_R, loss_R / rows_R], axis=1)
