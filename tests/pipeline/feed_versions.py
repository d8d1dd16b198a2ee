"""Versions whose lists tell what version they are of, for the tests of the feed; as a script, a publisher to kill."""

import datetime as dt
import hashlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from pipeline.feed_records import FORMAT, Catalogue, UserList, Version, seal, seed_of
from pipeline.feed_store import Draft, open_store

USERS, ITEMS, LENGTH = 3000, 20, 5
BATCH = 500


def catalogue_of(number: int) -> bytes:
    """Return items that name their version; the fallback list is the first three."""
    return Catalogue([f"v{number}-{item}" for item in range(ITEMS)], [0, 1, 2]).to_json()


def version_of(number: int, users: int = USERS) -> Version:
    """Return the record of a version of one field, whose model version is its number."""
    return Version(
        format=FORMAT,
        name=f"2026-01-02-{number:08x}",
        scored_for="2026-01-02",
        model_version=str(number),
        run="2026-01-01-00000000",
        candidates_version=number,
        fields=("score",),
        scales=(2.0**-15,),
        users=users,
        candidates=users * LENGTH,
        digest=f"{number:064x}",
        catalogue_digest=hashlib.sha256(catalogue_of(number)).hexdigest(),
        published_at=dt.datetime.now(dt.UTC).isoformat(),
    )


def records_of(number: int, users: int = USERS) -> Iterator[tuple[bytes, bytes]]:
    """Yield users u00000 on; each has five of the twenty items, scored 5/32768 to 1/32768."""
    seed = seed_of(version_of(number).name)
    for user in range(users):
        numbers = [(user + place) % ITEMS for place in range(LENGTH)]
        yield f"u{user:05}".encode(), seal(struct.pack("<5I5e", *numbers, 5, 4, 3, 2, 1), seed)


def write(url: str, root: Path, number: int, users: int = USERS) -> Version:
    """Publish a version."""
    version = version_of(number, users)
    with open_store(url, root).draft(version.name, users, 60 * users) as draft:
        fill(draft, number, users)
        draft.publish(version, catalogue_of(number))
    return version


def write_damaged(url: str, root: Path, number: int) -> None:
    """Publish a version whose catalogue is not that of its record."""
    version = replace(version_of(number), catalogue_digest="0" * 64)
    with open_store(url, root).draft(version.name, USERS, 60 * USERS) as draft:
        fill(draft, number)
        draft.publish(version, catalogue_of(number))


def write_half(url: str, root: Path, number: int) -> None:
    """Fail after half of a version."""
    with open_store(url, root).draft(version_of(number).name, USERS, 60 * USERS) as draft:
        fill(draft, number, USERS // 2)
        raise ZeroDivisionError


def fill(draft: Draft, number: int, users: int = USERS) -> None:
    """Put all lists of a version, some at a time."""
    records = records_of(number, users)
    while batch := list(islice(records, BATCH)):
        draft.put(batch)


def is_whole(lists: list[UserList]) -> bool:
    """Return whether all lists are of the one version that they name."""
    numbers = {one.version.model_version for one in lists}
    items = {item.partition("-")[0] for one in lists for item in one.items}
    return items == {f"v{number}" for number in numbers} and len(numbers) == 1 and not any(x.is_fallback for x in lists)


def main() -> None:
    """Publish version after version from a number on, until killed: URL ROOT NUMBER."""
    url, root, first = sys.argv[1:]
    for number in count(int(first)):
        write(url, Path(root), number)


if __name__ == "__main__":
    main()
