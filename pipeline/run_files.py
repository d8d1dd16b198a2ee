"""What the stages left in the folder of a run, as far as they have run: what reports read."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workspace import Workspace, read_json

LEFT = {
    "training": "model/training.json",
    "register": "register.json",
    "published": "published.json",
    "summary": "summary.json",
    "watch": "watch.json",
}


@dataclass(frozen=True)
class RunFiles:
    """An evaluated run; what a later stage makes, or an earlier one lost, is None."""

    folder: Path
    evaluation: dict[str, Any]
    training: dict[str, Any] | None
    register: dict[str, Any] | None
    published: dict[str, Any] | None
    summary: dict[str, Any] | None
    watch: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the run's id."""
        return self.folder.name

    @property
    def config(self) -> dict[str, Any]:
        """Return its configuration; {} where it was evaluated before that was kept, and not summarised."""
        found: dict[str, Any] = self.evaluation.get("config") or (self.summary or {}).get("config") or {}
        return found

    @property
    def last_test_day(self) -> str:
        """Return YYYY-MM-DD."""
        return str(self.evaluation["counts"]["test_days"][-1])

    @property
    def data_set(self) -> str | None:
        """Return the configured name of the data set, None where no file tells."""
        return self.config.get("name") or (self.register or {}).get("data_set")


def read_run(folder: Path) -> RunFiles:
    """Read a run's files.

    Raises:
        ValueError: the run has not been evaluated.
    """
    evaluation = read_json(folder / "evaluation" / "evaluation.json", "evaluate")
    left = {key: read_json(folder / path, key) if (folder / path).exists() else None for key, path in LEFT.items()}
    return RunFiles(folder, evaluation, **left)


def find_run(workspace: Workspace, name: str) -> Path:
    """Return the folder of a run by its id.

    Raises:
        ValueError: the workspace has no such run; the message names those that it has.
    """
    folder = workspace.run(name)
    if name and Path(name).name == name and folder.is_dir():
        return folder
    known = ", ".join(_evaluated(workspace.run("")) or ["none"])
    raise ValueError(f"run {name!r} is not in {workspace.root}/runs: evaluated runs there are {known}")


def earlier_run(run: RunFiles) -> RunFiles | None:
    """Return the run of the same data set whose last test day is the latest before this one's; None without one.

    Of several with that day, the one with the same configuration comes first, then a promoted one, then the last name.
    """
    days = itertools.groupby(sorted(_evaluated(run.folder.parent), reverse=True), key=_day)
    for day, names in days:  # latest first, so that only the files of a day or two are read
        if day < run.last_test_day:
            same = [other for name in names if (other := read_run(run.folder.parent / name)).data_set == run.data_set]
            if same:
                return max(same, key=lambda other: _preference(run, other))
    return None


def _day(name: str) -> str:
    """Return the last test day, with which a run's id begins."""
    return name[: len("YYYY-MM-DD")]


def _preference(run: RunFiles, other: RunFiles) -> tuple[bool, bool, str]:
    same_config = other.name.removeprefix(_day(other.name)) == run.name.removeprefix(_day(run.name))
    return same_config, bool((other.register or {}).get("promoted")), other.name


def _evaluated(runs: Path) -> list[str]:
    return sorted(path.parent.parent.name for path in runs.glob("*/evaluation/evaluation.json"))
