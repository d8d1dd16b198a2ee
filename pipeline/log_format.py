"""How log lines look: for people, or one JSON object a line for machines."""

import datetime as dt
import json
import logging
from collections.abc import Sequence

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


def failure_line(message: str, handlers: Sequence[logging.Handler]) -> str:
    """Return the line that tells why a command failed, JSON where the log lines of the handlers are."""
    for handler in handlers:
        if isinstance(handler.formatter, JsonLines):
            record = logging.LogRecord("counterpoise", logging.ERROR, "", 0, message, None, None)
            return handler.formatter.format(record)
    return f"counterpoise: {message}"
