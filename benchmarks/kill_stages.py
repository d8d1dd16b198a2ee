"""Kill stages with SIGKILL, run them again, and compare with a run that nothing disturbed.

    python -m benchmarks.kill_stages --kills 50

A trial puts the workspace back to what it was before a stage, starts the stage, kills its process group, checks that
every table reads and holds what one of its commits held and every output of a run is the old or the new one, runs the
stage again and compares all that there is with what the stage makes when nothing disturbs it.

Every other kill falls at a moment uniform over the stage's usual duration; the others fall before one of its changes
of files, any as likely, since a moment seldom hits the short time between two of them. Half of each falls on the first
night of a workspace, half on the second. `benchmarks/forked.py` tells how a stage is run without its imports.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.forked import Ended, answer_of, run_command
from benchmarks.workspace_digests import Digests, digests, feed_digest, name_of, run_outputs, table_digest
from pipeline import tables, threads
from pipeline.config import Config, load_config, parse_override
from pipeline.simulate import simulate
from pipeline.vacuum import tables_of
from pipeline.workspace import Workspace
from pipeline.world import SimulatorConfig

ROOT = Path(__file__).parent.parent
STAGES = ("ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish")
FIRST, SECOND = "first night", "second night"
EXAMPLES = {"labelled log": "simulated.toml", "raw events": "events.toml"}
SMALL = (
    "labels.conversion_window=1d",  # labels of a first night of four days must mature
    "model.hidden=[32,16]",
    "retriever.epochs=2",
    "retrieval.candidates=40",
    "ranking.list_length=20",
    "evaluation.ks=[5,20]",
    "evaluation.replicates=30",
    "training.batch_size=128",
    "labels.immature=keep",  # a first night this small has too few conversions to fit their delay
    "gate.pcoc=[0.01,100.0]",  # the model of a world this small need not be good
    "gate.tolerance={log_loss=9.0,gauc=1.0,recall=1.0,coverage=1.0}",
    "gate.blocking_alarms=[]",
)
WORLD = SimulatorConfig(users=60, items=50, days=5, requests_per_day=80, slots=5, click_rate=0.2, conversion_rate=0.3)


@dataclass(frozen=True)
class Scene:
    """A kind of source, with the folder in which its workspace, its saved workspaces and its sources lie."""

    kind: str
    root: Path

    @property
    def workspace(self) -> Workspace:
        """Return the workspace, always at one path: MLflow writes absolute ones."""
        return Workspace(self.root / "workspace")

    @property
    def config(self) -> Config:
        """Return the example's configuration for the small world."""
        return load_config(ROOT / "examples" / EXAMPLES[self.kind], dict(parse_override(text) for text in SMALL))

    def saved(self, night: str, stage: str) -> Path:
        """Return where the workspace before a stage is kept."""
        return self.root / night / stage

    def arguments(self, night: str, stage: str) -> list[str]:
        """Return the command line of a stage."""
        sets = [part for text in SMALL for part in ("--set", text)]
        config = ["--config", str(ROOT / "examples" / EXAMPLES[self.kind])]
        source = str(self.root / "source" / night)
        return [stage, *config, "--source", source, "--workspace", str(self.workspace.root), *sets]


@dataclass(frozen=True)
class Expected:
    """What a stage does when nothing disturbs it: seconds, changes of files, commits, outputs; the feed before."""

    seconds: float
    changes: int
    commits: dict[str, set[str]]
    runs: dict[str, Digests]
    outputs: Digests
    feed: str


@dataclass(frozen=True)
class Trial:
    """A kill and what came of it; no complaints where all is well."""

    kind: str
    night: str
    stage: str
    manner: str
    killed: bool
    broken: list[str]
    different: list[str]


def undisturbed(scene: Scene, night: str, stage: str) -> Ended:
    """Run a stage to its end.

    Raises:
        RuntimeError: it does not end well.
    """
    ended = run_command(scene.arguments(night, stage), scene.workspace.root)
    if ended.exit_code != 0:
        printed = Path(f"{scene.workspace.root}.log").read_text(encoding="utf-8")
        raise RuntimeError(f"{stage} on the {night} of {scene.kind} ends with {ended.exit_code}: {printed[-2000:]}")
    return ended


def prepare(kind: str, root: Path) -> Scene:
    """Simulate a world; the first night's source lacks what is delivered on its last day and later."""
    scene = Scene(kind, root)
    whole = root / "source" / SECOND
    simulate(WORLD, whole)
    earlier = shutil.copytree(whole, root / "source" / FIRST)
    last = max(file.name[:10] for file in (whole / "impressions").iterdir())
    for file in earlier.glob("*/*"):
        if file.name[:10] >= last:
            file.unlink()
    return scene


def expect(scene: Scene, stages: tuple[str, ...]) -> dict[tuple[str, str], Expected]:
    """Run both nights undisturbed, keep the workspace before each stage, and return what each stage makes.

    Both nights end with the last of the stages that are asked for.
    """
    last = max(STAGES.index(stage) for stage in stages)
    expected = {}
    for night in (FIRST, SECOND):
        for stage in STAGES[: last + 1]:
            _copy(scene.workspace.root, scene.saved(night, stage))
            before = _versions(scene.workspace)
            feed = answer_of(feed_digest, scene.workspace) if stage == "publish" else ""
            ended = undisturbed(scene, night, stage)
            if stage in stages:
                commits = dict(_commits(scene.workspace, before))
                outputs = digests(scene.workspace, scene.config, stage)
                runs = run_outputs(scene.workspace)
                expected[night, stage] = Expected(ended.seconds, ended.changes, commits, runs, outputs, feed)
    return expected


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)


def _versions(workspace: Workspace) -> dict[Path, int]:
    return {path: tables.version(path) for path in tables_of(workspace)}


def _commits(workspace: Workspace, before: dict[Path, int]) -> Iterator[tuple[str, set[str]]]:
    """Give each table's digests after every commit from the one before the stage to the last."""
    for path in tables_of(workspace):
        versions = range(before.get(path, 0), tables.version(path) + 1)
        yield name_of(workspace, path), {table_digest(path, version) for version in versions}


def broken(scene: Scene, night: str, stage: str, expected: Expected) -> list[str]:
    """Return what a kill broke: tables that are gone, cannot be read or hold what no commit held, halves of outputs."""
    workspace, saved = scene.workspace, Workspace(scene.saved(night, stage))
    gone = {name_of(saved, path) for path in tables_of(saved)} - {
        name_of(workspace, path) for path in tables_of(workspace)
    }
    complaints = [f"{name} is gone" for name in sorted(gone)]
    for path in filter(tables.exists, tables_of(workspace)):  # a table without its first commit is a folder only
        name = name_of(workspace, path)
        try:
            if table_digest(path) not in expected.commits.get(name, set()):
                complaints.append(f"{name} holds part of a commit")
        except Exception as error:  # noqa: BLE001  # whatever keeps a table from being read is what is looked for
            complaints.append(f"{name} cannot be read: {error}")
    if stage == "publish" and answer_of(feed_digest, workspace) not in {expected.feed, expected.outputs["feed"]}:
        complaints.append("the feed is neither the old nor the new one")
    return complaints + _halves(workspace.root, run_outputs(saved), expected.runs)


def _halves(root: Path, before: dict[str, Digests], after: dict[str, Digests]) -> list[str]:
    """Compare the outputs of runs; one whose folder is just being swapped lies beside its place as `.old`."""
    now = run_outputs(Workspace(root))
    swapped = {name for name in before if (root / name).with_name(f".{Path(name).name}.old").exists()}
    gone = sorted(set(before) - set(now) - swapped)
    halves = [name for name, files in now.items() if files not in (before.get(name), after.get(name))]
    return [*(f"{name} is gone" for name in gone), *(f"{name} is neither the old nor the new one" for name in halves)]


def try_once(scene: Scene, night: str, stage: str, expected: Expected, *, moment: float, at_change: bool) -> Trial:
    """Kill a stage at a share of its duration or of its changes of files, run it again and compare."""
    root = scene.workspace.root
    _copy(scene.saved(night, stage), root)
    change = 1 + int(moment * expected.changes)
    ended = run_command(
        scene.arguments(night, stage),
        root,
        kill_after=None if at_change else moment * expected.seconds,
        kill_before=change if at_change else None,
    )
    manner = f"before change {change} of a file" if at_change else f"after {moment * expected.seconds:.3f} s"
    found_broken = broken(scene, night, stage, expected)
    try:
        undisturbed(scene, night, stage)
        found = digests(scene.workspace, scene.config, stage)
        names = sorted(set(found) | set(expected.outputs))
        different = [name for name in names if found.get(name) != expected.outputs.get(name)]
    except RuntimeError as error:
        different = [str(error)]
    return Trial(scene.kind, night, stage, manner, ended.killed, found_broken, different)


def kill_stages(kind: str, stages: tuple[str, ...], kills: int, seed: int, root: Path) -> Iterator[Trial]:
    """Kill each stage of a kind of source so many times; nights and manners take turns."""
    scene = prepare(kind, root)
    expected = expect(scene, stages)
    chance = random.Random(seed)  # noqa: S311  # moments, no secrets
    for stage in stages:
        for number in range(kills):
            night = (FIRST, SECOND)[(number + number // 2) % 2]
            at_change = bool(number % 2)
            plan = expected[night, stage]
            yield try_once(scene, night, stage, plan, moment=chance.random(), at_change=at_change)


def table_of(trials: list[Trial]) -> Table:
    """Return what is printed: a line a kind and stage."""
    shown = Table("source", "stage", "kills", "killed before the end", "tables and outputs whole", "equal after rerun")
    for kind, stage in dict.fromkeys((trial.kind, trial.stage) for trial in trials):
        mine = [trial for trial in trials if (trial.kind, trial.stage) == (kind, stage)]
        counts = (
            len(mine),
            sum(trial.killed for trial in mine),
            sum(not trial.broken for trial in mine),
            sum(not trial.different for trial in mine),
        )
        shown.add_row(kind, stage, *map(str, counts))
    return shown


def main(
    kills: Annotated[int, typer.Option(min=1, help="Kills of each stage and kind of source.")] = 50,
    stages: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Kill the stages of every example's kind of source, and print what came of it."""
    chosen = tuple(stage for stage in STAGES if stage in (stages or STAGES))
    trials: list[Trial] = []
    start = time.perf_counter()
    for kind, example in EXAMPLES.items():
        if not (ROOT / "examples" / example).exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            for trial in kill_stages(kind, chosen, kills, seed, Path(scratch)):
                trials.append(trial)
                for complaint in (*trial.broken, *trial.different):
                    print(f"{trial.kind}, {trial.night}, {trial.stage} killed {trial.manner}: {complaint}", flush=True)
    Console(width=120).print(table_of(trials))
    print(f"{len(trials)} kills in {time.perf_counter() - start:.0f} s")
    if any(trial.broken or trial.different for trial in trials):
        raise typer.Exit(1)


if __name__ == "__main__":
    threads.configure()
    typer.run(main)
