"""A stage's line, its peak memory, and progress where there is a terminal."""

import io
import logging

import numpy as np
import pytest
from rich.console import Console

from pipeline import stage
from pipeline.stage import Outcome, measure, progress


def test_a_stage_logs_its_rows_its_time_and_its_notes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="counterpoise"):
        measured = measure("ingest", lambda: Outcome(1200, 1100, {"duplicates": 100, "reasons": {"x": 1}}))
    assert "1,200 rows in" in caplog.text
    assert "1,100 rows out" in caplog.text
    assert "duplicates 100" in caplog.text
    assert "reasons (x 1)" in caplog.text
    assert measured.as_dict()["rows_out"] == 1100


def test_the_peak_is_of_the_stage_and_not_of_the_stages_before() -> None:
    def large() -> Outcome:
        return Outcome(1, int(np.ones(50_000_000)[-1]))

    big = measure("large", large)
    small = measure("small", lambda: Outcome(1, 1))
    assert big.peak_mib > small.peak_mib + 300


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        written = io.StringIO()
        monkeypatch.setattr(stage, "CONSOLE", Console(file=written, force_terminal=terminal))
        assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
        assert ("counting" in written.getvalue()) == terminal


def test_counts_by_name_are_told_in_the_stage_s_line_the_first_few_of_them(caplog: pytest.LogCaptureFixture) -> None:
    notes = {"reasons": {f"r{n}": n for n in range(10)}, "labels_changed": {}, "late": 3}
    with caplog.at_level("INFO", logger="counterpoise"):
        measure("ingest", lambda: Outcome(1, 1, notes))
    assert "reasons (r0 0, r1 1, r2 2, r3 3, r4 4, r5 5, r6 6, r7 7, and 2 more), late 3" in caplog.text
    assert "labels_changed" not in caplog.text
