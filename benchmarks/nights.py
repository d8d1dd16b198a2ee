"""Fourteen nights in a row with a fault in every other one, and what readers have on each morning.

    python -m benchmarks.nights              # about a quarter of an hour on two cores
    python -m benchmarks.nights --short      # three nights of a smaller world: what tests/test_nights.py runs

A night is `counterpoise run --date D` on what has been delivered by then, with real damage to files, processes, labels
and the disk (`benchmarks/night_faults.py`). After each attempt the lists that readers have are read: those of a good
night are new, those of a bad one are the last good ones, and the command or the report has said why. At the end no
impression may be lost or doubled, and the night that was killed in each of its stages must equal its undisturbed twin.
"""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import night_faults as faults
from benchmarks.forked import run_command
from benchmarks.night_faults import Place
from pipeline import tables, threads
from pipeline.config import load_config, parse_override
from pipeline.featurize import days_of, run_folder
from pipeline.feed import Feed
from pipeline.feed_records import Version
from pipeline.feed_store import open_store
from pipeline.publish import STATE
from pipeline.run import STAGES
from pipeline.run_record import RECORD
from pipeline.simulate import simulate
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples" / "simulated.toml"
FIRST_DAY = dt.date(2026, 1, 1)
WORLD = SimulatorConfig(
    users=1500, items=400, requests_per_day=1500, click_rate=0.12, conversion_rate=0.2, first_day=FIRST_DAY, days=20
)
SETTINGS = (
    "split.train_days=6",
    "training.control=false",
    "evaluation.importance=false",
    "evaluation.replicates=200",
    "gates.max_rate_ratio=1.25",  # the rates of this world hardly move from day to day
    "gate.pcoc=[0.9,1.1]",
    "gate.tolerance.log_loss=0.004",  # without a tolerance one night in twenty refuses a model as good as the champion
    "gate.tolerance.gauc=0.02",
    "gate.tolerance.recall=0.02",
)
HISTORY_DAYS = 6
"""Days that are there before the first night."""
USERS_READ = 3
KILLED_BEFORE_CHANGE = 4
"""A kill falls before one of so many first changes of files of a stage."""
WIDTH = 200
PUBLISHES, KEEPS = "new lists", "lists stay"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a night: what was done, how it ended, what readers have, what was said, and what is wrong."""

    night: int
    what: str
    exit_code: int
    live: Version | None
    said: str
    seconds: float
    wrong: list[str]


@dataclass(frozen=True)
class Nights:
    """A place and how its commands are called."""

    place: Place
    settings: tuple[str, ...]

    def options(self, day: dt.date, workspace: Workspace | None = None) -> list[str]:
        """Return the options of a stage's or a run's command."""
        sets = [part for text in self.settings for part in ("--set", text)]
        root = (workspace or self.place.workspace).root
        folders = ["--config", str(CONFIG), "--source", str(self.place.source), "--workspace", str(root)]
        return [*folders, "--date", str(day), *sets]

    def live(self) -> Version | None:
        """Return the version that readers have.

        Raises:
            AssertionError: its lists cannot be read, or are of another version.
        """
        url, root = self.place.config.feed.url, self.place.workspace.root
        version = open_store(url, root).current()
        if version is not None:
            known = tables.scan(self.place.workspace.table("users")).select("user_id").head(USERS_READ).collect()
            for one in Feed.open(url, root).lists(known["user_id"].to_list()):
                assert one.items, one
                assert one.version.name == version.name, one
        return version

    def run(
        self, night: int, what: str, day: dt.date, *extra: str, expected: str, before: Callable[[], None] | None = None
    ) -> Attempt:
        """Run a night to its end, well or not, and look at what readers have then."""
        earlier, start = self.live(), time.perf_counter()
        done = subprocess.run(  # noqa: S603  # this repository's own command
            [sys.executable, "-m", "pipeline", "run", *self.options(day), *extra],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **threads.SETTINGS},
            preexec_fn=before,  # no thread runs here
        )
        said = self.kept(day) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
        return self.attempt(night, what, day, expected, earlier, (done.returncode, said, time.perf_counter() - start))

    def attempt(  # the facts of an attempt
        self, night: int, what: str, day: dt.date, expected: str, earlier: Version | None, ended: tuple[int, str, float]
    ) -> Attempt:
        """Compare what readers have with what they should have."""
        exit_code, said, seconds = ended
        live, wrong = self.live(), []
        tomorrow = str(day + dt.timedelta(days=1))
        if expected == PUBLISHES and (live is None or live.scored_for != tomorrow):
            wrong.append(f"no lists for {tomorrow}")
        if expected == PUBLISHES and exit_code:
            wrong.append("failed")
        if expected == KEEPS and (live and live.name) != (earlier and earlier.name):
            wrong.append("the lists are other ones")
        if expected == KEEPS and not said:
            wrong.append("did not say why")
        return Attempt(night, what, exit_code, live, said, seconds, wrong)

    def kept(self, day: dt.date) -> str:
        """Return why a run that ended well did not publish; '' where it did."""
        state = self.folder(day) / STATE
        return str(json.loads(state.read_text(encoding="utf-8"))["kept"]) if state.exists() else "ended as asked"

    def folder(self, day: dt.date, workspace: Workspace | None = None) -> Path:
        """Return the folder of a night's run."""
        place = workspace or self.place.workspace
        return run_folder(self.place.config, place, days_of(self.place.config, place, day))

    def good(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """Nothing happens."""
        self.place.deliver(day)
        yield self.run(night, "a good night", day, expected=PUBLISHES)

    def missing(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """The log of the day does not come in the night."""
        yield self.run(night, "the day's log is missing", day, expected=KEEPS)
        self.place.deliver(day)
        yield self.run(night, "it comes in the morning", day, expected=PUBLISHES)

    def late(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """Most of the day comes with the next."""
        faults.deliver_half(self.place, day)
        yield self.run(night, "only the day's first hours have come", day, expected=KEEPS)
        self.place.deliver(day)  # for the night after

    def damaged(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """A file is cut off."""
        faults.deliver_damaged(self.place, day)
        yield self.run(night, "the day's file is cut off", day, expected=KEEPS)
        self.place.deliver(day)
        yield self.run(night, "it is delivered again", day, expected=PUBLISHES)

    def unlabelled(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """Three labels in ten are lost."""
        faults.deliver_with_labels_lost(self.place, day)
        yield self.run(night, "30 % of the labels are lost", day, expected=KEEPS)
        self.place.deliver(day)
        yield self.run(night, "they are found", day, expected=PUBLISHES)

    def shuffled(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """The model is one that was trained on shuffled labels, in a copy of the workspace."""
        self.place.deliver(day)
        yield self.run(night, "features alone", day, "--until", "featurize", expected=KEEPS)
        other = replace(self.place, root=self.place.root / "copy")
        shutil.copytree(self.place.workspace.root, other.workspace.root)
        faults.shuffle_labels(other, day)
        command = [sys.executable, "-m", "pipeline", "train", *self.options(day, other.workspace)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, **threads.SETTINGS})  # noqa: S603
        made, folder = self.folder(day, other.workspace), self.folder(day)
        for path in ("model", "control", RECORD):
            if (made / path).is_dir():
                shutil.copytree(made / path, folder / path)
            elif (made / path).exists():
                shutil.copy(made / path, folder / path)
        shutil.rmtree(other.root)
        yield self.run(night, "the model learned from shuffled labels", day, expected=KEEPS)
        yield self.run(night, "it is trained again", day, "--from", "train", expected=PUBLISHES)

    def killed(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """Each stage is killed once, in the middle of its work."""
        self.place.deliver(day)
        root, aside = self.place.workspace.root, self.place.root / "aside"
        shutil.copytree(root, aside)
        twin = self.run(night, "the twin that nothing disturbs", day, *self.summary("twin"), expected=PUBLISHES)
        shutil.rmtree(root)
        aside.rename(root)
        yield replace(twin, live=None)
        chance = np.random.default_rng(night)
        for stage in STAGES:
            if stage == "watch":
                yield self.run(night, "the rest, after a kill in each", day, *self.summary("night"), expected=PUBLISHES)
            earlier, change = self.live(), 1 + int(chance.integers(KILLED_BEFORE_CHANGE))
            ended = run_command([stage, *self.options(day)], root, kill_before=change)
            told = (ended.exit_code, f"kill -9 before its change of files {change}", ended.seconds)
            attempt = self.attempt(night, f"{stage} is killed", day, KEEPS, earlier, told)
            yield attempt if ended.killed else replace(attempt, wrong=[*attempt.wrong, "was not killed"])
            if stage not in {"publish", "watch"}:
                assert run_command([stage, *self.options(day)], root).exit_code == 0, stage
        digests = {self.digest(name) for name in ("twin", "night")}
        wrong = ["not what the undisturbed twin made"] if len(digests) > 1 else []
        said = "rows, weights and calibration as the twin's, by SHA-256"
        yield Attempt(night, "compared with its twin", 0, self.live(), said, 0.0, wrong)

    def summary(self, name: str) -> list[str]:
        """Return the options that keep the summary of a run."""
        return ["--summary", str(self.place.root / f"{name}.json")]

    def digest(self, name: str) -> str:
        """Return the digest in a summary."""
        return str(json.loads((self.place.root / f"{name}.json").read_text(encoding="utf-8"))["digest"])

    def full(self, night: int, day: dt.date) -> Iterator[Attempt]:
        """The disk fills up."""
        self.place.deliver(day)
        with faults.full_disk(self.place) as how:
            what = f"the disk is full: {how}" if how else "files may not grow beyond 64 KiB (no right to mount a disk)"
            yield self.run(night, what, day, expected=KEEPS, before=None if how else faults.limit_files)
        yield self.run(night, "there is space again", day, expected=PUBLISHES)


NIGHTS = {
    1: Nights.good,
    2: Nights.missing,
    3: Nights.good,
    4: Nights.damaged,
    5: Nights.late,
    6: Nights.good,
    7: Nights.unlabelled,
    8: Nights.good,
    9: Nights.shuffled,
    10: Nights.good,
    11: Nights.killed,
    12: Nights.full,
    13: Nights.good,
    14: Nights.good,
}
SHORT = {1: Nights.good, 2: Nights.unlabelled, 3: Nights.shuffled}
SHORT_WORLD = WORLD.model_copy(update={"users": 800, "items": 200, "requests_per_day": 800, "days": 10})


def attempts(root: Path, *, short: bool) -> Iterator[Attempt]:
    """Live through the nights in a folder, and count what is in the tables at the end."""
    settings = (*SETTINGS, "gates.min_history_days=5") if short else SETTINGS
    config = load_config(CONFIG, dict(parse_override(text) for text in settings))
    nights = Nights(Place(root, config), settings)
    world, plan = (SHORT_WORLD, SHORT) if short else (WORLD, NIGHTS)
    simulate(world, nights.place.whole)
    shutil.copytree(nights.place.whole, nights.place.source, ignore=shutil.ignore_patterns("impressions", "events"))
    nights.place.log(FIRST_DAY).parent.mkdir()
    days = [FIRST_DAY + dt.timedelta(days=number) for number in range(world.days)]
    for day in days[: world.days - len(plan)]:
        nights.place.deliver(day)
    for (number, happens), day in zip(plan.items(), days[-len(plan) :], strict=True):
        yield from happens(nights, number, day)
    yield count(nights, days)


def count(nights: Nights, days: list[dt.date]) -> Attempt:
    """Compare the interactions with the log, impression by impression."""
    held = tables.scan(nights.place.workspace.table("interactions")).select("impression_id").collect()["impression_id"]
    logged = pl.concat(
        [
            pl.read_parquet(nights.place.whole / "impressions" / nights.place.log(day).name, columns=["impression_id"])
            for day in days
        ]
    )["impression_id"]
    lost = len(set(logged) - set(held))
    doubled = len(held) - held.n_unique()
    said = f"{len(logged):,} impressions logged, {lost} lost, {doubled} doubled"
    wrong = [said] if lost or doubled or len(held) != len(logged) else []
    return Attempt(len(days), "all days counted", 0, nights.live(), said, 0.0, wrong)


def table_of(made: list[Attempt]) -> Table:
    """Return the attempts as a table."""
    table = Table(title="what readers have after each attempt", width=WIDTH)
    for name in ("night", "what happened", "exit", "lists for", "of model", "said", "seconds", "as it should be"):
        table.add_column(name, overflow="fold")
    for one in made:
        live = (one.live.scored_for, one.live.model_version) if one.live else ("", "")
        well = "yes" if not one.wrong else f"NO: {'; '.join(one.wrong)}"
        table.add_row(str(one.night), one.what, str(one.exit_code), *live, one.said, f"{one.seconds:.0f}", well)
    return table


def main(
    short: Annotated[bool, typer.Option(help="Three nights of a smaller world.")] = False,  # noqa: FBT002
    folder: Annotated[Path | None, typer.Option(help="An empty folder, kept; by default a temporary one.")] = None,
) -> None:
    """Live through the nights and print what came of each."""
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        for attempt in attempts(folder or Path(scratch), short=short):
            made.append(attempt)
            print(
                f"night {attempt.night}: {attempt.what}: {attempt.said or 'new lists'} {attempt.wrong or ''}",
                flush=True,
            )
    Console(width=WIDTH).print(table_of(made))
    if any(attempt.wrong for attempt in made):
        raise typer.Exit(1)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
