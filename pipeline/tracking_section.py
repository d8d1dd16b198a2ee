"""The table [tracking] of a configuration file."""

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.sections import HIDDEN, Section
from pipeline.uris import holds_secret

ADVICE = (
    "holds a password, which would be recorded with every run: take it out and set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD (http, https) or PGPASSWORD (postgresql) in the environment, or use ~/.pgpass, or for "
    "mysql ?read_default_file=FILE"
)


class Tracking(Section):
    """Where MLflow keeps runs and models."""

    uri: str | None = Field(default=None, description="default: SQLite in the workspace; without a password")
    experiment: str = "counterpoise"
    model: str = Field(default="counterpoise", description="name of the registered model")

    @field_validator("uri", mode="before")
    @classmethod
    def _without_a_secret(cls, uri: Any) -> Any:
        if isinstance(uri, str) and holds_secret(uri):
            raise PydanticCustomError(HIDDEN, "{reason}", {"reason": ADVICE})
        return uri
