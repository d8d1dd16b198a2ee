"""Claims about what a run says it was made from."""

import datetime as dt
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.calibration import CALIBRATION_FILE
from pipeline import tables
from pipeline.config import Config
from pipeline.provenance import data_counts, git_commit, versions
from pipeline.split import Days
from pipeline.workspace import Workspace, write_json

ROOT = Path(__file__).parent.parent.parent
DATES = [dt.date(2026, 1, day) for day in (1, 2, 3)]
DAYS = Days(DATES[:1], DATES[1:2], DATES[2:], dt.date(2026, 1, 4))


def write(workspace: Workspace, name: str, frame: pl.DataFrame) -> None:
    tables.write_all(workspace.table(name), frame, {})


@pytest.fixture
def place(tmp_path: Path) -> tuple[Workspace, Path]:
    """Return a workspace and a run that read version 0 of its tables; version 1 of interactions is empty."""
    workspace = Workspace(tmp_path)
    rows = pl.DataFrame(
        {"date": [DATES[n] for n in (0, 0, 0, 1, 1, 2)], "click": [True, True, False, True, False, False]}
    )
    interactions = rows.with_columns(conversion=pl.Series([True, False, False, False, False, False]))
    write(workspace, "interactions", interactions)
    write(workspace, "interactions", interactions.clear())
    write(workspace, "quarantine", pl.DataFrame({"reason": ["no user", "no time", "no user"]}))
    folder = workspace.run("run")
    (folder / "features").mkdir(parents=True)
    write_json(folder / "features" / "versions.json", {"interactions": 0, "quarantine": 0})
    return workspace, folder


def test_rows_are_counted_by_day_in_the_version_that_the_run_read(place: tuple[Workspace, Path]) -> None:
    assert data_counts(*place, DAYS)["days"] == [
        {"day": "2026-01-01", "part": "train", "impressions": 3, "clicks": 2, "conversions": 1},
        {"day": "2026-01-02", "part": "validation", "impressions": 2, "clicks": 1, "conversions": 0},
        {"day": "2026-01-03", "part": "test", "impressions": 1, "clicks": 0, "conversions": 0},
    ]


def test_quarantined_rows_are_counted_by_reason(place: tuple[Workspace, Path]) -> None:
    assert data_counts(*place, DAYS)["quarantine"] == {"no user": 2, "no time": 1}
    write_json(place[1] / "features" / "versions.json", {"interactions": 0})
    assert data_counts(*place, DAYS)["quarantine"] == {}


def test_events_of_no_impression_are_counted_where_there_are_events(place: tuple[Workspace, Path]) -> None:
    assert data_counts(*place, DAYS)["unattributed"] is None
    write(place[0], "unattributed", pl.DataFrame({"kind": ["click"] * 4}))
    assert data_counts(*place, DAYS)["unattributed"] == 4


def test_versions_name_packages_tables_code_model_and_seed(
    place: tuple[Workspace, Path], make_config: Callable[..., Config]
) -> None:
    config, (_, folder) = make_config(), place
    with pytest.raises(ValueError, match="run `counterpoise train` first"):
        versions(config, folder)
    (folder / "model").mkdir()
    write_json(folder / "model" / "training.json", {"digests": {"ranker": "abc"}})
    found = versions(config, folder)
    assert set(found) == {
        *("counterpoise", "python", "torch", "polars", "pyarrow", "faiss", "mlflow", "deltalake", "numpy"),
        *("scikit-learn", "git_commit", "tables", "config_digest", "model_digest", "seed"),
    }
    assert (found["numpy"], found["polars"]) == (np.__version__, pl.__version__)
    assert found["tables"] == {"interactions": 0, "quarantine": 0}
    assert (found["config_digest"], found["seed"]) == (config.digest(), config.seed)
    assert found["model_digest"] == {"ranker": "abc"}
    (folder / "model" / CALIBRATION_FILE).write_text("{}")
    calibration = hashlib.sha256(b"{}").hexdigest()
    assert versions(config, folder)["model_digest"] == {"ranker": "abc", "calibration": calibration}


def test_the_commit_is_that_of_the_checkout_or_says_that_there_is_none() -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    assert git_commit() == (done.stdout.strip() or "no git checkout")
