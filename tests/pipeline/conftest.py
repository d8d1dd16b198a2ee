"""A small log that the tests of ingest write in any format and break in any way."""

import csv
import datetime as dt
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.config import Config, load_config
from pipeline.featurize import days_of, featurize
from pipeline.ingest import ingest
from pipeline.run import run
from pipeline.study_data import Study, load_study
from pipeline.workspace import Workspace

Rows = list[dict[str, str]]
START = dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def log_rows() -> Rows:
    """Twelve impressions on three days, six clicked and three of them converted."""
    return [
        {
            "user_id": f"u{n % 3}",
            "item_id": f"i{n % 4}",
            "event_time": (START + dt.timedelta(hours=6 * n)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "click": str(n % 2),
            "conversion": str(int(n % 4 == 1)),
        }
        for n in range(12)
    ]


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return a maker of configurations from the keys that differ from a CSV log's."""

    def make(**sections: object) -> Config:
        values = {"name": "small", **sections}
        source = {"interactions": "log.*", **dict(values.pop("source", {}))}  # type: ignore[call-overload]
        return Config.model_validate({**values, "source": source})

    return make


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[[str, Rows], Path]:
    """Return a writer of rows in the format of the file's name; it returns the source folder."""
    source = tmp_path / "source"
    source.mkdir()

    def write(name: str, rows: Rows) -> Path:
        if name.endswith(".parquet"):
            _typed(rows).write_parquet(source / name)
        elif ".csv" in name:
            _compressed(source / name, _csv(rows))
        else:
            _compressed(source / name, "".join(json.dumps(row) + "\n" for row in rows))
        return source

    return write


@pytest.fixture(scope="session")
def study_workspace(
    simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """Return a workspace with the small simulated source, ingested and featurized."""
    workspace = Workspace(tmp_path_factory.mktemp("study") / "workspace")
    ingest(simulated_config, workspace, simulated_source)
    featurize(simulated_config, workspace, days_of(simulated_config, workspace, None))
    return workspace


@pytest.fixture(scope="session")
def small_study(simulated_config: Config, study_workspace: Workspace) -> Study:
    """Return the small simulated source's examples, measured on its validation day, for small models."""
    run = next((study_workspace.root / "runs").iterdir()).name
    model = simulated_config.model.model_copy(update={"hidden": [16, 8], "embedding_width": 4, "numeric_width": 2})
    training = simulated_config.training.model_copy(update={"batch_size": 128, "learning_rate": 1e-2})
    config = simulated_config.model_copy(update={"model": model, "training": training})
    return load_study(config, study_workspace, run=run)


NIGHTS = (dt.date(2026, 1, 4), dt.date(2026, 1, 5))
SMALL_NIGHT: dict[str, Any] = {
    "source.time_zone": "Asia/Shanghai",
    "evaluation.replicates": 20,
    "training.epochs": 1,
    "training.control": False,
    # What it learns from so little is bad, and asked is only what comes after the gate.
    "gate.tolerance.log_loss": 9.0,
    "gate.tolerance.gauc": 1.0,
    "gate.tolerance.recall": 1.0,
    "gate.tolerance.coverage": 1.0,
    "gate.pcoc": (0.01, 100.0),
    "gate.blocking_alarms": [],
}


@pytest.fixture(scope="session")
def two_nights(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workspace]:
    """Return a workspace of two nights, whose lists were published; not to be written to."""
    example = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
    config, workspace = load_config(example, SMALL_NIGHT), Workspace(tmp_path_factory.mktemp("nights") / "workspace")
    for day in NIGHTS:
        run(config, workspace, simulated_source, day)
    return config, workspace


def _csv(rows: Rows) -> str:
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _typed(rows: Rows) -> pl.DataFrame:
    time = pl.col("event_time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_zone="UTC")
    return pl.DataFrame(rows).with_columns(
        time, pl.col("click").cast(pl.Int8), pl.col("conversion").cast(pl.Int64).cast(pl.Boolean)
    )


def _compressed(path: Path, text: str) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(text.encode())
    else:
        path.write_text(text, encoding="utf-8")
