"""Claims about raw events with faults: labels equal what the simulator knows, for what had been received by then."""

import datetime as dt
import shutil
from pathlib import Path

import polars as pl
import pytest

from features.business_days import end_of_day
from pipeline import tables
from pipeline.config import Config, load_config
from pipeline.ingest import ingest
from pipeline.simulate import simulate
from pipeline.stage import Outcome
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "events.toml"
ZONE = "Asia/Shanghai"
SHARE = 0.05
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
TIMES = {
    "impression": "received_time",
    "click": "click_received_time",
    "conversion": "conversion_received_time",
}
REASONS = {
    "cut": "no JSON object",
    "invalid_utf8": "no JSON object",
    "event_time_word": "event_time is empty or no time",
    "event_time_1970": "event_time is before 1990: is source.time_unit = 'us' right?",
    "times_2099": "event_time is in the future",
}
LABELS = ["impression_id", "received_time", "click", "conversion", "click_known_at", "conversion_known_at", "value"]


@pytest.fixture(scope="module")
def faulty_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six days with one event in five late, repeated, out of order or malformed."""
    source = tmp_path_factory.mktemp("faulty") / "source"
    world = SimulatorConfig(
        users=60,
        items=50,
        days=6,
        requests_per_day=80,
        slots=5,
        click_rate=0.2,
        conversion_rate=0.3,
        time_zone=ZONE,
        late_share=SHARE,
        duplicate_share=SHARE,
        disorder_share=SHARE,
        malformed_share=SHARE,
    )
    simulate(world, source)
    return source


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(
        EXAMPLE,
        {
            "source.time_zone": ZONE,
            "source.max_quarantine_share": 2 * SHARE,
            "source.accepted_empty_days": [f"2026-01-{day:02d}" for day in range(1, 30)],
            "labels.conversion_window": "30d",
        },
    )


def injected(source: Path) -> pl.DataFrame:
    return pl.read_parquet(source / "injected.parquet")


def truth(source: Path, horizon: dt.datetime) -> pl.DataFrame:
    """Return the impressions received before the horizon with the labels known by then."""
    log = pl.read_parquet(source / "impressions" / "*.parquet")
    faults = injected(source).filter(pl.col("fault").is_in(["late", "malformed"]))
    for event, column in TIMES.items():
        of_event = faults.filter(pl.col("event") == event).select(
            "impression_id", "fault", pl.col("received_time").alias("later")
        )
        moved = pl.when(pl.col("fault") == "malformed").then(None).otherwise(pl.coalesce("later", column))
        log = log.join(of_event, on="impression_id", how="left").with_columns(
            pl.when(moved < horizon).then(moved).alias(column)
        )
        log = log.drop("fault", "later")
    shown = log.filter(pl.col("received_time").is_not_null())
    click = pl.max_horizontal("click_received_time", "received_time")
    known = shown.with_columns(pl.when(pl.col("click_received_time").is_not_null()).then(click).alias("click_known_at"))
    both = pl.col("click_known_at").is_not_null() & pl.col("conversion_received_time").is_not_null()
    conversion = pl.max_horizontal("conversion_received_time", "click_known_at")
    return known.select(
        "impression_id",
        "received_time",
        pl.col("click_known_at").is_not_null().alias("click"),
        both.alias("conversion"),
        "click_known_at",
        pl.when(both).then(conversion).alias("conversion_known_at"),
        pl.when(both).then("value").alias("value"),
    ).sort("impression_id")


def ingest_until(config: Config, workspace: Workspace, source: Path, names: list[str], folder: Path) -> Outcome:
    """Ingest a copy of the source that holds only the named event files."""
    (folder / "events").mkdir(parents=True, exist_ok=True)
    for name in ("users.csv", "items.csv", *(f"events/{name}" for name in names)):
        shutil.copy(source / name, folder / name)
    return ingest(config, workspace, folder, now=NOW)


def interactions(workspace: Workspace) -> pl.DataFrame:
    return tables.scan(workspace.table("interactions")).select(LABELS).collect().sort("impression_id")


def test_labels_are_those_of_what_had_been_received_at_each_horizon(
    faulty_source: Path, config: Config, tmp_path: Path
) -> None:
    names = sorted(path.name for path in (faulty_source / "events").iterdir())
    workspace = Workspace(tmp_path / "workspace")
    for last in (0, 2, 3, len(names) - 1):
        ingest_until(config, workspace, faulty_source, names[: last + 1], tmp_path / "source")
        horizon = end_of_day(dt.date.fromisoformat(names[last][:10]), ZONE)
        expected = truth(faulty_source, horizon)
        assert expected["click"].any()
        assert interactions(workspace).equals(expected), names[last]


def test_faults_are_counted_as_they_were_injected(faulty_source: Path, config: Config, tmp_path: Path) -> None:
    outcome = ingest(config, Workspace(tmp_path), faulty_source, now=NOW)
    faults = injected(faulty_source)
    malformed = faults.filter(pl.col("fault") == "malformed")
    assert outcome.notes["duplicates"] == faults.filter(pl.col("fault") == "duplicate").height
    assert outcome.notes["quarantined"] == malformed.height
    without_ids = pl.when(pl.col("event") == "impression").then(pl.lit("user_id is empty"))
    reason = pl.col("detail").replace_strict(REASONS, default=None)
    named = malformed.select(
        pl.coalesce(reason, without_ids.otherwise(pl.lit("names neither an impression nor a user and an item")))
    ).to_series()
    assert outcome.notes["reasons"] == dict(named.value_counts().iter_rows())
    assert outcome.rows_in == outcome.rows_out + outcome.notes["duplicates"] + malformed.height
    log = pl.read_parquet(faulty_source / "impressions" / "*.parquet")
    happened = {"impression": "event_time", "click": "click_time", "conversion": "conversion_time"}
    late = 0
    for event, column in happened.items():
        moved = faults.filter(pl.col("fault") == "late", pl.col("event") == event).join(log, on="impression_id")
        late += moved.filter(pl.col("received_time") - pl.col(column) > config.labels.lateness).height
    assert outcome.notes["late"] == late
    assert late > 0


def test_events_of_what_never_arrived_are_unattributed(faulty_source: Path, config: Config, tmp_path: Path) -> None:
    ingest(config, Workspace(tmp_path), faulty_source, now=NOW)
    lost = injected(faulty_source).filter(pl.col("fault") == "malformed")
    gone = {kind: lost.filter(pl.col("event") == kind)["impression_id"] for kind in TIMES}
    log = pl.read_parquet(faulty_source / "impressions" / "*.parquet")
    here, clicked = (~pl.col("impression_id").is_in(gone[kind].implode()) for kind in ("impression", "click"))
    arrived = ~pl.col("impression_id").is_in(gone["conversion"].implode())
    expected = {
        "click": log.filter("click", clicked, ~here).height,
        "conversion": log.filter("conversion", arrived, ~(here & clicked)).height,
    }
    found = tables.scan(Workspace(tmp_path).table("unattributed")).collect()
    reasons = {"click": "no impression with its id", "conversion": "no click on its impression"}
    assert dict(found.group_by("kind").len().iter_rows()) == expected
    assert set(found.select("kind", "reason").iter_rows()) == set(reasons.items())
