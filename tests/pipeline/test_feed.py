"""The feed in LMDB: what a backend reads is one whole version, whatever happens to the publisher."""

import dataclasses
import importlib
import json
import math
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.feed import Feed
from pipeline.feed_records import Decoder, parse_version, seal, seed_of
from pipeline.feed_store import open_store

URL = "lmdb:feed"


@pytest.fixture(scope="module")
def versions() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("feed_versions")


def test_lists_come_back_with_scores_model_version_and_date_in_the_order_asked(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 7)
    first, second = Feed.open(URL, tmp_path).lists(["u00003", "u00001"])
    assert (first.user_id, first.items) == ("u00003", ["v7-3", "v7-4", "v7-5", "v7-6", "v7-7"])
    assert first.outputs == {"score": [n / 2**15 for n in (5, 4, 3, 2, 1)]}
    assert (first.version.model_version, first.version.scored_for, first.is_fallback) == ("7", "2026-01-02", False)
    assert second.items[0] == "v7-1"


def test_a_limit_cuts_lists_from_the_top(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 7)
    known, unknown = Feed.open(URL, tmp_path).lists(["u00003", "nobody"], limit=2)
    assert (known.items, known.outputs["score"]) == (["v7-3", "v7-4"], [5 / 2**15, 4 / 2**15])
    assert unknown.items == ["v7-0", "v7-1"]


@pytest.mark.parametrize("user_id", ["nobody", "", "x" * 600, "\ud800"])
def test_an_unknown_user_gets_the_fallback_list_and_is_told(versions: Any, tmp_path: Path, user_id: str) -> None:
    versions.write(URL, tmp_path, 1)
    (found,) = Feed.open(URL, tmp_path).lists([user_id])
    assert (found.items, found.outputs, found.is_fallback) == (["v1-0", "v1-1", "v1-2"], {}, True)


def test_a_new_version_is_picked_up_without_reopening(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    feed = Feed.open(URL, tmp_path)
    for number in (2, 3):
        versions.write(URL, tmp_path, number)
        assert feed.version.model_version == str(number)
        assert versions.is_whole(feed.lists(["u00000", "u02999"]))


def test_the_version_before_stays_on_disk_and_older_ones_go(versions: Any, tmp_path: Path) -> None:
    names = [versions.write(URL, tmp_path, number).name for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "feed" / "versions").iterdir()) == names[1:]


def test_a_version_that_is_open_can_be_read_after_its_removal(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    reader = Feed.open(URL, tmp_path).reader
    opened = reader.opened  # type: ignore[attr-defined]
    for number in (2, 3):
        versions.write(URL, tmp_path, number)
    with opened.environment.begin() as transaction:
        assert opened.decoder.decode("u00001", transaction.get(b"u00001"), None).items[0] == "v1-1"


def test_two_feeds_of_one_process_share_a_version(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    one, other = Feed.open(URL, tmp_path), Feed.open(URL, tmp_path)
    assert one.lists(["u00001"]) == other.lists(["u00001"])


def test_threads_that_share_a_feed_read_whole_versions_during_switches(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    feed, stopped, torn, reads = Feed.open(URL, tmp_path), threading.Event(), [], [0] * 4

    def read(thread: int) -> None:
        users = [f"u{n:05}" for n in range(thread, versions.USERS, 600)]
        while not stopped.is_set():
            torn.extend([1] * (not versions.is_whole(feed.lists(users))))
            reads[thread] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 12):
        versions.write(URL, tmp_path, number)
    stopped.set()
    for thread in threads:
        thread.join()
    assert torn == []
    assert min(reads) > 0
    assert feed.version.model_version == "11"


def test_readers_see_whole_versions_only_when_publishers_are_killed(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    feed, draw, seen = Feed.open(URL, tmp_path), random.Random(1), set()  # noqa: S311
    for attempt in range(4):
        command = [sys.executable, versions.__file__, URL, str(tmp_path), str(1000 * (attempt + 1))]
        with subprocess.Popen(command) as publisher:
            first, last = len(seen), math.inf
            while time.monotonic() < last:
                lists = feed.lists([f"u{n:05}" for n in range(0, versions.USERS, 300)])
                assert versions.is_whole(lists)
                seen.add(lists[0].version.model_version)
                if len(seen) > first and last == math.inf:  # it has begun to publish
                    last = time.monotonic() + 0.3 * draw.random()
            publisher.kill()
    before = open_store(URL, tmp_path).current()
    version = versions.write(URL, tmp_path, 9999)
    assert before is not None
    assert {path.name for path in (tmp_path / "feed" / "versions").iterdir()} == {before.name, version.name}
    assert versions.is_whole(feed.lists(["u00000"]))


def test_a_publish_that_fails_leaves_nothing(versions: Any, tmp_path: Path) -> None:
    name = versions.write(URL, tmp_path, 1).name
    with pytest.raises(ZeroDivisionError):
        versions.write_half(URL, tmp_path, 2)
    assert [path.name for path in (tmp_path / "feed" / "versions").iterdir()] == [name]


def test_an_open_feed_goes_on_with_the_version_before_one_that_is_damaged(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    feed = Feed.open(URL, tmp_path)
    versions.write_damaged(URL, tmp_path, 2)
    assert feed.version.model_version == "1"
    assert feed.refused is not None
    assert "the catalogue of version 2026-01-02-00000002 is damaged" in feed.refused
    versions.write(URL, tmp_path, 3)
    assert (feed.version.model_version, feed.refused) == ("3", None)


def test_an_open_feed_goes_on_with_the_version_before_one_that_cannot_be_opened(versions: Any, tmp_path: Path) -> None:
    versions.write(URL, tmp_path, 1)
    feed = Feed.open(URL, tmp_path)
    folder = tmp_path / "feed" / "versions" / versions.write(URL, tmp_path, 2).name
    aside = folder.rename(tmp_path / "aside")
    folder.touch()  # even root, who may read everything, cannot open a file in it
    assert feed.version.model_version == "1"
    assert feed.refused is not None
    assert "cannot be read ([Errno 20] Not a directory" in feed.refused
    folder.unlink()
    aside.rename(folder)
    versions.write(URL, tmp_path, 3)
    assert (feed.version.model_version, feed.refused) == ("3", None)


def test_a_feed_whose_files_cannot_be_opened_says_what_to_do(versions: Any, tmp_path: Path) -> None:
    folder = tmp_path / "feed" / "versions" / versions.write(URL, tmp_path, 1).name
    feed = Feed.open(URL, tmp_path)
    name = versions.write(URL, tmp_path, 2).name
    record = folder.with_name(name) / "version.json"
    record.unlink()
    record.mkdir()
    assert feed.version.model_version == "1"
    with pytest.raises(ValueError, match=r"cannot be read .* correct its permissions, then publish again or restart"):
        Feed.open(URL, tmp_path)


def _damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("lists.mdb", r"version 2026-01-02-00000001 of the feed \(.*lists.mdb\) is damaged \(its sha256 is not"),
        ("catalogue.json", "the catalogue of version 2026-01-02-00000001 is damaged"),
        ("version.json", "the record of .* is damaged"),
    ],
)
def test_a_version_with_a_changed_byte_is_refused(versions: Any, tmp_path: Path, file: str, message: str) -> None:
    name = versions.write(URL, tmp_path, 1).name
    path = tmp_path / "feed" / "versions" / name / file
    _damage(path, 0 if file == "version.json" else path.stat().st_size // 2)
    with pytest.raises(ValueError, match=message):
        Feed.open(URL, tmp_path)


def test_a_version_of_another_format_is_refused(versions: Any, tmp_path: Path) -> None:
    name = versions.write(URL, tmp_path, 1).name
    path = tmp_path / "feed" / "versions" / name / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this code reads format 1: use the same version"):
        Feed.open(URL, tmp_path)


def test_a_record_of_another_version_does_not_pass(versions: Any) -> None:
    _, record = next(versions.records_of(1))
    decoder = Decoder(versions.version_of(2), versions.catalogue_of(2))
    with pytest.raises(ValueError, match="a list of version 2026-01-02-00000002 is damaged or of another version"):
        decoder.decode("u00000", record, None)


@pytest.mark.parametrize("lost", ["lists.mdb", "version.json"])
def test_a_lost_file_is_named(versions: Any, tmp_path: Path, lost: str) -> None:
    name = versions.write(URL, tmp_path, 1).name
    (tmp_path / "feed" / "versions" / name / lost).unlink()
    with pytest.raises(ValueError, match=f"{lost} is missing: publish again with --force"):
        Feed.open(URL, tmp_path)
    if lost == "version.json":
        with pytest.raises(ValueError, match=f"{lost} is missing: publish again with --force"):
            open_store(URL, tmp_path).current()


def test_a_feed_without_a_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing was published to .*feed: run `counterpoise publish` first"):
        Feed.open(URL, tmp_path)


@pytest.mark.parametrize("url", ["http://host", "redis://", "feed"])
def test_a_url_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"feed.url = .*: expected lmdb:FOLDER, redis://HOST"):
        Feed.open(url, tmp_path)


def test_a_hundred_candidates_with_a_score_take_about_six_hundred_bytes(versions: Any) -> None:
    version = dataclasses.replace(versions.version_of(1), candidates=100)
    record = seal(struct.pack("<100I100e", *[1] * 100, *[0.5] * 100), seed_of(version.name))
    assert len(record) == 604
    found = Decoder(version, versions.catalogue_of(1)).decode("u", record, None)
    assert (len(found.items), found.outputs["score"][0]) == (100, 0.5 / 2**15)


def test_a_version_reads_as_it_was_written(versions: Any) -> None:
    version = versions.version_of(1)
    assert parse_version(version.to_json(), "here") == version


def test_the_reader_imports_no_large_library() -> None:
    code = (
        "import sys, time; start = time.process_time(); from pipeline.feed import Feed; import pipeline.feed_lmdb; "
        "spent = time.process_time() - start; "
        "large = {'torch', 'mlflow', 'polars', 'numpy', 'pyarrow', 'pydantic', 'redis'} & set(sys.modules); "
        "assert not large, large; assert spent < 0.5, spent"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
