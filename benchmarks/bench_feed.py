"""The feed at the size of a service: publishing, looking up, switching under load, and the HTTP service.

    python -m benchmarks.bench_feed --users 20000       # a quick look, under a minute
    python -m benchmarks.bench_feed                     # 1 million users, 100 candidates each, of 6 bytes

Lists are made up and stand in Parquet files, as tables/candidates does; publishing reads, encodes, writes the audit
copy, checks and switches, as `counterpoise publish` does. Look-ups draw users at random, one a call, from one thread;
the files are in the page cache. During a switch a process publishes small versions without a pause, whose items name
their version, and this one reads ten users a call: a call whose items are not all of the version that it names is
mixed. The service runs in a process of its own, and its load comes from threads of this one (http.client, connections
kept alive): both share the machine's cores, so that its requests a second are a lower bound. Redis runs on loopback
without persistence; without a redis-server its figures are left out.
"""

import datetime as dt
import hashlib
import http.client
import multiprocessing
import os
import random
import resource
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

from benchmarks.figures import Figure, show
from pipeline import threads
from pipeline.config import Config
from pipeline.feed import Feed
from pipeline.feed_encode import batches, read_day
from pipeline.feed_records import FORMAT, Catalogue, Version, seal, seed_of
from pipeline.feed_store import PASSWORD_VARIABLE, open_store
from pipeline.publish import Ready, write_version
from pipeline.serve import serve

DAY = dt.date(2026, 1, 15)
ITEMS = 100_000
PART_USERS = 50_000
SMALL_USERS = 5_000
READS = 10_000
CLIENTS = 8
PROTOTYPE = {"lmdb": "prototype, bare records: 2.4 / 10 us", "redis": "prototype, bare records: 41 / 87 us"}


def _make_lists(folder: Path, users: int, candidates: int) -> None:
    """Write the lists of a day, some users a file."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    ids = pl.Series([f"i{number:06}" for number in range(ITEMS)])
    for start in range(0, users, PART_USERS):
        mine = min(PART_USERS, users - start)
        rows = mine * candidates
        pl.DataFrame(
            {
                "user_id": pl.Series([f"u{start + n:08}" for n in range(mine)]).repeat_by(candidates).explode(),
                "rank": np.tile(np.arange(1, candidates + 1, dtype=np.int32), mine),
                "item_id": ids.gather(draw.integers(0, ITEMS, rows)),
                "score": -np.sort(-draw.random((mine, candidates)), axis=1).ravel(),
                "model_version": pl.Series(["1"]).new_from_index(0, rows),
            }
        ).write_parquet(folder / f"part-{start:09}.parquet", compression="zstd", compression_level=1)


def _publish(name: str, url: str, lists: Path, root: Path) -> list[Figure]:
    """Publish the lists and tell what it took."""
    start, began = time.perf_counter(), time.process_time()
    day = read_day(pl.scan_parquet(lists), ["score"])
    catalogue = Catalogue(day.items.to_list(), list(range(100))).to_json()
    learnt = time.perf_counter() - start
    write_version(Ready(day, catalogue, DAY, "2026-01-14-00000000", 0), open_store(url, root), url, root / "published")
    seconds, cpu = time.perf_counter() - start, time.process_time() - began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    what = f"{name}: publish {len(day.users):,} users x {day.candidates // len(day.users)}"
    note = f"{cpu:.1f} CPU s; {learnt:.1f} s to learn users, items, scales; peak {peak_mib:,.0f} MiB so far"
    return [Figure(what=what, value=seconds, unit="s", peer=note)]


def _encoding(lists: Path) -> Figure:
    """Return the time of reading and encoding alone."""
    day = read_day(pl.scan_parquet(lists), ["score"])
    start, size, records = time.perf_counter(), 0, 0
    for batch in batches(day):
        for _, record in batch.records("name"):
            size, records = size + len(record), records + 1
    seconds = time.perf_counter() - start
    return Figure(
        what="reading and encoding alone", value=seconds, unit="s", peer=f"{size / records:.0f} bytes a record"
    )


def _lookups(name: str, url: str, root: Path, users: int, calls: int) -> list[Figure]:
    """Time look-ups of one user each: the bare record, and the list decoded."""
    start = time.perf_counter()
    feed = Feed.open(url, root)
    found = [Figure(what=f"{name}: open, catalogue and digest", value=time.perf_counter() - start, unit="s")]
    draw = random.Random(1)  # noqa: S311
    asked = [[f"u{draw.randrange(users):08}"] for _ in range(calls)]
    for user in asked[:1000]:
        feed.lists(user)
    for what, call in (("bare record", feed.reader.fetch), ("decoded list", feed.lists)):
        taken = []
        for user in asked:
            before = time.perf_counter_ns()
            call(user)
            taken.append((time.perf_counter_ns() - before) / 1000)
        for percent in (50, 99):
            value = float(np.percentile(taken, percent))
            found.append(Figure(what=f"{name}: {what}, p{percent}", value=value, unit="us", peer=PROTOTYPE[name]))
    return found


def _write_small(url: str, root: Path, number: int) -> None:
    """Publish a small version whose items name it."""
    catalogue = Catalogue([f"v{number}-{n}" for n in range(10)], [0]).to_json()
    version = Version(
        format=FORMAT,
        name=f"{DAY}-{number:08x}",
        scored_for=str(DAY),
        model_version=str(number),
        run="",
        candidates_version=0,
        fields=("score",),
        scales=(1.0,),
        users=SMALL_USERS,
        candidates=10 * SMALL_USERS,
        digest="",
        catalogue_digest=hashlib.sha256(catalogue).hexdigest(),
        published_at="",
    )
    record = seal(struct.pack("<10I10e", *range(10), *range(10, 0, -1)), seed_of(version.name))
    with open_store(url, root).draft(version.name, SMALL_USERS, 100 * SMALL_USERS) as draft:
        draft.put((f"u{user:08}".encode(), record) for user in range(SMALL_USERS))
        draft.publish(version, catalogue)


def _publish_on(url: str, root: Path) -> None:
    """Publish small versions until the process is ended."""
    for number in count(2):
        _write_small(url, root, number)


def _mixed(name: str, url: str, root: Path) -> Figure:
    """Count calls whose lists are not all of one version, while versions are published."""
    _write_small(url, root, 1)
    feed, draw, mixed, seen = Feed.open(url, root), random.Random(1), 0, set()  # noqa: S311
    publisher = multiprocessing.get_context("spawn").Process(target=_publish_on, args=(url, root))
    publisher.start()
    reads = 0
    while reads < READS or len(seen) < 10:
        lists = feed.lists([f"u{draw.randrange(SMALL_USERS):08}" for _ in range(10)])
        numbers = {one.version.model_version for one in lists}
        items = {item.partition("-")[0] for one in lists for item in one.items}
        mixed += len(numbers) > 1 or items != {f"v{number}" for number in numbers}
        seen |= numbers
        reads += len(seen) > 1  # the publisher has begun
    publisher.kill()
    publisher.join()
    return Figure(
        what=f"{name}: mixed reads in {READS:,}", value=mixed, peer=f"{len(seen)} versions seen meanwhile", at_most=0
    )


def _load(root: Path, users: int, seconds: float) -> list[Figure]:
    """Ask the service for one list after the other from some threads."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    sections = {"source": {"interactions": "*"}, "serve": {"port": port, "max_age_days": 100_000}}
    config = Config.model_validate({"name": "bench", **sections})
    service = multiprocessing.get_context("spawn").Process(target=serve, args=(config, root))
    service.start()
    _wait_for(port)
    taken: list[list[float]] = [[] for _ in range(CLIENTS)]
    assert service.pid is not None
    end, began = time.perf_counter() + seconds, _cpu_seconds(service.pid)
    clients = [threading.Thread(target=_ask, args=(port, users, end, mine)) for mine in taken]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    spent_ms = 1000 * (_cpu_seconds(service.pid) - began)
    service.terminate()
    service.join()
    every = np.concatenate(taken)
    note = f"{CLIENTS} threads of http.client, {len(every):,} requests"
    return [
        Figure(what="serve: requests a second, one list of 100 each", value=len(every) / seconds, unit="/s", peer=note),
        Figure(what="serve: CPU of a request", value=spent_ms / len(every), unit="ms", peer="of the service alone"),
        *(
            Figure(what=f"serve: latency p{percent}", value=float(np.percentile(every, percent)), unit="ms", peer=note)
            for percent in (50, 99)
        ),
    ]


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ask(port: int, users: int, end: float, taken: list[float]) -> None:
    draw = random.Random(port)  # noqa: S311
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while time.perf_counter() < end:
        before = time.perf_counter()
        connection.request("GET", f"/lists/u{draw.randrange(users):08}")
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        taken.append(1000 * (time.perf_counter() - before))
    connection.close()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, "it did not start"
            time.sleep(0.1)
        else:
            return


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Start a Redis without persistence, with a password, on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    password = os.environ[PASSWORD_VARIABLE] = secrets.token_hex(16)
    settings = folder / "redis.conf"
    settings.write_text(
        f'bind 127.0.0.1\nport {port}\nsave ""\nappendonly no\ndir {folder}\nrequirepass {password}\nloglevel warning\n'
    )
    with subprocess.Popen(["redis-server", str(settings)]) as process:  # noqa: S603, S607  # whichever is installed
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _used(url: str) -> int:
    """Return the bytes that a Redis uses."""
    from pipeline.feed_redis import connect

    _, client, _ = connect(url)
    return int(client.info("memory")["used_memory"])


def main(
    users: Annotated[int, typer.Option(help="Users with a list.")] = 1_000_000,
    candidates: Annotated[int, typer.Option(help="Items of a list.")] = 100,
    seconds: Annotated[float, typer.Option(help="How long the service is asked.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")] = None,
) -> None:
    """Measure and print."""
    threads.configure()
    calls = min(users, 50_000)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        _make_lists(root / "lists", users, candidates)
        figures = [_encoding(root / "lists"), *_publish("lmdb", "lmdb:feed", root / "lists", root)]
        (file,) = (root / "feed").glob("versions/*/lists.mdb")
        figures.append(Figure(what="lmdb: file", value=file.stat().st_size / 1e6, unit="MB"))
        copies = sum(path.stat().st_size for path in (root / "published").rglob("*.parquet"))
        figures.append(Figure(what="audit copy in Parquet", value=copies / 1e6, unit="MB"))
        figures += _lookups("lmdb", "lmdb:feed", root, users, calls)
        figures.append(_mixed("lmdb", "lmdb:small", root))
        figures += _load(root, users, seconds)
        if shutil.which("redis-server"):
            with _redis(root) as url:
                figures += _publish("redis", url, root / "lists", root)
                figures.append(Figure(what="redis: memory", value=_used(url) / 1e6, unit="MB"))
                figures += _lookups("redis", url, root, users, calls)
                figures.append(_mixed("redis", f"{url}?prefix=small", root))
    show(f"the feed ({dt.datetime.now(tz=dt.UTC):%Y-%m-%d})", figures, output)


if __name__ == "__main__":
    typer.run(main)
