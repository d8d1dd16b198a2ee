"""The feed in a real Redis on loopback: the same lists, switched at once, its password from the environment only."""

import importlib
import math
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.feed import Feed
from pipeline.feed_redis import RedisStore, connect
from pipeline.feed_store import PASSWORD_VARIABLE, open_store

HERE = Path()
SERVER = shutil.which("redis-server")
REQUIRED = "COUNTERPOISE_REQUIRE_REDIS" in os.environ
needs_redis = pytest.mark.skipif(
    SERVER is None and not REQUIRED, reason="no redis-server here: apt-get install redis-server"
)


@pytest.fixture(scope="module")
def versions() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("feed_versions")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Redis without persistence on a free port of loopback, with a random password; return its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, password = tmp_path_factory.mktemp("redis"), secrets.token_hex(16)
    settings = folder / "redis.conf"
    settings.write_text(
        f'bind 127.0.0.1\nport {port}\nsave ""\nappendonly no\ndir {folder}\nrequirepass {password}\nloglevel warning\n'
    )
    assert SERVER is not None
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen([SERVER, str(settings)]) as process:
        patch.setenv(PASSWORD_VARIABLE, password)
        url = f"redis://127.0.0.1:{port}/0"
        _wait_for(url)
        yield url
        process.terminate()


def _wait_for(url: str) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            RedisStore(url).current()
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def url(server: str) -> str:
    """Return the URL of an empty Redis."""
    _, client, _ = connect(server)
    client.flushall()
    return server


@needs_redis
def test_lists_of_redis_and_of_lmdb_are_equal(versions: Any, url: str, tmp_path: Path) -> None:
    users = ["u00003", "nobody", "", "u02999"]
    found = []
    for place in (url, "lmdb:feed"):
        versions.write(place, tmp_path, 7)
        lists = Feed.open(place, tmp_path).lists(users, limit=4)
        found.append([(one.user_id, one.items, one.outputs, one.is_fallback) for one in lists])
    assert found[0] == found[1]
    assert [fallback for *_, fallback in found[0]] == [False, True, True, False]


@needs_redis
def test_a_new_version_is_picked_up_and_versions_before_the_last_are_removed(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    feed = Feed.open(url)
    for number in (2, 3):
        versions.write(url, HERE, number)
        assert feed.version.model_version == str(number)
        assert versions.is_whole(feed.lists(["u00000", "u02999"]))
    _, client, key = connect(url)
    kept = {version.decode() for version in client.hkeys(f"{key}:versions")}
    assert kept == {versions.version_of(number).name for number in (2, 3)}
    assert not [name for name in client.scan_iter() if versions.version_of(1).name.encode() in name]


@needs_redis
def test_two_prefixes_are_two_feeds(versions: Any, url: str) -> None:
    versions.write(f"{url}?prefix=one", HERE, 1)
    versions.write(f"{url}?prefix=two", HERE, 2)
    assert Feed.open(f"{url}?prefix=one").version.model_version == "1"


@needs_redis
def test_readers_see_whole_versions_only_when_publishers_are_killed(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    feed, draw, seen = Feed.open(url), random.Random(1), set()  # noqa: S311
    for attempt in range(4):
        command = [sys.executable, versions.__file__, url, ".", str(1000 * (attempt + 1))]
        with subprocess.Popen(command) as publisher:
            first, last = len(seen), math.inf
            while time.monotonic() < last:
                lists = feed.lists([f"u{n:05}" for n in range(0, versions.USERS, 300)])
                assert versions.is_whole(lists)
                seen.add(lists[0].version.model_version)
                if len(seen) > first and last == math.inf:  # it has begun to publish
                    last = time.monotonic() + 0.3 * draw.random()
            publisher.kill()
    before = open_store(url, HERE).current()
    version = versions.write(url, HERE, 9999)
    _, client, key = connect(url)
    assert before is not None
    assert {name.decode() for name in client.hkeys(f"{key}:versions")} == {before.name, version.name}
    names = [name.decode() for name in client.scan_iter()]
    assert all(before.name in name or version.name in name or name in {key, f"{key}:versions"} for name in names)


@needs_redis
def test_a_publish_that_fails_leaves_nothing(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    _, client, _ = connect(url)
    before = sorted(client.keys())
    with pytest.raises(ZeroDivisionError):
        versions.write_half(url, HERE, 2)
    assert sorted(client.keys()) == before


@needs_redis
def test_an_open_feed_goes_on_with_the_version_before_one_that_is_damaged(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    feed = Feed.open(url)
    versions.write_damaged(url, HERE, 2)
    assert versions.is_whole(feed.lists(["u00000", "u02999"]))
    assert feed.version.model_version == "1"
    assert "the catalogue of version 2026-01-02-00000002 is damaged" in str(feed.refused)
    with pytest.raises(ValueError, match="the catalogue of version 2026-01-02-00000002 is damaged"):
        Feed.open(url)
    versions.write(url, HERE, 3)
    assert (feed.version.model_version, feed.refused) == ("3", None)


@needs_redis
def test_two_damaged_versions_in_a_row_leave_nothing_to_read(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    feed = Feed.open(url)
    for number in (2, 3):
        versions.write_damaged(url, HERE, number)
    with pytest.raises(ValueError, match="has no version that can be read: the catalogue of version 2026-01-02-000000"):
        feed.lists(["u00000"])


@needs_redis
def test_lists_that_redis_lost_are_noticed_before_the_switch(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    feed = Feed.open(url)
    version = versions.version_of(2)
    with open_store(url, HERE).draft(version.name, versions.USERS, 0) as draft:
        versions.fill(draft, 2, versions.USERS - 1)
        with pytest.raises(ValueError, match=r"holds 2,999 of the 3,000 lists .*maxmemory-policy to noeviction"):
            draft.publish(version, versions.catalogue_of(2))
    assert feed.version.model_version == "1"


@needs_redis
def test_of_two_publishers_at_once_one_wins_and_the_other_is_told(versions: Any, url: str) -> None:
    versions.write(url, HERE, 1)
    version = versions.version_of(2)
    store = open_store(url, HERE)
    with store.draft(version.name, versions.USERS, 0) as draft:
        versions.fill(draft, 2)
        _, client, key = connect(url)
        client.hset(key, "version", "another")
        with pytest.raises(ValueError, match=r"another publisher switched redis at 127\.0\.0\.1:"):
            draft.publish(version, versions.catalogue_of(2))


@needs_redis
def test_an_empty_redis_has_nothing_published(url: str) -> None:
    assert open_store(url, HERE).current() is None
    with pytest.raises(ValueError, match=r"nothing was published to redis at 127.0.0.1:\d+: run"):
        Feed.open(url)


@needs_redis
def test_a_wrong_password_is_told_without_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-secret")
    with pytest.raises(ValueError, match=f"correct feed.url or set {PASSWORD_VARIABLE}") as error:
        Feed.open(url)
    assert "wrong-secret" not in str(error.value)


def test_a_redis_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "a-secret")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match=r"redis at 127.0.0.1:\d+: Error 111 .* start it, correct") as error:
            open_store(f"redis://127.0.0.1:{unused.getsockname()[1]}/0", HERE).current()
    assert "a-secret" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://:hunter2@host/0", "redis://host/0?password=hunter2", "rediss://me:hunter2@h"])
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=f"holds a password: take it out and set .*{PASSWORD_VARIABLE}") as error:
        open_store(url, HERE)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://me:hun/ter2@h", "redis://h/0?ssl_password=hunter2", "redis://[x:hunter2@h"])
def test_a_password_at_an_odd_place_is_not_repeated_either(url: str) -> None:
    with pytest.raises(ValueError, match="holds a password") as error:
        open_store(url, HERE)
    assert "ter2" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["redis://h:abc/0", "redis://h/notadb", "redis:///0", "redis://h:1:2/0", "redis://h/0#x"]
)
def test_a_port_or_a_database_that_is_no_number_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"feed.url = 'redis://.*: expected .* where PORT and DATABASE are numbers"):
        open_store(url, HERE)


@pytest.mark.parametrize("option", ["foo=bar", "socket_timeout=x"])
def test_an_option_that_redis_does_not_take_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"feed.url has an option that cannot be used \(.*: expected \?prefix=NAME or"):
        open_store(f"redis://h/0?{option}", HERE)


@pytest.mark.parametrize("url", ["redis://h", "redis://me@h:6379/3?prefix=x", "rediss://[::1]:1/?db=2"])
def test_usual_urls_are_taken(url: str) -> None:
    assert open_store(url, HERE)


def test_a_password_in_the_configuration_is_refused_and_not_repeated(tmp_path: Path) -> None:
    from pipeline.config import load_config

    path = tmp_path / "config.toml"
    path.write_text('name = "x"\n[source]\ninteractions = "*"\n[feed]\nurl = "redis://:hunter2@host"\n')
    with pytest.raises(ValueError, match=r"feed\.url: feed\.url holds a password") as error:
        load_config(path, {})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"url": "lmdb:"}, "expected lmdb:FOLDER or redis://HOST"),
        ({"url": "sqlite:x"}, "feed.url = 'sqlite:x': expected lmdb:FOLDER"),
        ({"fields": ["score", "score"]}, "expected each column once"),
    ],
)
def test_a_wrong_feed_section_is_refused(feed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"name": "x", "source": {"interactions": "*"}, "feed": feed})


def test_where_lists_are_published_does_not_change_a_runs_name() -> None:
    values = {"name": "x", "source": {"interactions": "*"}}
    other = {**values, "feed": {"url": "redis://host"}, "serve": {"port": 9000}}
    assert Config.model_validate(values).digest() == Config.model_validate(other).digest()


def test_without_the_package_redis_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "pipeline.feed_redis")
    with pytest.raises(ValueError, match=r"feed.url needs the package redis: pip install 'counterpoise\[redis\]'"):
        open_store("redis://host", HERE)
