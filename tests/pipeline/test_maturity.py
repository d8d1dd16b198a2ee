"""Which impressions train which loss while their labels may still change at the cutoff."""

import datetime as dt
from collections.abc import Callable
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.label_sums import LabelSums, base_rates, check_classes, maturity_record, selected_by, sums_of, total
from pipeline.maturity import (
    CLICK_OPEN,
    LABELS_OPEN,
    LITTLE_KNOWN,
    Maturity,
    Supervision,
    maturity_of,
    supervise,
)
from pipeline.split import Days

CUTOFF = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
TICK = dt.timedelta(microseconds=1)
CLICK_WINDOW, CONVERSION_WINDOW = 2 * HOUR, 10 * HOUR
DAYS = Days([dt.date(2026, 1, 8)], [dt.date(2026, 1, 9)], [dt.date(2026, 1, 10)], dt.date(2026, 1, 11))
TIME = pl.Datetime("us", "UTC")
SCHEMA = {
    "event_time": TIME,
    "date": pl.Date,
    "click": pl.Boolean,
    "conversion": pl.Boolean,
    "click_known_at": TIME,
    "conversion_known_at": TIME,
    "label_matures_at": TIME,
}
Immature = Literal["drop", "weight", "keep"]
Row = tuple[dt.timedelta, dt.timedelta | None, dt.timedelta | None]
"""Age of the impression at the cutoff, and how long before the cutoff its click and its conversion were known."""


def impressions(rows: list[Row]) -> pl.DataFrame:
    """Return rows of tables/examples with their labels as known before the cutoff."""
    made = []
    for age, clicked, converted in rows:
        time = CUTOFF - age
        click = None if clicked is None else CUTOFF - clicked
        conversion = None if converted is None else CUTOFF - converted
        known = [moment is not None and moment < CUTOFF for moment in (click, conversion)]
        made.append((time, time.date(), *known, click, conversion, time + CLICK_WINDOW + CONVERSION_WINDOW))
    return pl.DataFrame(made, schema=SCHEMA, orient="row").with_columns(received_time=pl.col("event_time"))


def rule(immature: Immature, delays_hours: list[float] | None = None) -> Maturity:
    return Maturity(
        immature=immature,
        cutoff=CUTOFF,
        conversion_window=CONVERSION_WINDOW,
        min_known_share=0.25,
        delays_us=(np.array(delays_hours or []) * 3.6e9).astype(np.int64),
    )


def masks(supervision: Supervision) -> tuple[list[float], list[float]]:
    return supervision.targets.click_mask_B.tolist(), supervision.targets.conversion_mask_B.tolist()


def test_drop_keeps_an_impression_one_microsecond_after_its_labels_matured_and_not_at_that_moment() -> None:
    whole = CLICK_WINDOW + CONVERSION_WINDOW
    found = supervise(impressions([(whole, None, None), (whole + TICK, None, None)]), rule("drop"))
    assert masks(found) == ([1, 1], [0, 1])
    assert found.left_out == {"click": {}, "click_and_conversion": {LABELS_OPEN: 1}}


@pytest.mark.parametrize("immature", ["drop", "weight"])
def test_the_click_loss_leaves_out_what_the_click_window_is_not_over_for(immature: Immature) -> None:
    rows: list[Row] = [(CLICK_WINDOW, HOUR, HOUR / 2), (CLICK_WINDOW + TICK, None, None)]
    found = supervise(impressions(rows), rule(immature, [0.1] * 50))
    assert found.targets.click_mask_B.tolist() == [0, 1]
    assert found.left_out["click"] == {CLICK_OPEN: 1}
    assert found.left_out["click_and_conversion"][CLICK_OPEN] == 1


def test_keep_takes_what_is_not_known_for_negative_and_leaves_nothing_out() -> None:
    found = supervise(impressions([(HOUR, None, None), (HOUR, HOUR / 2, -HOUR), (HOUR, HOUR / 2, TICK)]), rule("keep"))
    assert masks(found) == ([1, 1, 1], [1, 1, 1])
    assert found.targets.clicks_B.tolist() == [0, 1, 1]
    assert found.targets.conversions_B.tolist() == [0, 0, 1]


def test_weight_divides_a_conversion_by_the_share_of_shorter_delays() -> None:
    # Of the delays 1, 2, 3 and 4 h, three are shorter than 4 h: one of exactly 4 h would be known at the cutoff only.
    rows: list[Row] = [(5 * HOUR, 4 * HOUR, HOUR), (6 * HOUR, 5 * HOUR, HOUR), (20 * HOUR, 19 * HOUR, HOUR)]
    found = supervise(impressions([*rows, (5 * HOUR, 4 * HOUR, None)]), rule("weight", [1, 2, 3, 4]))
    assert found.targets.conversions_B.tolist() == pytest.approx([4 / 3, 1, 1, 0])
    assert masks(found) == ([1, 1, 1, 1], [1, 1, 1, 1])


def test_weight_leaves_out_what_is_known_to_too_small_a_share_and_bounds_the_target() -> None:
    late_click: Row = (4 * HOUR, HOUR / 2, HOUR / 4)
    found = supervise(impressions([(3 * HOUR, 2 * HOUR, HOUR), late_click]), rule("weight", [3, 3.5, 3.5, 5]))
    assert masks(found) == ([1, 1], [0, 1])
    assert found.left_out["click_and_conversion"] == {LITTLE_KNOWN: 1}
    assert float(found.targets.conversions_B[1]) == 4


def test_weighted_conversions_have_the_final_rate_as_their_mean() -> None:
    generator = np.random.default_rng(1)
    rows, rate = 100_000, 0.3
    fitted = generator.exponential(4.0, 20_000)
    delays_us = (generator.exponential(4.0, rows) * 3.6e9).astype(np.int64)
    ages_us = (generator.uniform(2.5, 11.5, rows) * 3.6e9).astype(np.int64)
    final = generator.random(rows) < rate
    time = pl.Series((CUTOFF - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds() * 1e6 - ages_us).cast(pl.Int64)
    frame = pl.DataFrame({"event_time": time.cast(TIME)}).with_columns(
        pl.lit(value=True).alias("click"),
        pl.Series("conversion", final & (delays_us < ages_us)),
        pl.col("event_time").alias("click_known_at"),
        pl.col("event_time").alias("received_time"),
        (pl.col("event_time") + CLICK_WINDOW + CONVERSION_WINDOW).alias("label_matures_at"),
    )
    found = supervise(frame, rule("weight", sorted(fitted.tolist())))
    assert found.targets.conversion_mask_B.all()
    error = float(found.targets.conversions_B.std()) / np.sqrt(rows)
    assert float(found.targets.conversions_B.mean()) == pytest.approx(rate, abs=4 * error)
    assert float((found.targets.conversions_B > 0).float().mean()) < rate - 20 * error


moments = st.none() | st.integers(-200, 2000).map(lambda minutes: dt.timedelta(minutes=minutes))


@given(st.lists(st.tuples(st.integers(1, 2000), moments, moments), min_size=1), st.sampled_from(["drop", "weight"]))
def test_what_is_left_out_depends_on_the_time_alone(
    rows: list[tuple[int, dt.timedelta | None, dt.timedelta | None]], immature: Immature
) -> None:
    ages = [dt.timedelta(minutes=age) for age, _, _ in rows]
    outcomes = [(click, conversion if click is not None else None) for _, click, conversion in rows]
    with_outcome = [(age, *outcome) for age, outcome in zip(ages, outcomes, strict=True)]
    maturity = rule(immature, [1, 2, 3, 4])
    found = supervise(impressions(with_outcome), maturity)
    without = supervise(impressions([(age, None, None) for age in ages]), maturity)
    assert masks(found) == masks(without)
    assert found.left_out == without.left_out
    assert float(found.targets.conversions_B.max()) <= 1 / maturity.min_known_share


@pytest.mark.parametrize("immature", ["drop", "weight", "keep"])
def test_labels_that_are_final_on_receipt_are_as_without_a_rule(
    immature: Immature, make_config: Callable[..., Config]
) -> None:
    frame = impressions([(age * HOUR, age * HOUR, age * HOUR) for age in range(1, 30)])
    frame = frame.with_columns(pl.col("event_time").alias("label_matures_at"))
    maturity = maturity_of(make_config(labels={"immature": immature}), frame.lazy(), CUTOFF)
    assert maturity.conversion_window == dt.timedelta(0)
    assert not len(maturity.delays_us)
    found, expected = supervise(frame, maturity), supervise(frame, None)
    for column in ("clicks_B", "conversions_B", "click_mask_B", "conversion_mask_B"):
        assert torch.equal(getattr(found.targets, column), getattr(expected.targets, column))
    assert found.left_out == expected.left_out


@pytest.mark.parametrize("immature", ["drop", "weight", "keep"])
def test_an_impression_received_after_the_cutoff_trains_nothing(immature: Immature) -> None:
    frame = impressions([(30 * HOUR, None, None)] * 2)
    late = [CUTOFF - dt.timedelta(microseconds=1), CUTOFF]
    found = supervise(frame.with_columns(pl.Series("received_time", late, dtype=TIME)), rule(immature, [1, 2]))
    assert masks(found) == ([1.0, 0.0], [1.0, 0.0])
    assert found.left_out["click"] == {"received after the cutoff": 1}


KNOWN_TIMES = {"columns": {"conversion_known_at": "known"}}


def _log(mature: int) -> pl.LazyFrame:
    """Return mature conversions after 1 h, others after 2 h that were not known or whose windows are not over."""
    old, young = 30 * HOUR, 5 * HOUR
    late: Row = (old, HOUR, dt.timedelta(0))
    rows: list[Row] = [(old, old - HOUR, old - 2 * HOUR)] * mature + [late] * 60 + [(young, 4 * HOUR, 2 * HOUR)] * 60
    return impressions(rows).lazy()


def test_the_delay_is_fitted_on_mature_conversions_known_before_the_cutoff(make_config: Callable[..., Config]) -> None:
    config = make_config(source=KNOWN_TIMES, labels={"immature": "weight", "conversion_window": "10h"})
    maturity = maturity_of(config, _log(50), CUTOFF)
    assert (maturity.delays_us == 3_600_000_000).all()
    assert len(maturity.delays_us) == 50
    record = maturity_record(maturity, sums_of(supervise(_log(50).collect(), maturity)), LabelSums())
    assert record["delay_conversions"] == 50
    assert record["delay_quantiles_hours"]["0.5"] == 1.0


def test_too_few_mature_conversions_to_fit_a_delay_are_told_with_what_to_do(make_config: Callable[..., Config]) -> None:
    config = make_config(source=KNOWN_TIMES, labels={"immature": "weight", "conversion_window": "10h"})
    expected = r"'weight' fits .* 49 found, at least 50 expected; set it to 'drop' or 'keep', or wait for about 1 more"
    with pytest.raises(ValueError, match=expected):
        maturity_of(config, _log(49), CUTOFF)


def test_a_log_without_conversions_is_told_as_such(make_config: Callable[..., Config]) -> None:
    config = make_config(source=KNOWN_TIMES, labels={"immature": "weight", "conversion_window": "10h"})
    with pytest.raises(ValueError, match=r"no conversion was known before .*: a joint model needs some"):
        maturity_of(config, impressions([(5 * HOUR, 4 * HOUR, None)] * 5).lazy(), CUTOFF)


def _mixed() -> Supervision:
    """Four mature impressions (a click, a conversion), two immature ones and two whose click window is not over."""
    old, young = 20 * HOUR, 5 * HOUR
    rows: list[Row] = [(old, None, None), (old, None, None), (old, old, None), (old, old, HOUR)]
    return supervise(
        impressions([*rows, (young, HOUR, TICK), (young, None, None), *[(HOUR, TICK, None)] * 2]), rule("drop")
    )


def test_base_rates_are_of_the_rows_that_train() -> None:
    rates = {"click_rate": (3 + 1) / (6 + 2), "conversion_rate": (1 + 1) / (2 + 2)}
    assert base_rates(sums_of(_mixed())) == {**rates, "extra": {}}


def test_a_base_rate_of_weighted_conversions_stays_below_one() -> None:
    young: Row = (5 * HOUR, 3 * HOUR, HOUR)
    found = supervise(impressions([young] * 9), rule("weight", [1, 3.5, 4, 4]))
    assert found.targets.conversions_B.tolist() == [4.0] * 9
    assert base_rates(sums_of(found))["conversion_rate"] == 10 / 11


def test_counts_add_up_over_days_by_task_and_reason() -> None:
    counts = total([sums_of(_mixed()), sums_of(_mixed())]).counts()
    assert counts["click"] == {"rows": 12, "positives": 6, "target_sum": 6.0, "left_out": {CLICK_OPEN: 4}}
    assert counts["click_and_conversion"] == {
        "rows": 8,
        "positives": 2,
        "target_sum": 2.0,
        "left_out": {CLICK_OPEN: 4, LABELS_OPEN: 4},
    }


def test_the_epoch_is_selected_by_the_tasks_that_have_mature_validation_rows() -> None:
    ages = {"click + click_and_conversion": 20, "click": 5, "none: the last epoch": 1}
    for expected, age in ages.items():
        assert selected_by(sums_of(supervise(impressions([(age * HOUR, None, None)]), rule("drop")))) == expected


def test_a_task_that_is_left_one_class_is_refused_and_the_rule_named() -> None:
    old = 20 * HOUR
    rows: list[Row] = [(old, None, None), (old, old, None), (5 * HOUR, 4 * HOUR, HOUR)]
    maturity = rule("drop")
    expected = r"0 conversions in 2 rows: both classes .*labels\.immature = 'drop' left out 1 rows .* with 'keep'"
    with pytest.raises(ValueError, match=expected):
        check_classes(sums_of(supervise(impressions(rows), maturity)), maturity, DAYS)
    check_classes(sums_of(_mixed()), maturity, DAYS)
