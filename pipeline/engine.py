"""The engine: maps a pure function over tasks, here, in a few processes, or on a Dask cluster, with equal results.

A task is plain values, paths and small frames; what is large goes by path on storage that all workers share. A task
may run twice, after its process was killed: it writes its files whole (`pipeline.workspace.write_parquet` to a draft
and a rename) and writes the same bytes each time. Tables are committed by the driver alone.

Light on purpose: worker processes import it before their threads are limited, so it imports no numerical library.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.config import Config
from pipeline.sections import Engine as Settings
from pipeline.stage import LOG, progress
from pipeline.threads import become_worker

Task = TypeVar("Task")
Result = TypeVar("Result")
IN_FLIGHT = 2
"""Tasks in flight for each worker: one runs, one waits, and no more results wait for the first than that."""
ATTEMPTS = 4


class Engine(Protocol):
    """Runs tasks."""

    @property
    def workers(self) -> int:
        """Return how many tasks run at once."""

    @property
    def in_process(self) -> bool:
        """Return whether tasks run in this process, so that a task may hold what is large."""

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str, total: int | None = None
    ) -> Iterator[Result]:
        """Yield the results in the order of the tasks, with at most a few tasks in flight.

        Once it ends, in an error too, none of the tasks runs any more.

        Args:
            function: of a module, pure: its result depends on the task alone.
            tasks: taken as they are needed.
            what: names the work on the progress bar and in errors.
            total: number of the tasks, where they are made as they are needed.

        Raises:
            ValueError: a task raised it, or its process was killed too often.
        """


class SerialEngine:
    """Runs task after task in this process, with all of its threads."""

    workers = 1
    in_process = True

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str, total: int | None = None
    ) -> Iterator[Result]:
        """See `Engine.map`; a task runs when its result is asked for."""
        yield from progress(map(function, tasks), what, total or count(tasks))


IN_PROCESS = SerialEngine()


@dataclass
class _Pending(Generic[Task, Result]):
    task: Task
    future: Future[Result]
    attempts: int = 1


class ProcessEngine:
    """Runs tasks in processes of this machine, one thread each; a task whose process was killed runs again."""

    in_process = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = self._new_pool()

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str, total: int | None = None
    ) -> Iterator[Result]:
        """See `Engine.map`."""
        yield from progress(self._results(function, tasks, what), what, total or count(tasks))

    def close(self) -> None:
        """End the processes; tasks that wait are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _results(self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str) -> Iterator[Result]:
        pending: deque[_Pending[Task, Result]] = deque()
        try:
            for task in tasks:
                pending.append(_Pending(task, self._submit(function, task)))
                if len(pending) == IN_FLIGHT * self.workers:
                    yield self._first(function, pending, what)
            while pending:
                yield self._first(function, pending, what)
        finally:
            # Who gives up removes what tasks wrote: none may write after that.
            wait([each.future for each in pending if not each.future.cancel()])

    def _first(self, function: Callable[[Task], Result], pending: deque[_Pending[Task, Result]], what: str) -> Result:
        """Return the first result; where a process was killed, every task that went with it runs again."""
        while True:
            try:
                result = pending[0].future.result()
            except BrokenProcessPool:
                LOG.warning("%s: a worker process was killed, its tasks run again", what)
                self._pool.shutdown()
                self._pool = self._new_pool()
                for each in pending:
                    if each.future.done() and each.future.exception() is None:
                        continue
                    each.attempts += 1
                    if each.attempts > ATTEMPTS:
                        raise ValueError(killed(what, ATTEMPTS)) from None
                    each.future = self._submit(function, each.task)
            else:
                pending.popleft()
                return result

    def _submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        try:
            return self._pool.submit(function, task)
        except BrokenProcessPool as error:  # told by the future, as for the tasks that the dead process held
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of polars' and torch's threads
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=become_worker)


_OPEN: ContextVar[Engine | None] = ContextVar("_OPEN", default=None)


@contextmanager
def open_engine(config: Config) -> Iterator[Engine]:
    """Give the engine of a configuration; inside another `open_engine` the one that is open.

    A whole run opens it once, so that its stages share the processes; a stage that runs alone opens its own.

    Raises:
        ValueError: the engine is dask, and its package is missing, nobody answers at its address, or its workers run
            other code.
    """
    already = _OPEN.get()
    if already is not None:
        yield already
        return
    with start(config.engine) as engine:
        token = _OPEN.set(engine)
        try:
            yield engine
        finally:
            _OPEN.reset(token)


def start(settings: Settings) -> AbstractContextManager[Engine]:
    """Start an engine of its own."""
    if settings.kind == "dask":
        from pipeline.dask_engine import open_dask  # Dask is an extra, and takes 0.5 s to import

        return open_dask(settings.workers, settings.address)
    return _local(settings.workers)


@contextmanager
def _local(workers: int) -> Iterator[Engine]:
    if workers == 1:
        yield IN_PROCESS
        return
    engine = ProcessEngine(workers)
    try:
        yield engine
    finally:
        engine.close()


def killed(what: str, times: int) -> str:
    """Return the message for a task whose process was killed each time it ran."""
    return (
        f"{what}: the process of one task was killed {times} times, most likely for its memory: give workers more of "
        "it, or set engine.workers lower"
    )


def count(tasks: Iterable[object]) -> int | None:
    """Return the number of tasks where it is known."""
    return len(tasks) if isinstance(tasks, Sized) else None
