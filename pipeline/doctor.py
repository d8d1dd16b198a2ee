"""Doctor: look at a workspace without writing to it or taking its lock, and say what is wrong and what to do."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.doctor_feed import check_published, leftovers
from pipeline.doctor_runs import check_champion, check_runs, records_here
from pipeline.doctor_tables import check_days, check_orphans, check_stores, check_tables, check_versions
from pipeline.finding import Finding, judged
from pipeline.vacuum import run_folders
from pipeline.watch_lists import UNREADABLE
from pipeline.workspace import Workspace

LOCKS = Path("/proc/locks")
ROOM = 2
"""Free space that a night needs, in sizes of the run before."""


def examine(config: Config, workspace: Workspace, *, deep: bool = False) -> list[Finding]:
    """Return a finding for every check, in the order tables, runs, models, lists, workspace.

    Costs the footers of all files, and a read of the runs' files, of the champion and of the live lists' copy.

    Args:
        config: names the registry and the store of the lists.
        workspace: the workspace; nothing of it is changed.
        deep: read all rows of all tables too, and all copies of published lists.

    Raises:
        ValueError: there is no such workspace.
    """
    if not (workspace.root / "tables").is_dir():
        raise ValueError(
            f"{workspace.root} is no workspace, it has no tables/: correct --workspace, or run ingest first"
        )
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "documents": lambda: check_documents(workspace),
        "tables": lambda: check_tables(config, workspace, deep=deep),
        "days": lambda: check_days(workspace),
        "orphans": lambda: check_orphans(workspace),
        "versions": lambda: check_versions(workspace, records_here(config, workspace)),
        "feature stores": lambda: check_stores(workspace),
        "runs": lambda: check_runs(workspace),
        "champion": lambda: check_champion(config, workspace),
        "feed": lambda: check_published(config, workspace, deep=deep),
        "workspace": lambda: check_place(workspace),
    }
    return [finding for name, check in checks.items() for finding in to_its_end(name, check)]


def to_its_end(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; what it cannot get over is a finding too, so that the other checks are made."""
    try:
        yield from check()
    except (ValueError, *UNREADABLE) as error:
        told = " ".join(str(error).split())
        yield Finding(name, ok=False, sentence=f"this check came to no end ({told}): mend that, or what stands above")


def check_documents(workspace: Workspace) -> Iterator[Finding]:
    """Look whether the JSON files of runs, feature stores and published lists can be read."""
    patterns = ("runs/*/*.json", "runs/*/*/*.json", "features/*/*.json", "published/*/*.json")
    found = sorted({path for pattern in patterns for path in workspace.root.glob(pattern)})
    problems = []
    for path in found:
        try:
            json.loads(path.read_bytes())
        except (ValueError, OSError) as error:
            shown = path.relative_to(workspace.root).as_posix()
            problems.append(
                f"{shown} is no JSON ({error}): restore it, or run the stage that made it again with --force"
            )
    yield from judged("documents", problems, f"{len(found):,} JSON files can be read")


def check_place(workspace: Workspace) -> Iterator[Finding]:
    """Look at the lock, at what killed writers left, and at the free space."""
    holder = lock_holder(workspace.root / ".lock")
    writing = f"held by {holder}: what looks half-made may be its work" if holder else "nobody holds it"
    yield Finding("lock", ok=True, sentence=writing)
    left = [] if holder else leftovers(workspace)
    shown = ", ".join(path.relative_to(workspace.root).as_posix() for path in left)
    problem = (
        f"killed commands left {shown}: the next run of that day or `counterpoise vacuum` removes them, or remove them"
    )
    yield from judged("leftovers", [problem] if left else [], "none")
    yield _space(workspace)


def lock_holder(lock: Path) -> str | None:
    """Return who holds the workspace's lock; None where nobody does.

    The file names the process that last took it. Linux tells whether a lock is held; elsewhere the file is believed.
    """
    named = lock.read_text(encoding="utf-8") if lock.exists() else ""
    if not named or not LOCKS.exists():
        return named or None
    inode = str(lock.stat().st_ino)
    rows = [line.split() for line in LOCKS.read_text(encoding="ascii").splitlines()]
    return named if any("FLOCK" in row and inode in {word.split(":")[-1] for word in row} for row in rows) else None


def _space(workspace: Workspace) -> Finding:
    free = shutil.disk_usage(workspace.root).free
    runs = run_folders(workspace)
    size = sum(path.stat().st_size for path in runs[-1].rglob("*") if path.is_file()) if runs else 0
    told = f"{free / 2**20:,.0f} MiB are free, the last run takes {size / 2**20:,.0f} MiB"
    if free < ROOM * size:
        return Finding("space", ok=False, sentence=f"{told}: run `counterpoise vacuum`, or make room")
    return Finding("space", ok=True, sentence=told)
