"""MLflow: where runs are logged, versions registered and the champion named. Aliases only, never stages."""

import datetime as dt
import hashlib
import importlib.metadata
import logging
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from sqlalchemy.exc import SQLAlchemyError

from features.encoding import Encoder
from models.ranker import RankerSpec
from pipeline.config import Config
from pipeline.dataset import raw_numeric
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent
Client = MlflowClient
CHAMPION, CHALLENGER = "champion", "challenger"
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""Error codes of a name, version or alias that is not there."""
FILES_DIGEST = "files_sha256"
SQLITE = "sqlite:///"
METRIC_SIGNS = r"[^\w. :-]"
METRIC_PART_BYTES = 200
"""MLflow takes 250 characters; the parts around one that comes from the data need less than 50."""
METRICS_A_REQUEST = 1000
"""MLflow's own limit of a batch."""
EPOCH, DAY_MS = dt.date(1970, 1, 1), 86_400_000
NEEDED = ("mlflow", "numpy", "polars", "pyarrow", "pydantic", "safetensors", "torch", "deltalake", "rich")


@dataclass(frozen=True)
class Registered:
    """A version of the registered model and the folder that its files were brought to."""

    version: str
    folder: Path


def connect(config: Config, workspace: Workspace) -> MlflowClient:
    """Point MLflow at the configured store, or at SQLite in the workspace, and make the experiment.

    Raises:
        ValueError: the store does not answer.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    if config.tracking.uri is None:
        _make_store(workspace.root.resolve())
    uri = _point(config, workspace)
    try:
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            local = (workspace.root.resolve() / "mlartifacts").as_uri() if config.tracking.uri is None else None
            mlflow.create_experiment(config.tracking.experiment, artifact_location=local)
        mlflow.set_experiment(config.tracking.experiment)
    except (MlflowException, SQLAlchemyError) as error:
        raise ValueError(f"tracking store {uri} does not answer: {error}; correct tracking.uri") from error
    return MlflowClient()


def connect_to_read(config: Config, workspace: Workspace) -> MlflowClient | None:
    """Point MLflow at the configured store without making anything; None where there is none yet.

    Raises:
        ValueError: the store does not answer.
    """
    uri = _point(config, workspace)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None
    try:
        client = MlflowClient()
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise ValueError(f"tracking store {uri} does not answer: {error}; correct tracking.uri") from error
    return client


def _point(config: Config, workspace: Workspace) -> str:
    """Point MLflow at the configured store, or at SQLite in the workspace, and return its URI."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = config.tracking.uri or f"{SQLITE}{workspace.root.resolve() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return uri


def _make_store(root: Path) -> None:
    """Make the workspace's database as a whole: MLflow opens none that a kill left between two of its migrations."""
    path, draft = root / "mlflow.db", root / ".mlflow.db.draft"
    if path.exists():
        return
    for left in root.glob(f"{draft.name}*"):  # an old journal would be taken for the new draft's
        left.unlink()
    SqlAlchemyStore(f"sqlite:///{draft}", (root / "mlartifacts").as_uri()).engine.dispose()
    draft.replace(path)


def champion_version(config: Config, client: MlflowClient) -> str | None:
    """Return the version that is champion, or None where there is none yet."""
    try:
        return str(client.get_model_version_by_alias(config.tracking.model, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def champion(config: Config, client: MlflowClient, folder: Path) -> Registered | None:
    """Bring the champion's files into a folder, or return None where there is no champion yet.

    Raises:
        ValueError: as `fetch`.
    """
    version = champion_version(config, client)
    return None if version is None else fetch(config, client, version, folder)


def fetch(config: Config, client: MlflowClient, version: str, folder: Path) -> Registered:
    """Bring a version's files into a folder and compare them with the digest that was recorded of them.

    A version of a release that recorded none is checked by its weights alone, when they are loaded.

    Raises:
        ValueError: there is no such version, or its files are not those that were registered.
    """
    name = config.tracking.model
    recorded = version_tags(config, client, version).get(FILES_DIGEST)
    root = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(folder))
    files = Path(root) / "artifacts" / "model"
    if recorded is not None and files_digest(files) != recorded:
        raise ValueError(
            f"files of version {version} of {name!r} are not those that were registered (sha256 differs): roll back to "
            "another version, or restore its artifacts"
        )
    return Registered(version, files)


def files_digest(folder: Path) -> str:
    """Return one SHA-256 over the names and bytes of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def version_tags(config: Config, client: MlflowClient, version: str) -> dict[str, str]:
    """Return the tags of a version.

    Raises:
        ValueError: there is no such version.
    """
    try:
        return dict(client.get_model_version(config.tracking.model, version).tags)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise ValueError(
            f"{config.tracking.model!r} has no version {version}: `counterpoise history` shows those that it has"
        ) from error


def run_tags(config: Config, client: MlflowClient, version: str) -> dict[str, str]:
    """Return what `log_version` recorded of the run that made a version; {} where that run is gone."""
    run = client.get_model_version(config.tracking.model, version).run_id
    try:
        return dict(client.get_run(run).data.tags) if run else {}
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return {}


def registered_records(config: Config, workspace: Workspace) -> list[dict[str, str]]:
    """Return what `log_version` recorded of the runs that made the registered versions of all models in the store."""
    client = connect_to_read(config, workspace)
    if client is None:
        return []
    made_by = sorted({version.run_id for version in mlflow.search_model_versions() if version.run_id})
    return [dict(client.get_run(run).data.tags) for run in made_by]


def signature(spec: RankerSpec, encoder: Encoder) -> ModelSignature:
    """Return the raw features that a model takes and the probabilities that it gives."""
    inputs = [
        *(ColSpec(DataType.string, name, required=False) for name in spec.single),
        *(ColSpec(DataType.double, name, required=False) for name in raw_numeric(spec, encoder)),
        *(ColSpec(Array(DataType.string), name, required=False) for name in encoder.lists),
    ]
    outputs = [ColSpec(DataType.float, name) for name in spec.outputs()]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def log_version(
    config: Config,
    *,
    model: Path,
    sign: ModelSignature,
    metrics: dict[str, float],
    record: dict[str, Any],
    files: list[Path],
) -> str:
    """Log a run with its parameters, metrics and report, register its model and return the version."""
    # The signature is given, so neither an example nor type hints are needed to find one.
    for message in (".*[Tt]ype hint", ".*input example"):
        warnings.filterwarnings("ignore", message=message, module="mlflow")
    requirements = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in NEEDED]
    with mlflow.start_run(run_name=record["run"]):
        mlflow.log_params({key: str(value)[:500] for key, value in flatten(config.model_dump(mode="json")).items()})
        mlflow.log_metrics(metrics)
        mlflow.set_tags({key: str(value) for key, value in record.items()})
        for path in files:
            mlflow.log_artifact(str(path))
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"model": str(model)},
            code_paths=[str(ROOT / package) for package in ("features", "models", "pipeline")],
            signature=sign,
            pip_requirements=requirements,
            registered_model_name=config.tracking.model,
        )
    version = str(info.registered_model_version)
    MlflowClient().set_model_version_tag(config.tracking.model, version, FILES_DIGEST, files_digest(model))
    return version


def log_file(config: Config, client: MlflowClient, version: str, path: Path) -> None:
    """Log a file to the run that made a version."""
    run = client.get_model_version(config.tracking.model, version).run_id
    assert run is not None
    client.log_artifact(run, str(path))


def log_figures(config: Config, client: MlflowClient, version: str, figures: dict[str, float]) -> None:
    """Log metrics to the run that made a version, under names of `metric_name`."""
    run = client.get_model_version(config.tracking.model, version).run_id
    assert run is not None
    now = int(time.time() * 1000)
    _log_metrics(client, run, [Metric(name, value, now, 0) for name, value in figures.items()])


def metric_name(*parts: str) -> str:
    """Return a name that MLflow takes for a metric, its parts joined by slashes.

    What MLflow refuses within a part, slashes too, becomes an underscore, and a long part is cut. Such a part ends in a
    digest of what it was, so that parts of the data (a surface may be a URL) that differ never share a name.
    """
    return "/".join(_metric_part(part) for part in parts)


def _metric_part(part: str) -> str:
    clean = "_" if part in {"", ".", ".."} else re.sub(METRIC_SIGNS, "_", part)
    if clean == part and len(part.encode()) <= METRIC_PART_BYTES:
        return part
    digest = f"-{hashlib.sha256(part.encode()).hexdigest()[:8]}"
    return clean.encode()[: METRIC_PART_BYTES - len(digest)].decode(errors="ignore") + digest


def _log_metrics(client: MlflowClient, run: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), METRICS_A_REQUEST):
        client.log_batch(run, metrics=metrics[start : start + METRICS_A_REQUEST])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def log_days(config: Config, client: MlflowClient, figures: dict[dt.date, dict[str, float]]) -> int:
    """Log figures of days to the run named 'watch' of this data set and model, the step being days since 1970.

    A figure that the run has for a day already stays as it is, so that a rerun doubles nothing. Returns how many were
    logged.
    """
    run = _watch_run(config, client)
    known: dict[str, set[int]] = {}
    metrics = []
    for day, values in figures.items():
        step = (day - EPOCH).days
        for name, value in values.items():
            key = metric_name(*name.split("/"))
            if key not in known:
                known[key] = {metric.step for metric in client.get_metric_history(run, key)}
            if step not in known[key]:
                metrics.append(Metric(key, value, step * DAY_MS, step))
    _log_metrics(client, run, metrics)
    return len(metrics)


def _watch_run(config: Config, client: MlflowClient) -> str:
    """Return the id of the run named 'watch' of this data set and model, and make it where there is none.

    Others may share the experiment: their days are the same and their figures are not.
    """
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None, "connect makes it"
    number = experiment.experiment_id
    tags = {"data_set": config.name, "model": config.tracking.model}
    for run in client.search_runs([number], "attributes.run_name = 'watch'", order_by=["attributes.start_time ASC"]):
        if tags.items() <= run.data.tags.items():
            return str(run.info.run_id)
    made = client.create_run(number, run_name="watch", tags=tags).info.run_id
    client.set_terminated(made)
    return str(made)
