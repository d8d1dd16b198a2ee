"""Threads, memory and telemetry of the libraries, set in one place before any of them is imported."""

import multiprocessing
import os
import threading

from pipeline.allocator import keep_freed_memory

SETTINGS = {
    # Spinning OpenMP threads cost 3-4x on shared cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # cuBLAS gives equal results on a rerun only with a workspace of a fixed size.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
ONE_THREAD = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
WORKER = {**ONE_THREAD, "TTY_COMPATIBLE": "0"}
"""Of a process that shares the cores with others; only the one that started it draws progress bars."""


def configure() -> None:
    """Set what the environment does not set already."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def become_worker() -> None:
    """Give this process one thread for each library, before any of them is imported, and no progress bars.

    It ends with the process that started it, however that ends.
    """
    os.environ.update(WORKER)
    configure()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    # A driver that was killed with -9 closes no pool: its workers would finish their tasks and wait for more for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing started becomes a worker"
    parent.join()
    os._exit(1)


def share_of_cores(processes: int) -> int:
    """Return the threads of each of so many processes that compute at once on the cores this one may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)
