"""One command at a time writes a workspace, and a killed one leaves no lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import threads
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent.parent
HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom pipeline.workspace import Workspace\n"
    "with Workspace(Path(sys.argv[1])).lock('train'):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def _holder(workspace: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock, and return once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workspace)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _call(command: str, source: Path, *place: str) -> subprocess.CompletedProcess[str]:
    options = ["--config", "examples/simulated.toml", "--source", str(source), *place]
    return subprocess.run(
        [sys.executable, "-m", "pipeline", command, *options, "--set", "source.time_zone=Asia/Shanghai"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **threads.SETTINGS},
    )


def test_a_second_writer_fails_with_one_line_that_names_the_first_until_that_is_killed(
    simulated_source: Path, tmp_path: Path
) -> None:
    holder = _holder(tmp_path)
    refused = _call("ingest", simulated_source, "--workspace", str(tmp_path))
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert f"{tmp_path} is being written by process {holder.pid} (counterpoise train)" in refused.stderr
    assert not (tmp_path / "tables").exists()
    assert _call("check", simulated_source).returncode == 0
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    done = _call("ingest", simulated_source, "--workspace", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    with pytest.raises(KeyError), workspace.lock("train"):
        raise KeyError
    with workspace.lock("rank"):
        assert (workspace.root / ".lock").read_text() == f"process {os.getpid()} (counterpoise rank)"


def test_a_holder_that_has_not_named_itself_yet_is_another_process(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock("rank"):
        (tmp_path / ".lock").write_text("")
        with (
            pytest.raises(ValueError, match="is being written by another process: run the same command again"),
            workspace.lock("train"),
        ):
            pass


def test_two_workspaces_are_written_at_once(tmp_path: Path) -> None:
    with Workspace(tmp_path / "a").lock("run"), Workspace(tmp_path / "b").lock("run"):
        assert (tmp_path / "a" / ".lock").read_text() == (tmp_path / "b" / ".lock").read_text()
