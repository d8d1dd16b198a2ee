"""Claims about the log of raw events: streams, quarantine, copies, and what a run says of its files."""

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.check import check
from pipeline.config import Config
from pipeline.event_log import shared_between_days
from pipeline.ingest import ingest
from pipeline.stage import Outcome
from pipeline.workspace import Workspace

START = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
Event = dict[str, object]
STREAM = {
    "files": "*.jsonl",
    "received_time": "received_time",
    "impression": "impression_id",
    "value": "value",
}


def make_config(*streams: Mapping[str, object], **sections: object) -> Config:
    source = {"streams": [dict(stream) for stream in streams or [STREAM]], "max_quarantine_share": 1}
    labels = {"click_window": "24h", "conversion_window": "2d"}
    return Config.model_validate({"name": "small", "source": source, "labels": labels, **sections})


def event(kind: str, number: int, hours: float, **changes: object) -> Event:
    """Return an event of the pair u, i on impression p<number>, so many hours after the start."""
    time = f"{START + dt.timedelta(hours=hours):%Y-%m-%dT%H:%M:%S.%fZ}"
    return {
        "event_id": f"{kind}-{number}",
        "event": kind,
        "event_time": time,
        "received_time": time,
        "user_id": "u",
        "item_id": "i",
        "impression_id": f"p{number}",
        "value": None,
        **changes,
    }


LOG = [
    event("impression", 0, 0),
    event("click", 0, 1),
    event("conversion", 0, 20, value=3.5),
    event("impression", 1, 24),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def write(source: Path, name: str, *rows: Event) -> None:
    (source / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def take_in(workspace: Workspace, source: Path, config: Config | None = None) -> Outcome:
    return ingest(config or make_config(), workspace, source, now=NOW)


def rows(workspace: Workspace, name: str) -> pl.DataFrame:
    return tables.scan(workspace.table(name)).collect()


def test_events_become_labelled_impressions(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG)
    outcome = take_in(workspace, source)
    found = rows(workspace, "interactions").sort("event_time")
    assert found.row(0, named=True) == {
        "impression_id": "p0",
        "user_id": "u",
        "item_id": "i",
        "event_time": START,
        "received_time": START,
        "date": dt.date(2026, 1, 1),
        "click": True,
        "conversion": True,
        "click_known_at": START + dt.timedelta(hours=1),
        "conversion_known_at": START + dt.timedelta(hours=20),
        "label_matures_at": START + dt.timedelta(days=3, hours=1),
        "click_counted_at": START + dt.timedelta(hours=1),
        "conversion_counted_at": START + dt.timedelta(hours=20),
        "value": 3.5,
    }
    assert found["click"].to_list() == [True, False]
    assert (outcome.rows_in, outcome.rows_out) == (4, 4)
    kinds = [outcome.notes[f"new_{kind}s"] for kind in ("impression", "click", "conversion")]
    assert kinds == [2, 1, 1]


def test_a_propensity_comes_with_its_impression_and_one_that_is_none_is_quarantined(
    source: Path, workspace: Workspace
) -> None:
    shown = [event("impression", n, n, p=value) for n, value in enumerate([0.25, 1, None, 0, 1.5, "much"])]
    write(source, "a.jsonl", *shown, event("click", 0, 2, p=7))
    take_in(workspace, source, make_config({**STREAM, "propensity": "p"}))
    found = rows(workspace, "interactions").sort("event_time")
    assert found["propensity"].to_list() == [0.25, 1.0, None]
    assert found["click"].to_list() == [True, False, False]
    assert rows(workspace, "events").filter(kind="click")["propensity"].to_list() == [None]
    assert rows(workspace, "quarantine")["reason"].to_list() == ["propensity is no probability above 0"] * 3


def test_copies_of_an_impression_with_another_propensity_wait_as_others_do(source: Path, workspace: Workspace) -> None:
    config = make_config({**STREAM, "propensity": "p"})
    later = f"{START + dt.timedelta(hours=3):%Y-%m-%dT%H:%M:%S.%fZ}"
    write(source, "a.jsonl", event("impression", 0, 0, p=0.5, received_time=later))
    take_in(workspace, source, config)
    write(source, "b.jsonl", event("impression", 0, 0, p=0.125))
    take_in(workspace, source, config)
    write(source, "c.jsonl", event("impression", 0, 0, p=0.5))
    take_in(workspace, source, config)
    assert rows(workspace, "interactions")["propensity"].to_list() == [0.125]
    assert rows(workspace, "quarantine")["file"].to_list() == ["a.jsonl", "c.jsonl"]


def test_streams_of_one_kind_each_have_columns_of_their_own(source: Path, workspace: Workspace) -> None:
    (source / "shows.csv").write_text("id,ts,who,what,req\n1,1767268800,u,i,r7\n2,1767268801,u,j,r7\n")
    (source / "buys.csv").write_text("id,ts,item,req,price\n1,1767268900,i,r7,9.5\n")
    (source / "taps.csv").write_text("id,ts,item,req\n1,1767268850,i,r7\n")
    shown = {"kind": "impression", "files": "shows.csv", "user": "who", "item": "what"}
    later = {"user": "item", "item": "item"}
    same = {"event_id": "id", "event_time": "ts", "request": "req"}
    config = make_config(
        {**same, **shown},
        {**same, **later, "kind": "click", "files": "taps.csv"},
        {**same, **later, "kind": "conversion", "files": "buys.csv", "value": "price"},
    )
    seconds = Config.model_validate({**config.model_dump(), "source": {**config.source.model_dump(), "time_unit": "s"}})
    outcome = take_in(workspace, source, seconds)
    assert outcome.rows_out == 4, "one id of two kinds is two events"
    found = rows(workspace, "interactions").sort("item_id")
    assert found.select("impression_id", "click", "conversion", "value").rows() == [
        ("r7|i", True, True, 9.5),
        ("r7|j", False, False, None),
    ]


def test_kinds_have_the_names_of_the_configuration(source: Path, workspace: Workspace) -> None:
    names = {"impression": ["view"], "click": ["tap", "open"], "conversion": ["buy"]}
    stream = {**STREAM, "type": "what", "names": names}
    write(
        source,
        "a.jsonl",
        *({**row, "what": what} for row, what in zip(LOG, ["view", "open", "buy", "impression"], strict=True)),
    )
    outcome = take_in(workspace, source, make_config(stream))
    assert outcome.notes["reasons"] == {"kind is unknown": 1}
    assert rows(workspace, "interactions").select("click", "conversion").rows() == [(True, True)]


def test_rows_that_break_a_rule_are_quarantined_as_they_were(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG, event("click", 5, 2, event_time="yesterday"))
    with (source / "a.jsonl").open("a") as file:
        file.write('{"event_id": "cut')
    outcome = take_in(workspace, source)
    assert outcome.rows_in == 6
    found = rows(workspace, "quarantine").sort("row")
    assert found.select("reason", "file", "row").rows() == [
        ("event_time is empty or no time", "a.jsonl", 5),
        ("no JSON object", "a.jsonl", 6),
    ]
    assert '"event_time":"yesterday"' in found["record"][0]


def test_above_the_ceiling_nothing_is_committed(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG, event("click", 5, 2, event_id=""))
    strict = make_config(source={"streams": [STREAM], "max_quarantine_share": 0.1})
    with pytest.raises(
        ValueError, match=r"1 of 5 rows are quarantined \(event_id is empty: 1\), .* a\.jsonl row 5: above"
    ):
        take_in(workspace, source, strict)
    assert not list(workspace.root.rglob("*.parquet"))


@pytest.mark.parametrize("files", [["a.jsonl", "b.jsonl"], ["b.jsonl", "a.jsonl"]])
def test_a_copy_with_other_values_is_quarantined_whichever_comes_first(
    source: Path, workspace: Workspace, files: list[str]
) -> None:
    later = event("conversion", 0, 21, event_id="conversion-0", value=4.5)
    for name in files:
        write(source, name, *(LOG if name == "a.jsonl" else [later]))
        take_in(workspace, source)
    assert rows(workspace, "interactions").sort("event_time")["value"].to_list() == [3.5, None]
    found = rows(workspace, "quarantine")
    assert found.select("reason", "file", "row").rows() == [("repeats an event with other values", "b.jsonl", 1)]
    assert '"value":"4.5"' in found["record"][0]


def test_a_source_that_replaces_many_events_is_refused(source: Path, workspace: Workspace) -> None:
    early = f"{START - dt.timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    write(source, "a.jsonl", *(event("click", number, 1) for number in range(5)))
    take_in(workspace, source)
    write(source, "b.jsonl", *(event("click", n, 0.5, event_time=early, received_time=early) for n in range(5)))
    strict = make_config(source={"streams": [STREAM], "max_quarantine_share": 0.2})
    with pytest.raises(ValueError, match=r"5 of 10 rows are quarantined .*, the first in a\.jsonl row 1: above"):
        take_in(workspace, source, strict)


def test_a_copy_of_another_day_counts_once_within_the_conversion_window(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG, event("impression", 0, 24), event("impression", 0, 5 * 24))
    accepted = ["2026-01-03", "2026-01-04", "2026-01-05"]
    config = make_config(source={"streams": [STREAM], "max_quarantine_share": 1, "accepted_empty_days": accepted})
    outcome = take_in(workspace, source, config)
    assert outcome.notes["reasons"] == {"repeats an event with other values": 1}
    days = rows(workspace, "interactions").sort("event_time")["date"].to_list()
    assert [day.day for day in days] == [1, 2, 6], "an id may come again after the window"


def test_a_file_that_changed_is_said_and_read_again(
    source: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    write(source, "a.jsonl", *LOG[:1])
    write(source, "b.jsonl", *LOG[3:])
    take_in(workspace, source)
    before = tables.fingerprints(workspace.table("interactions"))
    write(source, "a.jsonl", *LOG[:2])
    outcome = take_in(workspace, source)
    assert (outcome.rows_in, outcome.rows_out, outcome.notes["duplicates"]) == (2, 1, 1)
    assert (outcome.notes["changed_files"], outcome.notes["unchanged"]) == (["a.jsonl"], 1)
    assert outcome.notes["labels_changed"] == {"2026-01-01": 1}
    assert "a.jsonl changed since it was read" in caplog.text
    after = tables.fingerprints(workspace.table("interactions"))
    assert [before[day] == after[day] for day in sorted(after)] == [False, True], "only days that differ are written"


def test_events_later_than_the_lateness_are_counted(source: Path, workspace: Workspace) -> None:
    hour = [START + dt.timedelta(hours=2, seconds=n) for n in (0, 1)]
    late = [event("impression", n, 1, received_time=f"{hour[n]:%Y-%m-%dT%H:%M:%SZ}") for n in (0, 1)]
    write(source, "a.jsonl", *late)
    assert take_in(workspace, source).notes["late"] == 1


def test_a_file_of_two_streams_is_refused(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG)
    config = make_config(STREAM, {**STREAM, "files": "a.*"})
    with pytest.raises(ValueError, match=r"source\.streams: a\.jsonl belongs to two streams"):
        take_in(workspace, source, config)


def test_a_log_without_rows_is_refused(source: Path, workspace: Workspace) -> None:
    (source / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"source \*\.jsonl has no rows"):
        take_in(workspace, source)


def test_another_contract_needs_another_workspace(source: Path, workspace: Workspace) -> None:
    write(source, "a.jsonl", *LOG)
    take_in(workspace, source)
    labels = {"click_window": "12h", "conversion_window": "2d"}
    with pytest.raises(ValueError, match=r"labels\.click_window was 'P1D' and is 'PT12H'\): use a new --workspace"):
        take_in(workspace, source, make_config(labels=labels))
    with pytest.raises(ValueError, match=r"source\.streams was .* and is"):
        take_in(workspace, source, make_config({**STREAM, "user": "item_id"}))
    assert take_in(workspace, source, make_config(seed=7)).notes["unchanged"] == 1, "what tunes a model may change"


def test_check_tells_kinds_reasons_and_gates(source: Path) -> None:
    write(source, "a.jsonl", *LOG, event("click", 9, 2), event("click", 5, 2, event_id=""))
    printed = "\n".join(check(make_config(), source, NOW))
    assert "events: 2 impressions, 2 clicks, 1 conversions; 0 later than labels.lateness" in printed
    assert "unattributed click: no impression with its id: 1" in printed
    assert "event_id is empty: 1" in printed
    assert "interactions: 2 rows on 2 days" in printed
    assert "gates: volume, click rate and conversion rate of 2 days are within bounds" in printed
    write(source, "a.jsonl", event("click", 9, 2))
    assert "interactions: none" in check(make_config(), source, NOW)


def test_ids_are_shared_by_days_within_reach_of_a_touched_one() -> None:
    ids = [
        (dt.date(2026, 1, day), pl.Series(values, dtype=pl.UInt64))
        for day, values in ((1, [1, 2]), (2, [3]), (3, [1]), (6, [2, 3, 1]))
    ]
    assert shared_between_days(ids, reach_days=2).to_list() == [1]
    assert sorted(shared_between_days(ids, reach_days=4)) == [1, 3]
    assert shared_between_days(ids, 4, {dt.date(2026, 1, 2)}).to_list() == [3]
