"""The figures of the evaluation report beyond its metrics: curves, segments, importance, data and versions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.inputs import Features
from pipeline.config import Config
from pipeline.curves import calibration_by_day, curves
from pipeline.feature_plan import plan_of
from pipeline.importance import feature_groups, importance
from pipeline.provenance import data_counts, versions
from pipeline.scored import Scored
from pipeline.scoring import PREDICT_PAIRS, Bundle
from pipeline.segments import segments
from pipeline.split import Days
from pipeline.workspace import Workspace


def figures(
    config: Config, workspace: Workspace, days: Days, folder: Path, bundle: Bundle, scored: Scored
) -> dict[str, Any]:
    """Return what the report draws of the test days; costs, beside some sorts, what `segments` and `importance` do.

    Raises:
        ValueError: a stage before is missing.
    """
    settings = {"replicates": config.evaluation.replicates, "seed": config.seed}
    found = {
        "curves": {name: curves(rows) for name, rows in scored.tasks().items()},
        "calibration_by_day": calibration_by_day(scored, **settings),
        "segments": segments(config, workspace, folder, scored),
        "data": data_counts(workspace, folder, days),
        "versions": versions(config, folder),
    }
    if config.evaluation.importance:
        found["importance"] = _importance(config, bundle, scored)
    return found


def _importance(config: Config, bundle: Bundle, scored: Scored) -> Mapping[str, list[dict[str, Any]]]:
    spec = bundle.ranker.spec
    outputs = {task: spec.outputs().index(f"p_{task}") for task in scored.labels}
    groups = feature_groups(spec, plan_of(config))

    def predicted(features: Features) -> NDArray[np.floating[Any]]:
        return bundle.predict(features, PREDICT_PAIRS)

    return importance(config, scored, groups, outputs, predicted)
