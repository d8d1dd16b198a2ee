"""The format of a published version: what the writers make and the backend's reader decodes.

Only the standard library, so that a backend imports it in milliseconds.

A record holds one user's list, best first: the numbers of K items (uint32), then K half-precision floats for each
field, then a CRC-32 that is seeded with the version's name; all little-endian. A value is its float times the field's
scale, a power of two that puts the largest one just below 2**15: the relative error is at most 2**-11 (0.05 %) for
all values above a billionth of the largest. K is what the record's length says.
"""

import datetime as dt
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

FORMAT = 1
ITEM_BYTES, FIELD_BYTES, CHECK_BYTES = 4, 2, 4
MAX_USER_BYTES = 511
"""LMDB's longest key."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """The record of a published version: what it was made from, what it holds, and its digests (SHA-256)."""

    format: int
    name: str
    """Its day and eight random hexadecimal digits."""
    scored_for: str
    model_version: str
    run: str
    candidates_version: int
    """The version of tables/candidates that holds the lists."""
    fields: tuple[str, ...]
    scales: tuple[float, ...]
    users: int
    candidates: int
    digest: str
    """Of users, items and values: equal for equal lists, whatever the store."""
    catalogue_digest: str
    published_at: str

    def age_days(self, today: dt.date) -> int:
        """Return how many days ago the day of these lists was; 0 where it is to come."""
        return max(0, (today - dt.date.fromisoformat(self.scored_for)).days)

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), indent=1)


def parse_version(text: str | bytes, where: str) -> Version:
    """Read the record of a version.

    Raises:
        ValueError: it is damaged, or of a format that this code does not read.
    """
    try:
        values = json.loads(text)
        found = values["format"]
        if found == FORMAT:
            known = {field.name: values[field.name] for field in fields(Version)}
            return Version(**{**known, "fields": tuple(known["fields"]), "scales": tuple(known["scales"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the record of {where} is damaged ({error!r}): publish again with --force") from None
    raise ValueError(
        f"{where} has format {found!r}, this code reads format {FORMAT}: use the same version of counterpoise "
        "for publishing and for reading, and publish again with --force"
    )


class UserList(NamedTuple):
    """One user's list, best first; the fallback list, which has no outputs, where the user has none."""

    user_id: str
    items: list[str]
    outputs: dict[str, list[float]]
    """Score and probabilities by name, one value an item."""
    is_fallback: bool
    version: Version


@dataclass(frozen=True)
class Catalogue:
    """The ids of a version's items by number, and the numbers of the fallback list."""

    items: list[str]
    fallback: list[int]

    def to_json(self) -> bytes:
        """Return it as JSON, whose digest the version's record holds."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


class Decoder:
    """Decodes the records of one version."""

    def __init__(self, version: Version, catalogue: bytes) -> None:
        """Read the catalogue.

        Raises:
            ValueError: it is not the one that the version's record names.
        """
        check_digest(f"the catalogue of version {version.name}", catalogue, version.catalogue_digest)
        self.version = version
        self.catalogue = Catalogue(**json.loads(catalogue))
        self.fallback = [self.catalogue.items[number] for number in self.catalogue.fallback]
        self.seed = seed_of(version.name)
        self.width = width_of(version.fields)
        self.scales = list(zip(version.fields, version.scales, strict=True))

    def decode(self, user_id: str, record: bytes | None, limit: int | None) -> UserList:
        """Return the user's list, or the fallback list for None, cut to a limit.

        Raises:
            ValueError: the record is damaged or of another version.
        """
        if record is None:
            return UserList(user_id, self.fallback[:limit], {}, is_fallback=True, version=self.version)
        size = len(record) - CHECK_BYTES
        if zlib.crc32(memoryview(record)[:size], self.seed) != int.from_bytes(record[size:], "little"):
            raise ValueError(
                f"a list of version {self.version.name} is damaged or of another version (its check sum differs): "
                "publish again with --force"
            )
        count = size // self.width
        kept = count if limit is None else min(count, limit)
        names, at = self.catalogue.items, ITEM_BYTES * count
        items = [names[number] for number in struct.unpack_from(f"<{kept}I", record)]
        outputs = {}
        for name, scale in self.scales:
            outputs[name] = [value * scale for value in struct.unpack_from(f"<{kept}e", record, at)]
            at += FIELD_BYTES * count
        return UserList(user_id, items, outputs, is_fallback=False, version=self.version)


def seal(payload: bytes, seed: int) -> bytes:
    """Append the check sum to a record's numbers and values."""
    return payload + zlib.crc32(payload, seed).to_bytes(CHECK_BYTES, "little")


def seed_of(name: str) -> int:
    """Return what a version's check sums begin with, so that a record of another version does not pass."""
    return zlib.crc32(name.encode())


def width_of(names: Sequence[str]) -> int:
    """Return the bytes of a candidate with these fields."""
    return ITEM_BYTES + FIELD_BYTES * len(names)


def key_of(user_id: str) -> bytes | None:
    """Return a user's key; None for an id that no store can hold, so that no list can be published for it."""
    key = user_id.encode("utf-8", "surrogatepass")
    return key if 0 < len(key) <= MAX_USER_BYTES else None


def check_digest(what: str, content: bytes | Any, expected: str) -> None:
    """Refuse what differs from its record.

    Args:
        what: names it in the error.
        content: bytes, or a file that is read to its end.
        expected: SHA-256 in hexadecimal.

    Raises:
        ValueError: the digest differs.
    """
    found = hashlib.sha256(content) if isinstance(content, bytes) else hashlib.file_digest(content, "sha256")
    if found.hexdigest() != expected:
        raise ValueError(f"{what} is damaged (its sha256 is not the recorded one): publish again with --force")
