"""Check: read a source as ingest would, and say what is in it without writing a table."""

import datetime as dt
import tempfile
from pathlib import Path

import polars as pl

from pipeline.config import Config
from pipeline.day_files import Work
from pipeline.draft import Draft, draft_of
from pipeline.engine import open_engine
from pipeline.ingest import CLOCK_TOLERANCE, check_gates, read_side, side_files, source_files
from pipeline.intake import quarantine_reasons
from pipeline.workspace import Workspace


def check(config: Config, source: str | Path, now: dt.datetime | None = None) -> list[str]:
    """Return lines on rows, days, rates, side tables, quarantined rows, unattributed events and gates.

    Args:
        config: the whole configuration.
        source: folder or URI of the files.
        now: the moment of the check, by default the clock.

    Raises:
        ValueError: what would stop ingest.
    """
    lines = [f"config {config.name!r} is valid (digest {config.digest()})"]
    known = {f"{name[:-1]}_id": read_side(config, source, name) for name in side_files(config, source)}
    for key, frame in known.items():
        lines.append(f"{key[:-3]}s: {frame.height:,} rows, {frame.width - 1} feature columns")
    latest = (now or dt.datetime.now(dt.UTC)) + CLOCK_TOLERANCE
    with tempfile.TemporaryDirectory() as folder:
        nowhere = Workspace(Path(folder) / "nothing")
        with open_engine(config) as engine:
            work = Work(engine, Path(folder), nowhere.root / "tables")
            draft = draft_of(config, nowhere, source_files(config, source), work, latest)
        check_gates(config, nowhere, draft.interactions, None)
        return [*lines, *_on_events(draft), *_on_interactions(draft, known)]


def _on_events(draft: Draft) -> list[str]:
    if not draft.events:
        return []
    kinds = ", ".join(f"{draft.notes[f'new_{kind}s']:,} {kind}s" for kind in ("impression", "click", "conversion"))
    return [
        f"events: {kinds}; {draft.notes['late']:,} later than labels.lateness",
        *(f"  unattributed {reason}: {count:,}" for reason, count in draft.notes["unattributed"].items()),
    ]


def _on_interactions(draft: Draft, known: dict[str, pl.DataFrame]) -> list[str]:
    lines = [
        f"exact duplicates {draft.intake.duplicates:,}; quarantined {draft.intake.quarantined():,}",
        *(f"  {reason}: {count:,}" for reason, count in quarantine_reasons(draft.intake).items()),
    ]
    if not draft.interactions:
        return [*lines, "interactions: none"]
    rows = pl.scan_parquet(list(draft.interactions.values()), hive_partitioning=False)
    counts = rows.select(
        pl.len().alias("rows"),
        pl.col("click").mean().alias("click_rate"),
        pl.col("conversion").filter(pl.col("click")).mean().alias("conversion_rate"),
        pl.col("user_id").n_unique().alias("users"),
        pl.col("item_id").n_unique().alias("items"),
    )
    found = counts.collect().row(0, named=True)
    days = sorted(draft.interactions)
    return [
        (
            f"interactions: {found['rows']:,} rows on {len(days)} days, {days[0]} to {days[-1]}; "
            f"{found['users']:,} users, {found['items']:,} items"
        ),
        f"click rate {found['click_rate']:.4f}, conversions per click {found['conversion_rate'] or 0:.4f}",
        *lines,
        f"gates: volume, click rate and conversion rate of {len(days)} days are within bounds",
        *_without_side_row(rows, known),
    ]


def _without_side_row(rows: pl.LazyFrame, known: dict[str, pl.DataFrame]) -> list[str]:
    lines = []
    for key, frame in known.items():
        missing = rows.select(key).unique().join(frame.lazy().select(key), on=key, how="anti").collect().height
        lines.append(f"{key}s in the log without a row in the side table: {missing:,}")
    return lines
