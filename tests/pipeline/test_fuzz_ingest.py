"""Fuzz: whatever stands in the lines of a log, ingest loses no row uncounted and never crashes."""

import datetime as dt
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

LINES = 12_000
Way = Callable[[], bytes]
NOW = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
EMPTY = [str(dt.date(1990, 1, 1) + dt.timedelta(days=n)) for n in range(14_000)]
START = dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)
ODD = (
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b",",
    b"null",
    b"1e999",
    b"-",
    b"\t",
    b"\xf0\x9f\x92\xa3",
    b" ",
)
VALUES = (
    "",
    "0",
    "-1",
    "1e400",
    "9" * 400,
    "true",
    "[]",
    "{}",
    '{"a":',
    "NaN",
    "1969-12-31",
    "2099-01-01T00:00:00Z",
    "x" * 600,
)


def event(number: int) -> dict[str, object]:
    """Return an event of a small world, a click or a conversion every few impressions."""
    kind = ("impression", "impression", "click", "impression", "conversion")[number % 5]
    time = START + dt.timedelta(seconds=20 * number)
    return {
        "event_id": f"e{number}",
        "event": kind,
        "event_time": time.isoformat(),
        "received_time": (time + dt.timedelta(seconds=5)).isoformat(),
        "impression_id": f"m{number - number % 5}",
        "user_id": f"u{number % 7}",
        "item_id": f"i{number % 11}",
        "value": number % 13,
    }


def mutated(line: bytes, chance: random.Random) -> bytes:
    """Damage a line in one of many ways; a line break never comes in, so lines stay countable."""
    place = chance.randrange(len(line))
    ways: list[Way] = [
        lambda: line[:place],
        lambda: line[place:],
        lambda: line[:place] + chance.choice(ODD) + line[place:],
        lambda: line[:place] + bytes([line[place] ^ (1 << chance.randrange(8))]) + line[place + 1 :],
        lambda: line[:place] + line[place + chance.randrange(1, 9) :],
        lambda: line + line,
        lambda: b"[" * 3000 + line,
        lambda: bytes(reversed(line)),
    ]
    damaged = chance.choice(ways)().replace(b"\n", b"?").replace(b"\r", b"?")
    return damaged if damaged.strip() else b"?"


def odd_value(number: int, chance: random.Random) -> bytes:
    """Return a line whose JSON is whole and one of whose values is not what it should be."""
    values = event(number)
    values[chance.choice(list(values))] = chance.choice([*VALUES, None, 0, -1.5, 10**30, [1], {"a": 1}, True])
    return json.dumps(values).encode()


def lines_of_a_log(chance: random.Random) -> list[bytes]:
    lines = []
    for number in range(LINES):
        whole = json.dumps(event(number)).encode()
        kinds = (whole, mutated(whole, chance), odd_value(number, chance), mutated(odd_value(number, chance), chance))
        lines.append(kinds[number % len(kinds)] if number >= 50 else whole)
    repeated = [lines[chance.randrange(LINES)] for _ in range(500)]
    return [*lines, *repeated]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_line_of_raw_events_is_an_event_a_duplicate_or_quarantined(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311  # a test needs the same draws each time
    lines = lines_of_a_log(chance)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "events.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    stream = {
        "files": "events.jsonl.gz",
        "received_time": "received_time",
        "impression": "impression_id",
        "value": "value",
    }
    config = Config.model_validate(
        {
            "name": "fuzz",
            "source": {"streams": [stream], "max_quarantine_share": 1, "accepted_empty_days": EMPTY},
            "gates": {"min_history_days": 10_000},
        }
    )
    workspace = Workspace(tmp_path / "workspace")
    done = ingest(config, workspace, tmp_path / "source", now=NOW)
    events = tables.scan(workspace.table("events")).collect()
    quarantine = tables.scan(workspace.table("quarantine")).collect()
    assert done.rows_in == len(lines)
    assert events.height + quarantine.height + done.notes["duplicates"] == len(lines)
    assert events.select("kind", "event_id", "date").n_unique() == events.height
    assert quarantine["row"].is_between(1, len(lines)).all()
    assert quarantine["reason"].null_count() == 0
    untouched = {f"e{number}" for number in range(50)}
    assert untouched <= set(events["event_id"].to_list()), "whole lines survive their neighbours"
    shown = tables.scan(workspace.table("interactions")).select(pl.len()).collect().item()
    assert shown <= events.filter(pl.col("kind") == "impression").height


@pytest.mark.parametrize("seed", [1, 2])
def test_every_row_of_a_labelled_log_is_kept_a_duplicate_or_quarantined(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311  # a test needs the same draws each time
    header = b"user_id,item_id,event_time,click,conversion"
    rows = []
    for number in range(LINES):
        time = START + dt.timedelta(seconds=20 * number)
        row = f"u{number % 7},i{number % 11},{time.isoformat()},{number % 2},{int(number % 4 == 1)}".encode()
        rows.append(mutated(row, chance).replace(b'"', b"'") if number % 3 == 1 else row)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "log.csv").write_bytes(b"\n".join([header, *rows]) + b"\n")
    config = Config.model_validate(
        {
            "name": "fuzz",
            "source": {"interactions": "log.csv", "max_quarantine_share": 1, "accepted_empty_days": EMPTY},
            "gates": {"min_history_days": 10_000},
        }
    )
    workspace = Workspace(tmp_path / "workspace")
    done = ingest(config, workspace, tmp_path / "source", now=NOW)
    kept = tables.scan(workspace.table("interactions")).collect()
    quarantine = tables.scan(workspace.table("quarantine")).collect()
    assert done.rows_in == len(rows)
    assert kept.height + quarantine.height + done.notes["duplicates"] == len(rows)
    assert kept.height >= LINES * 2 // 3, "whole rows survive their neighbours"
