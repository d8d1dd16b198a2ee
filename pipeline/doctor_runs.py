"""The doctor's checks of runs and models: files are those that their records name, and what belongs together does."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.serialization import weights_digest
from pipeline import tracking
from pipeline.config import Config
from pipeline.finding import Finding, judged
from pipeline.index import load_index
from pipeline.run_record import STEPS, read_record
from pipeline.scoring import Bundle, load_bundle
from pipeline.vacuum import run_folders
from pipeline.workspace import Workspace, read_json

CHANGED = "restore it, or run `counterpoise {stage} --force` for that day again"


def check_runs(workspace: Workspace) -> Iterator[Finding]:
    """Hold the files of every run against what its stages recorded, and the files that each stage read likewise."""
    for folder in run_folders(workspace):
        if folder.name.startswith("."):
            continue  # what a killed vacuum left of a run, see the leftovers
        try:
            record = read_record(folder)
        except ValueError as error:
            problem = f"record.json cannot be read ({error}): remove it, and the stages run again"
            yield Finding(f"run {folder.name}", ok=False, sentence=problem)
            continue
        problems = [*_made_problems(folder, record), *_read_problems(folder, record), *_weights_problems(folder)]
        stages = [stage for stage in STEPS if stage in record]
        well = f"the files of {len(stages)} stages are as recorded" if stages else "no stage has a record"
        yield from judged(f"run {folder.name}", problems, well)


def _made_problems(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    for stage, entry in record.items():
        for name, digest in _files(entry["made"], ""):
            found = _sha256(folder / name)
            if found != digest:
                word = "is gone" if found is None else "has another sha256 than recorded"
                yield f"{name} of {stage} {word}: {CHANGED.format(stage=stage)}"


def _read_problems(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """Tell stages that read another file than what is there now, such as an evaluation of another model."""
    for stage, entry in record.items():
        differing = [
            name
            for name, digest in _files(entry["inputs"], "file ")
            if (folder / name).exists() and _sha256(folder / name) != digest
        ]
        if differing:
            yield (
                f"{stage} was made from another {', '.join(differing)} than what is there now: run "
                f"`counterpoise {stage}` for that day again"
            )


def _files(entry: dict[str, str], prefix: str) -> list[tuple[str, str]]:
    """Return names and digests of the files of a record; what else it names has no '/' and no '.json' in its name."""
    named = [(key.removeprefix(prefix), value) for key, value in entry.items() if key.startswith(prefix)]
    return [(name, value) for name, value in named if "/" in name or name.endswith(".json")]


def _weights_problems(folder: Path) -> Iterator[str]:
    """Hold the digests of training.json against those that the saved models name of their own weights."""
    path = folder / "model" / "training.json"
    digests: dict[str, str] = read_json(path, "train")["digests"] if path.exists() else {}
    for name, digest in digests.items():
        spec = folder / "model" / name / "spec.json"
        if spec.exists() and read_json(spec, "train")["weights_sha256"] != digest:
            yield f"model/{name} is of other weights than model/training.json names: {CHANGED.format(stage='train')}"


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_champion(config: Config, workspace: Workspace) -> Iterator[Finding]:
    """Load the champion as it was registered, and hold the newest index against the model that it says it is of."""
    client = tracking.connect_to_read(config, workspace)
    version = None if client is None else tracking.champion_version(config, client)
    indexes = sorted(path for path in (workspace.root / "runs").glob("[!.]*/index/model.json"))
    if client is None or version is None:
        sentence = f"no version of {config.tracking.model!r} is champion: `counterpoise promote` makes one"
        yield Finding("champion", ok=not indexes, sentence=sentence)
        return
    bundle = None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            bundle = load_bundle(tracking.fetch(config, client, version, Path(scratch)).folder, version)
            yield Finding("champion", ok=True, sentence=f"version {version} loads, its files are those registered")
        except ValueError as error:
            problem = f"version {version} cannot be used: {error}; `counterpoise rollback` goes to the one before"
            yield Finding("champion", ok=False, sentence=problem)
    if indexes and bundle is not None:
        yield from _index(workspace, indexes[-1].parent, bundle)


def _index(workspace: Workspace, folder: Path, champion: Bundle) -> Iterator[Finding]:
    """Hold an index against the champion: version, weights of the towers, width, and number of items."""
    name = folder.relative_to(workspace.root).as_posix()
    made = read_json(folder / "model.json", "retrieve")
    if made["version"] != champion.version:
        problem = (
            f"it is of version {made['version']}, the champion is {champion.version}: the next `counterpoise retrieve` "
            "makes it again; until then lists are of the model before"
        )
        yield Finding(name, ok=False, sentence=problem)
        return
    try:
        index, spec = load_index(folder, weights_digest(champion.retriever))
    except ValueError as error:
        yield Finding(name, ok=False, sentence=str(error))
        return
    well = f"{spec.kind} index of {index.ntotal:,} vectors of width {spec.width}, by version {champion.version}"
    yield Finding(name, ok=True, sentence=well)


def records_here(config: Config, workspace: Workspace) -> list[dict[str, str]]:
    """Return what the registry recorded of models whose runs lie in this workspace; another may share the registry."""
    if tracking.connect_to_read(config, workspace) is None:
        return []
    here = {folder.name for folder in run_folders(workspace)}
    return [record for record in tracking.registered_records(config, workspace) if record.get("run") in here]
