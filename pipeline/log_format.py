"""How log lines look: for people, or one JSON object a line for machines."""

import datetime as dt
import json
import logging

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
EXTRA = "fields"
"""Attribute of a log record that holds a dictionary of what the line tells in words."""


class JsonLines(logging.Formatter):
    """Writes time (UTC), level, message and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        time = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        known = {"time": time, "level": record.levelname, "message": record.getMessage()}
        return json.dumps(known | getattr(record, EXTRA, {}), default=str)


def formatter(name: str) -> logging.Formatter:
    """Return the formatter of a format.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FORMATS:
        raise ValueError(f"--log-format {name}: expected one of {list(FORMATS)}")
    return JsonLines() if name == JSON else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
