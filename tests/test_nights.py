"""A short version of benchmarks/nights.py: a bad night keeps the last good lists and says why, a good one publishes."""

from pathlib import Path

import pytest

from benchmarks.nights import SHORT, attempts
from pipeline import threads


def test_bad_nights_keep_the_last_good_lists_and_good_ones_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in threads.SETTINGS.items():
        monkeypatch.setenv(name, value)
    made = list(attempts(tmp_path, short=True))
    assert [(attempt.what, attempt.wrong) for attempt in made if attempt.wrong] == []
    assert {attempt.night for attempt in made} >= set(SHORT)
    said = {attempt.what: attempt.said for attempt in made}
    assert "click rate of 2026-01-09" in said["30 % of the labels are lost"]
    assert "the gate refused version 3 (failed: " in said["the model learned from shuffled labels"]
    assert said["all days counted"] == "80,000 impressions logged, 0 lost, 0 doubled"
