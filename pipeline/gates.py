"""Gates: a day that is too far from its own history stops ingest before anything is committed."""

import datetime as dt
import math
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from features.business_days import end_of_day
from pipeline.sections import Gates

HISTORY_DAYS = 28
# Small logs are noisy: a day must also be as many standard errors away.
STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class _Figure:
    """One number of a day: a count, or a rate over `trials`."""

    name: str
    numerator: str
    trials: str | None
    threshold: str


FIGURES = (
    _Figure("impressions", "impressions", None, "max_volume_ratio"),
    _Figure("click rate", "clicks", "received", "max_rate_ratio"),
    _Figure("conversion rate", "conversions", "clicks", "max_rate_ratio"),
)


def day_counts(interactions: pl.LazyFrame, time_zone: str) -> pl.DataFrame:
    """Count by day: impressions that happened on it, and impressions, clicks and conversions that became known on it.

    Rates by day of knowledge do not drop on the last days, whose labels are not known yet.

    Returns:
        date, impressions, received, clicks, conversions; one row a day on which any of them is not 0, in order.
    """

    def local(column: str) -> pl.Expr:
        return pl.col(column).dt.convert_time_zone(time_zone).dt.date()

    days = {
        "impressions": pl.col("date"),
        "received": local("received_time"),
        "clicks": local("click_known_at"),
        "conversions": local("conversion_known_at"),
    }
    counts = [
        interactions.select(day.alias("date")).drop_nulls().group_by("date").agg(pl.len().cast(pl.Int64).alias(name))
        for name, day in days.items()
    ]
    summed = pl.concat(counts, how="diagonal").group_by("date").agg(pl.col(name).sum() for name in days)
    return summed.sort("date").collect()


def check_days(gates: Gates, counts: pl.DataFrame, days: Iterable[dt.date]) -> None:
    """Compare each day with the median of the up to 28 days before it.

    Args:
        gates: thresholds, and the days that are known to be unusual.
        counts: the result of `day_counts`, of the days and of those before them.
        days: the days to look at; those without impressions are passed over.

    Raises:
        ValueError: a figure is beyond its ratio and beyond the noise of its size; the message names the first three.
    """
    rows = {row["date"]: row for row in counts.filter(pl.col("impressions") > 0).iter_rows(named=True)}
    found: list[str] = []
    for day in sorted(set(days) & rows.keys() - set(gates.accepted_days)):
        first = day - dt.timedelta(days=HISTORY_DAYS)
        history = [row for date, row in rows.items() if first <= date < day]
        if len(history) >= gates.min_history_days:
            found += [told for figure in FIGURES if (told := _told(gates, figure, rows[day], history)) is not None]
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""  # noqa: PLR2004  # the first three
        raise ValueError(
            f"{'; '.join(found[:3])}{more}: correct the source, list the day in gates.accepted_days if it is right, or "
            "raise the threshold"
        )


def _told(gates: Gates, figure: _Figure, row: dict[str, int], history: list[dict[str, int]]) -> str | None:
    """Return what is wrong with a figure of a day, None where it is within bounds."""
    values = sorted(value for past in history if (value := _value(figure, past)) is not None)
    value = _value(figure, row)
    if value is None or not values:
        return None
    median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    if median == 0:
        return None
    ratio = max(value / median, median / value) if value else math.inf
    limit = getattr(gates, figure.threshold)
    variance = median if figure.trials is None else median * max(1 - median, 0) / row[figure.trials]
    if ratio <= limit or abs(value - median) <= STANDARD_ERRORS * math.sqrt(variance):
        return None
    way = "above" if value > median else "below"
    return (
        f"{figure.name} of {row['date']} is {value:,.6g}, {ratio:.3g} times {way} {median:,.6g}, the median of the "
        f"{len(history)} days before it (gates.{figure.threshold} = {limit:g})"
    )


def _value(figure: _Figure, row: dict[str, int]) -> float | None:
    if figure.trials is None:
        return float(row[figure.numerator])
    return row[figure.numerator] / row[figure.trials] if row[figure.trials] else None


def check_freshness(gates: Gates, newest: dt.datetime, day: dt.date, time_zone: str) -> None:
    """Refuse to go on to a day whose log has not arrived whole.

    Raises:
        ValueError: the newest received_time lies more than gates.max_staleness before the end of the day.
    """
    end = end_of_day(day, time_zone)
    if day in gates.accepted_days or newest >= end - gates.max_staleness:
        return
    raise ValueError(
        f"the newest received_time is {newest:%Y-%m-%dT%H:%M:%SZ}, {end - newest} before the end of {day}: more than "
        f"gates.max_staleness = {gates.max_staleness}; wait for the rest of the log, raise the key, or list the day in "
        "gates.accepted_days"
    )
