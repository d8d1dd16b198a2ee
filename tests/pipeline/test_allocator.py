"""Freed memory is kept."""

import os
import platform
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
for _ in range(10):  # until the heap has its size
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*, keep: bool) -> tuple[str, int]:
    # Unless told, glibc maps large blocks apart until it has learned not to, and gives back what happens to lie last.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    return answer[0], int(answer[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C libraries glibc alone can be told")
def test_a_step_that_needs_as_much_as_the_last_takes_no_new_pages() -> None:
    kept, faults = _faults(keep=True)
    assert kept == "True"
    assert faults < 100
    assert _faults(keep=False)[1] > 1000


def test_systems_without_glibc_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.allocator import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
