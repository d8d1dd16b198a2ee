"""Inputs that many tests share: one small simulated source, and configurations of the examples."""

from pathlib import Path

import pytest

from pipeline.config import Config, load_config
from pipeline.simulate import simulate
from pipeline.world import SimulatorConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def simulated_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days of a world of 60 users and 50 items, whose days begin at UTC+8."""
    source = tmp_path_factory.mktemp("source") / "simulated"
    world = SimulatorConfig(
        users=60,
        items=50,
        days=5,
        requests_per_day=80,
        slots=5,
        click_rate=0.2,
        conversion_rate=0.3,
        time_zone="Asia/Shanghai",
    )
    simulate(world, source)
    return source


@pytest.fixture(scope="session")
def simulated_config() -> Config:
    """Return the example's configuration in the time zone of the simulated source."""
    return load_config(EXAMPLES / "simulated.toml", {"source.time_zone": "Asia/Shanghai"})
