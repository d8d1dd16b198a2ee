"""Claims about columns that hold a label: refused by name, while honest ones pass."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.config import Config
from pipeline.featurize import days_of, featurize
from pipeline.ingest import ingest
from pipeline.workspace import Workspace


def leaking(source: Path, copy: Path, column: pl.Expr) -> Path:
    """Copy a source and put a column in place of `surface`."""
    shutil.copytree(source, copy)
    for path in (copy / "impressions").glob("*.parquet"):
        pl.read_parquet(path).with_columns(column.alias("surface")).write_parquet(path)
    return copy


def run(config: Config, source: Path, root: Path) -> None:
    workspace = Workspace(root)
    ingest(config, workspace, source)
    featurize(config, workspace, days_of(config, workspace, None))


def with_reference(config: Config, value: str) -> Config:
    context = config.context.model_copy(update={"columns": {"position": "1", "surface": value}})
    return config.model_copy(update={"context": context})


def flipped(share: float) -> pl.Expr:
    """Return the click, wrong on a share of the rows."""
    wrong = pl.col("impression_id").hash(1) % 1000 < 1000 * share
    return (pl.col("click") ^ wrong).cast(pl.String)


@pytest.mark.parametrize(
    ("column", "label"),
    [
        (pl.col("click").cast(pl.String), "click"),
        (flipped(0.002), "click"),
        (pl.when("conversion").then(pl.lit("true")).otherwise(pl.lit("false")), "conversion"),
    ],
)
def test_a_column_that_nearly_determines_a_label_is_refused_by_name(
    column: pl.Expr, label: str, simulated_source: Path, simulated_config: Config, tmp_path: Path
) -> None:
    source = leaking(simulated_source, tmp_path / "source", column)
    with pytest.raises(ValueError, match=rf"column 'surface' determines the label '{label}' \(AUC .* remove it"):
        run(with_reference(simulated_config, "false"), source, tmp_path / "workspace")


def test_a_column_that_only_correlates_passes(simulated_source: Path, simulated_config: Config, tmp_path: Path) -> None:
    source = leaking(simulated_source, tmp_path / "source", flipped(0.1))
    run(with_reference(simulated_config, "false"), source, tmp_path / "workspace")
