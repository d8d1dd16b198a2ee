"""A real `mlflow server` on a real PostgreSQL, both on loopback: what the registry promises holds there too."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from features.encoding import load_encoder
from models.ranker import load_ranker
from pipeline import registry, tracking
from pipeline.calibrate import calibrate
from pipeline.config import Config, load_config
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.ingest import ingest
from pipeline.promotion import history, make_move, move_champion, promote, rollback
from pipeline.train import train
from pipeline.workspace import Workspace

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
REQUIRED = os.environ.get("COUNTERPOISE_REQUIRE_POSTGRES") == "1"
NOBODY = "nobody"
PATIENCE_S = 180.0
SETTINGS = {
    "source.time_zone": "Asia/Shanghai",
    "labels.immature": "keep",
    "model.hidden": [8],
    "retriever.epochs": 1,
    "training.control": False,
}


def _program(name: str) -> str:
    """Find a program of PostgreSQL, which Debian keeps out of the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name) or next((str(one / name) for one in folders if (one / name).exists()), None)
    if found is None:
        if REQUIRED:
            pytest.fail(f"COUNTERPOISE_REQUIRE_POSTGRES=1, but {name} is not installed: install postgresql")
        pytest.skip(f"{name} is not installed: install postgresql to run this test")
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def _postgres() -> Iterator[str]:
    """Run PostgreSQL in a temporary folder, as another user where this one is root, and give its URI."""
    initdb, server = _program("initdb"), _program("postgres")
    if not REQUIRED:
        pytest.importorskip("psycopg", reason="psycopg is not installed: install the dev extra to run this test")
    account = NOBODY if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="pg") as name:
        data, port = Path(name) / "data", _free_port()
        if account is not None:
            os.chown(name, pwd.getpwnam(account).pw_uid, -1)
        make = [initdb, "-D", str(data), "-U", "counterpoise", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run(make, user=account, check=True, capture_output=True, cwd=name)
        run = [server, "-D", str(data), "-p", str(port), "-k", name, "-c", "listen_addresses=127.0.0.1", "-F"]
        process = subprocess.Popen(run, user=account, cwd=name, stderr=subprocess.DEVNULL)
        try:
            _wait(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process)
            yield f"postgresql+psycopg://counterpoise@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_S)


@contextmanager
def _mlflow_server(store: str, artifacts: Path) -> Iterator[str]:
    """Run `mlflow server`, which keeps runs in the store and hands out artifacts itself, and give its URI."""
    port = _free_port()
    place = ["--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
    bind = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *place, *bind],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        _wait(lambda: urllib.request.urlopen(f"{uri}/health", timeout=5).close(), process)  # noqa: S310  # our own URI
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its workers too
        process.wait(timeout=PATIENCE_S)


def _wait(answers: Callable[[], None], process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers, and fail once it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            answers()
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < deadline, f"no answer within {PATIENCE_S:.0f} s"
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an MLflow server on PostgreSQL that shares no folder with its clients."""
    with _postgres() as store, _mlflow_server(store, tmp_path_factory.mktemp("artifacts")) as found:
        yield found


def test_versions_are_registered_promoted_and_rolled_back_on_a_server(
    uri: str, simulated_source: Path, tmp_path: Path
) -> None:
    config, workspace = load_config(EXAMPLE, {**SETTINGS, "tracking.uri": uri}), Workspace(tmp_path / "workspace")
    ingest(config, workspace, simulated_source)
    days = days_of(config, workspace, None)
    for stage in (featurize, train, calibrate):
        stage(config, workspace, days)
    folder = run_folder(config, workspace, days)
    client = tracking.connect(config, workspace)
    assert [_registered(config, folder) for _ in range(2)] == ["1", "2"]
    move_champion(config, client, make_move("1", None, by="register", reason="the first"))
    promote(config, workspace, "2", reason="by hand", force=False)
    found = tracking.champion(config, client, tmp_path)
    assert found is not None
    assert found.version == "2"
    assert tracking.files_digest(found.folder) == tracking.files_digest(folder / "model")
    with pytest.raises(ValueError, match="is version 2, it was version 1 when version 1 was checked"):
        move_champion(config, client, make_move("1", "1", by="promote", reason=""))
    rollback(config, workspace, None, reason="")
    assert tracking.champion_version(config, client) == "1"
    entries = {entry.version: entry for entry in history(config, workspace)}
    assert (len(entries["1"].champion), len(entries["2"].champion)) == (2, 1)
    assert not (workspace.root / "mlflow.db").exists()
    with registry.only_promoter(config, client):
        second = registry.only_promoter(config, client, wait_s=0.5)
        with pytest.raises(ValueError, match="is held by other promoters: try again"), second:
            pass


def _registered(config: Config, folder: Path) -> str:
    model = folder / "model"
    sign = tracking.signature(load_ranker(model / "ranker").spec, load_encoder(model / "encoder.json"))
    return tracking.log_version(config, model=model, sign=sign, metrics={}, record={"run": folder.name}, files=[])
