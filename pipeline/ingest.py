"""Ingest: labelled logs and side tables into Delta tables, one row an impression, nothing lost uncounted."""

import datetime as dt
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from features.schema import Contract, deduplicate, parse_interactions
from pipeline import tables
from pipeline.config import Config
from pipeline.readers import find_files, read_chunks
from pipeline.side_tables import read_side_table
from pipeline.stage import LOG, Outcome, progress, uninterrupted
from pipeline.workspace import Workspace

QUARANTINE_SCHEMA = {"reason": pl.String, "file": pl.String, "row": pl.Int64, "record": pl.String}


@dataclass
class Intake:
    """What was read so far: rows by day on disk, rejected rows in memory."""

    spill: Path
    rows: int = 0
    duplicates: int = 0
    files: set[str] = field(default_factory=set)
    parts: dict[dt.date, list[Path]] = field(default_factory=dict)
    rejected: list[pl.DataFrame] = field(default_factory=list)


def contract_of(config: Config) -> Contract:
    """Return the contract that the configuration asks of a log."""
    return Contract(
        click=config.labels.click,
        conversion=config.labels.conversion,
        numeric_labels=tuple(config.labels.numeric),
        context=tuple(config.context.columns),
        hour=config.context.hour is not None,
        time_unit=config.source.time_unit,
        time_zone=config.source.time_zone,
        matures_after=_matures_after(config),
    )


def _matures_after(config: Config) -> dt.timedelta | None:
    """Return when labels are final: on receipt, unless the log says when each became known."""
    columns, labels = config.source.columns, config.labels
    if columns.click_known_at is None and columns.conversion_known_at is None:
        return None
    return labels.click_window + labels.conversion_window + labels.lateness


def ingest(config: Config, workspace: Workspace, source: Path) -> Outcome:
    """Write tables/interactions, tables/quarantine, tables/users and tables/items from a source.

    Text is read in chunks and spilled by business day; a day at a time is deduplicated, so memory holds one.
    Nothing is committed before all of the source has been read and checked.

    Raises:
        ValueError: the source breaks the contract beyond source.max_quarantine_share, or as a whole.
    """
    _check_data_set(config, workspace)
    sides = {
        name: read_side_table(source, table, key, config.source.time_unit, config.source.time_zone)
        for name, table, key in (("users", config.users, "user_id"), ("items", config.items, "item_id"))
        if table.file is not None
    }
    spill = workspace.table(".spill")
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True)
    try:
        intake = read_log(config, source, spill)
        _check_no_day_shrinks(config, workspace, intake)
        with uninterrupted():
            return _commit(config, workspace, intake, sides)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def read_log(config: Config, source: Path, spill: Path) -> Intake:
    """Read, type, check and deduplicate all interaction files into one Parquet file a day.

    Raises:
        ValueError: see `ingest`.
    """
    contract = contract_of(config)
    columns = _wanted(config, contract)
    intake = Intake(spill)
    assert config.source.interactions is not None, "a labelled log"
    files = find_files(source, config.source.interactions)
    for path in progress(files, "ingest"):
        intake.files.add(path.name)
        for chunk in read_chunks(path, columns):
            _take(chunk, contract, intake)
    for date in sorted(intake.parts):
        _deduplicate_day(date, intake)
    _check_quarantine(config, intake)
    _check_days(config, intake)
    _check_labels(config, intake)
    return intake


def quarantine_reasons(intake: Intake) -> dict[str, int]:
    """Count the rejected rows by reason, most frequent first."""
    counts: Counter[str] = Counter()
    for frame in intake.rejected:
        counts.update(frame["reason"].to_list())
    return dict(counts.most_common())


def _wanted(config: Config, contract: Contract) -> dict[str, list[str]]:
    columns = config.source.columns
    pairs = [
        (columns.user, "user_id"),
        (columns.item, "item_id"),
        (columns.event_time, "event_time"),
        (columns.received_time, "received_time"),
        (columns.impression, "impression_id"),
        (columns.click_known_at, "click_known_at"),
        (columns.conversion_known_at, "conversion_known_at"),
        (columns.value, "value"),
        *((name, name) for name in contract.context),
        *((name, name) for name in contract.label_columns()),
    ]
    wanted: dict[str, list[str]] = {}
    for column, name in pairs:
        if column is not None and name not in wanted.setdefault(column, []):
            wanted[column].append(name)
    return wanted


def _take(chunk: pl.DataFrame, contract: Contract, intake: Intake) -> None:
    intake.rows += chunk.height
    broken = chunk.filter(pl.col("broken").is_not_null())
    if broken.height:
        intake.rejected.append(_quarantined(broken.with_columns(pl.lit("no JSON object").alias("reason"))))
    whole = chunk.filter(pl.col("broken").is_null()).drop("broken")
    good, rejected = parse_interactions(whole, contract)
    if rejected.height:
        intake.rejected.append(_quarantined(rejected))
    for (date,), rows in good.partition_by("date", as_dict=True, maintain_order=True).items():
        parts = intake.parts.setdefault(date, [])
        path = intake.spill / f"{date}-{len(parts)}.parquet"
        rows.write_parquet(path, compression="lz4")
        parts.append(path)


def _quarantined(rejected: pl.DataFrame) -> pl.DataFrame:
    values = [name for name in rejected.columns if name not in QUARANTINE_SCHEMA]
    record = pl.struct(pl.col(name).cast(pl.String) for name in values).struct.json_encode()
    return rejected.select("reason", "file", "row", record.alias("record"))


def _deduplicate_day(date: dt.date, intake: Intake) -> None:
    kept, duplicates, repeats = deduplicate(pl.concat([pl.read_parquet(part) for part in intake.parts[date]]))
    intake.duplicates += duplicates
    if repeats.height:
        reason = pl.lit("repeats an impression with other values").alias("reason")
        intake.rejected.append(_quarantined(repeats.with_columns(reason)))
    path = intake.spill / f"{date}.parquet"
    kept.drop("file", "row").write_parquet(path, compression="lz4")
    for part in intake.parts[date]:
        part.unlink()
    intake.parts[date] = [path]


def _check_quarantine(config: Config, intake: Intake) -> None:
    if intake.rows == 0:
        raise ValueError(f"source {config.source.interactions} has no rows: correct --source or wait for the log")
    rejected = sum(frame.height for frame in intake.rejected)
    if rejected == 0:
        return
    first = intake.rejected[0].row(0, named=True)
    reasons = "; ".join(f"{reason}: {count}" for reason, count in quarantine_reasons(intake).items())
    where = f"the first in {first['file']} row {first['row']}"
    found = f"{rejected} of {intake.rows} rows are quarantined ({reasons}), {where}"
    ceiling = config.source.max_quarantine_share
    if not intake.parts:
        raise ValueError(f"{found}: no row is left; correct the source or the column mapping")
    if rejected > ceiling * intake.rows:
        raise ValueError(
            f"{found}: above source.max_quarantine_share = {ceiling}; correct the source or raise the share"
        )
    LOG.warning("ingest: %s; they lie in tables/quarantine", found)


def _check_days(config: Config, intake: Intake) -> None:
    dates = sorted(intake.parts)
    every = {dates[0] + dt.timedelta(days=n) for n in range((dates[-1] - dates[0]).days + 1)}
    empty = sorted(every - set(dates) - set(config.source.accepted_empty_days))
    if empty:
        raise ValueError(
            f"source has no rows on {', '.join(map(str, empty[:5]))} ({len(empty)} days between "
            f"{dates[0]} and {dates[-1]}): restore them or list them in source.accepted_empty_days"
        )


def _check_labels(config: Config, intake: Intake) -> None:
    labels = pl.scan_parquet([path for paths in intake.parts.values() for path in paths])
    counts = labels.select(pl.len().alias("rows"), pl.col("click", "conversion").sum()).collect().row(0, named=True)
    for label, rule in (("click", config.labels.click), ("conversion", config.labels.conversion)):
        if counts[label] in {0, counts["rows"]}:
            raise ValueError(
                f"labels.{label} = {rule!r} is true on {counts[label]} of {counts['rows']} rows: both "
                "classes are needed; correct the expression or the source"
            )


def _check_data_set(config: Config, workspace: Workspace) -> None:
    table = workspace.table("interactions")
    if tables.exists(table) and (kept := tables.metadata(table).get("data_set")) != config.name:
        raise ValueError(
            f"workspace {workspace.root} holds the data set {kept!r}, not {config.name!r}: give another --workspace"
        )


def _check_no_day_shrinks(config: Config, workspace: Workspace, intake: Intake) -> None:
    """Refuse a source that holds part of a day that the table holds whole: ingest replaces whole days."""
    table = workspace.table("interactions")
    if config.source.accept_fewer_rows or not tables.exists(table):
        return
    kept = tables.scan(table).group_by("date").len().collect()
    before = dict(zip(kept["date"].to_list(), kept["len"].to_list(), strict=True))
    for date, parts in sorted(intake.parts.items()):
        rows = pl.scan_parquet(parts).select(pl.len()).collect().item()
        if rows < before.get(date, 0):
            raise ValueError(
                f"source holds {rows} rows of {date}, tables/interactions {before[date]}: give all files of that day, "
                "or set source.accept_fewer_rows = true if the day was corrected"
            )


def _with_other_files(workspace: Workspace, intake: Intake, quarantine: pl.DataFrame) -> pl.DataFrame:
    """Keep what earlier ingests quarantined from files that this source does not hold."""
    table = workspace.table("quarantine")
    if not tables.exists(table):
        return quarantine
    kept = tables.scan(table).filter(~pl.col("file").is_in(sorted(intake.files))).collect()
    return pl.concat([kept, quarantine])


def _commit(config: Config, workspace: Workspace, intake: Intake, sides: dict[str, pl.DataFrame]) -> Outcome:
    note = {"data_set": config.name, "config_digest": config.digest()}
    quarantine = pl.concat([pl.DataFrame(schema=QUARANTINE_SCHEMA), *intake.rejected])
    dates = sorted(intake.parts)  # the one write that may be refused, hence the first
    frames = (pl.read_parquet(intake.parts[date][0]) for date in dates)
    rows = tables.write_days(workspace.table("interactions"), frames, dates, note=note)
    tables.write_all(workspace.table("quarantine"), _with_other_files(workspace, intake, quarantine), note)
    for name, frame in sides.items():
        tables.write_all(workspace.table(name), frame, note)
    assert rows + quarantine.height + intake.duplicates == intake.rows, "every row is kept, quarantined or a duplicate"
    return Outcome(
        rows_in=intake.rows,
        rows_out=rows,
        notes={
            "duplicates": intake.duplicates,
            "quarantined": quarantine.height,
            "reasons": quarantine_reasons(intake),
        },
    )
