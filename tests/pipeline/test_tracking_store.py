"""The workspace's registry is there as a whole or not at all."""

import sqlite3
from pathlib import Path

from pipeline import tracking
from pipeline.config import Config
from pipeline.workspace import Workspace


def test_a_database_that_a_kill_left_half_made_is_made_again(simulated_config: Config, tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / ".mlflow.db.draft")
    half.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    half.commit()
    half.close()
    (tmp_path / ".mlflow.db.draft-journal").write_bytes(b"an old journal")
    client = tracking.connect(simulated_config, Workspace(tmp_path))
    assert client.get_experiment_by_name("counterpoise") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]
    assert tracking.registered_records(simulated_config, Workspace(tmp_path)) == []
