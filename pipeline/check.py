"""Check: read a source as ingest would, and say what is in it without writing a table."""

import tempfile
from pathlib import Path

import polars as pl

from pipeline.config import Config
from pipeline.ingest import quarantine_reasons, read_log
from pipeline.side_tables import read_side_table


def check(config: Config, source: Path) -> list[str]:
    """Return lines on rows, days, rates, side tables and quarantined rows.

    Raises:
        ValueError: what would stop ingest.
    """
    lines = [f"config {config.name!r} is valid (digest {config.digest()})"]
    known: dict[str, pl.DataFrame] = {}
    for name, table, key in (("users", config.users, "user_id"), ("items", config.items, "item_id")):
        if table.file is not None:
            known[key] = read_side_table(source, table, key, config.source.time_unit, config.source.time_zone)
            lines.append(f"{name}: {known[key].height:,} rows, {known[key].width - 1} feature columns")
    with tempfile.TemporaryDirectory() as spill:
        intake = read_log(config, source, Path(spill))
        rows = pl.scan_parquet([path for paths in intake.parts.values() for path in paths])
        found = (
            rows.select(
                pl.len().alias("rows"),
                pl.col("click").mean().alias("click_rate"),
                pl.col("conversion").filter(pl.col("click")).mean().alias("conversion_rate"),
                pl.col("user_id").n_unique().alias("users"),
                pl.col("item_id").n_unique().alias("items"),
            )
            .collect()
            .row(0, named=True)
        )
        lines += [
            (
                f"interactions: {found['rows']:,} rows on {len(intake.parts)} days, {min(intake.parts)} to "
                f"{max(intake.parts)}; {found['users']:,} users, {found['items']:,} items"
            ),
            f"click rate {found['click_rate']:.4f}, conversions per click {found['conversion_rate']:.4f}",
            f"exact duplicates {intake.duplicates:,}; quarantined {sum(quarantine_reasons(intake).values()):,}",
            *(f"  {reason}: {count:,}" for reason, count in quarantine_reasons(intake).items()),
            *_without_side_row(rows, known),
        ]
    return lines


def _without_side_row(rows: pl.LazyFrame, known: dict[str, pl.DataFrame]) -> list[str]:
    lines = []
    for key, frame in known.items():
        missing = rows.select(key).unique().join(frame.lazy().select(key), on=key, how="anti").collect().height
        lines.append(f"{key}s in the log without a row in the side table: {missing:,}")
    return lines
