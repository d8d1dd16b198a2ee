"""Claims about attribution over days: what reaches over midnight, what a late event moves, and which days change."""

import datetime as dt
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

START = dt.datetime(2026, 3, 27, 22, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
Event = dict[str, object]


def make_config(click_window: str = "24h", zone: str = "UTC") -> Config:
    stream = {"files": "*.jsonl", "received_time": "received_time", "impression": "impression_id", "value": "value"}
    days = [str(dt.date(2026, 3, 27) + dt.timedelta(days=n)) for n in range(20)]
    source = {"streams": [stream], "max_quarantine_share": 1, "accepted_empty_days": days, "time_zone": zone}
    labels = {"click_window": click_window, "conversion_window": "2d"}
    return Config.model_validate({"name": "small", "source": source, "labels": labels})


def event(kind: str, name: str, hours: float, impression: str | None = None, **changes: object) -> Event:
    """Return an event of the pair u, i so many hours after the start, received at once."""
    time = f"{START + dt.timedelta(hours=hours):%Y-%m-%dT%H:%M:%S.%fZ}"
    return {
        "event_id": name,
        "event": kind,
        "event_time": time,
        "received_time": time,
        "user_id": "u",
        "item_id": "i",
        "impression_id": name if kind == "impression" else impression,
        "value": None,
        **changes,
    }


class Log:
    """A workspace that takes in lists of events, each as a file of its own."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.source, self.workspace, self.config = folder / "source", Workspace(folder / "workspace"), config
        self.source.mkdir()

    def take(self, *rows: Event) -> dict[str, object]:
        """Ingest events as a new file and return the notes."""
        path = self.source / f"{len(list(self.source.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ingest(self.config, self.workspace, self.source, now=NOW).notes

    def labels(self) -> dict[str, tuple[bool, bool]]:
        """Return click and conversion by impression."""
        rows = tables.scan(self.workspace.table("interactions")).collect()
        return {
            name: (click, conversion) for name, click, conversion in rows["impression_id", "click", "conversion"].rows()
        }

    def unattributed(self) -> dict[str, str]:
        """Return the reason of each unattributed event."""
        rows = tables.scan(self.workspace.table("unattributed")).collect()
        return dict(rows["event_id", "reason"].rows())

    def fingerprints(self) -> dict[int, str]:
        """Return a digest of the files of each day of the month."""
        return {day.day: mark for day, mark in tables.fingerprints(self.workspace.table("interactions")).items()}


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path, make_config())


@pytest.mark.parametrize("named", [True, False])
def test_a_click_and_a_conversion_reach_over_midnight(log: Log, *, named: bool) -> None:
    log.take(
        event("impression", "p", 0),
        event("click", "c", 24, "p" if named else None),
        event("conversion", "v", 24 + 48, "p" if named else None),
        event("conversion", "w", 24 + 48.001, "p" if named else None),
    )
    assert log.labels() == {"p": (True, True)}
    reason = "after the conversion window" if named else "no click of its user and item in the conversion window"
    assert log.unattributed() == {"w": reason}


@pytest.mark.parametrize("named", [True, False])
def test_a_conversion_that_comes_alone_restates_the_day_that_lies_both_windows_before_it(
    log: Log, *, named: bool
) -> None:
    log.take(event("impression", "p", 0))
    clicked = log.take(event("click", "c", 24, "p" if named else None))
    assert clicked["labels_changed"] == {"2026-03-27": 1}
    converted = log.take(event("conversion", "v", 24 + 48, "p" if named else None))
    assert converted["labels_changed"] == {"2026-03-27": 1}
    assert log.labels() == {"p": (True, True)}


def test_a_window_reaches_over_a_day_of_23_hours(tmp_path: Path) -> None:
    log = Log(tmp_path, make_config(zone="Europe/Berlin"))
    log.take(event("impression", "p", 0.75), event("click", "c", 24.5, "p"))  # 23:45 on the 27th, 23:30 on the 28th
    log.take(event("impression", "q", 24.75), event("click", "d", 48.5, "q"))  # on the 28th, and on the 30th
    assert log.labels() == {"p": (True, False), "q": (True, False)}


def test_events_that_arrive_before_their_impression_wait_for_it(log: Log) -> None:
    log.take(event("impression", "other", 30), event("click", "c", 3, "p"), event("conversion", "v", 30, "p"))
    assert log.unattributed() == {"c": "no impression with its id", "v": "no click on its impression"}
    log.take(event("impression", "p", 1))
    assert log.labels() == {"other": (False, False), "p": (True, True)}
    assert log.unattributed() == {}


def test_a_late_impression_takes_the_click_and_its_conversion_but_not_the_count(log: Log) -> None:
    log.take(event("impression", "p", 0), event("click", "c", 5), event("conversion", "v", 20))
    before = log.fingerprints()
    late = f"{START + dt.timedelta(hours=40):%Y-%m-%dT%H:%M:%SZ}"
    notes = log.take(event("impression", "q", 4, received_time=late))
    assert notes["labels_changed"] == {"2026-03-27": 1}
    assert log.labels() == {"p": (False, False), "q": (True, True)}
    rows = tables.scan(log.workspace.table("interactions")).collect()
    counted = rows.select("impression_id", pl.col("click_counted_at").is_not_null(), "click_known_at").sort(
        "impression_id"
    )
    assert counted["click_counted_at"].to_list() == [True, False], "features go on counting what they counted"
    assert counted["click_known_at"][1] == START + dt.timedelta(hours=40)
    assert log.fingerprints()[27] != before[27]


def test_only_days_that_differ_are_written(log: Log) -> None:
    log.take(*(event("impression", f"p{day}", 24 * day) for day in range(8)))
    before = log.fingerprints()
    log.take(event("conversion", "v", 4 * 24 + 10, "p4"), event("click", "c", 4 * 24 + 3, "p4"))
    assert [day for day, mark in log.fingerprints().items() if before[day] != mark] == [31]


def test_a_click_that_counts_at_last_takes_a_conversion_from_an_impression_after_its_own(log: Log) -> None:
    log.take(
        event("impression", "q", 3),
        event("click", "d", 4, "q"),
        event("click", "c", 5, "p"),
        event("conversion", "v", 10),
    )
    assert log.labels() == {"q": (True, True)}
    log.take(event("impression", "p", 1))
    assert log.labels() == {"p": (True, True), "q": (True, False)}, "p lies on the day before q"


def test_an_impression_id_that_comes_again_is_left_out(log: Log) -> None:
    log.take(event("impression", "p", 0), event("impression", "again", 30, impression_id="p"))
    assert log.labels() == {"p": (False, False)}
    assert log.unattributed() == {"again": "repeats the impression of another event"}


def test_an_impression_comes_back_when_what_it_repeated_is_replaced() -> None:
    first = event("impression", "x", 0, impression_id="p")
    again = event("impression", "y", 40, impression_id="p")
    earlier = {**first, "impression_id": "a"}
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), make_config())
        log.take(first, again)
        assert log.unattributed() == {"y": "repeats the impression of another event"}
        log.take(earlier)
        assert set(log.labels()) == {"a", "p"}
        assert log.unattributed() == {}
