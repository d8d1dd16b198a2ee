"""The feed as a backend reads it: `Feed.open(url).lists(user_ids)`. Imports no polars, numpy, torch or mlflow."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.feed_records import UserList, Version
from pipeline.feed_store import Reader, open_reader


class Feed:
    """Published lists; threads may share one."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @classmethod
    def open(cls, url: str, root: Path = Path()) -> "Feed":
        """Open the lists of a store.

        Args:
            url: lmdb:FOLDER, redis://HOST:PORT/DATABASE or rediss://..., as in the configuration. The password of a
                Redis is read from COUNTERPOISE_REDIS_PASSWORD.
            root: what a relative folder is relative to, such as the workspace.

        Raises:
            ValueError: the URL is wrong, the store cannot be reached, or nothing sound was published to it.
        """
        return cls(open_reader(url, root))

    @property
    def version(self) -> Version:
        """The record of the version that is read now."""
        decoder, _ = self.reader.fetch([])
        return decoder.version

    @property
    def refused(self) -> str | None:
        """Why a newer version is not read: it is damaged, or of another format; None where there is none such."""
        return self.reader.refused

    def lists(self, user_ids: Sequence[str], limit: int | None = None) -> list[UserList]:
        """Return a list for each user, in their order, all of one version; the fallback list for unknown users.

        A version that was published since the last call is picked up.

        Args:
            user_ids: ids as in the logs.
            limit: items of a list at most, the best ones; None for all.

        Raises:
            ValueError: a list is damaged, or the store cannot be reached.
        """
        decoder, records = self.reader.fetch(user_ids)
        return [decoder.decode(user_id, record, limit) for user_id, record in zip(user_ids, records, strict=True)]
