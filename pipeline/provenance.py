"""What a run was made from: versions of packages, code, tables and model, and the rows of each day."""

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import polars as pl

from models.calibration import CALIBRATION_FILE
from pipeline import tables
from pipeline.config import Config
from pipeline.featurize import table_versions
from pipeline.split import Days
from pipeline.workspace import Workspace, read_json

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {
    "counterpoise": "counterpoise",
    "torch": "torch",
    "polars": "polars",
    "pyarrow": "pyarrow",
    "faiss": "faiss-cpu",
    "mlflow": "mlflow",
    "deltalake": "deltalake",
    "numpy": "numpy",
    "scikit-learn": "scikit-learn",
}


def versions(config: Config, folder: Path) -> dict[str, Any]:
    """Return the versions of packages, the commit, the tables' versions that the run read, its digests and seed.

    The model's digests are of the weights, and of the calibration where there is one.

    Raises:
        ValueError: featurize or train has not run.
    """
    digests: dict[str, str] = read_json(folder / "model" / "training.json", "train")["digests"]
    calibration = folder / "model" / CALIBRATION_FILE
    if calibration.exists():
        digests["calibration"] = hashlib.sha256(calibration.read_bytes()).hexdigest()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(distribution) for name, distribution in DISTRIBUTIONS.items()},
        "git_commit": git_commit(),
        "tables": table_versions(folder),
        "config_digest": config.digest(),
        "model_digest": digests,
        "seed": config.seed,
    }


def git_commit() -> str:
    """Return the commit of this checkout, or say that there is none."""
    if shutil.which("git") is None:
        return "no git on this machine"
    found = subprocess.run(  # noqa: S603
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "no git checkout"


def data_counts(workspace: Workspace, folder: Path, days: Days) -> dict[str, Any]:
    """Count what the run was made from, in its tables at its versions.

    Returns:
        `days` (day, part, impressions, clicks and conversions with labels as known today), `quarantine` (rows by
        reason) and `unattributed` (events that belong to no impression; None where the source has no events). The
        run records no version of that last table, so it is counted as it is now.
    """
    read = table_versions(folder)
    quarantine = _rows_by(workspace, read, "quarantine", "reason")
    unattributed = workspace.table("unattributed")
    left_out = tables.scan(unattributed, read.get("unattributed")) if tables.exists(unattributed) else None
    return {
        "days": _days(workspace, read, days),
        "quarantine": quarantine,
        "unattributed": None if left_out is None else left_out.select(pl.len()).collect().item(),
    }


def _rows_by(workspace: Workspace, read: dict[str, int], name: str, column: str) -> dict[str, int]:
    if name not in read:
        return {}
    rows = tables.scan(workspace.table(name), read[name]).group_by(column).len().sort("len", column, descending=True)
    return dict(rows.collect().iter_rows())


def _days(workspace: Workspace, read: dict[str, int], days: Days) -> list[dict[str, Any]]:
    counts = (
        tables.scan(workspace.table("interactions"), read["interactions"])
        .filter(pl.col("date").is_in(days.all()))
        .group_by("date")
        .agg(pl.len(), pl.col("click").sum(), pl.col("conversion").sum())
        .collect()
    )
    of_day = {day: numbers for day, *numbers in counts.iter_rows()}
    parts = {"train": days.train, "validation": days.validation, "test": days.test}
    return [
        {"day": str(day), "part": part, **dict(zip(("impressions", "clicks", "conversions"), of_day[day], strict=True))}
        for part, dates in parts.items()
        for day in dates
    ]
