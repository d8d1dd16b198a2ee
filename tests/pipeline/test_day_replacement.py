"""Ingest replaces whole days, so it refuses a source that holds a part of one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import Config
from pipeline.ingest import ingest
from pipeline.workspace import Workspace

Rows = list[dict[str, str]]


def test_a_part_of_a_day_does_not_replace_the_day(
    log_rows: Rows, make_config: Callable[..., Config], write_log: Callable[[str, Rows], Path], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    source = write_log("log.csv", log_rows)
    ingest(make_config(), workspace, source)
    version = tables.version(workspace.table("interactions"))
    write_log("log.csv", log_rows[:-1])
    with pytest.raises(
        ValueError, match=r"source holds \d rows of 2026-01-0\d, tables/interactions \d: give all files"
    ):
        ingest(make_config(), workspace, source)
    assert tables.version(workspace.table("interactions")) == version
    accepted = make_config(source={"accept_fewer_rows": True})
    assert ingest(accepted, workspace, source).rows_out == len(log_rows) - 1


def test_a_side_table_is_one_file(
    log_rows: Rows, make_config: Callable[..., Config], write_log: Callable[[str, Rows], Path], tmp_path: Path
) -> None:
    source = write_log("log.csv", log_rows)
    for name in ("users_a.csv", "users_b.csv"):
        (source / name).write_text("user_id\nu1\n")
    config = make_config(users={"file": "users_*.csv", "id": "user_id", "static": True})
    with pytest.raises(ValueError, match=r"users_\*\.csv matches users_a\.csv and users_b\.csv: name one file"):
        ingest(config, Workspace(tmp_path / "workspace"), source)
