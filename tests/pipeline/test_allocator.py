"""Freed memory is kept."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from pipeline.allocator import keep_freed_memory

kept = {keep} and keep_freed_memory()
def touch():
    parts = [torch.ones(2 << 20) for _ in range(4)]
for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*, keep: bool) -> tuple[str, int]:
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True
    ).stdout.split()
    return answer[0], int(answer[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone can be told")
def test_a_step_that_needs_as_much_as_the_last_takes_no_new_pages() -> None:
    kept, faults = _faults(keep=True)
    if kept != "True":
        pytest.skip("this is no glibc")
    assert faults < 100
    assert _faults(keep=False)[1] > 1000


def test_systems_without_glibc_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.allocator import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
