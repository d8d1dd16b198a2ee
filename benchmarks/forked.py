"""Run the command line in a process forked from a server that has imported it, and kill it where asked.

A stage costs some 4 s of imports, which multiprocessing's forkserver pays once; after them the path is that of
`python -m pipeline`: `main`, its lock, its exit. The server has started no thread and opened no table.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOADED = ["benchmarks.forked", "pipeline.__main__", "pipeline.run", "pipeline.vacuum", "pipeline.simulate"]
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


@dataclass(frozen=True)
class Ended:
    """How a command ended, after how many seconds and changes of files."""

    exit_code: int
    seconds: float
    changes: int

    @property
    def killed(self) -> bool:
        """Return whether a kill came before its end."""
        return self.exit_code == -signal.SIGKILL


@dataclass
class Changes:
    """Counts the changes that Python makes to the files of a folder, and kills the process group before one of them."""

    folder: str
    fatal: int | None
    count: int = field(default=0)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take in an audit event of the interpreter."""
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (written or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.fatal:
            os.killpg(os.getpid(), signal.SIGKILL)


def run_command(
    arguments: list[str], workspace: Path, *, kill_after: float | None = None, kill_before: int | None = None
) -> Ended:
    """Run a command and wait for it, or kill its group after some seconds or before one of its changes of files.

    What it prints goes to a file beside the workspace, `<name>.log`.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(arguments, str(workspace), kill_before, sender))
    process.start()
    sender.close()
    receiver.recv()
    start = time.perf_counter()
    process.join(kill_after)
    if process.is_alive():
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    seconds = time.perf_counter() - start
    assert process.exitcode is not None
    return Ended(process.exitcode, seconds, receiver.recv() if process.exitcode == 0 else 0)


def answer_of(function: Callable[..., str], *arguments: object) -> str:
    """Return what a function returns in a forked process of its own."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, arguments, sender))
    process.start()
    sender.close()
    answer = str(receiver.recv())
    process.join()
    return answer


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _command(arguments: list[str], workspace: str, fatal: int | None, started: Connection) -> None:
    os.setsid()
    log = os.open(f"{workspace}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from pipeline.__main__ import main

    sys.argv = ["counterpoise", *arguments]
    changes = Changes(workspace, fatal)
    started.send(0)
    sys.addaudithook(changes)
    try:
        main()
    finally:
        started.send(changes.count)


def _answer(function: Callable[..., str], arguments: tuple[object, ...], answer: Connection) -> None:
    answer.send(function(*arguments))
