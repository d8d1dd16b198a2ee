"""Attribute clicks to impressions and conversions to clicks, as known today and as counted at the time.

Labels (`to_*`) follow the rule over everything that is known today. What features count (`counted_*`) is settled
at `counted_at`, the first moment at which the event could be attributed, and depends only on what was received up
to then: a late impression that takes a click away moves the label, never the count.
Times are in UTC with microseconds.
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Integers = npt.NDArray[np.int64]

PAIR = ("user_id", "item_id")
FINAL = ("to_impression", "to_date", "known_at")
COUNTED = ("counted_impression", "counted_date", "counted_at")
OUTCOMES = ("click_known_at", "conversion_known_at", "click_counted_at", "conversion_counted_at", "value")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long after an impression a click counts, after a click a conversion, and how late either may arrive."""

    click: dt.timedelta
    conversion: dt.timedelta
    lateness: dt.timedelta


@dataclass(frozen=True, kw_only=True)
class _Reasons:
    """Why an event stays unattributed: the first three for one that names its impression, the last for the rest."""

    no_cause: str
    not_after: str
    after_window: str
    none_of_pair: str


@dataclass(frozen=True)
class _Search:
    """Causes by key, event_time and event_id, and per event the positions `first` to `last` of its candidates.

    Both are null without a candidate; `before` is the last cause before the event, in the window or not.
    """

    causes: pl.DataFrame
    events: pl.DataFrame


CLICK_REASONS = _Reasons(
    no_cause="no impression with its id",
    not_after="not after its impression",
    after_window="after the click window",
    none_of_pair="no impression of its user and item in the click window",
)
CONVERSION_REASONS = _Reasons(
    no_cause="no click on its impression",
    not_after="not after a click on its impression",
    after_window="after the conversion window",
    none_of_pair="no click of its user and item in the conversion window",
)


def attribute_clicks(clicks: pl.DataFrame, impressions: pl.DataFrame, window: dt.timedelta) -> pl.DataFrame:
    """Attribute each click to the impression it names, or else to the last one of its user and item.

    The impression is strictly before the click and at most the window before it. Of equal times the greater
    impression_id is last.

    Args:
        clicks: event_id (unique), impression_id (null where none is named), user_id, item_id (may be null where
            an impression is named), event_time, received_time.
        impressions: impression_id (unique), user_id, item_id, event_time, received_time, date.
        window: longest time from impression to click, itself included.

    Returns:
        One row a click, in order: event_id, user_id, item_id (from the impression where null), event_time,
        received_time, to_impression, to_date, known_at, counted_impression, counted_date, counted_at, and the
        reason where the click stays unattributed.
    """
    causes = impressions.select(
        pl.col("impression_id").alias("event_id"),
        *PAIR,
        "event_time",
        *_three("impression_id", "date", "received_time", names=FINAL),
        *_three("impression_id", "date", "received_time", names=COUNTED),
    )
    return _attribute(clicks, causes, window, CLICK_REASONS)


def attribute_conversions(conversions: pl.DataFrame, clicks: pl.DataFrame, window: dt.timedelta) -> pl.DataFrame:
    """Attribute each conversion to the last attributed click of the impression it names, or of its user and item.

    The click is strictly before the conversion and at most the window before it. Of equal times the greater
    event_id is last. A conversion may be counted and not attributed, or the reverse: the click of the impression
    that it names was counted elsewhere.

    Args:
        conversions: as clicks in `attribute_clicks`, and value.
        clicks: the result of `attribute_clicks`.
        window: longest time from click to conversion, itself included.

    Returns:
        As `attribute_clicks` does, with value after received_time.
    """
    return _attribute(conversions, clicks, window, CONVERSION_REASONS)


def _three(*sources: str, names: tuple[str, str, str]) -> list[pl.Expr]:
    return [pl.col(source).alias(name) for source, name in zip(sources, names, strict=True)]


def _attribute(events: pl.DataFrame, causes: pl.DataFrame, window: dt.timedelta, reasons: _Reasons) -> pl.DataFrame:
    kept = [name for name in ("event_id", *PAIR, "event_time", "received_time", "value") if name in events.columns]
    ordered = events.select(*kept, "impression_id").with_row_index("order")
    named = pl.col("impression_id").is_not_null()
    unnamed = ordered["impression_id"].null_count()
    # Most logs name all impressions or none, and a search costs much also for no event.
    parts = [
        *([_by_impression(ordered.filter(named), causes, window, reasons)] if unnamed < ordered.height else []),
        *([_by_pair(ordered.filter(~named), causes, window, reasons)] if unnamed or not ordered.height else []),
    ]
    return (
        pl.concat(part.select("order", *kept, *FINAL, *COUNTED, "reason") for part in parts).sort("order").drop("order")
    )


def _by_impression(events: pl.DataFrame, causes: pl.DataFrame, window: dt.timedelta, reasons: _Reasons) -> pl.DataFrame:
    def search(impression: str) -> _Search:
        return _search(
            events, causes.with_columns(pl.col(impression).alias("impression_id")), ["impression_id"], window
        )

    final = search("to_impression")
    counted = final if _counts_as_labels(causes) else search("counted_impression")
    exists = pl.col("impression_id").is_in(final.causes["impression_id"].unique().implode())
    reason = (
        pl.when(~exists)
        .then(pl.lit(reasons.no_cause))
        .when(pl.col("before").is_null())
        .then(pl.lit(reasons.not_after))
        .otherwise(pl.lit(reasons.after_window))
    )
    return _joined(final, counted, reason)


def _counts_as_labels(causes: pl.DataFrame) -> bool:
    """Return whether every cause counts for the impression that it gives its label to, so that one search serves."""
    return causes["to_impression"].equals(causes["counted_impression"], null_equal=True)


def _by_pair(events: pl.DataFrame, causes: pl.DataFrame, window: dt.timedelta, reasons: _Reasons) -> pl.DataFrame:
    # Of a user and item every cause is attributed exactly if it is counted, so that one search serves both.
    found = _search(events, causes.drop_nulls("to_impression"), list(PAIR), window)
    return _joined(found, found, pl.lit(reasons.none_of_pair))


def _search(events: pl.DataFrame, causes: pl.DataFrame, keys: list[str], window: dt.timedelta) -> _Search:
    ordered = (
        causes.drop_nulls(keys)
        .join(events.select(keys).unique(), on=keys, how="semi")
        .sort(*keys, "event_time", "event_id")
    )
    right = ordered.select(*keys, pl.col("event_time").alias("cause_time")).with_row_index("position")
    left = events.sort("event_time").with_columns((pl.col("event_time") - window).alias("since"))
    # Polars cannot check the order within keys and would warn: both sides are sorted above.
    before = left.join_asof(
        right,
        left_on="event_time",
        right_on="cause_time",
        by=keys,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    from_since = left.join_asof(
        right, left_on="since", right_on="cause_time", by=keys, strategy="forward", check_sortedness=False
    )
    found = left.drop("since").with_columns(
        before["position"].cast(pl.Int64).alias("before"), from_since["position"].cast(pl.Int64).alias("first")
    )
    within = pl.col("first") <= pl.col("before")
    last = pl.when(within).then("before").alias("last")
    return _Search(ordered, found.with_columns(pl.when(within).then("first"), last).sort("order"))


def _joined(final: _Search, counted: _Search, reason: pl.Expr) -> pl.DataFrame:
    """Return the events of both searches with what they are attributed to, what they count for, and the reason."""
    owners = final.causes.select(*(pl.col(name).alias(f"cause:{name}") for name in PAIR), *FINAL)
    attributed = final.events.join(
        owners.with_row_index("last").cast({"last": pl.Int64}), on="last", how="left", maintain_order="left"
    )
    filled = attributed.with_columns(
        *(pl.coalesce(name, f"cause:{name}") for name in PAIR),
        pl.when(pl.col("last").is_not_null()).then(pl.max_horizontal("known_at", "received_time")).alias("known_at"),
        pl.when(pl.col("last").is_null()).then(reason).cast(pl.String).alias("reason"),
    )
    return pl.concat([filled, _counted(counted)], how="horizontal")


def _counted(search: _Search) -> pl.DataFrame:
    """Return counted_impression, counted_date and counted_at of each event, null without a candidate."""
    found = search.events.select("order", "first", "last", "received_time").drop_nulls("last")
    moments, positions = _last_known(
        _integers(search.causes["counted_at"]),
        _integers(found["first"]),
        _integers(found["last"]),
        _integers(found["received_time"]),
    )
    settled = found.select("order").with_columns(
        search.causes["counted_impression"].gather(pl.Series(positions)),
        search.causes["counted_date"].gather(pl.Series(positions)),
        pl.Series("counted_at", moments).cast(search.causes["counted_at"].dtype),
    )
    return search.events.select("order").join(settled, on="order", how="left", maintain_order="left").drop("order")


def _integers(column: pl.Series) -> Integers:
    return column.cast(pl.Int64).to_numpy()


def _last_known(known: Integers, first: Integers, last: Integers, received: Integers) -> tuple[Integers, Integers]:
    """Find when each event first meets a known candidate, and the last candidate known by then.

    The moment is max(received, min(known[first..last])); the place is the greatest in first..last that is known at
    it. Both walk down minima over blocks of powers of two (a sparse table, Bender and Farach-Colton 2000), since a
    join with all candidates grows with the square of a busy user and item.

    Args:
        known: times at which the candidates are known, in the order of the rule.
        first: place of each event's first candidate.
        last: place of its last candidate, at least first.
        received: time at which each event is received.
    """
    minima = _block_minima(known, int((last - first + 1).max(initial=0)))
    lowest, end = known[last], last + 1
    for level, block in reversed(list(enumerate(minima))):
        start = end - (1 << level)
        inside = start >= first
        lowest = np.where(inside, np.minimum(lowest, block[np.maximum(start, 0)]), lowest)
        end = np.where(inside, start, end)
    moments, end = np.maximum(received, lowest), last + 1
    for level, block in reversed(list(enumerate(minima))):
        start = end - (1 << level)
        unknown = (start >= first) & (block[np.maximum(start, 0)] > moments)
        end = np.where(unknown, start, end)
    return moments, end - 1


def _block_minima(values: Integers, longest: int) -> list[Integers]:
    """Return the minima of values[n : n + 2**level] by level, up to the longest power of two within `longest`."""
    minima = [values]
    for level in range(1, longest.bit_length()):
        half = 1 << (level - 1)
        minima.append(np.minimum(minima[-1][:-half], minima[-1][half:]))
    return minima


def label_impressions(
    impressions: pl.DataFrame, clicks: pl.DataFrame, conversions: pl.DataFrame, windows: Windows
) -> pl.DataFrame:
    """Append the labels that attributed events give to impressions, and the moments that features count.

    Events of impressions that are not in the frame are left out. Every impression matures after the same time,
    since leaving out immature rows would otherwise select by outcome.

    Args:
        impressions: impression_id (unique), event_time, received_time and whatever else is to be kept.
        clicks: the result of `attribute_clicks`.
        conversions: the result of `attribute_conversions` on these clicks.
        windows: the windows of attribution, and the lateness that a label waits for.

    Returns:
        The impressions in order, with click, conversion, click_known_at, conversion_known_at (of the first
        attributed event, null without), label_matures_at, click_counted_at, conversion_counted_at (of the first
        counted event; may be set without the label, where that moved to another impression), and value: the sum
        over attributed conversions by event_time and event_id, null where none has a value.
    """
    labelled = impressions.join(_outcomes(clicks, conversions), on="impression_id", how="left", maintain_order="left")
    matures_after = windows.click + windows.conversion + windows.lateness
    result = labelled.select(
        *impressions.columns,
        pl.col("click_known_at").is_not_null().alias("click"),
        pl.col("conversion_known_at").is_not_null().alias("conversion"),
        "click_known_at",
        "conversion_known_at",
        (pl.col("event_time") + matures_after).alias("label_matures_at"),
        "click_counted_at",
        "conversion_counted_at",
        "value",
    )
    _check(result)
    return result


def _outcomes(clicks: pl.DataFrame, conversions: pl.DataFrame) -> pl.DataFrame:
    """Return impression_id and OUTCOMES, one row an impression that has any."""
    values = conversions.drop_nulls(["to_impression", "value"]).sort("event_time", "event_id")
    parts = [
        _first(clicks, "to_impression", "known_at", "click_known_at"),
        _first(conversions, "to_impression", "known_at", "conversion_known_at"),
        _first(clicks, "counted_impression", "counted_at", "click_counted_at"),
        _first(conversions, "counted_impression", "counted_at", "conversion_counted_at"),
        values.group_by(pl.col("to_impression").alias("impression_id")).agg(pl.col("value").sum()),
    ]
    # A part has one row an impression and one column, so that the greatest is the only one.
    return pl.concat(parts, how="diagonal").group_by("impression_id").agg(pl.col(name).max() for name in OUTCOMES)


def _first(events: pl.DataFrame, impression: str, time: str, name: str) -> pl.DataFrame:
    attributed = events.drop_nulls(impression)
    return attributed.group_by(pl.col(impression).alias("impression_id")).agg(pl.col(time).min().alias(name))


def _check(labelled: pl.DataFrame) -> None:
    def ordered(earlier: str, later: str) -> bool:
        after = (pl.col(later) >= pl.col(earlier)).fill_null(value=False)
        return bool(labelled.select((pl.col(later).is_null() | after).all()).item())

    assert ordered("click_known_at", "conversion_known_at"), "a conversion has a click that was known before"
    assert ordered("received_time", "click_known_at"), "a click is known after its impression"
    assert ordered("click_counted_at", "conversion_counted_at"), "a counted conversion has a counted click"
    assert ordered("received_time", "click_counted_at"), "a click is counted after its impression"
