"""A finished stage is skipped exactly as long as what it reads and what it made are unchanged."""

import datetime as dt
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.gate_section import Gate
from pipeline.run import STAGES, Span
from pipeline.run_record import Job, execute, read_record
from pipeline.split import Days
from pipeline.stage import Outcome
from pipeline.workspace import Workspace

DAY = dt.date(2026, 1, 4)
DAYS = Days([dt.date(2026, 1, 1)], [dt.date(2026, 1, 2)], [dt.date(2026, 1, 3)], DAY)


@pytest.fixture
def job(tmp_path: Path, simulated_config: Config) -> Job:
    job = Job(simulated_config, Workspace(tmp_path), DAYS, "source", frozenset(), lambda: "1")
    (job.folder / "model").mkdir(parents=True)
    (job.folder / "model" / "training.json").write_text("{}")
    return job


def _calibration(job: Job, ran: list[str]) -> Callable[[], Outcome]:
    def stage() -> Outcome:
        ran.append("calibrate")
        (job.folder / "model" / "calibration.json").write_text("{}")
        return Outcome(7, 5, {"method": "platt"})

    return stage


def test_a_finished_stage_is_skipped_and_says_so(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    first = execute(job, "calibrate", _calibration(job, ran))
    with caplog.at_level(logging.INFO, logger="counterpoise"):
        second = execute(job, "calibrate", _calibration(job, ran))
    assert ran == ["calibrate"]
    ended = read_record(job.folder)["calibrate"]["ended"]
    assert f"calibrate skipped: it ended at {ended}, and what it reads is unchanged" in caplog.text
    assert (second.outcome.rows_in, second.outcome.rows_out) == (7, 5)
    assert second.as_dict()["skipped"] == ended
    assert "skipped" not in first.as_dict()


def test_a_stage_is_run_again_when_what_it_reads_has_changed(job: Job) -> None:
    ran: list[str] = []
    execute(job, "calibrate", _calibration(job, ran))
    (job.folder / "model" / "training.json").write_text('{"digests": {}}')
    execute(job, "calibrate", _calibration(job, ran))
    execute(replace(job, source="another"), "calibrate", _calibration(job, ran))
    assert len(ran) == 3


def test_a_stage_is_run_again_when_what_it_made_is_gone_or_changed(job: Job) -> None:
    ran: list[str] = []
    execute(job, "calibrate", _calibration(job, ran))
    (job.folder / "model" / "calibration.json").unlink()
    execute(job, "calibrate", _calibration(job, ran))
    (job.folder / "model" / "calibration.json").write_text('{"edited": true}')
    execute(job, "calibrate", _calibration(job, ran))
    assert len(ran) == 3


def test_a_stage_that_failed_is_no_finished_stage(job: Job) -> None:
    def fails() -> Outcome:
        raise ValueError("too few positives")

    with pytest.raises(ValueError, match="too few positives"):
        execute(job, "calibrate", fails)
    assert read_record(job.folder) == {}


def test_a_stage_is_run_again_when_asked(job: Job) -> None:
    ran: list[str] = []
    execute(job, "calibrate", _calibration(job, ran))
    execute(replace(job, again=frozenset({"calibrate"})), "calibrate", _calibration(job, ran))
    assert len(ran) == 2


def test_a_new_version_of_a_table_or_another_champion_is_a_change(job: Job) -> None:
    table, ran = job.workspace.table("interactions"), []
    rows = pl.DataFrame({"date": [DAY], "n": [1]})

    def stage() -> Outcome:
        ran.append("")
        return Outcome(0, 0)

    tables.write_days(table, [rows], [DAY], note={})
    execute(job, "featurize", stage)
    execute(job, "featurize", stage)
    tables.write_days(table, [rows], [DAY], note={})
    execute(job, "featurize", stage)
    assert len(ran) == 2
    execute(job, "retrieve", stage)
    execute(replace(job, champion=lambda: "2"), "retrieve", stage)
    assert len(ran) == 4


def test_a_later_champion_is_no_reason_to_make_the_lists_of_a_past_day_again(job: Job) -> None:
    table, ran = job.workspace.table("candidates"), []

    def rank(day: dt.date) -> Outcome:
        ran.append(day)
        rows = pl.DataFrame({"scored_for": [day], "user_id": ["u"]})
        return Outcome(1, tables.write_days(table, [rows], [day], column="scored_for", note={}))

    execute(job, "rank", lambda: rank(DAY))
    later = replace(job, champion=lambda: "2")
    rank(DAY + dt.timedelta(days=1))
    execute(later, "rank", lambda: rank(DAY))
    assert ran.count(DAY) == 1
    assert read_record(job.folder)["rank"]["inputs"]["champion"] == "1"
    execute(replace(later, again=frozenset({"rank"})), "rank", lambda: rank(DAY))
    assert ran.count(DAY) == 2
    assert read_record(job.folder)["rank"]["inputs"]["champion"] == "2"


def test_lists_that_another_run_overwrote_are_ranked_again(job: Job) -> None:
    table, ran = job.workspace.table("candidates"), []

    def write() -> Outcome:
        ran.append("")
        rows = pl.DataFrame({"scored_for": [DAY], "user_id": ["u"]})
        return Outcome(1, tables.write_days(table, [rows], [DAY], column="scored_for", note={}))

    execute(job, "rank", write)
    execute(job, "rank", write)
    assert len(ran) == 1
    write()
    execute(job, "rank", write)
    assert len(ran) == 3


def test_the_record_names_what_was_read_and_made(job: Job) -> None:
    execute(job, "calibrate", _calibration(job, []))
    entry = json.loads((job.folder / "record.json").read_text())["calibrate"]
    assert set(entry["inputs"]) == {"config", "code", "days", "source", "file model/training.json"}
    assert entry["inputs"]["days"] == ("train 2026-01-01; validation 2026-01-02; test 2026-01-03; lists for 2026-01-04")
    assert list(entry["made"]) == ["model/calibration.json"]
    assert (entry["rows_in"], entry["rows_out"], entry["method"]) == (7, 5, "platt")


def test_a_hole_among_the_days_is_told(job: Job) -> None:
    days = replace(DAYS, train=[dt.date(2025, 12, day) for day in (27, 28, 30, 31)])
    execute(replace(job, days=days), "calibrate", _calibration(job, []))
    told = read_record(job.folder)["calibrate"]["inputs"]["days"]
    assert told.startswith("train 2025-12-27 to 2025-12-28, 2025-12-30 to 2025-12-31; validation")


def test_a_span_ends_with_its_last_stage_and_forces_all_from_its_first() -> None:
    assert Span().names() == STAGES
    assert Span(until="train").names() == ["ingest", "featurize", "train"]
    assert Span().forced() == frozenset()
    assert Span(again="retrieve").forced() == {"retrieve", "rank", "publish", "watch"}


def test_a_span_that_would_run_nothing_again_is_refused() -> None:
    with pytest.raises(ValueError, match="--from rank comes after --until train, so nothing would be run again"):
        Span(until="train", again="rank")
    assert Span(until="rank", again="rank").forced() >= {"rank"}


def test_the_record_holds_a_source_without_its_credentials(job: Job) -> None:
    uri = "s3://KEY:SECRET@bucket/logs?secret_key=SECRET"
    execute(replace(job, source=uri), "calibrate", _calibration(job, []))
    text = (job.folder / "record.json").read_text()
    assert "s3://bucket/logs" in text
    assert "SECRET" not in text


def test_register_alone_asks_again_when_the_gate_is_another(job: Job) -> None:
    ran: list[str] = []

    def stage() -> Outcome:
        ran.append("register")
        (job.folder / "register.json").write_text("{}")
        return Outcome(1, 1)

    changed = replace(job, config=job.config.model_copy(update={"gate": Gate(min_positives=7)}))
    assert changed.folder == job.folder
    for one in (job, job, changed, changed):
        execute(one, "register", stage)
    assert ran == ["register"] * 2
    execute(job, "calibrate", _calibration(job, []))
    assert "skipped" in execute(changed, "calibrate", _calibration(job, [])).as_dict()
