"""Claims about gates: a day unlike its own history stops ingest, noise of small logs does not."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.gates import check_days, check_freshness, day_counts
from pipeline.ingest import ingest
from pipeline.sections import Gates
from pipeline.workspace import Workspace

Rows = list[dict[str, str]]
Maker = Callable[..., Config]
Writer = Callable[[str, Rows], Path]
FIRST = dt.date(2026, 1, 1)
LAST = dt.date(2026, 1, 8)
END = dt.datetime(2026, 1, 9, tzinfo=dt.UTC)


def counts(last: tuple[int, int, int], days: int = 8) -> pl.DataFrame:
    """Return days of 1000 impressions, 100 clicks and 20 conversions, and a last day of other counts."""
    rows = [(1000, 100, 20)] * (days - 1) + [last]
    return pl.DataFrame(
        {
            "date": [FIRST + dt.timedelta(days=n) for n in range(days)],
            "impressions": [row[0] for row in rows],
            "received": [row[0] for row in rows],
            "clicks": [row[1] for row in rows],
            "conversions": [row[2] for row in rows],
        }
    )


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ((3200, 320, 64), r"impressions of 2026-01-08 is 3,200, 3\.2 times above 1,000, .* 7 days before"),
        ((300, 30, 6), r"impressions of 2026-01-08 is 300, 3\.33 times below 1,000.*gates\.max_volume_ratio = 3"),
        ((1000, 210, 42), r"click rate of 2026-01-08 is 0\.21, 2\.1 times above 0\.1.*gates\.max_rate_ratio = 2"),
        ((1000, 0, 0), "click rate of 2026-01-08 is 0, inf times below"),
        ((1000, 100, 60), r"conversion rate of 2026-01-08 is 0\.6, 3 times above 0\.2"),
        ((10, 9, 9), r"impressions of .*; click rate of .*; conversion rate of .*gates\.accepted_days"),
    ],
)
def test_a_figure_beyond_its_ratio_stops(last: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_days(Gates(), counts(last), [LAST])


@pytest.mark.parametrize(
    ("last", "gates"),
    [
        ((2900, 290, 58), Gates()),
        ((340, 34, 7), Gates()),
        ((1000, 190, 38), Gates()),
        ((1000, 100, 3), Gates(max_rate_ratio=10)),
        ((300, 30, 6), Gates(accepted_days=[LAST])),
        ((300, 30, 6), Gates(max_volume_ratio=4)),
        ((300, 30, 6), Gates(min_history_days=8)),
        ((1000, 5, 3), Gates(max_rate_ratio=25)),
    ],
)
def test_a_figure_within_its_ratio_or_accepted_passes(last: tuple[int, int, int], gates: Gates) -> None:
    check_days(gates, counts(last), [LAST])


def test_a_ratio_within_the_noise_of_a_small_log_passes() -> None:
    small = counts((40, 9, 3)).with_columns(
        pl.when(pl.col("date") < LAST).then(pl.col(name) // 25).otherwise(name).alias(name)
        for name in ("impressions", "received", "clicks", "conversions")
    )
    assert small["clicks"].to_list() == [4] * 7 + [9]
    check_days(Gates(), small, [LAST])


def test_only_the_given_days_and_days_with_impressions_are_compared() -> None:
    late = counts((0, 9, 30))
    check_days(Gates(), late, [LAST])
    check_days(Gates(), counts((1, 0, 0)), [FIRST])


def test_a_day_is_counted_where_its_rows_became_known() -> None:
    at = [dt.datetime(2026, 1, 1, hour, tzinfo=dt.UTC) for hour in (15, 15, 15)]
    next_day = dt.datetime(2026, 1, 1, 16, tzinfo=dt.UTC)
    rows = pl.LazyFrame(
        {
            "date": [FIRST] * 3,
            "received_time": at,
            "click_known_at": [at[0], next_day, None],
            "conversion_known_at": [next_day, None, None],
        },
        schema_overrides=dict.fromkeys(["click_known_at", "conversion_known_at"], pl.Datetime("us", "UTC")),
    )
    found = day_counts(rows, "Asia/Shanghai")
    assert found.rows() == [(FIRST, 3, 3, 1, 0), (FIRST + dt.timedelta(days=1), 0, 0, 1, 1)]


def test_a_log_that_ends_before_the_day_does_is_stale() -> None:
    newest = END - dt.timedelta(hours=12, seconds=1)
    with pytest.raises(ValueError, match=r"newest received_time is 2026-01-08T11:59:59Z, 12:00:01 before the end"):
        check_freshness(Gates(), newest, LAST, "UTC")
    check_freshness(Gates(), END - dt.timedelta(hours=12), LAST, "UTC")
    check_freshness(Gates(max_staleness="13h"), newest, LAST, "UTC")  # type: ignore[arg-type]
    check_freshness(Gates(accepted_days=[LAST]), newest, LAST, "UTC")


def log(last_rows: int) -> Rows:
    """Return eight days of 200 impressions and a ninth of a given number."""
    return [
        {
            "user_id": f"u{number}",
            "item_id": "i",
            "event_time": f"{FIRST + dt.timedelta(days=day)}T20:00:00Z",
            "click": str(int(number % 4 == 0)),
            "conversion": str(int(number % 16 == 0)),
        }
        for day in range(9)
        for number in range(last_rows if day == 8 else 200)  # the ninth day
    ]


def test_a_gate_stops_ingest_before_any_commit_and_names_the_key(
    write_log: Writer, make_config: Maker, tmp_path: Path
) -> None:
    workspace, source = Workspace(tmp_path / "workspace"), write_log("log.csv", log(40))
    with pytest.raises(ValueError, match=r"impressions of 2026-01-09 is 40, 5 times below 200"):
        ingest(make_config(), workspace, source)
    assert not tables.exists(workspace.table("quarantine"))
    accepted = make_config(gates={"accepted_days": ["2026-01-09"]})
    assert ingest(accepted, workspace, source).rows_out == 8 * 200 + 40


def test_a_day_is_compared_with_what_the_table_holds(write_log: Writer, make_config: Maker, tmp_path: Path) -> None:
    workspace, rows = Workspace(tmp_path / "workspace"), log(1000)
    ingest(make_config(), workspace, write_log("log.csv", rows[:1600]))
    source = write_log("log.csv", rows[1600:])
    with pytest.raises(ValueError, match=r"impressions of 2026-01-09 is 1,000, 5 times above 200.*8 days before"):
        ingest(make_config(), workspace, source)


def test_with_a_date_the_log_must_have_arrived(write_log: Writer, make_config: Maker, tmp_path: Path) -> None:
    workspace, source = Workspace(tmp_path / "workspace"), write_log("log.csv", log(200))
    with pytest.raises(
        ValueError, match=r"newest received_time is 2026-01-09T20:00:00Z, 1 day, 4:00:00 before the end"
    ):
        ingest(make_config(), workspace, source, date=dt.date(2026, 1, 10))
    ingest(make_config(), workspace, source, date=dt.date(2026, 1, 9))
    with pytest.raises(ValueError, match=r"before the end of 2026-01-10"):
        ingest(make_config(), workspace, source, date=dt.date(2026, 1, 10))
