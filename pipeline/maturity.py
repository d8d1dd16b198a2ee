"""Maturity: which impressions train which loss while their labels may still change."""

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.schema import PROPENSITY
from models.losses import Targets
from pipeline import tables
from pipeline.config import Config
from pipeline.extra_targets import NONE, binary_target, value_target

UNRECEIVED = "received after the cutoff"
CLICK_OPEN = "click window not over"
SUPERVISED = (
    "event_time",
    "received_time",
    "click",
    "conversion",
    "click_known_at",
    "conversion_known_at",
    "label_matures_at",
)
"""Columns of an impression that `supervise` reads, beside those of further tasks."""
LABELS_OPEN = "conversion window not over"
LITTLE_KNOWN = "share of conversions known below labels.min_known_share"
TASKS = ("click", "click_and_conversion")
MIN_CONVERSIONS = 50


@dataclass(frozen=True, kw_only=True)
class Maturity:
    """How impressions train whose labels may still change at the cutoff; only what was known before it counts."""

    immature: Literal["drop", "weight", "keep"]
    cutoff: dt.datetime
    conversion_window: dt.timedelta
    """From the end of the click's window to the end of the conversion's; 0 where labels are final on receipt."""
    min_known_share: float
    delays_us: NDArray[np.int64]
    """Ascending delays from click to conversion, for 'weight'; empty where no impression is weighted."""
    propensity_clip: float | None = None
    """Largest inverse propensity that an impression weighs, see `exposure_weights`; None weighs all alike."""

    def known_share(self, elapsed_us: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return F(elapsed), the share of conversions known in less than a time after their click: (N); 1 unfitted."""
        if not len(self.delays_us):
            return np.ones(len(elapsed_us))
        return np.searchsorted(self.delays_us, elapsed_us, side="left") / len(self.delays_us)


@dataclass(frozen=True)
class Supervision:
    """What the losses are told of some impressions, and how many rows each task leaves out by reason."""

    targets: Targets
    left_out: dict[str, dict[str, int]]


def maturity_of(config: Config, examples: pl.LazyFrame, cutoff: dt.datetime) -> Maturity:
    """Return how a configuration treats immature labels, with the delays that 'weight' is fitted on.

    Args:
        config: its table `labels`, and `training.propensity_clip`.
        examples: the training and validation days of tables/examples.
        cutoff: start of the first test day.

    Raises:
        ValueError: 'weight' has too few mature conversions to fit the delay on.
    """
    labels = config.labels
    window = labels.conversion_window if config.source.labels_arrive_later() else dt.timedelta(0)
    matures = pl.col("label_matures_at")
    weighted = ((matures >= cutoff) & (matures - window < cutoff)).any()
    needed = labels.immature == "weight" and examples.select(weighted).collect().item()
    return Maturity(
        immature=labels.immature,
        cutoff=cutoff,
        conversion_window=window,
        min_known_share=labels.min_known_share,
        delays_us=_mature_delays(examples, cutoff) if needed else np.zeros(0, np.int64),
        propensity_clip=config.training.propensity_clip,
    )


def _mature_delays(examples: pl.LazyFrame, cutoff: dt.datetime) -> NDArray[np.int64]:
    """Return the delays of conversions whose windows are over; in the others short delays are too many."""
    found = (
        examples.filter(pl.col("conversion") & (pl.col("conversion_known_at") < cutoff))
        .select(
            (pl.col("conversion_known_at") - pl.col("click_known_at")).dt.total_microseconds().alias("delay"),
            (pl.col("label_matures_at") < cutoff).alias("mature"),
            "date",
        )
        .collect()
    )
    delays = np.sort(found.filter("mature")["delay"].to_numpy())
    if found.is_empty():
        raise ValueError(
            f"no conversion was known before {cutoff}: a joint model needs some; correct the source, or wait for them"
        )
    if len(delays) < MIN_CONVERSIONS:
        a_day = found.height / found["date"].n_unique()
        raise ValueError(
            f"labels.immature = 'weight' fits the delay of conversions on those whose windows ended before {cutoff}: "
            f"{len(delays)} found, at least {MIN_CONVERSIONS} expected; set it to 'drop' or 'keep', or wait for about "
            f"{math.ceil((MIN_CONVERSIONS - len(delays)) / a_day)} more days"
        )
    return delays


def supervise(
    frame: pl.DataFrame,
    maturity: Maturity | None,
    binary_tasks: Mapping[str, str] = NONE,
    value_tasks: Mapping[str, str] = NONE,
) -> Supervision:
    """Decide what the losses are told of some impressions (N rows).

    An impression that was received after the cutoff trains nothing. The click loss leaves out impressions whose click
    window is not over. Of the click-and-conversion loss, 'drop'
    leaves out those whose conversion window is not over either. It must not look at the outcome: keeping the
    conversions that came early, or the impressions without a click, would train the entire space on a biased sample.
    'weight' gives a conversion that came before its window is over the target 1 / F(cutoff - click_known_at), whose
    mean is the final label where the delay depends on nothing else, and leaves out impressions with
    F(cutoff - event_time) < min_known_share, again whatever their outcome. A click long after its impression may
    have a smaller F: no target is above 1 / min_known_share. 'keep' takes what is not known for negative.
    Source: Chapelle 2014 (delayed feedback); Yasui et al. 2020 (FSIW), here with an empirical delay.

    Args:
        frame: event_time, received_time, click_known_at, label_matures_at, and click and conversion as known before
            the cutoff; `label_<task>` of each further task; propensity where the maturity has a clip, which makes
            masks into the weights of `exposure_weights`.
        maturity: None takes all labels as they are.
        binary_tasks: further tasks that are true or false, each with its space.
        value_tasks: further tasks that are numbers, likewise.
    """
    clicks, conversions = (frame[label].to_numpy().astype(np.float32) for label in ("click", "conversion"))
    left_out = pl.DataFrame({task: pl.repeat(None, frame.height, dtype=pl.String, eager=True) for task in TASKS})
    if maturity is not None:
        timed = _times(frame, maturity)
        left_out = timed.select(_reasons(maturity))
        if maturity.immature != "keep":
            conversions = (conversions * timed["weight"].to_numpy()).astype(np.float32)
    kept = [left_out[task].is_null().to_numpy().astype(np.float32) for task in TASKS]
    if maturity is not None and maturity.propensity_clip is not None:
        weights = exposure_weights(frame[PROPENSITY], maturity.propensity_clip)
        kept = [mask * weights for mask in kept]
    masks = [torch.from_numpy(mask) for mask in kept]
    counts = {task: dict(left_out[task].drop_nulls().value_counts(sort=True).iter_rows()) for task in TASKS}
    targets = Targets(torch.from_numpy(clicks), torch.from_numpy(conversions), masks[0], masks[1])
    extra = {name: binary_target(frame[f"label_{name}"], space, targets) for name, space in binary_tasks.items()}
    extra |= {name: value_target(frame[f"label_{name}"], space, targets) for name, space in value_tasks.items()}
    return Supervision(replace(targets, extra=extra), counts)


def exposure_weights(propensity: pl.Series, clip: float) -> NDArray[np.float32]:
    """Return what impressions weigh so that those a policy seldom shows count as those that it often shows: (N,).

    It is min(1 / propensity, clip), scaled to sum to the rows of each block of training (`tables.ROW_GROUP_ROWS`), so
    that neither clipping nor the share of explored impressions changes the length of a step. A row without a
    propensity counts as one that was certain to be shown: 1 before scaling. Studies and calibration hold a day in
    memory in order of time, so one that featurize divided by users has other blocks there than in training, and the
    mean of another 131,072 rows scales it. Source: Swaminathan and Joachims 2015 (self-normalised).
    """
    inverse = np.minimum(1 / propensity.fill_null(1.0).to_numpy(), clip)
    blocks = range(0, len(inverse), tables.ROW_GROUP_ROWS)
    scaled = [part / part.mean() for part in (inverse[start : start + tables.ROW_GROUP_ROWS] for start in blocks)]
    return np.concatenate([np.zeros(0), *scaled]).astype(np.float32)


def _times(frame: pl.DataFrame, maturity: Maturity) -> pl.DataFrame:
    """Return which windows are open at the cutoff, the known share, and the weight of a conversion."""
    cutoff, matures = maturity.cutoff, pl.col("label_matures_at")
    timed = frame.select(
        (matures - maturity.conversion_window >= cutoff).alias("click_open"),
        (matures >= cutoff).alias("labels_open"),
        (pl.col("received_time") >= cutoff).alias("unreceived"),
        *(
            (cutoff - pl.col(name)).dt.total_microseconds().fill_null(0).alias(f"{name}_us")
            for name in ("event_time", "click_known_at")
        ),
    )
    of_click = maturity.known_share(timed["click_known_at_us"].to_numpy()).clip(maturity.min_known_share)
    return timed.with_columns(
        pl.Series("known", maturity.known_share(timed["event_time_us"].to_numpy())),
        pl.when("labels_open").then(1 / pl.lit(pl.Series(of_click))).otherwise(1.0).alias("weight"),
    )


def _reasons(maturity: Maturity) -> list[pl.Expr]:
    unreceived = pl.when("unreceived").then(pl.lit(UNRECEIVED))
    if maturity.immature == "keep":
        return [unreceived.otherwise(None).alias(task) for task in TASKS]
    click = unreceived.when("click_open").then(pl.lit(CLICK_OPEN))
    if maturity.immature == "drop":
        both = click.when("labels_open").then(pl.lit(LABELS_OPEN))
    else:
        both = click.when(pl.col("labels_open") & (pl.col("known") < maturity.min_known_share)).then(
            pl.lit(LITTLE_KNOWN)
        )
    return [click.otherwise(None).alias("click"), both.otherwise(None).alias("click_and_conversion")]
