"""Claims about ingest: nothing lost uncounted, every broken rule with its reason, no table half changed."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

Rows = list[dict[str, str]]
Writer = Callable[[str, Rows], Path]
Maker = Callable[..., Config]
KINDS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "jsonl.zst", "parquet")
LENIENT = {"max_quarantine_share": 0.9}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def interactions(workspace: Workspace) -> pl.DataFrame:
    frame = tables.scan(workspace.table("interactions")).collect()
    return frame.sort("event_time", "user_id", "item_id", "impression_id")


def quarantine(workspace: Workspace) -> pl.DataFrame:
    return tables.scan(workspace.table("quarantine")).collect().sort("file", "row")


def test_every_format_gives_the_same_table(
    write_log: Writer, log_rows: Rows, make_config: Maker, tmp_path: Path
) -> None:
    digests = set()
    for kind in KINDS:
        source = write_log(f"{kind[:3]}.{kind}", log_rows)
        workspace = Workspace(tmp_path / kind)
        config = make_config(source={"interactions": f"{kind[:3]}.{kind}"})
        outcome = ingest(config, workspace, source)
        assert (outcome.rows_in, outcome.rows_out, outcome.notes["duplicates"]) == (12, 12, 0)
        digests.add(tables.digest(interactions(workspace)))
    assert len(digests) == 1


def test_a_row_becomes_an_interaction_by_the_contract(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    ingest(make_config(context={"hour": 20}), workspace, write_log("log.csv", log_rows))
    second = interactions(workspace).row(1, named=True)
    time = dt.datetime(2026, 1, 1, 7, tzinfo=dt.UTC)
    assert second == {
        "impression_id": f"u1|i1|{int(time.timestamp()) * 1_000_000}",
        "user_id": "u1",
        "item_id": "i1",
        "event_time": time,
        "received_time": time,
        "date": dt.date(2026, 1, 1),
        "click": True,
        "conversion": True,
        "click_known_at": time,
        "conversion_known_at": time,
        "label_matures_at": time,
        "click_counted_at": time,
        "conversion_counted_at": time,
        "value": None,
        "hour": "7",
    }
    assert interactions(workspace).row(0, named=True)["click_known_at"] is None, "no click is never known"


def test_exact_duplicates_are_removed_and_counted(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    write_log("log.csv", [*log_rows, log_rows[3]])
    outcome = ingest(make_config(), workspace, write_log("log.jsonl", log_rows[:2]))
    assert (outcome.rows_in, outcome.rows_out) == (15, 12)
    assert (outcome.notes["duplicates"], outcome.notes["quarantined"], outcome.notes["reasons"]) == (3, 0, {})
    assert interactions(workspace)["impression_id"].n_unique() == 12


def test_a_repeated_impression_with_other_values_is_quarantined(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    source = write_log("log.csv", [*log_rows, {**log_rows[0], "click": "1"}])
    outcome = ingest(make_config(source=LENIENT), workspace, source)
    assert outcome.rows_out == 12
    reason = "repeats an impression with other values"
    assert quarantine(workspace).select("reason", "row").rows() == [(reason, 13)]
    assert not interactions(workspace)["click"][0], "the first by file and row stays"


def test_repeats_in_files_of_the_same_name_are_told_apart(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    source = write_log("log.csv", log_rows)
    for hour, rows in (("a", log_rows), ("b", [{**log_rows[0], "click": "1"}])):
        (source / hour).mkdir()
        write_log(f"{hour}/part.csv", rows)
    config = make_config(source={**LENIENT, "interactions": "*/part.csv"})
    outcome = ingest(config, workspace, source)
    assert (outcome.rows_in, outcome.rows_out, outcome.notes["quarantined"]) == (13, 12, 1)


TIMED = {"columns": {"received_time": "received", "click_known_at": "known"}, **LENIENT}
OUTSIDE = "event_time is outside 1990 to 2100: is source.time_unit = 'us' right?"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": ""}, "user_id is empty"),
        ({"item_id": "  "}, "item_id is empty"),
        ({"event_time": ""}, "event_time is empty or no time"),
        ({"event_time": "yesterday"}, "event_time is empty or no time"),
        ({"event_time": "nan"}, "event_time is empty or no time"),
        ({"event_time": "1767225600"}, OUTSIDE),
        ({"event_time": "9200000000000000000"}, OUTSIDE),
        ({"event_time": "2150-01-01"}, OUTSIDE),
        ({"event_time": "2099-01-01"}, "event_time is in the future"),
        ({"received": "2099-01-01T00:00:00Z"}, "received_time is in the future"),
        ({"received": "soon"}, "received_time is no time"),
        ({"known": "9200000000000000000"}, "click_known_at is no time"),
        ({"click": "maybe"}, "label is neither true nor false: click"),
        ({"click": "2"}, "label is neither true nor false: click"),
        ({"click": "", "conversion": ""}, "label is neither true nor false: click, conversion"),
        ({"received": "2026-01-01T00:59:59Z"}, "received_time is before event_time"),
        ({"click": "0", "conversion": "1"}, "conversion without a click"),
    ],
)
def test_each_broken_rule_has_its_reason(
    write_log: Writer,
    log_rows: Rows,
    make_config: Maker,
    workspace: Workspace,
    *,
    change: dict[str, str],
    reason: str,
) -> None:
    rows = [{**row, "received": row["event_time"], "known": ""} for row in log_rows]
    source = write_log("log.csv", [*rows, {**rows[0], "item_id": "other", **change}])
    outcome = ingest(make_config(source=TIMED), workspace, source)
    assert outcome.notes["reasons"] == {reason: 1}
    kept = quarantine(workspace).row(0, named=True)
    assert (kept["file"], kept["row"]) == ("log.csv", 13)
    assert all(value in kept["record"] for value in change.values()), "the record is kept as it was"


def test_a_broken_json_line_is_quarantined_with_its_row_number(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    source = write_log("log.jsonl", log_rows)
    lines = (source / "log.jsonl").read_text().splitlines()
    (source / "log.jsonl").write_text("\n".join([*lines[:4], '{"user_id": "u1', *lines[4:]]))
    outcome = ingest(make_config(source=LENIENT), workspace, source)
    assert (outcome.rows_in, outcome.rows_out) == (13, 12)
    row = quarantine(workspace).row(0, named=True)
    assert (row["reason"], row["row"]) == ("no JSON object", 5)
    assert "u1" in row["record"]


def test_a_business_day_begins_at_midnight_of_its_time_zone(
    write_log: Writer, log_rows: Rows, make_config: Maker, workspace: Workspace
) -> None:
    times = (
        "2026-01-01T15:59:59.999999Z",
        "2026-01-01T16:00:00Z",
        "2026-01-02T01:00:00+08:00",
        "1767283200000000",
    )
    rows = [{**log_rows[n], "event_time": time} for n, time in enumerate(times)]
    ingest(
        make_config(source={"time_zone": "Asia/Shanghai"}, context={"hour": 0}),
        workspace,
        write_log("log.csv", rows),
    )
    found = interactions(workspace).sort("event_time", "user_id").select(pl.col("date").cast(pl.String), "hour")
    assert found.rows() == [("2026-01-01", "23"), *[("2026-01-02", "0")] * 2, ("2026-01-02", "1")]


@pytest.mark.parametrize(
    ("values", "click"),
    [(("1", "0"), "is_click"), (("true", "False"), "is_click = TRUE"), (("1", "0"), "is_click = 1")],
)
def test_label_expressions_read_zeros_and_ones_and_words(
    write_log: Writer,
    make_config: Maker,
    workspace: Workspace,
    log_rows: Rows,
    values: tuple[str, str],
    click: str,
) -> None:
    yes, no = values
    names = ("is_click", "long_view")
    truth = [(yes, yes), (yes, no), (no, yes), (no, no)]
    rows = [
        {**{k: row[k] for k in ("user_id", "item_id", "event_time")}, **dict(zip(names, pair, strict=True))}
        for row, pair in zip(log_rows, truth, strict=False)
    ]
    labels = {"click": click, "conversion": "long_view AND is_click"}
    ingest(make_config(labels=labels), workspace, write_log("log.csv", rows))
    expected = [(True, True), (True, False), (False, False), (False, False)]
    assert interactions(workspace).select("click", "conversion").rows() == expected


def test_a_numeric_label_that_is_no_number_is_no_click(
    write_log: Writer, make_config: Maker, workspace: Workspace, log_rows: Rows
) -> None:
    rows = [{**row, "rating": rating} for row, rating in zip(log_rows, ["5", "1.5", "NaN", "inf", ""], strict=False)]
    labels = {"click": "rating > 3", "conversion": "rating > 3", "numeric": ["rating"]}
    outcome = ingest(make_config(labels=labels, source=LENIENT), workspace, write_log("log.csv", rows))
    assert interactions(workspace)["click"].to_list() == [True, False]
    assert outcome.notes["reasons"] == {"label is neither true nor false: rating": 3}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("click AND", "labels expression 'click AND' is not valid"),
        ("", "labels expression '' is not valid"),
        ("best(click)", "labels expression .*unsupported function 'best'"),
        ("TRUE", "labels expression 'TRUE' reads no column"),
        ("clicked", "column 'clicked' is missing"),
        ("UPPER(click) = 'YES'", r"cannot be computed: .*labels\.numeric"),
    ],
)
def test_a_bad_label_expression_is_a_clear_error(
    write_log: Writer,
    make_config: Maker,
    workspace: Workspace,
    log_rows: Rows,
    *,
    expression: str,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        ingest(make_config(labels={"click": expression}), workspace, write_log("log.csv", log_rows))


@pytest.mark.parametrize(("label", "value"), [("click", "0"), ("click", "1"), ("conversion", "0")])
def test_labels_of_one_class_are_refused(
    write_log: Writer, make_config: Maker, workspace: Workspace, log_rows: Rows, label: str, value: str
) -> None:
    rows: list[dict[str, Any]] = [{**row, "conversion": "0", label: value} for row in log_rows]
    with pytest.raises(ValueError, match=rf"labels\.{label} = '{label}' is true on \d+ of 12 rows: both classes"):
        ingest(make_config(), workspace, write_log("log.csv", rows))


def test_a_day_without_rows_is_named_and_may_be_accepted(
    write_log: Writer, make_config: Maker, workspace: Workspace, log_rows: Rows
) -> None:
    source = write_log("log.csv", log_rows[:4] + log_rows[8:])
    with pytest.raises(ValueError, match=r"no rows on 2026-01-02 \(1 days between 2026-01-01 and 2026-01-03\)"):
        ingest(make_config(), workspace, source)
    assert ingest(make_config(source={"accepted_empty_days": ["2026-01-02"]}), workspace, source).rows_out == 8
