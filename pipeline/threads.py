"""Threads and telemetry of the libraries, set in one place before any of them is imported."""

import os

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


def configure() -> None:
    """Set what the environment does not set already."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
