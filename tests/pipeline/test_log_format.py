"""Log lines for machines: one JSON object each, with the fields of what the line tells."""

import json
import logging
import subprocess
import sys

import pytest

from pipeline.log_format import formatter
from pipeline.stage import Outcome, measure


def test_a_json_line_holds_the_message_and_the_figures_of_a_stage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="counterpoise"):
        measure("ingest", lambda: Outcome(12, 11, {"duplicates": 1}))
    line = json.loads(formatter("json").format(caplog.records[0]))
    assert line["level"] == "INFO"
    assert line["message"].startswith("ingest ")
    assert (line["stage"], line["rows_in"], line["rows_out"], line["duplicates"]) == ("ingest", 12, 11, 1)
    assert line["time"].endswith("+00:00")


def test_a_line_without_fields_and_with_line_breaks_is_one_line() -> None:
    record = logging.LogRecord("counterpoise", logging.WARNING, "x.py", 1, "two\nlines", None, None)
    text = formatter("json").format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "two\nlines"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--log-format yaml: expected one of \['text', 'json'\]"):
        formatter("yaml")


@pytest.mark.parametrize(("name", "expected"), [("json", "ERROR"), ("text", None)])
def test_the_line_that_tells_a_failure_is_json_where_log_lines_are(name: str, expected: str | None) -> None:
    command = [sys.executable, "-m", "pipeline", "--log-format", name, "check", "--config", "nowhere.toml"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    if expected is None:
        assert line.startswith("counterpoise: ")
    else:
        told = json.loads(line)
        assert told["level"] == expected
        assert "nowhere.toml" in told["message"]
