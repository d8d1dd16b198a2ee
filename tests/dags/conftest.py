"""An Airflow that the tests of the DAG share, with nothing of the caller's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an Airflow home of its own with SQLite, no examples and no usage statistics."""
    home = tmp_path_factory.mktemp("airflow")
    # A developer's AIRFLOW__DATABASE__SQL_ALCHEMY_CONN would have the test migrate a database that is not its own.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "COUNTERPOISE"))}
    values = {
        **outside,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "SCARF_NO_ANALYTICS": "true",
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=values, check=True, capture_output=True)
    return values
