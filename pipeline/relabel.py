"""Labels made again from tables/events: as they were known at a moment, or as they are known now."""

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.attribution import Windows
from pipeline import tables
from pipeline.attribute import ORDER, Attributed, Rules, attribute
from pipeline.config import Config
from pipeline.day_files import Work
from pipeline.draft import days_of_repeats, differing_days, table_schemas
from pipeline.engine import open_engine
from pipeline.event_log import DAY_ORDER, open_log
from pipeline.source_record import table_note
from pipeline.workspace import Workspace


@contextmanager
def labels_known_before(
    config: Config, workspace: Workspace, days: list[dt.date], cutoff: dt.datetime
) -> Iterator[dict[dt.date, Path]]:
    """Give files of the interactions of some days, from the events that were received before a moment.

    The files lack the column `date`.

    Args:
        config: the rules of attribution.
        workspace: holds tables/events.
        days: the days.
        cutoff: the moment.
    """
    with _work(config, workspace, within=None) as work:
        yield _attributed(config, workspace, days, cutoff, work).interactions


def relabel(config: Config, workspace: Workspace, days: list[dt.date]) -> list[dt.date]:
    """Attribute the events of some days again and write what differs; return the days whose interactions did."""
    schemas = table_schemas(config)
    with _work(config, workspace, within=workspace) as work:
        found = _attributed(config, workspace, days, None, work)
        changed: dict[str, list[dt.date]] = {}
        for name, files, order in (
            ("unattributed", found.unattributed, DAY_ORDER),
            ("interactions", found.interactions, ORDER),
        ):
            differing = differing_days(work.engine, workspace.table(name), files, schemas[name], order)
            changed[name] = list(differing)
            if differing:
                work.commits(differing.values())
                tables.commit_files(workspace.table(name), differing, schemas[name], note=table_note(config))
    return changed["interactions"]


def _attributed(
    config: Config, workspace: Workspace, days: list[dt.date], cutoff: dt.datetime | None, work: Work
) -> Attributed:
    labels = config.labels
    windows = Windows(click=labels.click_window, conversion=labels.conversion_window, lateness=labels.lateness)
    log = open_log(config, workspace.table("events"), workspace.table("quarantine"))
    assert log.stored or cutoff is None, "raw events have been ingested"
    log.known_before = cutoff
    repeats = days_of_repeats(workspace.table("unattributed"))
    return attribute(log, days, Rules(windows, list(config.context.references())), work, repeats)


@contextmanager
def _work(config: Config, workspace: Workspace, within: Workspace | None) -> Iterator[Work]:
    """Give a folder to work in; files of days go into a workspace's tables, or are lost with the folder."""
    folder = workspace.table(".relabel")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open_engine(config) as engine:
        work = Work(engine, folder, folder if within is None else within.root / "tables")
        try:
            yield work
        finally:
            work.clear()
            shutil.rmtree(folder, ignore_errors=True)
