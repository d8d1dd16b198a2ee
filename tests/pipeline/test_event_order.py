"""Claims about raw events: tables do not depend on how the events come in, nor on runs that were killed."""

import datetime as dt
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

START = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
COMPARED = ("interactions", "events", "unattributed")
Event = dict[str, object]

CONFIG = Config.model_validate(
    {
        "name": "small",
        "source": {
            "max_quarantine_share": 1,
            "accepted_empty_days": [str(dt.date(2026, 1, 1) + dt.timedelta(days=n)) for n in range(20)],
            "streams": [
                {
                    "files": "events/*.jsonl",
                    "received_time": "received_time",
                    "impression": "impression_id",
                    "value": "value",
                }
            ],
        },
        "labels": {"click_window": "24h", "conversion_window": "2d", "lateness": "1h"},
        "context": {"columns": {"surface": "home"}, "hour": 20},
    }
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """One event of a small world, in which ids, times and pairs often meet."""
    kind = draw(st.sampled_from(["impression", "impression", "click", "click", "conversion"]))
    time = START + dt.timedelta(hours=12 * draw(st.integers(0, 14)), microseconds=draw(st.integers(0, 1)))
    received = time + dt.timedelta(hours=draw(st.sampled_from([0, 0, 1, 30, 100])))
    impression = draw(st.sampled_from([None, "p0", "p1", "p2"]))
    return {
        "event_id": f"{kind[:2]}{draw(st.integers(0, 4))}",
        "event": kind,
        "event_time": f"{time:%Y-%m-%dT%H:%M:%S.%fZ}",
        "received_time": f"{received:%Y-%m-%dT%H:%M:%S.%fZ}",
        "user_id": draw(st.sampled_from(["u0", "u0", "u1"])),
        "item_id": "i0",
        "impression_id": impression,
        "value": draw(st.sampled_from([None, 1.5, 2.0])) if kind == "conversion" else None,
        "surface": draw(st.sampled_from(["home", "feed"])),
    }


@contextmanager
def place() -> Iterator[tuple[Path, Workspace]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "source" / "events").mkdir(parents=True)
        yield Path(folder) / "source", Workspace(Path(folder) / "workspace")


def write_file(source: Path, name: str, rows: Iterable[Event]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (source / "events" / name).write_text(lines, encoding="utf-8")


def contents(workspace: Workspace) -> dict[str, str]:
    """Return a digest of each table's rows; which copy of equal ones lies in the log is part of it."""
    found = {}
    for name in COMPARED:
        if tables.exists(workspace.table(name)):
            rows = tables.scan(workspace.table(name)).collect()
            found[name] = tables.digest(rows.sort(rows.columns)) if rows.height else "none"
        else:
            found[name] = "none"
    return found


def ingest_in_steps(files: dict[str, list[Event]], steps: list[list[str]]) -> dict[str, str]:
    with place() as (source, workspace):
        for step in steps:
            for name in step:
                write_file(source, name, files[name])
            ingest(CONFIG, workspace, source, now=NOW)
        return contents(workspace)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(events(), min_size=1, max_size=12), min_size=2, max_size=3))
def test_tables_do_not_depend_on_the_order_of_files_and_runs(parts: list[list[Event]]) -> None:
    files = {f"{number}.jsonl": rows for number, rows in enumerate(parts)}
    names = list(files)
    whole = ingest_in_steps(files, [names])
    assert ingest_in_steps(files, [[name] for name in names]) == whole
    assert ingest_in_steps(files, [[name] for name in reversed(names)]) == whole


@settings(max_examples=2, deadline=None)
@given(st.lists(events(), min_size=1, max_size=12), st.lists(events(), min_size=1, max_size=12))
def test_a_run_that_was_killed_between_two_commits_is_healed_by_the_next(old: list[Event], new: list[Event]) -> None:
    with place() as (source, workspace):
        write_file(source, "0.jsonl", old)
        ingest(CONFIG, workspace, source, now=NOW)
        before = workspace.root.with_name("before")
        shutil.copytree(workspace.root, before)
        write_file(source, "1.jsonl", new)
        ingest(CONFIG, workspace, source, now=NOW)
        whole = contents(workspace)
        for committed in (["quarantine"], ["quarantine", "events"], ["quarantine", "events", "unattributed"]):
            killed = Workspace(workspace.root.with_name(f"killed-{len(committed)}"))
            shutil.copytree(before, killed.root)
            for name in committed:
                shutil.rmtree(killed.table(name), ignore_errors=True)
                if workspace.table(name).exists():
                    shutil.copytree(workspace.table(name), killed.table(name))
            ingest(CONFIG, killed, source, now=NOW)
            assert contents(killed) == whole, committed


def test_a_file_that_comes_again_under_another_name_rewrites_no_day() -> None:
    rows = [shown("a", 0), shown("b", 5), {**shown("a", 1), "event": "click", "event_id": "c"}]
    with place() as (source, workspace):
        write_file(source, "0.jsonl", rows)
        ingest(CONFIG, workspace, source, now=NOW)
        before = {name: tables.fingerprints(workspace.table(name)) for name in COMPARED[:2]}
        write_file(source, "1.jsonl", rows)
        outcome = ingest(CONFIG, workspace, source, now=NOW)
        assert (outcome.rows_in, outcome.rows_out, outcome.notes["duplicates"]) == (3, 0, 3)
        assert {name: tables.fingerprints(workspace.table(name)) for name in COMPARED[:2]} == before
        assert ingest(CONFIG, workspace, source, now=NOW).notes["unchanged"] == 2


def shown(impression: str, hours: int) -> Event:
    time = f"{START + dt.timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
    named = {"event_id": f"i{impression}", "event": "impression", "event_time": time, "received_time": time}
    return {**named, "user_id": "u", "item_id": "i", "impression_id": impression, "value": None, "surface": "home"}


def test_a_day_that_a_killed_run_emptied_is_emptied_of_its_impressions_by_the_next() -> None:
    later, earlier = shown("a", 24), shown("a", 0)  # one event a conversion window apart: the first received stays
    with place() as (source, workspace):
        write_file(source, "0.jsonl", [later])
        ingest(CONFIG, workspace, source, now=NOW)
        killed = Workspace(workspace.root.with_name("killed"))
        shutil.copytree(workspace.root, killed.root)
        write_file(source, "1.jsonl", [earlier])
        ingest(CONFIG, workspace, source, now=NOW)
        for name in ("quarantine", "events"):
            shutil.rmtree(killed.table(name))
            shutil.copytree(workspace.table(name), killed.table(name))
        ingest(CONFIG, killed, source, now=NOW)
        assert contents(killed) == contents(workspace)
        assert tables.days(killed.table("interactions")) == [START.date()]
