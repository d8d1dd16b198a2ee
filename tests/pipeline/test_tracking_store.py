"""The workspace's registry is there as a whole or not at all."""

import datetime as dt
import sqlite3
from pathlib import Path

from pipeline import tracking
from pipeline.config import Config, load_config
from pipeline.gate import Judgement
from pipeline.gate_checks import Check
from pipeline.register import figures_of
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


SURFACES = [
    "https://shop.example/a",
    "https:__shop.example_a",
    "a/../b",
    "a/b",
    "a_b",
    "a_b:",
    "首页 / 推荐",
    "",
    "x" * 300 + "1",
    "x" * 300 + "2",
    "推" * 300,
    "100 % @ home\n",
]


def test_figures_of_any_surface_are_logged_each_under_its_own_name(simulated_config: Config, tmp_path: Path) -> None:
    client = tracking.connect(simulated_config, Workspace(tmp_path))
    experiment = client.get_experiment_by_name(simulated_config.tracking.experiment)
    assert experiment is not None
    run, model = client.create_run(experiment.experiment_id).info.run_id, simulated_config.tracking.model
    client.create_registered_model(model)
    client.create_model_version(model, tmp_path.as_uri(), run)
    checks = [
        Check(
            name=f"page {value}: click log-loss", verdict="failed", challenger=float(n), reference=0.5, difference=0.1
        )
        for n, value in enumerate(SURFACES)
    ]
    figures = figures_of(Judgement("failed", "", "version 1", None, checks))
    tracking.log_figures(simulated_config, client, "1", figures)
    logged = client.get_run(run).data.metrics
    assert logged == figures
    assert len(logged) == 4 * len(SURFACES)
    assert sorted(v for name, v in logged.items() if name.endswith("/challenger")) == [float(n) for n in range(12)]
    assert logged["gate/page a_b: click log-loss/challenger"] == 4.0
    assert all(name.count("/") == 2 for name in logged)


def test_more_figures_than_a_request_takes_are_all_logged(simulated_config: Config, tmp_path: Path) -> None:
    client = tracking.connect(simulated_config, Workspace(tmp_path))
    figures = {f"figure {n}": float(n) for n in range(1001)}
    assert tracking.log_days(simulated_config, client, {dt.date(2026, 1, 5): figures}) == 1001


def test_data_sets_and_models_that_share_a_store_each_have_their_watch(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "simulated.toml"
    shared = {"tracking.uri": f"sqlite:///{tmp_path / 'shared.db'}"}
    others = ({}, {"name": "shop"}, {"tracking.model": "other"})
    configs = [load_config(example, {**shared, **other}) for other in others]
    client = tracking.connect(configs[0], Workspace(tmp_path))
    day = dt.date(2026, 1, 5)
    for value, config in enumerate(configs):
        assert tracking.log_days(config, client, {day: {"pcoc/click": float(value)}}) == 1
        assert tracking.log_days(config, client, {day: {"pcoc/click": 9.0}}) == 0
    experiment = client.get_experiment_by_name(configs[0].tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'watch'")
    told = {(one.data.tags["data_set"], one.data.tags["model"]): one.data.metrics["pcoc/click"] for one in runs}
    assert told == {(config.name, config.tracking.model): float(n) for n, config in enumerate(configs)}
