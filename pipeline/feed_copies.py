"""The audit copies of published lists: a folder a version in `published/`, put in place after readers see the version.

A copy is written under a hidden name and named after the store has switched, so that what has a name was published. A
publish that was killed between the two is finished by the next one.
"""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.feed_records import Version
from pipeline.workspace import made_folder, read_json

AUDIT = "published"


def hidden_copy(audit: Path, name: str) -> AbstractContextManager[Path]:
    """Give the hidden folder that a version's copy is written into; it goes where the block fails."""
    return made_folder(_draft(audit, name))


def name_copy(audit: Path, name: str) -> None:
    """Give a copy the name of its version, now that readers see it."""
    _draft(audit, name).rename(audit / name)


def finish_copies(audit: Path, url: str, current: Version | None) -> None:
    """Bring in order what killed publishers left: name the copy of the version that readers see, remove the others.

    Args:
        audit: the folder of all copies.
        url: of the store.
        current: the version that the store names; None where it names none, or its record is lost.
    """
    if current is not None and (_draft(audit, current.name) / "version.json").exists():
        name_copy(audit, current.name)
    for path in audit.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
    if current is None:
        return
    for path in _copies(audit):  # earlier releases named a copy before the switch
        record = read_json(path / "version.json", "publish")
        if record["store"] == url and record["published_at"] > current.published_at:
            remove_copy(path)


def keep_latest(audit: Path, count: int) -> None:
    """Keep the copies of the versions that were published last."""
    copies = _copies(audit)
    copies.sort(key=lambda path: str(read_json(path / "version.json", "publish")["published_at"]))
    for path in copies[:-count]:
        remove_copy(path)


def remove_copy(copy: Path) -> None:
    """Remove a copy, which a kill must not leave half of under its name."""
    gone = copy.with_name(f".{copy.name}")
    copy.rename(gone)
    shutil.rmtree(gone)


def _copies(audit: Path) -> list[Path]:
    return [record.parent for record in audit.glob("[!.]*/version.json")]


def _draft(audit: Path, name: str) -> Path:
    return audit / f".{name}.draft"
