"""`counterpoise serve` as a process: it starts, answers any input as its OpenAPI says, and ends when it is told to."""

import http.client
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

CONFIG = """
name = "x"
[source]
interactions = "*"
[serve]
port = 0
max_users = 3
max_age_days = 100000
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a published version, and a configuration."""
    root = tmp_path_factory.mktemp("serve")
    (root / "config.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        versions: Any = importlib.import_module("feed_versions")
    versions.write("lmdb:feed", root, 7)
    return root


@contextmanager
def _serving(root: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Run the command; give its process, its port and what it said."""
    place = ["--config", str(root / "config.toml"), "--workspace", str(root)]
    command = [sys.executable, "-m", "pipeline", "serve", *place]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield process, int(line.split("http://127.0.0.1:")[1].split()[0]), line
        process.kill()


@pytest.fixture(scope="module")
def port(root: Path) -> Iterator[int]:
    with _serving(root) as (_, port, _):
        yield port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_it_serves_and_ends_well_when_it_is_told_to(root: Path, number: signal.Signals) -> None:
    with _serving(root) as (process, port, line):
        assert "serves version 2026-01-02-00000007 (lists for 2026-01-02)" in line
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/lists/u00001")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(number)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("method", "path", "mode", "examples"),
    [
        ("GET", "/lists/{user_id}", GenerationMode.POSITIVE, 50),
        ("GET", "/lists/{user_id}", GenerationMode.NEGATIVE, 50),
        ("POST", "/lists", GenerationMode.POSITIVE, 50),
        ("POST", "/lists", GenerationMode.NEGATIVE, 50),
        ("GET", "/health", GenerationMode.POSITIVE, 1),
        ("GET", "/metrics", GenerationMode.POSITIVE, 1),
    ],
)
def test_any_input_is_answered_as_described(
    port: int, method: str, path: str, mode: GenerationMode, examples: int
) -> None:
    described = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate()

    check()
