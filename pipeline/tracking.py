"""MLflow: where runs are logged, versions registered and the champion named. Aliases only, never stages."""

import importlib.metadata
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from features.encoding import Encoder
from models.ranker import RankerSpec
from pipeline.config import Config
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent
CHAMPION, CHALLENGER = "champion", "challenger"
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
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    workspace.root.mkdir(parents=True, exist_ok=True)
    if config.tracking.uri is None:
        _make_store(workspace.root.resolve())
    uri = config.tracking.uri or f"sqlite:///{workspace.root.resolve() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    try:
        if mlflow.get_experiment_by_name(config.tracking.experiment) is None:
            local = (workspace.root.resolve() / "mlartifacts").as_uri() if config.tracking.uri is None else None
            mlflow.create_experiment(config.tracking.experiment, artifact_location=local)
        mlflow.set_experiment(config.tracking.experiment)
    except MlflowException as error:
        raise ValueError(f"tracking store {uri} does not answer: {error}; correct tracking.uri") from error
    return MlflowClient()


def _make_store(root: Path) -> None:
    """Make the workspace's database as a whole: MLflow opens none that a kill left between two of its migrations."""
    path, draft = root / "mlflow.db", root / ".mlflow.db.draft"
    if path.exists():
        return
    for left in root.glob(f"{draft.name}*"):  # an old journal would be taken for the new draft's
        left.unlink()
    SqlAlchemyStore(f"sqlite:///{draft}", (root / "mlartifacts").as_uri()).engine.dispose()
    draft.replace(path)


def champion(config: Config, client: MlflowClient, folder: Path) -> Registered | None:
    """Bring the champion's files into a folder, or return None where there is no champion yet."""
    try:
        found = client.get_model_version_by_alias(config.tracking.model, CHAMPION)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
    root = mlflow.artifacts.download_artifacts(f"models:/{config.tracking.model}/{found.version}", dst_path=str(folder))
    return Registered(str(found.version), Path(root) / "artifacts" / "model")


def registered_records(config: Config, workspace: Workspace) -> list[dict[str, str]]:
    """Return what `log_version` recorded of the runs that made the registered versions of all models in the store."""
    if config.tracking.uri is None and not (workspace.root / "mlflow.db").exists():
        return []
    client = connect(config, workspace)
    made_by = sorted({version.run_id for version in mlflow.search_model_versions() if version.run_id})
    return [dict(client.get_run(run).data.tags) for run in made_by]


def signature(spec: RankerSpec, encoder: Encoder) -> ModelSignature:
    """Return the raw features that a model takes and the probabilities that it gives."""
    inputs = [
        *(ColSpec(DataType.string, name, required=False) for name in spec.single),
        *(ColSpec(DataType.double, name, required=False) for name in spec.numeric),
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
    return str(info.registered_model_version)


def log_file(config: Config, client: MlflowClient, version: str, path: Path) -> None:
    """Log a file to the run that made a version."""
    run = client.get_model_version(config.tracking.model, version).run_id
    assert run is not None
    client.log_artifact(run, str(path))


def decide(config: Config, client: MlflowClient, version: str, decision: dict[str, str], *, promoted: bool) -> None:
    """Write the decision on a version as tags and move the aliases."""
    name = config.tracking.model
    for key, value in decision.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, CHAMPION if promoted else CHALLENGER, version)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
