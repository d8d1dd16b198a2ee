"""A digest of the code that runs here, so that the workers of a cluster can be asked whether they run the same."""

import hashlib
import importlib.metadata
import platform
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "models", "pipeline")
LIBRARIES = ("faiss-cpu", "numpy", "polars", "pyarrow", "torch")
"""Libraries whose versions may change the bytes of a result."""


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of this package's sources and its libraries' versions."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
