"""Claims about moving the champion by hand: what is checked, what is recorded, and that of two promoters one wins."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from features.encoding import load_encoder
from models.ranker import load_ranker
from pipeline import registry, tracking
from pipeline.__main__ import app
from pipeline.calibrate import calibrate
from pipeline.config import Config, load_config
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.promotion import (
    Move,
    champion_before,
    history,
    make_move,
    move_champion,
    moves,
    promote,
    rollback,
)
from pipeline.train import train
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "simulated.toml"
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "labels.immature": "keep",
    "model.hidden": [8],
    "retriever.epochs": 1,
    "training.control": False,
}


@dataclass
class Store:
    """A workspace with a trained model, and a registry of its own for each test."""

    config: Config
    workspace: Workspace
    folder: Path
    client: tracking.Client

    def register(self, **tags: str) -> str:
        """Register the model once more."""
        model = self.folder / "model"
        sign = tracking.signature(load_ranker(model / "ranker").spec, load_encoder(model / "encoder.json"))
        record = {"run": self.folder.name}
        version = tracking.log_version(self.config, model=model, sign=sign, metrics={}, record=record, files=[])
        registry.tag_version(self.config, self.client, version, {"run": self.folder.name, **tags})
        return version

    def champion(self) -> str | None:
        """Return the version that is champion."""
        return tracking.champion_version(self.config, self.client)

    def move(self, version: str, before: str | None) -> None:
        """Make a version champion as register does."""
        move_champion(self.config, self.client, make_move(version, before, by="register", reason="not worse"))


@pytest.fixture(scope="module")
def trained(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    config, workspace = load_config(EXAMPLE, SETTINGS), Workspace(tmp_path_factory.mktemp("promotion"))
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    for stage in (featurize, train, calibrate):
        stage(config, workspace, days)
    return workspace, run_folder(config, workspace, days)


@pytest.fixture(scope="module")
def store(trained: tuple[Workspace, Path]) -> Store:
    """Versions 1 to 4 of one model: 1 and 2 were champion in turn, 3 passed its gate, 4 failed it."""
    workspace, folder = trained
    config = load_config(EXAMPLE, SETTINGS)
    made = Store(config, workspace, folder, tracking.connect(config, workspace))
    gates = ("passed", "passed", "passed", "failed")
    versions = [made.register(gate=gate, decision=f"{gate}: as planted", test_log_loss="0.1") for gate in gates]
    assert versions == ["1", "2", "3", "4"]
    made.move("1", None)
    made.move("2", "1")
    return made


@pytest.fixture(autouse=True)
def _second_is_champion(store: Store) -> None:
    registry.set_alias(store.config, store.client, tracking.CHAMPION, "2")


def test_a_version_whose_gate_failed_is_promoted_by_force_and_with_a_reason_only(store: Store) -> None:
    with pytest.raises(ValueError, match=r"version 4 failed its gate \(failed: as planted\): give --force"):
        promote(store.config, store.workspace, "4", reason="", force=False)
    with pytest.raises(ValueError, match="--force needs a --reason"):
        promote(store.config, store.workspace, "4", reason=" ", force=True)
    assert store.champion() == "2"
    promote(store.config, store.workspace, "4", reason="the surface is gone", force=True)
    assert store.champion() == "4"
    tags = tracking.version_tags(store.config, store.client, "4")
    assert (tags["champion_by"], tags["champion_reason"]) == ("promote (forced)", "the surface is gone")
    assert tags["champion_before"] == "2"
    rollback(store.config, store.workspace, None, reason="it was not")
    assert store.champion() == "2"


def test_a_rollback_repeated_goes_on_to_the_champion_before_that(store: Store) -> None:
    promote(store.config, store.workspace, "3", reason="", force=False)
    found = [rollback(store.config, store.workspace, None, reason="").version for _ in range(2)]
    assert found == ["2", "1"]
    with pytest.raises(ValueError, match="no champion before version 1 is recorded: name one with --to"):
        rollback(store.config, store.workspace, None, reason="")
    rollback(store.config, store.workspace, "3", reason="")
    assert store.champion() == "3"


def test_history_tells_when_each_version_was_champion(store: Store) -> None:
    promote(store.config, store.workspace, "3", reason="", force=False)
    rollback(store.config, store.workspace, "2", reason="")
    promote(store.config, store.workspace, "3", reason="", force=False)
    entries = {entry.version: entry for entry in history(store.config, store.workspace)}
    assert list(entries) == ["4", "3", "2", "1"]
    assert entries["3"].is_champion
    assert entries["3"].champion[-1][1] is None
    assert entries["2"].champion[-1][1] == entries["3"].champion[-1][0]
    place = ["--config", str(EXAMPLE), "--workspace", str(store.workspace.root)]
    shown = CliRunner().invoke(app, ["history", *place])
    assert shown.exit_code == 0, shown.output
    assert "passed: as planted" in shown.output
    back = CliRunner().invoke(app, ["rollback", *place, "--set", "source.time_zone=Asia/Shanghai"])
    assert "version 2 is champion, version 3 was" in back.output
    again = CliRunner().invoke(app, ["promote", "3", *place])
    assert "version 3 is champion, version 2 was" in again.output
    registry.set_alias(store.config, store.client, tracking.CHAMPION, "1")
    entries = {entry.version: entry for entry in history(store.config, store.workspace)}
    assert entries["3"].champion[-1][1] == "unrecorded"


def test_the_champion_is_moved_while_a_night_holds_the_workspace(store: Store) -> None:
    options = ["--config", str(EXAMPLE), "--workspace", str(store.workspace.root)]
    options += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with store.workspace.lock("run"):
        for command in (["promote", "3"], ["rollback"], ["history"]):
            result = CliRunner().invoke(app, [*command, *options])
            assert result.exit_code == 0, result.output
    assert store.champion() == "2"


@pytest.mark.parametrize("command", [["promote", "3"], ["rollback"], ["history"]])
def test_a_mistyped_workspace_is_told_and_not_made(command: list[str], tmp_path: Path) -> None:
    options = ["--config", str(EXAMPLE), "--workspace", str(tmp_path / "wrokspace")]
    result = CliRunner().invoke(app, [*command, *options])
    assert "wrokspace has no mlflow.db, so no model was registered there: correct --workspace" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_what_is_champion_or_unknown_is_not_promoted(store: Store) -> None:
    with pytest.raises(ValueError, match="version 2 of 'counterpoise' is champion already: nothing to promote"):
        promote(store.config, store.workspace, "2", reason="", force=False)
    with pytest.raises(ValueError, match="version 2 of 'counterpoise' is champion already: nothing to roll back"):
        rollback(store.config, store.workspace, "2", reason="")
    with pytest.raises(ValueError, match="'counterpoise' has no version 99: `counterpoise history` shows those"):
        promote(store.config, store.workspace, "99", reason="", force=False)
    other = load_config(EXAMPLE, {**SETTINGS, "tracking.model": "other"})
    with pytest.raises(ValueError, match="no version of 'other' is champion: promote one instead"):
        rollback(other, store.workspace, None, reason="")


def test_a_version_whose_files_changed_is_neither_promoted_nor_served(store: Store, tmp_path: Path) -> None:
    version = store.register(gate="passed")
    identity = store.client.get_model_version(store.config.tracking.model, version).source.rsplit("/", 1)[-1]
    folder = next((store.workspace.root / "mlartifacts").rglob(identity))
    encoder = next(folder.rglob("encoder.json"))
    encoder.write_bytes(encoder.read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"files of version {version} of 'counterpoise' are not those that were reg"):
        promote(store.config, store.workspace, version, reason="", force=False)
    registry.set_alias(store.config, store.client, tracking.CHAMPION, version)
    with pytest.raises(ValueError, match=r"are not those that were registered \(sha256 differs\)"):
        tracking.champion(store.config, store.client, tmp_path)


def test_a_move_is_refused_when_the_champion_is_another_than_was_checked(store: Store) -> None:
    with pytest.raises(ValueError, match="is version 2, it was version 1 when version 3 was checked: another process"):
        store.move("3", "1")
    assert store.champion() == "2"


PROMOTER = """
import json, sys
from pathlib import Path
from pipeline import tracking
from pipeline.config import load_config
from pipeline.promotion import make_move, move_champion
from pipeline.workspace import Workspace
config = load_config(Path(sys.argv[1]), json.loads(sys.argv[2]))
client = tracking.connect(config, Workspace(Path(sys.argv[3])))
print("ready", flush=True)
sys.stdin.readline()
try:
    move_champion(config, client, make_move(sys.argv[4], "2", by="promote", reason=""))
    print("moved")
except ValueError as error:
    print(error)
"""


def test_of_two_promoters_at_once_one_wins_and_the_other_sees_it(store: Store, tmp_path: Path) -> None:
    """Neither holds the other's workspace lock, as on two machines with one tracking server."""
    settings = {**SETTINGS, "tracking.uri": f"sqlite:///{store.workspace.root / 'mlflow.db'}"}
    processes = {
        version: subprocess.Popen(
            [sys.executable, "-c", PROMOTER, str(EXAMPLE), json.dumps(settings), str(tmp_path / version), version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for version in ("1", "3")
    }
    for process in processes.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = {version: process.communicate(timeout=120)[0].strip() for version, process in processes.items()}
    winners = [version for version, text in told.items() if text == "moved"]
    assert len(winners) == 1
    assert store.champion() == winners[0]
    loser = next(text for version, text in told.items() if version != winners[0])
    assert f"is version {winners[0]}, it was version 2 when" in loser


def test_the_lock_of_a_killed_promoter_is_taken_over_and_that_of_a_living_one_is_not(store: Store) -> None:
    lock = f"{store.config.tracking.model}-promotion-lock"
    store.client.create_registered_model(lock, tags={"token": "of another"})
    with (
        pytest.raises(ValueError, match="'counterpoise-promotion-lock' is held by other promoters: try again"),
        registry.only_promoter(store.config, store.client, wait_s=0.1),
    ):
        pass
    with registry.only_promoter(store.config, store.client, expires_s=0.1) as still_ours:
        assert still_ours()
    assert [model.name for model in store.client.search_registered_models()] == [store.config.tracking.model]


class TakenOver(tracking.Client):
    """A client in whose move another process takes the lock over, as where this one slept for longer than it lasts."""

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Set the alias after another process has the lock."""
        self.set_registered_model_tag(f"{name}-promotion-lock", "token", "of another")
        super().set_registered_model_alias(name, alias, version)


def test_a_promoter_that_lost_the_lock_while_it_moved_says_so(store: Store) -> None:
    client = TakenOver(tracking_uri=f"sqlite:///{store.workspace.root / 'mlflow.db'}")
    with pytest.raises(ValueError, match="the registry's lock was lost while version 3 became champion"):
        move_champion(store.config, client, make_move("3", "2", by="promote", reason=""))
    client.delete_registered_model(f"{store.config.tracking.model}-promotion-lock")


@pytest.mark.parametrize("sign", ["ж", "推", '"', "\x01", "\udc80"])
def test_a_long_reason_in_any_script_is_cut_so_that_the_move_can_be_read_again(store: Store, sign: str) -> None:
    promote(store.config, store.workspace, "3", reason=sign * 5000, force=False)
    rollback(store.config, store.workspace, None, reason=sign * 5000)
    assert store.champion() == "2"
    last = moves(registry.model_tags(store.config, store.client), "2")[-2:]
    assert [move.version for move in last] == ["3", "2"]
    assert {len(set(move.reason)) for move in last} == {1}
    assert all(100 < len(move.reason) <= 1000 for move in last)


def test_a_recorded_move_that_cannot_be_read_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    tags = {f"champion_move_{n:06d}": json.dumps(vars(_move(str(n), str(n - 1)))) for n in (1, 2, 3)}
    tags["champion_move_000002"] = tags["champion_move_000002"][:-5]
    assert [move.version for move in moves(tags, "3")] == ["1", "3"]
    assert "a recorded move of the champion cannot be read and is left out" in caplog.text
    assert [move.version for move in moves({**tags, "champion_move_000003": "{}"}, "2")] == ["1"]
    assert moves({}, "1") == []


def _move(version: str, before: str | None, by: str = "register") -> Move:
    return Move(version, before, "2026-01-14T02:00:00+00:00", by, "")


@pytest.mark.parametrize(
    ("made", "champion", "expected"),
    [
        ([], "1", None),
        ([_move("1", None)], "1", None),
        ([_move("1", None), _move("2", "1")], "2", "1"),
        ([_move("5", "4")], "5", "4"),  # 4 became champion before moves were recorded
        ([_move("1", None), _move("2", "1"), _move("3", "2"), _move("2", "3", "rollback")], "2", "1"),
        ([_move("1", None), _move("2", "1"), _move("1", "2", "rollback"), _move("3", "1")], "3", "1"),
        ([_move("1", None), _move("2", "1")], "7", "2"),  # 7 was set in MLflow
    ],
)
def test_a_rollback_takes_the_stack_of_promotions_down(made: list[Move], champion: str, expected: str | None) -> None:
    assert champion_before(made, champion) == expected


def test_a_recorded_move_that_a_kill_kept_from_happening_is_left_out() -> None:
    recorded = [_move("1", None), _move("2", "1"), _move("3", "1")]
    tags = {f"champion_move_{number:06d}": json.dumps(vars(move)) for number, move in enumerate(recorded)}
    assert [move.version for move in moves(tags | {"other": "tag"}, "3")] == ["1", "3"]
    assert [move.version for move in moves(tags, "1")] == ["1"]
