"""A run registers its files once, whatever killed it and however often it is given; its decision is made anew."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features.encoding import load_encoder
from models.ranker import load_ranker
from pipeline import registry, tracking
from pipeline.calibrate import calibrate
from pipeline.config import Config, load_config
from pipeline.evaluate import evaluate
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.promotion import make_move, move_champion, rollback
from pipeline.register import register
from pipeline.split import Days
from pipeline.train import train
from pipeline.workspace import Workspace, read_json, write_json

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
SETTINGS: dict[str, Any] = {
    "source.time_zone": "Asia/Shanghai",
    "model.hidden": [8],
    "training.control": False,
    "training.batch_size": 128,
    "retriever.epochs": 1,
    "evaluation.ks": [5, 10],
    "evaluation.replicates": 20,
    "evaluation.importance": False,
    # The model of a world this small need not be good.
    "gate.pcoc": (0.01, 100.0),
    "gate.tolerance": {"log_loss": 9.0, "gauc": 1.0, "recall": 1.0, "coverage": 1.0},
    "gate.blocking_alarms": [],
}


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Night:
    """A run that waits for register."""

    config: Config
    workspace: Workspace
    days: Days

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return run_folder(self.config, self.workspace, self.days)

    @property
    def client(self) -> tracking.Client:
        """Return a client of the registry."""
        return tracking.connect(self.config, self.workspace)

    def register(self, **gate: Any) -> dict[str, Any]:
        """Run register, with some keys of [gate] changed, and return what it recorded."""
        config = load_config(EXAMPLE, {**SETTINGS, **{f"gate.{key}": value for key, value in gate.items()}})
        register(config, self.workspace, self.days)
        return read_json(self.folder / "register.json", "register")

    def versions(self) -> list[str]:
        """Return all versions of the registered model."""
        return [one.version for one in registry.versions(self.config, self.client)]

    def champion(self) -> str | None:
        """Return the version that is champion."""
        return tracking.champion_version(self.config, self.client)

    def plant_champion(self) -> None:
        """Make the same weights champion, as those of a run of another day."""
        model = self.folder / "model"
        sign = tracking.signature(load_ranker(model / "ranker").spec, load_encoder(model / "encoder.json"))
        record = {"run": "another", tracking.FILES_DIGEST: tracking.files_digest(model)}
        client = self.client
        version = tracking.log_version(self.config, model=model, sign=sign, metrics={}, record=record, files=[])
        move_champion(self.config, client, make_move(version, None, by="register", reason="the first"))


@pytest.fixture(scope="module")
def evaluated(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    config, workspace = load_config(EXAMPLE, SETTINGS), Workspace(tmp_path_factory.mktemp("again") / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    for stage in (featurize, train, calibrate):
        stage(config, workspace, days)
    evaluate(config, workspace, days, simulated_source)
    return Night(config, workspace, days)


@pytest.fixture
def night(evaluated: Night, tmp_path: Path) -> Night:
    """Return a copy that has registered nothing."""
    copy = shutil.copytree(evaluated.workspace.root, tmp_path / "workspace")
    return Night(evaluated.config, Workspace(Path(copy)), evaluated.days)


def _kill(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    "point", ["tracking.MlflowClient.set_model_version_tag", "register.move_champion", "register.write_json"]
)
def test_a_register_that_was_killed_finishes_the_version_that_it_made(
    night: Night, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The points: the version is there and has no tag, it is not champion yet, and it is champion without a record."""
    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.{point}", _kill)
        with pytest.raises(Killed):
            night.register()
    assert night.versions() == ["1"]
    assert not (night.folder / "register.json").exists()
    record = night.register()
    assert (night.versions(), night.champion(), record["version"]) == (["1"], "1", "1")
    assert record["promoted"]
    tags = tracking.version_tags(night.config, night.client, "1")
    assert tags["decision"] == record["decision"]
    assert tags["decision"].startswith("champion: the first version, not worse than the popularity baseline")
    assert tags[tracking.FILES_DIGEST] == record[tracking.FILES_DIGEST]


def test_a_champion_that_is_registered_again_is_held_against_the_one_before_it(night: Night) -> None:
    night.plant_champion()
    first, second = night.register(), night.register()
    assert second == first
    assert (second["version"], second["decision_reference"], second["promoted"]) == ("2", "version 1", True)
    assert (night.versions(), night.champion()) == (["1", "2"], "2")
    assert rollback(night.config, night.workspace, None, reason="").version == "1"


def test_a_version_that_was_rolled_back_does_not_become_champion_by_being_registered_again(night: Night) -> None:
    night.plant_champion()
    night.register()
    rollback(night.config, night.workspace, None, reason="bad lists")
    record = night.register()
    assert (night.versions(), night.champion()) == (["1", "2"], "1")
    assert (record["promoted"], record["decision_gate"]) == (False, "passed")
    assert record["decision"].startswith(
        "challenger: it was champion until a promote or rollback took that place, `counterpoise promote 2` gives it"
    )


def test_a_stricter_gate_is_told_of_the_champion_and_a_gentler_one_promotes_the_version_there_is(night: Night) -> None:
    path = night.folder / "evaluation" / "evaluation.json"
    evaluation = read_json(path, "evaluate")
    (verdict,) = (one for one in evaluation["diagnostics"]["verdicts"] if one["name"] == "dead_task")
    verdict["alarm"] = True
    write_json(path, evaluation)
    refused = night.register(blocking_alarms=["dead_task"])
    assert (refused["decision_gate"], night.champion()) == ("failed", None)
    gentler = night.register()
    assert (gentler["version"], gentler["promoted"], night.champion()) == ("1", True, "1")
    stricter = night.register(blocking_alarms=["dead_task"])
    assert (stricter["version"], stricter["promoted"], stricter["decision_gate"]) == ("1", False, "failed")
    assert stricter["decision"].startswith(
        "champion: it stays so, `counterpoise rollback` ends that; no alarm: dead task"
    )
    assert night.champion() == "1"


def test_other_files_of_the_same_run_are_another_version(night: Night) -> None:
    night.register()
    training = night.folder / "model" / "training.json"
    training.write_text(training.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert night.register()["version"] == "2"


def test_the_whole_decision_is_a_file_of_the_versions_mlflow_run(night: Night, tmp_path: Path) -> None:
    record = night.register()
    run = night.client.get_model_version(night.config.tracking.model, "1").run_id
    assert run is not None
    copy = Path(night.client.download_artifacts(run, "register.json", str(tmp_path)))
    assert read_json(copy, "register") == record
    assert {check["verdict"] for check in record["decision_checks"]} >= {"passed"}
