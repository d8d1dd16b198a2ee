"""Labels made again from tables/events: as they were known at a moment, or as they are known now."""

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl

from features.attribution import Windows
from pipeline import tables
from pipeline.attribute import ORDER, UNATTRIBUTED, Attributed, attribute
from pipeline.config import Config
from pipeline.draft import days_of_repeats, differing_days, table_schemas
from pipeline.event_log import DAY_ORDER, open_log
from pipeline.source_record import table_note
from pipeline.workspace import Workspace


@contextmanager
def labels_known_before(
    config: Config, workspace: Workspace, days: list[dt.date], cutoff: dt.datetime
) -> Iterator[dict[dt.date, Path]]:
    """Give files of the interactions of some days, from the events that were received before a moment.

    Args:
        config: the rules of attribution.
        workspace: holds tables/events.
        days: the days.
        cutoff: the moment.
    """
    with _scratch(workspace) as folder:
        yield _attributed(config, workspace, days, cutoff, folder).interactions


def relabel(config: Config, workspace: Workspace, days: list[dt.date]) -> list[dt.date]:
    """Attribute the events of some days again and write what differs; return the days whose interactions did."""
    with _scratch(workspace) as folder:
        found = _attributed(config, workspace, days, None, folder)
        changed: dict[str, list[dt.date]] = {}
        for name, files, columns, order in (
            ("unattributed", found.unattributed, list(UNATTRIBUTED), DAY_ORDER),
            ("interactions", found.interactions, table_schemas(config)["interactions"].names(), ORDER),
        ):
            differing = differing_days(workspace.table(name), files, columns, order)
            changed[name] = list(differing)
            if differing:
                frames = (pl.read_parquet(path, columns=columns) for path in differing.values())
                tables.write_days(workspace.table(name), frames, list(differing), note=table_note(config))
    return changed["interactions"]


def _attributed(
    config: Config, workspace: Workspace, days: list[dt.date], cutoff: dt.datetime | None, folder: Path
) -> Attributed:
    labels = config.labels
    windows = Windows(click=labels.click_window, conversion=labels.conversion_window, lateness=labels.lateness)
    log = open_log(config, workspace.table("events"), workspace.table("quarantine"))
    if cutoff is not None:
        assert log.stored is not None, "raw events have been ingested"
        log = replace(log, stored=log.stored.filter(pl.col("received_time") < cutoff))
    repeats = days_of_repeats(workspace.table("unattributed"))
    return attribute(log, days, windows, list(config.context.references()), folder, repeats)


@contextmanager
def _scratch(workspace: Workspace) -> Iterator[Path]:
    folder = workspace.table(".relabel")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
