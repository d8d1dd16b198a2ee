"""The feed in Redis: versions of hash buckets, and a pointer key that names the current one.

    {counterpoise}                   pointer: version, previous, buckets of the version; set by one script
    {counterpoise}:versions          the buckets of every version that was begun, so that leftovers can be removed
    {counterpoise}:NAME              record and catalogue of a version
    {counterpoise}:NAME:BUCKET       user id -> record, about 256 users; the bucket is the CRC-32 of the id

A reader takes pointer and records in one script: two commands could see two versions. The braces keep all keys in one
slot of a cluster. ?prefix=NAME in the URL puts another name in place of `counterpoise`.
"""

import os
import threading
import urllib.parse
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from pipeline.feed_records import Decoder, Version, key_of, parse_version
from pipeline.feed_store import NOTHING_PUBLISHED, PASSWORD_VARIABLE, Draft

try:
    import redis
except ImportError:
    raise ValueError("feed.url needs the package redis: pip install 'counterpoise[redis]'") from None

BUCKET_USERS = 256
COMMANDS_A_TRIP = 256
TIMEOUT_SECONDS = 5
LOADING_ATTEMPTS = 5
NAME, BUCKETS = "version", "buckets"

READ = """
local pointer = redis.call('HMGET', KEYS[1], 'version', 'buckets', 'previous')
local version, buckets = pointer[1], pointer[2]
if version == ARGV[1] and pointer[3] == ARGV[2] then version, buckets = ARGV[2], ARGV[3] end
local found = {pointer[1], version, buckets}
if not version then return found end
for n = 4, #ARGV, 2 do
  found[#found + 1] = redis.call('HGET', KEYS[1] .. ':' .. version .. ':' .. (ARGV[n + 1] % buckets), ARGV[n])
end
return found
"""
"""Pointer and records at once. ARGV: a version that the reader refused, what it reads instead as long as that is kept,
its buckets; then users and CRCs."""

SWITCH = """
local before = redis.call('HGET', KEYS[1], 'version') or ''
if before ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'buckets', ARGV[3], 'previous', ARGV[1])
return 1
"""
"""Switch only from the version that the publisher began with."""


class RedisStore:
    """The keys as the publisher sees them."""

    def __init__(self, url: str) -> None:
        self.place, self.client, self.key = connect(url)

    def current(self) -> Version | None:
        """Return the record of the version that readers see; None where nothing was published.

        Raises:
            ValueError: the record is missing or damaged, or of another format, or Redis cannot be reached.
        """
        with told(self.place):
            name = self.client.hget(self.key, NAME)
            text = self.client.hget(f"{self.key}:{name.decode()}", "record") if name else None
        return None if name is None else parse_version(text or b"", f"{self.place} {name.decode()}")

    @contextmanager
    def draft(self, name: str, users: int, size_bytes: int) -> Iterator[Draft]:
        """Remove what killed publishers left and begin a version; it goes if the block fails or does not publish.

        Args:
            name: of the version.
            users: number of records.
            size_bytes: not needed.
        """
        del size_bytes
        buckets = -(-users // BUCKET_USERS)
        with told(self.place):
            begun = self._names()
            self.remove_all_but(begun)
            self.client.hset(f"{self.key}:versions", name, str(buckets))
        draft = RedisDraft(self, name, buckets, begun[0])
        try:
            with told(self.place):
                yield draft
        finally:
            if not draft.is_published:
                with told(self.place):
                    self.remove_all_but(begun)

    def _names(self) -> list[str]:
        """Return the names of the current version and of the one before; empty where there is none."""
        return [(name or b"").decode() for name in self.client.hmget(self.key, [NAME, "previous"])]

    def remove_all_but(self, kept: Sequence[str]) -> None:
        """Remove the versions that are not to be kept."""
        begun = self.client.hgetall(f"{self.key}:versions")
        for name, buckets in ((name.decode(), int(buckets)) for name, buckets in begun.items()):
            if name in kept:
                continue
            keys = iter([f"{self.key}:{name}", *(f"{self.key}:{name}:{n}" for n in range(buckets))])
            while some := list(islice(keys, COMMANDS_A_TRIP)):
                self.client.unlink(*some)
            self.client.hdel(f"{self.key}:versions", name)


class RedisDraft:
    """A version that is being written."""

    def __init__(self, store: RedisStore, name: str, buckets: int, before: str) -> None:
        self.store, self.name, self.buckets, self.before = store, name, buckets, before
        self.key = f"{store.key}:{name}"
        self.is_published = False

    def put(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Add records, gathered by bucket."""
        by_bucket: dict[int, list[bytes]] = defaultdict(list)
        for user, record in records:
            by_bucket[zlib.crc32(user) % self.buckets] += (user, record)
        waiting = iter(by_bucket.items())
        while some := list(islice(waiting, COMMANDS_A_TRIP)):
            pipe = self.store.client.pipeline(transaction=False)
            for bucket, pairs in some:
                pipe.execute_command("HSET", f"{self.key}:{bucket}", *pairs)
            pipe.execute()

    def publish(self, version: Version, catalogue: bytes) -> None:
        """Check that all arrived, and switch.

        Raises:
            ValueError: Redis lost some, or another publisher switched meanwhile.
        """
        client, store = self.store.client, self.store
        client.hset(self.key, mapping={"record": version.to_json(), "catalogue": catalogue, BUCKETS: self.buckets})
        found = 0
        for start in range(0, self.buckets, COMMANDS_A_TRIP):
            pipe = client.pipeline(transaction=False)
            for bucket in range(start, min(start + COMMANDS_A_TRIP, self.buckets)):
                pipe.hlen(f"{self.key}:{bucket}")
            found += sum(pipe.execute())
        if found != version.users:
            raise ValueError(
                f"{store.place} holds {found:,} of the {version.users:,} lists that were written: set its "
                "maxmemory-policy to noeviction and give it enough memory, then publish again"
            )
        if not client.eval(SWITCH, 1, store.key, self.before, self.name, str(self.buckets)):
            raise ValueError(f"another publisher switched {store.place} meanwhile: run the same command again")
        self.is_published = True
        store.remove_all_but([self.name, self.before])


class RedisReader:
    """The keys as the backend sees them; threads may share it.

    Every call learns the current version with its records. The first that meets a new one loads its record and
    catalogue. A version that is refused is passed over: the one before is read as long as it is kept.
    """

    def __init__(self, url: str) -> None:
        """Load the current version.

        Raises:
            ValueError: there is none, or it is damaged or of another format, or Redis cannot be reached.
        """
        self.place, self.client, self.key = connect(url)
        self.read: Any = self.client.register_script(READ)
        self.lock = threading.Lock()
        self.refused: str | None = None
        self.passed_over = ("", "", "")
        with told(self.place):
            name, _, buckets = self.read(keys=[self.key], args=["", "", ""])
            if name is None:
                raise ValueError(NOTHING_PUBLISHED.format(self.place))
            self.loaded = (self._load(name.decode()), int(buckets))

    def fetch(self, user_ids: Sequence[str]) -> tuple[Decoder, list[bytes | None]]:
        """Return the users' records, all of one version, and what decodes them.

        Raises:
            ValueError: Redis cannot be reached, or no version that it has can be read.
        """
        keys = [key_of(user_id) for user_id in user_ids]
        pairs = [part for key in keys if key is not None for part in (key, zlib.crc32(key))]
        for _ in range(LOADING_ATTEMPTS):
            decoder, _ = self.loaded
            with told(self.place):
                current, name, buckets, *records = self._answer(pairs)
            if name == decoder.version.name:
                found = iter(records)
                return decoder, [None if key is None else next(found) for key in keys]
            self._follow(current, buckets)
        raise ValueError(f"{self.place} has no version that can be read: {self.refused}")

    def _answer(self, pairs: list[Any]) -> tuple[str, str, int, *tuple[bytes | None, ...]]:
        current, name, buckets, *records = self.read(keys=[self.key], args=[*self.passed_over, *pairs])
        return current.decode(), name.decode(), int(buckets), *records

    def _follow(self, name: str, buckets: int) -> None:
        """Load a version, or pass it over."""
        with self.lock, told(self.place):
            decoder, own_buckets = self.loaded
            if decoder.version.name == name:
                return  # another thread was first
            try:
                self.loaded = (self._load(name), buckets)
                self.refused, self.passed_over = None, ("", "", "")
            except ValueError as error:
                self.refused = str(error)
                self.passed_over = (name, decoder.version.name, str(own_buckets))

    def _load(self, name: str) -> Decoder:
        record, catalogue = self.client.hmget(f"{self.key}:{name}", ["record", "catalogue"])
        where = f"{self.place} {name}"
        return Decoder(parse_version(record or b"", where), catalogue or b"")


def connect(url: str) -> tuple[str, Any, str]:
    """Return what to call a Redis in messages, its client and the pointer's key.

    Raises:
        ValueError: the URL has an option that redis-py does not take.
    """
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(parts.query)
    prefix = query.pop("prefix", ["counterpoise"])[0]
    plain = parts._replace(query=urllib.parse.urlencode(query, doseq=True))
    try:
        client = redis.Redis.from_url(
            plain.geturl(),
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
        )
        client.connection_pool.make_connection()  # which connects to nothing yet, and refuses unknown options
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"feed.url has an option that cannot be used ({error}): expected ?prefix=NAME or an option of redis-py"
        ) from None
    return f"redis at {parts.hostname}:{parts.port or 6379}", client, f"{{{prefix}}}"


@contextmanager
def told(place: str) -> Iterator[None]:
    """Tell what Redis answered, with what to do; its messages hold no password.

    Raises:
        ValueError: Redis cannot be reached, or refused.
    """
    try:
        yield
    except redis.RedisError as error:
        raise ValueError(
            f"{place}: {error}; start it, correct feed.url or set {PASSWORD_VARIABLE}, and run the same command again"
        ) from None
