"""What a feature store was made from, day by day."""

import datetime as dt
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.workspace import read_json, write_json


@dataclass
class Ledger:
    """What the store was made from.

    Attributes:
        source: day of tables/interactions to the fingerprint of its files that the partial counts were made from.
        shown: day to the digest of its impressions without labels.
        last_known: day to the last day on which something of it became known.
        features: day to the digest of the impressions that its raw features were made for.
    """

    source: dict[dt.date, str] = field(default_factory=dict)
    shown: dict[dt.date, str] = field(default_factory=dict)
    last_known: dict[dt.date, dt.date] = field(default_factory=dict)
    features: dict[dt.date, str] = field(default_factory=dict)


def read_ledger(path: Path) -> Ledger:
    """Read a ledger, an empty one where there is none."""
    if not path.exists():
        return Ledger()
    values: dict[str, dict[str, str]] = read_json(path, "featurize")
    day = dt.date.fromisoformat
    return Ledger(
        source={day(key): value for key, value in values["source"].items()},
        shown={day(key): value for key, value in values["shown"].items()},
        last_known={day(key): day(value) for key, value in values["last_known"].items()},
        features={day(key): value for key, value in values["features"].items()},
    )


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write a ledger, whole or not at all."""
    parts: dict[str, dict[Any, Any]] = asdict(ledger)
    write_json(
        path,
        {name: {str(day): str(value) for day, value in part.items()} for name, part in parts.items()},
    )
