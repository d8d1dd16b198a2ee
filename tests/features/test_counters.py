"""Claims about counters: decay as by brute force, smoothing by its formula, missing apart from unseen."""

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.counters import advance, counter_features, partial_counts, priors
from features.plan import CounterPlan

START = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)
KINDS = ("impression", "click", "conversion")
SCHEMA = {
    "a": pl.String,
    "b": pl.String,
    "kind": pl.String,
    "known_at": pl.Datetime("us", "UTC"),
    "day": pl.Int64,
}


def counter(
    *keys: str, half_lives: tuple[float, ...] = (7.0,), smoothing: float = 2.0, recency: bool = False
) -> CounterPlan:
    return CounterPlan(keys=keys, half_lives_days=half_lives, smoothing=smoothing, recency=recency)


def known(events: list[tuple[str | None, str | None, str, int]]) -> pl.DataFrame:
    """Return known rows of (a, b, kind, day)."""
    first = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    rows = [(a, b, kind, first + dt.timedelta(days=day), day) for a, b, kind, day in events]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(pl.col("known_at").dt.date().alias("known_on"))


def state(a: str = "x", impressions: float = 0, clicks: float = 0, conversions: float = 0) -> dict[str, Any]:
    values = {"impressions@7": impressions, "clicks@7": clicks, "conversions@7": conversions}
    return {"a": a, **values, "last_impression_at": None, "last_click_at": None}


def states(*rows: dict[str, Any]) -> pl.DataFrame:
    times = dict.fromkeys(("last_impression_at", "last_click_at"), pl.Datetime("us", "UTC"))
    return pl.DataFrame(list(rows), schema_overrides=times)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["p", "q", None]),
        st.sampled_from(KINDS),
        st.integers(0, 8),
    ),
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(events=EVENTS)
def test_decayed_counts_are_those_of_the_whole_event_list(
    events: list[tuple[str | None, str | None, str, int]],
) -> None:
    plan = counter("a", "b", half_lives=(1.0, 5.5))
    rows = known(events)
    found: pl.DataFrame | None = None
    for day in range(9):
        found = advance(found, partial_counts(rows.filter(pl.col("day") == day), plan), plan)
    assert found is not None
    expected: dict[tuple[str, str], dict[str, float]] = {}
    for a, b, kind, day in events:
        if a is not None and b is not None:
            values = expected.setdefault((a, b), dict.fromkeys([f"{k}s@{h:g}" for h in (1.0, 5.5) for k in KINDS], 0.0))
            for half_life in (1.0, 5.5):
                values[f"{kind}s@{half_life:g}"] += 0.5 ** ((8 - day) / half_life)
    assert [(row["a"], row["b"]) for row in found.to_dicts()] == sorted(expected), "sorted, and no missing key"
    for row in found.to_dicts():
        for name, value in expected[row["a"], row["b"]].items():
            assert row[name] == pytest.approx(value, rel=1e-12)


def test_a_count_halves_over_a_half_life_of_days_without_events() -> None:
    plan = counter("a")
    partial = partial_counts(known([("x", "p", "impression", 0)]), plan)
    nothing = partial.clear()
    slow = advance(None, partial, plan)
    for _ in range(3):
        slow = advance(slow, nothing, plan)
    assert slow["impressions@7"].item() == pytest.approx(0.5 ** (3 / 7))


def test_counts_are_by_key_and_day_of_knowledge() -> None:
    rows = known([("x", "p", "impression", 0), ("x", "q", "impression", 1), ("x", "p", "click", 1)])
    found = partial_counts(rows, counter("a"))
    first = dt.date(2026, 1, 1)
    assert found.select("known_on", "a", "impressions", "clicks").rows() == [
        (first, "x", 1.0, 0.0),
        (first + dt.timedelta(days=1), "x", 1.0, 1.0),
    ]


def test_a_key_may_stand_in_the_counts_of_several_days_of_impressions() -> None:
    partial = partial_counts(known([("x", "p", "impression", 0)]), counter("a"))
    assert advance(None, pl.concat([partial, partial]), counter("a"))["impressions@7"].to_list() == [2.0]


@pytest.mark.parametrize(
    ("impressions", "clicks", "conversions", "expected"),
    [
        (8.0, 3.0, 1.0, (math.log1p(8), (3 + 2 * 0.25) / 10, (1 + 2 * 0.2) / 5, (1 + 2 * 0.05) / 10)),
        (0.0, 0.0, 0.0, (0.0, 0.25, 0.2, 0.05)),
        (1.0, 1.0, 1.0, (math.log1p(1), (1 + 0.5) / 3, (1 + 0.4) / 3, (1 + 0.1) / 3)),
        (98.0, 0.0, 0.0, (math.log1p(98), 0.5 / 100, 0.2, 0.1 / 100)),
    ],
)
def test_rates_are_smoothed_towards_the_prior(
    impressions: float, clicks: float, conversions: float, expected: tuple[float, ...]
) -> None:
    """With the rest the totals are 400 impressions, 100 clicks, 20 conversions: rates 0.25, 0.2, 0.05."""
    mine = state("x", impressions, clicks, conversions)
    rest = state("rest", 400 - impressions, 100 - clicks, 20 - conversions)
    found = counter_features(pl.DataFrame({"a": ["x"]}), states(mine, rest), counter("a"), START)
    assert found.row(0) == pytest.approx(expected, rel=1e-6)
    assert found.dtypes == [pl.Float32] * 4


def test_an_unseen_entity_has_no_impressions_and_the_prior_and_a_missing_key_is_missing() -> None:
    rows = pl.DataFrame({"a": ["unseen", None, "x"]})
    found = counter_features(rows, states(state("x", 8, 2, 1)), counter("a", recency=True), START)
    assert found.row(0) == pytest.approx((0.0, 0.25, 0.5, 0.125, None, None))
    assert found.row(1) == (None,) * 6
    assert found.row(2)[0] == pytest.approx(math.log1p(8))


def test_one_missing_key_of_two_is_missing() -> None:
    rows = pl.DataFrame({"a": ["x", "x"], "b": ["p", None]})
    found = counter_features(rows, None, counter("a", "b"), START)
    assert found.rows() == [(0.0,) * 4, (None,) * 4]


def test_priors_are_zero_before_anything_is_known() -> None:
    nothing = {"click@7": 0.0, "conversion@7": 0.0, "click_and_conversion@7": 0.0}
    assert priors(None, counter("a")) == nothing
    assert priors(states(state()), counter("a")) == nothing
    assert priors(states(state(impressions=10)), counter("a")) == nothing
    assert priors(states(state("x", 10, 5, 1), state("y", 10, 0, 0)), counter("a")) == {
        "click@7": 0.25,
        "conversion@7": 0.2,
        "click_and_conversion@7": 0.05,
    }


def test_recency_is_in_hours_since_the_last_of_its_kind() -> None:
    plan = counter("a", recency=True)
    events = [
        ("x", "p", "impression", 0),
        ("x", "p", "click", 2),
        ("x", "p", "impression", 4),
        ("y", "p", "click", 1),
    ]
    found = advance(None, partial_counts(known(events), plan), plan)
    found = advance(found, partial_counts(known([("x", "p", "conversion", 8)]), plan), plan)
    hours = counter_features(pl.DataFrame({"a": ["y", "x"]}), found, plan, START).select(pl.nth(4, 5))
    assert hours.columns == ["a__hours_since_impression", "a__hours_since_click"]
    assert hours.rows() == [(None, 7 * 24 + 12.0), (4 * 24 + 12.0, 6 * 24 + 12.0)]


def test_features_come_in_the_order_of_the_rows() -> None:
    table = states(*(state(name, n) for n, name in enumerate("abcde")))
    found = counter_features(pl.DataFrame({"a": list("ecaec")}), table, counter("a"), START)
    assert found["a__impressions_7d"].to_list() == pytest.approx([math.log1p(n) for n in (4, 2, 0, 4, 2)], rel=1e-6)
