"""The doctor's checks of what was published: copies are what they were, and readers read the same."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.config import Config
from pipeline.feed import Feed
from pipeline.feed_encode import Digest, batches, read_day
from pipeline.feed_records import Version
from pipeline.feed_store import open_store
from pipeline.finding import Finding, judged
from pipeline.watch_lists import UNREADABLE, Copy, copies
from pipeline.workspace import Workspace

SAMPLED = 100
AGAIN = "publish that day again with --force"


def check_published(config: Config, workspace: Workspace, *, deep: bool) -> Iterator[Finding]:
    """Read the live lists as a backend does and hold them against their copy; deep recomputes every copy's digest."""
    try:
        live = open_store(config.feed.url, workspace.root).current()
    except ValueError as error:
        yield Finding("feed", ok=False, sentence=str(error))
        return
    found = copies(config, workspace)
    if live is None:
        problem = (
            f"{len(found)} copies are kept, and nothing is in {config.feed.url}: run `counterpoise publish --force`"
        )
        well = f"nothing was published to {config.feed.url}"
        yield from judged("feed", [problem] if found else [], well)
        return
    mine = [copy for copy in found if copy.record["name"] == live.name]
    yield _live(config, workspace, live, mine)
    for copy in found if deep else mine:
        yield from judged(
            f"copy {copy.record['name']}", list(_copy_problems(copy)), "its rows have the recorded digest"
        )


def _live(config: Config, workspace: Workspace, live: Version, mine: list[Copy]) -> Finding:
    """Compare the lists of some users with the live version's copy."""
    name = f"feed {config.feed.url}"
    if not mine:
        return Finding(name, ok=False, sentence=f"version {live.name} is live and has no copy in published/: {AGAIN}")
    try:
        feed = Feed.open(config.feed.url, workspace.root)
        rows = pl.scan_parquet(mine[0].parts())
        users = rows.select(pl.col("user_id").unique().sort()).head(SAMPLED).collect()["user_id"].to_list()
        expected = rows.filter(pl.col("user_id").is_in(users)).sort("user_id", "rank").collect()
        lists = feed.lists(users)
    except (ValueError, *UNREADABLE) as error:
        return Finding(name, ok=False, sentence=f"version {live.name} cannot be read ({error}): {AGAIN}")
    if feed.refused is not None:
        return Finding(name, ok=False, sentence=feed.refused)
    wrong = [
        one.user_id
        for one in lists
        if one.items != expected.filter(pl.col("user_id") == one.user_id)["item_id"].to_list()
    ]
    if wrong or live.digest != mine[0].record["digest"]:
        told = f"the list of user {wrong[0]!r} differs" if wrong else "the digests differ"
        return Finding(name, ok=False, sentence=f"version {live.name} is not its copy, {told}: {AGAIN}")
    well = f"version {live.name} for {live.scored_for} is live; the lists of {len(users)} users are those of its copy"
    return Finding(name, ok=True, sentence=well)


def _copy_problems(copy: Copy) -> Iterator[str]:
    catalogue = copy.folder / "catalogue.json"
    if not catalogue.exists() or not copy.parts():
        yield f"catalogue.json or its rows are gone: {AGAIN}"
        return
    try:
        day = read_day(pl.scan_parquet(copy.parts()), copy.record["fields"])
        digest = Digest(day)
        for batch in batches(day):
            digest.update(batch)
    except (ValueError, *UNREADABLE) as error:
        yield f"its rows cannot be read ({error}): {AGAIN}"
        return
    if digest.hexdigest(catalogue.read_bytes(), copy.record["scored_for"]) != copy.record["digest"]:
        yield f"its rows or its catalogue are not those that were published (the digest differs): {AGAIN}"


def leftovers(workspace: Workspace) -> list[Path]:
    """Return what killed writers left: drafts, halves of folders, scratch."""
    root = workspace.root
    patterns = (
        "runs/.*",
        "runs/*/.*",
        "published/.*",
        "feed/versions/.*",
        "tables/.spill-*",
        "features/*/.scratch",
        "features/*/states/.*",
        ".champion",
        ".*.draft",
    )
    return sorted(path for pattern in patterns for path in root.glob(pattern))
