"""Runs share tables/examples, so each reads the version that its own encoder made."""

import datetime as dt
import os
import signal
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.featurize import days_of, featurize, run_folder, table_versions
from pipeline.ingest import ingest
from pipeline.sections import Context
from pipeline.side_tables import read_side_table
from pipeline.stage import uninterrupted
from pipeline.workspace import Workspace, replaced_folder


def test_a_later_run_does_not_change_the_examples_of_an_earlier_one(
    simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    ingest(simulated_config, workspace, simulated_source)
    days = days_of(simulated_config, workspace, None)
    featurize(simulated_config, workspace, days)
    first = table_versions(run_folder(simulated_config, workspace, days))["examples"]
    rows = tables.scan(workspace.table("examples"), first).collect()
    other = simulated_config.model_copy(
        update={"features": simulated_config.features.model_copy(update={"bins": 3, "min_count": 9})}
    )
    featurize(other, workspace, days)
    second = table_versions(run_folder(other, workspace, days))["examples"]
    assert second != first
    assert tables.scan(workspace.table("examples"), first).collect().equals(rows)
    assert not tables.scan(workspace.table("examples"), second).collect().equals(rows)


def test_a_reference_that_was_never_shown_is_refused(
    simulated_config: Config, simulated_source: Path, tmp_path: Path
) -> None:
    mistyped = Context(columns={"position": "1", "surface": "hme"}, hour=20)
    config = simulated_config.model_copy(update={"context": mistyped})
    workspace = Workspace(tmp_path)
    ingest(config, workspace, simulated_source)
    with pytest.raises(ValueError, match=r"context\.columns\.surface = 'hme' does not occur on the training days"):
        featurize(config, workspace, days_of(config, workspace, None))


def test_an_interruption_waits_for_the_end_of_the_commits() -> None:
    reached: list[str] = []

    def handler(number: int, frame: object) -> None:
        raise InterruptedError(f"{number} {frame is None}")

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(InterruptedError):
            _interrupt_inside(reached)
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["the end"]


def _interrupt_inside(reached: list[str]) -> None:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")


def test_a_folder_lost_between_two_renames_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_text("kept")
    with pytest.raises(RuntimeError, match="broken off"):
        _break_off(folder)
    assert (folder / "weights").read_text() == "kept"


def _break_off(folder: Path) -> None:
    with replaced_folder(folder):
        raise RuntimeError("broken off")


def test_availability_falls_on_the_business_day(tmp_path: Path, simulated_config: Config) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,category,brand,price,title,available_from\na,c,b,1,t,2026-01-05T20:00:00Z\nb,c,b,1,t,2026-01-05\n"
    )
    frame = read_side_table(tmp_path, simulated_config.items, "item_id", "us", "Asia/Shanghai")
    assert frame["available_from"].to_list() == [dt.date(2026, 1, 6), dt.date(2026, 1, 5)]
    assert frame.schema["available_from"] == pl.Date
