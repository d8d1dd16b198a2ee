"""Diagnose: what gates, experts and tasks of a run's ranker do, and the verdicts on seesaw and collapse."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from models.diagnostics import Activations, activations, dead_share, gate_use, gates_of, gradient_cosines, linear_cka
from models.inputs import Features
from models.losses import Targets
from models.ranker import Ranker, predict
from pipeline import tables, verdicts
from pipeline.config import Config
from pipeline.control import load_control, why_no_control
from pipeline.dataset import Examples, examples_from
from pipeline.featurize import run_folder, table_versions
from pipeline.fit import PREDICT_ROWS
from pipeline.metrics import Floats
from pipeline.objective import ranker_losses
from pipeline.scored import Scored
from pipeline.significance import contrast, holm, least_replicates, replicate_metrics
from pipeline.split import Days
from pipeline.workspace import Workspace

SAMPLE_ROWS = 8192
BATCHES = 8
CONVERSION_LOSSES = ("click_and_conversion", "conversion")
"""Of which the first that the model has is held against that of the click."""
REPORTED = ("gates", "cka", "dead_units", "gradient_cosine", "seesaw", "verdicts")
"""What evaluation.json keeps; evaluation/diagnostics.json has all."""


@dataclass(frozen=True)
class Evaluated:
    """The test days as evaluate measured them.

    Attributes:
        scored: labels and the model's predictions.
        at_reference: by task its predictions with the context at its reference values, as ranking makes them: (N,).
        tasks: by task and metric an interval.
    """

    scored: Scored
    at_reference: Mapping[str, Floats]
    tasks: Mapping[str, Mapping[str, Mapping[str, float]]]


def diagnose(config: Config, workspace: Workspace, days: Days, ranker: Ranker, tested: Evaluated) -> dict[str, Any]:
    """Return the diagnostics of a run's ranker and the verdicts on it, see `REPORTED`.

    Gates, experts and gradients are those of at most 8192 validation impressions, drawn by the configuration's seed,
    with their labels as the run's table has them. The seesaw is measured on the test days, by both rankers' own
    probabilities: neither is calibrated. Costs two predictions of the test days and a bootstrap a task.

    Raises:
        ValueError: train has not run, or the control is not the one it made.
    """
    folder = run_folder(config, workspace, days)
    examples = _sample(config, workspace, days, ranker)
    found = model_figures(ranker, examples.features, examples.supervision.targets, config.seed)
    control, scored = load_control(folder), tested.scored
    found["seesaw"] = {}
    if control is not None:
        found["seesaw"] = seesaw_differences(config, scored, _predicted(ranker, scored), _predicted(control, scored))
    found["verdicts"] = [verdict.as_dict() for verdict in judge(config, found, tested)]
    return found


def model_figures(ranker: Ranker, features: Features, targets: Targets, seed: int) -> dict[str, Any]:
    """Return what diagnostics need no test day for: gates, cka, dead_units and gradient_cosine of some rows."""
    networks = activations(ranker, features)
    body = [network for network in networks if network.part == "body"]
    names = _expert_names(ranker, body)
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    batches = [
        (features.slice(part), targets.select(part, torch.device("cpu")))
        for part in torch.tensor_split(rows, min(BATCHES, len(features)))
    ]
    cosines = gradient_cosines(ranker, batches, ranker_losses)
    joint = next(("click", name) for name in CONVERSION_LOSSES if ("click", name) in cosines)
    return {
        "rows": len(features),
        "gates": _gates(ranker, features),
        "cka": [
            {"level": number + 1, "experts": experts, "similarity": _plain(linear_cka(network.layers[-1]))}
            for number, (network, experts) in enumerate(zip(body, names, strict=True))
            if len(experts) > 1
        ],
        "dead_units": _dead_units(networks, [*names, *[ranker.spec.tasks()] * (len(networks) - len(body))]),
        "gradient_cosine": {kind: asdict(cosine) for kind, cosine in cosines[joint].items()},
        "gradient_cosine_of_pairs": [
            {"tasks": list(pair), **{kind: asdict(cosine) for kind, cosine in kinds.items()}}
            for pair, kinds in cosines.items()
        ],
    }


def seesaw_differences(
    config: Config, scored: Scored, joint: Mapping[str, Floats], control: Mapping[str, Floats]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by task and metric the interval of joint minus control, paired by impression and by resampled user.

    Both hold a probability for each task and test impression, (N,). The figures that the verdict looks at also have
    `p_holm`, adjusted for their number. There are at least twice the resamples that an adjusted p below 0.05 needs.
    """
    looked_at = [(task, metric) for task in scored.spaces for metric in verdicts.NAMES]
    replicates = max(config.evaluation.replicates, 2 * least_replicates(len(looked_at)))
    differences = {}
    for task, space in scored.spaces.items():
        measured = replicate_metrics(
            labels=scored.labels[task][space],
            users=scored.users[space],
            predictions={"joint": [joint[task][space]], "control": [control[task][space]]},
            replicates=replicates,
            seed=config.seed,
        )
        found = contrast([(1, measured["joint"]), (-1, measured["control"])])
        differences[task] = {name: estimate.as_dict() for name, estimate in found.items()}
    adjusted = holm([differences[task][metric]["p"] for task, metric in looked_at])
    for (task, metric), p_holm in zip(looked_at, adjusted, strict=True):
        differences[task][metric]["p_holm"] = p_holm
    return differences


def logged(diagnostics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the metrics and the tags that MLflow keeps of evaluation.json's diagnostics."""
    metrics: dict[str, float | None] = {}
    for level in diagnostics["gates"]:
        for number, gate in enumerate(level["gates"]):
            name = f"gates/level_{level['level']}/{gate}"
            metrics[f"{name}/entropy"] = level["entropy"][number]
            metrics[f"{name}/normalised_entropy"] = level["normalised_entropy"][number]
            for expert, weight in zip(level["experts"], level["utilisation"][number], strict=True):
                metrics[f"{name}/utilisation/{expert}"] = weight
    for row in diagnostics["dead_units"]:
        metrics[f"dead_units/{row['layer']}/{row['expert']}"] = row["share"]
    for kind, cosine in diagnostics["gradient_cosine"].items():
        metrics |= {f"gradient_cosine/{kind}/{key}": value for key, value in cosine.items()}
    for task, differences in diagnostics["seesaw"].items():
        metrics |= {f"seesaw/{task}/{name}": differences[name]["value"] for name in verdicts.NAMES}
    kept = {f"diagnostics/{name}".replace(" ", "_"): value for name, value in metrics.items() if value is not None}
    return kept, {f"verdict_{verdict['name']}": verdict["sentence"] for verdict in diagnostics["verdicts"]}


def judge(config: Config, found: Mapping[str, Any], tested: Evaluated) -> list[verdicts.Verdict]:
    """Return the verdicts on a model's figures and on the test days, in a fixed order."""
    scored = tested.scored
    counts = {task: (int(rows.labels.sum()), int((~rows.labels).sum())) for task, rows in scored.tasks().items()}
    missing = why_no_control(config) or "the run was trained before there were controls"
    return [
        verdicts.seesaw(found["seesaw"], missing),
        verdicts.constant_predictions(
            {task: _spread(scored, task, tested.at_reference[task]) for task in scored.labels}
        ),
        verdicts.dead_task(tested.tasks, counts),
        verdicts.one_expert(found["gates"]),
        verdicts.experts_alike(found["cka"]),
        verdicts.dead_units(found["dead_units"]),
    ]


def _spread(scored: Scored, task: str, probabilities: Floats) -> float:
    """Return the standard deviation of a task's predictions in its space over rate x (1 - rate) of its labels."""
    rows = scored.task(task)
    rate = float(rows.labels.mean())
    return float(probabilities[scored.spaces[task]].std()) / (rate * (1 - rate))


def _sample(config: Config, workspace: Workspace, days: Days, ranker: Ranker) -> Examples:
    version = table_versions(run_folder(config, workspace, days))["examples"]
    found = tables.scan(workspace.table("examples"), version).filter(pl.col("date").is_in(days.validation))
    frame = found.collect().sort("impression_id")
    generator = np.random.default_rng(config.seed)
    rows = generator.choice(frame.height, size=min(SAMPLE_ROWS, frame.height), replace=False)
    return examples_from(frame[np.sort(rows)], ranker.spec, None)


def _gates(ranker: Ranker, features: Features) -> list[dict[str, Any]]:
    found = []
    for number, (level, gates) in enumerate(zip(ranker.gate_levels(), gates_of(ranker, features), strict=True)):
        use = gate_use(gates, level.visible_NE)
        found.append(
            {
                "level": number + 1,
                "gates": level.gates,
                "experts": level.experts,
                "utilisation": _plain(use.utilisation_NE),
                "entropy": _plain(use.entropy_N),
                "normalised_entropy": _plain(use.normalised_entropy_N),
            }
        )
    return found


def _expert_names(ranker: Ranker, body: list[Activations]) -> list[list[str]]:
    """Name the networks of each level of the body: experts of gates, else one a task, else a shared one."""
    if names := ranker.expert_names():
        assert len(names) == len(body)
        return names
    tasks = ranker.spec.tasks()
    return [tasks if network.layers[-1].shape[1] == len(tasks) else ["shared 1"] for network in body]


def _dead_units(networks: list[Activations], names: list[list[str]]) -> list[dict[str, Any]]:
    rows = []
    level = 0
    for network, experts in zip(networks, names, strict=True):
        level += network.part == "body"
        part = f"level {level}" if network.part == "body" else verdicts.TOWER
        for number, layer in enumerate(network.layers):
            shares: list[float] = dead_share(layer).tolist()
            rows += [
                {"layer": f"{part} layer {number + 1}", "expert": expert, "share": share}
                for expert, share in zip(experts, shares, strict=True)
            ]
    return rows


def _predicted(ranker: Ranker, scored: Scored) -> dict[str, Floats]:
    outputs = np.concatenate([predict(ranker, day, PREDICT_ROWS) for day in scored.features]).astype(np.float64)
    return {task: outputs[:, ranker.spec.outputs().index(f"p_{task}")] for task in scored.labels}


def _plain(values: torch.Tensor) -> Any:
    """Return numbers for JSON, which has no NaN."""
    return _without_nan(values.tolist())


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if math.isnan(values) else values
