"""Where the feed is: one small interface of the stores, and the URL that chooses one."""

import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.feed_records import Decoder, Version
from pipeline.uris import holds_secret, without_credentials

PASSWORD_VARIABLE = "COUNTERPOISE_REDIS_PASSWORD"  # noqa: S105  # the name of the variable, not a password
REDIS_URL = re.compile(r"rediss?://([^/@?#]*@)?([^/@:?#\[\]]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[0-9]*)?(\?[^#]*)?")
NOTHING_PUBLISHED = "nothing was published to {}: run `counterpoise publish` first, or correct feed.url"


class Draft(Protocol):
    """A version that is being written and that no reader sees."""

    def put(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Add sealed records by user, in the order of their keys over all calls."""

    def publish(self, version: Version, catalogue: bytes) -> None:
        """Switch to this version at once, keep the one before and remove older ones."""


class Store(Protocol):
    """A store as the publisher sees it."""

    def current(self) -> Version | None:
        """Return the record of the version that readers see."""

    def draft(self, name: str, users: int, size_bytes: int) -> AbstractContextManager[Draft]:
        """Remove what killed publishers left and begin a version; it goes if the block fails or does not publish."""


class Reader(Protocol):
    """A store as the backend sees it."""

    refused: str | None
    """Why the version that the store names is not the one that is read; None where it is."""

    def fetch(self, user_ids: Sequence[str]) -> tuple[Decoder, list[bytes | None]]:
        """Return records of one version, and what decodes them; None for a user without one."""


def open_store(url: str, root: Path) -> Store:
    """Return the store of a URL, for writing.

    Raises:
        ValueError: no such kind of store, or it cannot be reached.
    """
    if url.startswith("lmdb:"):
        from pipeline.feed_lmdb import LmdbStore

        return LmdbStore(lmdb_folder(url, root))
    from pipeline.feed_redis import RedisStore

    check_redis_url(url)
    return RedisStore(url)


def open_reader(url: str, root: Path) -> Reader:
    """Return the store of a URL, for reading.

    Raises:
        ValueError: no such kind of store, it cannot be reached, or nothing sound was published to it.
    """
    if url.startswith("lmdb:"):
        from pipeline.feed_lmdb import LmdbReader

        return LmdbReader(lmdb_folder(url, root))
    from pipeline.feed_redis import RedisReader

    check_redis_url(url)
    return RedisReader(url)


def lmdb_folder(url: str, root: Path) -> Path:
    """Return the folder of lmdb:PATH, relative to a root."""
    return root / url.removeprefix("lmdb:")


def check_redis_url(url: str) -> None:
    """Refuse what is no URL of a Redis; the error does not repeat a password.

    Raises:
        ValueError: another scheme, no host, a port or database that is no number, or a password, which belongs into
            the environment.
    """
    if holds_secret(url):
        raise ValueError(
            f"feed.url holds a password: take it out and set the environment variable {PASSWORD_VARIABLE} instead"
        )
    if not REDIS_URL.fullmatch(url):
        raise ValueError(
            f"feed.url = {without_credentials(url)!r}: expected lmdb:FOLDER, redis://HOST:PORT/DATABASE or "
            "rediss://..., where PORT and DATABASE are numbers"
        )
