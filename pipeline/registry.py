"""MLflow's registry: versions, aliases and tags of the registered model, and the lock to move the champion under."""

import datetime as dt
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.config import Config
from pipeline.tracking import ABSENT, CHALLENGER, CHAMPION, FILES_DIGEST, log_figures, version_tags

TAG_LENGTH = 5000
LOCK_EXPIRES_S, LOCK_POLL_S = 60.0, 0.2
"""A move takes a few requests, so well under a second on a healthy server."""


@dataclass(frozen=True)
class Version:
    """A registered version: when it was made (UTC), and its tags."""

    version: str
    made_at: dt.datetime
    tags: dict[str, str]


def versions(config: Config, client: MlflowClient) -> list[Version]:
    """Return all versions of the registered model, the oldest first."""
    found = mlflow.search_model_versions(filter_string=f"name='{config.tracking.model}'")
    made = [
        Version(
            str(one.version),
            dt.datetime.fromtimestamp(one.creation_timestamp / 1000, dt.UTC),
            dict(client.get_model_version(config.tracking.model, str(one.version)).tags),
        )
        for one in found
    ]
    return sorted(made, key=lambda one: int(one.version))


def version_made_by(config: Config, client: MlflowClient, run: str, digest: str) -> str | None:
    """Return the newest version that a run of stages has registered with these very files, None where there is none.

    The tags of the MLflow run count where the version has none: a kill may have come between the two.
    """
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None, "connect makes it"
    found = []
    for made in client.search_runs([experiment.experiment_id], f"tags.run = '{run}'"):
        own = f"name='{config.tracking.model}' and run_id='{made.info.run_id}'"
        for one in client.search_model_versions(own):
            tags = made.data.tags | version_tags(config, client, str(one.version))
            if tags.get(FILES_DIGEST) == digest:
                found.append(str(one.version))
    return max(found, key=int, default=None)


def log_again(
    config: Config,
    client: MlflowClient,
    version: str,
    *,
    metrics: dict[str, float],
    record: dict[str, Any],
    files: list[Path],
) -> None:
    """Log what a run says now of a version that it has registered before; see `pipeline.tracking.log_version`."""
    run = client.get_model_version(config.tracking.model, version).run_id
    assert run is not None
    for key, value in record.items():
        client.set_tag(run, key, str(value))
    log_figures(config, client, version, metrics)
    for path in files:
        client.log_artifact(run, str(path))
    tag_version(config, client, version, {FILES_DIGEST: record[FILES_DIGEST]})


def model_tags(config: Config, client: MlflowClient) -> dict[str, str]:
    """Return the tags of the registered model as a whole; {} before its first version."""
    try:
        return dict(client.get_registered_model(config.tracking.model).tags)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return {}


@contextmanager
def only_promoter(
    config: Config, client: MlflowClient, *, expires_s: float = LOCK_EXPIRES_S, wait_s: float = 3 * LOCK_EXPIRES_S
) -> Iterator[Callable[[], bool]]:
    """Let no other process that uses the registry move the champion until the block has ended.

    MLflow changes no alias on a condition, but keeps names of registered models unique: whoever makes the model
    `<name>-promotion-lock` holds the lock. One that a killed process left is taken over after `expires_s`, by a
    rename, so by one process. It gives a function that says whether the lock is still ours: a process that was held
    up for longer than that has lost it.

    Raises:
        ValueError: others held the lock for `wait_s`.
    """
    name, token = f"{config.tracking.model}-promotion-lock", uuid.uuid4().hex
    deadline = time.monotonic() + wait_s
    while not _made_lock(client, name, token):
        _break_old_lock(client, name, token, expires_s)
        if time.monotonic() > deadline:
            raise ValueError(f"registered model {name!r} is held by other promoters: try again, or delete it in MLflow")
        time.sleep(LOCK_POLL_S)
    try:
        yield lambda: _lock_token(client, name) == token
    finally:
        if _lock_token(client, name) == token:
            client.delete_registered_model(name)


def _made_lock(client: MlflowClient, name: str, token: str) -> bool:
    try:
        client.create_registered_model(name, tags={"token": token})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def _lock_token(client: MlflowClient, name: str) -> str | None:
    try:
        return dict(client.get_registered_model(name).tags).get("token")
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def _break_old_lock(client: MlflowClient, name: str, token: str, expires_s: float) -> None:
    try:
        made_ms = client.get_registered_model(name).creation_timestamp
        if time.time() - made_ms / 1000 > expires_s:
            client.rename_registered_model(name, f"{name}-{token}")
            client.delete_registered_model(f"{name}-{token}")
    except MlflowException as error:
        if error.error_code not in ABSENT:  # another process released it or took it over
            raise


def tag_version(config: Config, client: MlflowClient, version: str, tags: dict[str, str]) -> None:
    """Write tags on a version; MLflow keeps at most 5,000 characters of each."""
    for key, value in tags.items():
        client.set_model_version_tag(config.tracking.model, version, key, value[:TAG_LENGTH])


def set_alias(config: Config, client: MlflowClient, alias: str, version: str) -> None:
    """Point an alias at a version; a version that becomes champion is no challenger any more."""
    name = config.tracking.model
    client.set_registered_model_alias(name, alias, version)
    if alias == CHAMPION and client.get_registered_model(name).aliases.get(CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def tag_model(config: Config, client: MlflowClient, key: str, value: str) -> None:
    """Write a tag on the registered model as a whole; it is one that is read again, so it is not cut."""
    assert len(value) <= TAG_LENGTH
    client.set_registered_model_tag(config.tracking.model, key, value)
