"""Claims about a second ingest: a failed one changes nothing, a rerun changes no row."""

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.schema import LATEST
from pipeline import tables
from pipeline.config import Config
from pipeline.day_files import Work
from pipeline.engine import SerialEngine
from pipeline.ingest import ingest
from pipeline.labelled_log import read_log
from pipeline.source_files import find_files
from pipeline.workspace import Workspace

Rows = list[dict[str, str]]
Writer = Callable[[str, Rows], Path]
Maker = Callable[..., Config]
SIDE = {"file": "users.csv", "id": "user_id", "static": True, "numeric": ["age"]}


@pytest.fixture
def ingested(write_log: Writer, log_rows: Rows, make_config: Maker, tmp_path: Path) -> tuple[Workspace, Path]:
    """Return a workspace with three days and users, and the source that it was made from."""
    source = write_log("log.csv", log_rows)
    (source / "users.csv").write_text("user_id,age\nu0,20\nu1,30\n")
    workspace = Workspace(tmp_path / "workspace")
    ingest(make_config(users=SIDE), workspace, source)
    return workspace, source


def versions(workspace: Workspace) -> dict[str, int]:
    return {name: tables.version(workspace.table(name)) for name in ("interactions", "quarantine", "users")}


def later(rows: Rows) -> Rows:
    """Return the rows three days later."""

    def moved(time: str) -> str:
        return f"2026-01-0{int(time[9]) + 3}{time[10:]}"

    return [{**row, "event_time": moved(row["event_time"])} for row in rows]


BROKEN_ROWS: dict[str, Callable[[Rows], Rows]] = {
    "ceiling": lambda rows: [*rows, {**rows[0], "user_id": ""}],
    "all quarantined": lambda rows: [{**row, "user_id": ""} for row in rows],
    "missing day": lambda rows: later(later(rows)),
}
SECTIONS: dict[str, dict[str, object]] = {
    "all quarantined": {"source": {"max_quarantine_share": 1}},
    "other contract": {"context": {"hour": 3}},
    "other data set": {"name": "other"},
}


def damage(source: Path, how: str) -> None:
    """Break the files of a source in one way."""
    if how == "no rows":
        (source / "log.csv").write_text("user_id,item_id,event_time,click,conversion\n")
    elif how == "truncated":
        whole = gzip.compress((source / "log.csv").read_bytes())
        (source / "log.csv.gz").write_bytes(whole[:-9])
    elif how == "side table":
        (source / "users.csv").write_text("user_id,age\nu0,nan\n")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "ceiling",
            r"1 of 13 rows are quarantined \(user_id is empty: 1\), the first in log\.csv row 13: above",
        ),
        ("all quarantined", "12 of 12 rows are quarantined .*: no row is left"),
        ("no rows", r"source log\.\* has no rows"),
        ("missing day", r"no rows on 2026-01-04, .* \(3 days between 2026-01-03 and 2026-01-07\)"),
        ("truncated", r"log\.csv\.gz: cannot be read"),
        ("side table", r"users\.csv: row 1: age = 'nan'"),
        ("other contract", r"of another contract \(context\.hour was False and is True\): use a new --workspace"),
        ("other data set", "holds the data set 'small', not 'other': give another --workspace"),
    ],
)
def test_a_failed_ingest_changes_no_table_and_the_next_one_works(
    ingested: tuple[Workspace, Path],
    write_log: Writer,
    log_rows: Rows,
    make_config: Maker,
    *,
    how: str,
    message: str,
) -> None:
    workspace, source = ingested
    before = versions(workspace)
    rows = tables.digest(tables.scan(workspace.table("interactions")).collect())
    write_log("log.csv", BROKEN_ROWS.get(how, later)(log_rows))
    damage(source, how)
    sections = SECTIONS.get(how, {})
    with pytest.raises(ValueError, match=message):
        ingest(make_config(**{"users": SIDE, **sections}), workspace, source)
    assert versions(workspace) == before
    assert tables.digest(tables.scan(workspace.table("interactions")).collect()) == rows
    assert not list((workspace.root / "tables").glob(".spill*"))
    (source / "log.csv.gz").unlink(missing_ok=True)
    (source / "users.csv").write_text("user_id,age\nu0,21\n")
    write_log("log.csv", log_rows)
    assert ingest(make_config(users=SIDE), workspace, source).notes["unchanged"] == 1
    assert tables.scan(workspace.table("users")).collect()["age"].to_list() == [21.0]
    assert tables.digest(tables.scan(workspace.table("interactions")).collect()) == rows


def test_files_that_did_not_change_are_not_read_again(ingested: tuple[Workspace, Path], make_config: Maker) -> None:
    workspace, source = ingested
    before = versions(workspace)
    outcome = ingest(make_config(users=SIDE), workspace, source)
    assert (outcome.rows_in, outcome.notes["files"], outcome.notes["unchanged"]) == (0, 1, 1)
    assert versions(workspace) == before, "nothing is committed"


def test_a_file_with_the_same_rows_rewrites_no_day(
    ingested: tuple[Workspace, Path], make_config: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, source = ingested
    before = tables.fingerprints(workspace.table("interactions"))
    (source / "log.csv").write_text((source / "log.csv").read_text() + "\n")
    outcome = ingest(make_config(users=SIDE), workspace, source)
    assert (outcome.rows_in, outcome.rows_out, outcome.notes["changed_files"]) == (12, 12, ["log.csv"])
    assert tables.fingerprints(workspace.table("interactions")) == before
    assert "log.csv changed since it was read" in caplog.text
    assert ingest(make_config(users=SIDE), workspace, source).notes["unchanged"] == 1, "its new bytes are recorded"


def test_labels_that_changed_are_counted_by_day_and_only_those_days_rewritten(
    ingested: tuple[Workspace, Path], write_log: Writer, log_rows: Rows, make_config: Maker
) -> None:
    workspace, source = ingested
    before = tables.fingerprints(workspace.table("interactions"))
    write_log("log.csv", [{**log_rows[0], "click": "1"}, *log_rows[1:]])
    outcome = ingest(make_config(users=SIDE), workspace, source)
    assert outcome.notes["labels_changed"] == {"2026-01-01": 1}
    after = tables.fingerprints(workspace.table("interactions"))
    assert [before[day] == after[day] for day in sorted(after)] == [False, True, True]


def test_new_days_are_added_and_old_ones_stay(
    ingested: tuple[Workspace, Path], write_log: Writer, log_rows: Rows, make_config: Maker
) -> None:
    workspace, source = ingested
    write_log("log.csv", later(log_rows[4:8]))
    with pytest.raises(ValueError, match=r"no rows on 2026-01-04 \(1 days between 2026-01-03 and 2026-01-05\)"):
        ingest(make_config(users=SIDE), workspace, source)
    gap = {"accepted_empty_days": ["2026-01-04"]}
    ingest(make_config(users=SIDE, source=gap), workspace, source)
    days = [str(day) for day in tables.days(workspace.table("interactions"))]
    assert days == ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-05"]
    assert tables.metadata(workspace.table("interactions"))["data_set"] == "small"


def identified(rows: Rows) -> Rows:
    return [{**row, "id": f"p{number}"} for number, row in enumerate(rows)]


NAMED: dict[str, object] = {"columns": {"impression": "id"}, "max_quarantine_share": 0.5}


def test_an_impression_of_another_day_is_quarantined(
    write_log: Writer, log_rows: Rows, make_config: Maker, tmp_path: Path
) -> None:
    workspace, rows = Workspace(tmp_path / "workspace"), identified(log_rows)
    source = write_log("log.csv", [*rows[:11], {**rows[11], "id": "p0"}])
    outcome = ingest(make_config(source=NAMED), workspace, source)
    assert outcome.notes["reasons"] == {"repeats an impression of another day": 1}
    assert outcome.rows_out == 11
    following = [{**row, "event_time": row["event_time"].replace("-03T", "-04T")} for row in rows[8:]]
    write_log("log.csv", [*following, *({**row, "id": f"{row['id']}b"} for row in following)])
    outcome = ingest(make_config(source=NAMED), workspace, source)
    assert outcome.notes["reasons"] == {"repeats an impression of another day": 3}, (
        "other days of the table keep theirs"
    )
    kept = tables.scan(workspace.table("interactions")).collect()
    assert kept["impression_id"].is_unique().all()


def test_an_impression_comes_again_after_the_windows(
    write_log: Writer, log_rows: Rows, make_config: Maker, tmp_path: Path
) -> None:
    rows = identified(log_rows)
    source = write_log("log.csv", [*rows[:11], {**rows[11], "id": "p0"}])
    labels = {"click_window": "0h", "conversion_window": "24h"}
    outcome = ingest(make_config(source=NAMED, labels=labels), Workspace(tmp_path / "workspace"), source)
    assert (outcome.rows_out, outcome.notes["quarantined"]) == (12, 0)


MANGLED = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u1", "u2", "", " ", 'q"u,o\nte', "ü"]),
        "item_id": st.sampled_from(["i1", "i2", "", "0"]),
        "event_time": st.sampled_from(
            [
                *(
                    "2026-01-01T02:00:00Z",
                    "2026-01-01 02:00:00",
                    "2026-01-01",
                    "",
                    "x",
                    "0",
                    "1e30",
                    "-9",
                    "inf",
                ),
                *("1767232800000000", "2026-13-01", "9223372036854775807", "99999999999999999999"),
            ]
        ),
        "received_time": st.sampled_from(["", "2026-01-01T03:00:00.5Z", "2025-01-01", "?", "2026-01-01T01:00:00Z"]),
        "click": st.sampled_from(["0", "1", "true", "FALSE", "yes", "", "2", "1.0", "nan"]),
        "conversion": st.sampled_from(["0", "1", "True", "no", "", "-1"]),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(MANGLED, max_size=25), kind=st.sampled_from(["csv", "jsonl"]))
def test_every_row_is_kept_quarantined_or_a_duplicate(
    rows: Rows, kind: str, write_log: Writer, make_config: Maker, tmp_path: Path
) -> None:
    good = {"user_id": "a", "item_id": "b", "event_time": "2026-01-01", "received_time": "2026-01-01"}
    anchors = [
        {**good, "click": "1", "conversion": "1"},
        {**good, "item_id": "c", "click": "0", "conversion": "0"},
    ]
    source = write_log(f"log.{kind}", [*anchors, *rows])
    columns = {"received_time": "received_time"}
    settings_ = {"interactions": f"log.{kind}", "max_quarantine_share": 1, "columns": columns}
    spill = tmp_path / "spill"
    spill.mkdir(exist_ok=True)
    work = Work(SerialEngine(), spill, tmp_path / "tables")
    intake = read_log(make_config(source=settings_), work, find_files(source, f"log.{kind}"), LATEST)
    kept = pl.concat([pl.read_parquet(paths) for paths in intake.parts.values()])
    quarantined = sum(frame.height for frame in intake.rejected)
    assert intake.rows == len(rows) + 2
    assert kept.height + quarantined + intake.duplicates == intake.rows
    assert kept["impression_id"].is_unique().all()
    assert kept.drop_nulls(["user_id", "item_id", "event_time", "click", "conversion"]).height == kept.height
    assert not (kept["conversion"] & ~kept["click"]).any()
    for frame in intake.rejected:
        assert frame["reason"].null_count() == 0
