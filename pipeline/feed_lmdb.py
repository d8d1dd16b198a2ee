"""The feed in LMDB: a folder of immutable versions and a file that names the current one, replaced by a rename.

    current                    names of the version that readers see and of the one before, a line each
    versions/NAME/version.json its record, with the digest of lists.mdb
    versions/NAME/catalogue.json
    versions/NAME/lists.mdb    user id -> record
    versions/.NAME             one that is being written

Readers take no lock and need no write permission: a published file never changes. One that a reader has open stays
readable for it after its removal.
"""

import hashlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from pipeline.feed_records import Decoder, Version, check_digest, key_of, parse_version
from pipeline.feed_store import NOTHING_PUBLISHED, Draft

POINTER = "current"
ROOM = 4  # pages are at worst half empty, where a record just does not fit beside another; doubled for the tree
SPARE_BYTES = 64 << 20
OPENING_ATTEMPTS = 5


class LmdbStore:
    """The folder as the publisher sees it; the workspace's lock keeps a second publisher away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def current(self) -> Version | None:
        """Return the record of the version that readers see; None where nothing was published.

        Raises:
            ValueError: the record is missing or damaged, or of another format.
        """
        names = read_pointer(self.folder)
        if not names:
            return None
        try:
            return read_record(self.folder / "versions" / names[0])[0]
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing: publish again with --force") from None

    @contextmanager
    def draft(self, name: str, users: int, size_bytes: int) -> Iterator[Draft]:
        """Remove what killed publishers left and begin a version; it goes where the block fails or does not publish.

        Args:
            name: of the version.
            users: number of records.
            size_bytes: of all keys and records.
        """
        del users
        versions = self.folder / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        self._remove_all_but(read_pointer(self.folder))
        folder = versions / f".{name}"
        folder.mkdir()
        draft = LmdbDraft(self, folder, ROOM * size_bytes + SPARE_BYTES)
        try:
            yield draft
        finally:
            draft.environment.close()
            shutil.rmtree(folder, ignore_errors=True)  # after publishing it has another name

    def switch(self, name: str) -> None:
        """Name the version that readers see, and remove those before the one that they saw until now."""
        names = [name, *read_pointer(self.folder)[:1]]
        _write_synced(self.folder / POINTER, "\n".join(names).encode())
        self._remove_all_but(names)

    def _remove_all_but(self, kept: list[str]) -> None:
        for path in (self.folder / "versions").iterdir():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)


class LmdbDraft:
    """A version that is being written."""

    def __init__(self, store: LmdbStore, folder: Path, map_bytes: int) -> None:
        self.store, self.folder = store, folder
        self.environment = lmdb.open(
            str(folder / "lists.mdb"), subdir=False, lock=False, sync=False, map_size=map_bytes, readahead=False
        )

    def put(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Append records in the order of their keys."""
        with self.environment.begin(write=True) as transaction:
            offered, added = transaction.cursor().putmulti(records, append=True, overwrite=False)
        assert offered == added, "records come in the order of their keys, one a user"

    def publish(self, version: Version, catalogue: bytes) -> None:
        """Bring all to the disk, check it, and switch."""
        with self.environment.begin() as transaction:
            assert transaction.stat()["entries"] == version.users, "one record a user"
        self.environment.sync(True)  # noqa: FBT003  # LMDB's own signature
        self.environment.close()
        with (self.folder / "lists.mdb").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _write_synced(self.folder / "catalogue.json", catalogue)
        record = {**json.loads(version.to_json()), "lists_digest": digest}
        _write_synced(self.folder / "version.json", json.dumps(record, indent=1).encode())
        _sync_folder(self.folder)
        self.folder.rename(self.folder.with_name(version.name))
        _sync_folder(self.folder.parent)
        self.store.switch(version.name)


class Opened:
    """A version that is open: its records and what decodes them."""

    def __init__(self, folder: Path) -> None:
        """Open a version whose files are those of its record.

        Raises:
            ValueError: a file is damaged, or of another format.
            FileNotFoundError: it was removed.
        """
        version, lists_digest = read_record(folder)
        path = folder / "lists.mdb"
        with path.open("rb") as file:
            check_digest(f"version {version.name} of the feed ({path})", file, lists_digest)
        self.decoder = Decoder(version, (folder / "catalogue.json").read_bytes())
        self.environment = lmdb.open(str(path), subdir=False, lock=False, readonly=True, readahead=False)


class Shared:
    """The versions that this process has open: LMDB opens a file once a process, readers share it."""

    def __init__(self) -> None:
        self.opened: weakref.WeakValueDictionary[str, Opened] = weakref.WeakValueDictionary()
        self.lock = threading.Lock()

    def open(self, folder: Path) -> Opened:
        """Return an open version; the last reader that lets it go closes it."""
        key = str(folder.resolve())
        with self.lock:
            found = self.opened.get(key)
            if found is None:
                found = self.opened[key] = Opened(folder)
            return found


SHARED = Shared()


class LmdbReader:
    """The folder as the backend sees it; threads may share it, processes forked after it may not.

    The pointer is looked at on every call (a stat, about 2 us). The call that finds a new version opens it and checks
    its digest; calls of other threads go on with the version before meanwhile. So does every call where the new
    version is refused, and `refused` says why.
    """

    def __init__(self, folder: Path) -> None:
        """Open the current version.

        Raises:
            ValueError: there is none, or it is damaged or of another format.
        """
        self.folder = folder
        self.pointer = str(folder / POINTER)
        self.lock = threading.Lock()
        self.refused: str | None = None
        self.mark = self._mark()
        self.opened = self._open_current()

    def fetch(self, user_ids: Sequence[str]) -> tuple[Decoder, list[bytes | None]]:
        """Return the users' records, all of one version, and what decodes them."""
        if self._mark() != self.mark:
            self._follow()
        opened = self.opened
        keys = [key_of(user_id) for user_id in user_ids]
        with opened.environment.begin() as transaction:
            return opened.decoder, [None if key is None else transaction.get(key) for key in keys]

    def _mark(self) -> tuple[int, int]:
        """Return what changes with every switch; zeros without a pointer."""
        try:
            status = os.stat(self.pointer)  # noqa: PTH116  # half the time of Path.stat
        except OSError:  # not there, or not to be seen: the version that is open goes on
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    def _follow(self) -> None:
        if not self.lock.acquire(blocking=False):
            return
        try:
            mark = self._mark()  # before the pointer is read: a switch in between is found by the next call
            try:
                self.opened = self._open_current()
                self.refused = None
            except ValueError as error:
                self.refused = str(error)
            self.mark = mark
        finally:
            self.lock.release()

    def _open_current(self) -> Opened:
        """Open the version that the pointer names.

        Raises:
            ValueError: there is none, it is damaged or may not be read, or it is gone again and again.
        """
        for _ in range(OPENING_ATTEMPTS):
            try:
                names = read_pointer(self.folder)
                if not names:
                    raise ValueError(NOTHING_PUBLISHED.format(self.folder))
                return SHARED.open(self.folder / "versions" / names[0])
            except FileNotFoundError as error:
                missing = error.filename  # two publishers came since the pointer was read, or the file is lost
            except (OSError, lmdb.Error) as error:
                raise ValueError(
                    f"the feed in {self.folder} cannot be read ({error}): correct its permissions, then publish again "
                    "or restart the reader"
                ) from None
        raise ValueError(f"{missing} is missing: publish again with --force")


def read_pointer(folder: Path) -> list[str]:
    """Return the names of the current version and of the one before; none where nothing was published."""
    try:
        return (folder / POINTER).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []


def read_record(folder: Path) -> tuple[Version, str]:
    """Return a version's record and the digest of its lists.

    Raises:
        ValueError: it is damaged or of another format.
        FileNotFoundError: it was removed.
    """
    text = (folder / "version.json").read_bytes()
    version = parse_version(text, str(folder))
    return version, str(json.loads(text).get("lists_digest"))


def _write_synced(path: Path, content: bytes) -> None:
    """Replace a file at once, such that a power cut leaves the old or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
