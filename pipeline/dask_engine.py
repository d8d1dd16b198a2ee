"""The Dask engine: the only file that imports distributed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from pipeline.code_version import code_digest
from pipeline.engine import ATTEMPTS, IN_FLIGHT, Engine, count, killed
from pipeline.stage import progress
from pipeline.threads import SETTINGS, WORKER

Task = TypeVar("Task")
Result = TypeVar("Result")
PATIENCE_SECONDS = 60
LOCAL = {
    "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
    # What is set before a worker is spawned stays in this process: threads are set in the worker, by `env`.
    "distributed.nanny.pre-spawn-environ": {},
}


class DaskEngine:
    """Runs tasks on the workers of a cluster, which runs those of a killed worker again elsewhere."""

    in_process = False

    def __init__(self, client: Any, expected: str | None) -> None:
        self._client = client
        self._expected = expected

    @property
    def workers(self) -> int:
        """Return how many tasks run at once now; a cluster may grow and shrink."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str, total: int | None = None
    ) -> Iterator[Result]:
        """See `pipeline.engine.Engine.map`."""
        assert function.__module__ != "__main__", "a worker imports the function by its name"
        yield from progress(self._results(function, tasks, what), what, total or count(tasks))

    def _results(self, function: Callable[[Task], Result], tasks: Iterable[Task], what: str) -> Iterator[Result]:
        pending: deque[Any] = deque()
        try:
            for task in tasks:
                pending.append(self._client.submit(_run, function, task, self._expected, pure=False))
                while len(pending) >= IN_FLIGHT * self._workers(what):
                    yield _result(pending.popleft(), what)
            while pending:
                yield _result(pending.popleft(), what)
        finally:
            _settle(pending)

    def _workers(self, what: str) -> int:
        try:
            return self.workers
        except OSError as error:
            raise ValueError(_lost(what, error)) from None


def _result(future: Any, what: str) -> Any:
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise ValueError(killed(what, error.allowed_failures + 1)) from None
    except FutureCancelledError as error:
        raise ValueError(_lost(what, error)) from None


def _settle(pending: Iterable[Any]) -> None:
    """Return when none of these runs any more; Dask does not stop what it has begun, nor tell what it has."""
    for future in pending:
        future.exception()  # waits; of one that ended well, or went with its scheduler, it is none


def _lost(what: str, error: Exception) -> str:
    return f"{what}: the cluster's scheduler was lost ({error}): start it and run the same command again"


def _run(function: Callable[[Task], Result], task: Task, expected: str | None) -> Result:
    if expected is not None and code_digest() != expected:
        raise ValueError(_other_code([code_digest()], expected))
    return function(task)


def _other_code(found: list[str], expected: str) -> str:
    return (
        f"engine: workers run other code or libraries ({', '.join(sorted(set(found)))}) than this process "
        f"({expected}): install the same version of counterpoise and its requirements on all of them"
    )


@contextmanager
def open_dask(workers: int, address: str | None) -> Iterator[Engine]:
    """Connect to a cluster by the address of its scheduler or, without one, start some workers on this machine.

    A local cluster listens on 127.0.0.1 alone and has no dashboard. TLS and its certificates are Dask's own settings,
    read from its configuration files or the environment (DASK_DISTRIBUTED__COMM__TLS__...).

    Raises:
        ValueError: Dask is not installed, no scheduler or worker answers, or workers run other code.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ValueError("engine.kind = 'dask' needs Dask: pip install 'counterpoise[dask]'") from None
    if address is None:
        with _local_cluster(workers) as cluster, _connected(cluster) as client:
            yield DaskEngine(client, None)
        return
    with _connected(address) as client:
        expected = code_digest()
        _check_code(client, expected)
        yield DaskEngine(client, expected)


@contextmanager
def _local_cluster(workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set(LOCAL),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,  # as the local engine; a limit would pause workers whose allocator keeps freed memory
            env={**SETTINGS, **WORKER},
        ) as cluster,
    ):
        yield cluster


@contextmanager
def _connected(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    with ExitStack() as stack:
        try:
            client = stack.enter_context(Client(cluster, timeout=PATIENCE_SECONDS, set_as_default=False))
            client.wait_for_workers(1, timeout=PATIENCE_SECONDS)
        except (OSError, TimeoutError) as error:
            raise ValueError(
                f"engine.address = {cluster!r}: no scheduler with workers answers ({error}): start `dask scheduler` "
                "and `dask worker` there, or leave the address out for workers on this machine"
            ) from None
        yield client


def _check_code(client: Any, expected: str) -> None:
    """Refuse workers of other code at once; those that join later are refused by their first task."""
    try:
        found = list(client.run(code_digest).values())
    except (ImportError, AttributeError) as error:
        raise ValueError(_other_code([f"without counterpoise: {error}"], expected)) from None
    if set(found) != {expected}:
        raise ValueError(_other_code(found, expected))
