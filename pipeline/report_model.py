"""Sections of the HTML report about the model itself: what training saw, what gates and experts do, what is wrong."""

from collections.abc import Mapping
from typing import Any

from pipeline import charts
from pipeline.page import Alarm, Block, Chart, Missing, Section, Table, Text, anchor
from pipeline.report import SPACES, interval
from pipeline.report_quality import Runs, Values, defined, having, missing, sentence_case

CONFLICTS = (
    "Cosine of the tasks' gradients on shared parameters, and in how many batches it is below 0, where tasks pull apart"
)
TOTALS = ("training", "validation")
NORMAL_95 = 1.96
"""Standard errors from the mean to the bounds of a 95 % interval."""


def verdicts(runs: Runs) -> list[Block]:
    """Return the sentence of every verdict; those that alarm stand out."""
    blocks = missing(runs, "diagnostics", "the verdict on collapse and seesaw")
    for name, diagnostics in having(runs, "diagnostics").items():
        prefix = f"{name}: " if len(runs) > 1 else ""
        for verdict in sorted(diagnostics.get("verdicts", []), key=lambda verdict: not verdict["alarm"]):
            kind = Alarm if verdict["alarm"] else Text
            blocks.append(kind(prefix + str(verdict["sentence"])))
    return blocks


def experts_section(runs: Runs) -> Section:
    """Draw gates, likeness of experts, dead units, the angle of the tasks' gradients, and joint minus single-task."""
    blocks = missing(runs, "diagnostics", "the diagnosis of gates and experts")
    found = having(runs, "diagnostics")
    for number, (name, diagnostics) in enumerate(found.items()):
        of = f", {name}" if len(runs) > 1 else ""
        blocks += _gate_maps(number, of, diagnostics.get("gates") or [])
        blocks += _likeness_maps(number, of, diagnostics.get("cka") or [])
        blocks += _dead_units(number, of, diagnostics.get("dead_units") or [])
    return Section("Gates and experts", [*blocks, *_cosines(found), *_seesaw(found)])


def _gate_maps(number: int, of: str, levels: list[Values]) -> list[Block]:
    blocks: list[Block] = []
    for level in levels:
        spec = charts.heat_map(
            level["gates"], level["experts"], level["utilisation"], titles=("gate", "expert", "mean weight")
        )
        entropies = ", ".join(
            f"{gate} {value:.2f}"
            for gate, value in zip(level["gates"], level.get("normalised_entropy") or [], strict=False)
            if value is not None
        )
        note = f"; entropy over that of equal weights: {entropies}" if entropies else ""
        caption = f"Mean weight of each expert, level {level['level']}{of}{note}"
        blocks.append(Chart(spec, caption, f"gates-{number}-level-{level['level']}"))
    return blocks


def _likeness_maps(number: int, of: str, levels: list[Values]) -> list[Block]:
    return [
        Chart(
            charts.heat_map(
                level["experts"], level["experts"], level["similarity"], titles=("expert", "expert", "linear CKA")
            ),
            f"Likeness of the experts' outputs (linear CKA; 1 is alike), level {level['level']}{of}",
            f"cka-{number}-level-{level['level']}",
        )
        for level in levels
    ]


def _dead_units(number: int, of: str, rows: list[Values]) -> list[Block]:
    if not rows:
        return []
    share = {(str(row["layer"]), str(row["expert"])): row["share"] for row in rows}
    layers, experts = (list(dict.fromkeys(pair[n] for pair in share)) for n in (0, 1))
    values = [[share.get((layer, expert)) for expert in experts] for layer in layers]
    spec = charts.heat_map(layers, experts, values, titles=("layer", "expert", "share"))
    return [Chart(spec, f"Share of units that no row activates, by layer{of}", f"dead-units-{number}")]


def _cosines(found: Mapping[str, Values]) -> list[Block]:
    series: dict[str, list[Values]] = {}
    for name, diagnostics in found.items():
        for part, values in (diagnostics.get("gradient_cosine") or {}).items():
            mean, error = values.get("mean"), values.get("standard_error")
            if mean is not None:
                half = NORMAL_95 * (error or 0.0)
                label = f"{part} ({values['conflicts']:.0%})"
                row = {"name": label, "value": mean, "low": mean - half, "high": mean + half}
                series.setdefault(name, []).append(row)
    if not series:
        return []
    spec = charts.interval_dots(series, x="cosine, mean of batches")
    return [Chart(spec, CONFLICTS, "gradient-cosine")]


def _seesaw(found: Mapping[str, Values]) -> list[Block]:
    blocks: list[Block] = []
    for metric, title in {"auc": "AUC", "log_loss": "log-loss (nats)"}.items():
        series = {
            name: [
                row
                for task, metrics in (diagnostics.get("seesaw") or {}).items()
                for row in defined(metrics.get(metric), str(task).replace("_", " "))
            ]
            for name, diagnostics in found.items()
        }
        if any(series.values()):
            spec = charts.interval_dots(series, x=f"{title}, joint - single-task", reference=0.0)
            better = "above" if metric == "auc" else "below"
            caption = f"Joint model minus single-task models: {better} 0 the joint one is better"
            blocks.append(Chart(spec, caption, f"seesaw-{anchor(metric)}"))
    return blocks


def training_section(runs: Runs) -> Section:
    """Draw the losses of every epoch: training and validation, and each task's relative to the first epoch.

    What was trained for one epoch only is tabulated.
    """
    drawn: list[Block] = []
    single: dict[str, dict[str, float]] = {}
    for number, (name, run) in enumerate(runs.items()):
        of = f", {name}" if len(runs) > 1 else ""
        if run.training is None:
            drawn.append(Missing(f"Missing: the training curve of {name}. `counterpoise train` makes it."))
        for model, curve in _curves_of(run.training or {}).items():
            title = f"{model.replace('_', ' ')}{of}"
            if len(curve) == 1:
                single[title] = curve[0]
            else:
                drawn += _curve_charts(sentence_case(title), f"{number}-{anchor(model)}", curve)
    return Section("Training", [*_single_epochs(single), *drawn])


def _curves_of(training: Values) -> dict[str, list[dict[str, float]]]:
    """Return the curves by model, each point as a table; a bare number is the training loss."""
    found = {}
    for model, curve in training.items():
        if isinstance(curve, list) and curve:
            found[model] = [point if isinstance(point, dict) else {"training": point} for point in curve]
    return found


def _single_epochs(single: Mapping[str, Mapping[str, float]]) -> list[Block]:
    if not single:
        return []
    keys = list(dict.fromkeys(key for point in single.values() for key in sorted(point, key=_totals_first)))
    rows = [
        [title, *(f"{point[key]:.5f}" if point.get(key) is not None else "-" for key in keys)]
        for title, point in single.items()
    ]
    return [Table(["trained for one epoch", *(key.replace("_", " ") for key in keys)], rows, "Losses (nats)")]


def _totals_first(key: str) -> tuple[bool, str]:
    return key not in TOTALS, key


def _curve_charts(title: str, name: str, curve: list[dict[str, float]]) -> list[Block]:
    total = {key: points for key in TOTALS if (points := _points(curve, key))}
    relative = {
        key.replace("_", " "): [[epoch, value / points[0][1]] for epoch, value in points]
        for key in curve[0]
        if key not in TOTALS and (points := _points(curve, key)) and points[0][1] > 0
    }
    drawn = {
        "loss": ("loss (nats), weighted sum of the tasks", total),
        "tasks": ("validation loss / that of epoch 1", relative),
    }
    return [
        Chart(charts.lines(series, x="epoch", y=y, marked=True), f"{title}: {y}", f"training-{name}-{key}")
        for key, (y, series) in drawn.items()
        if series
    ]


def _points(curve: list[dict[str, float]], key: str) -> list[list[float]]:
    return [[n + 1, point[key]] for n, point in enumerate(curve) if point.get(key) is not None]


def baselines_section(runs: Runs) -> Section:
    """Tabulate the model beside its baselines, each task within its own space, and draw their AUC."""
    models = {
        (f"{label}, {name}" if len(runs) > 1 else label): tasks
        for name, run in runs.items()
        for label, tasks in _models(run.evaluation).items()
    }
    tables: list[Block] = []
    drawn: list[Block] = []
    for task, space in SPACES.items():
        rows = [[name, *(interval(tasks[task].get(m)) for m in _METRICS)] for name, tasks in models.items()]
        caption = f"{sentence_case(space)}; brackets are 95 % intervals"
        tables.append(Table(["", *_METRICS.values()], rows, caption))
        series = {"AUC": [row for name, tasks in models.items() for row in defined(tasks[task].get("auc"), name)]}
        spec = charts.interval_dots(series, x="AUC", reference=None)
        drawn.append(Chart(spec, f"AUC: {space}", f"baselines-{anchor(task)}"))
    return Section("Baselines", [*tables, *drawn])


_METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log-loss (nats)",
    "normalised_entropy": "normalised entropy",
    "pcoc": "PCOC",
    "ece": "ECE",
}


def _models(evaluation: Values) -> dict[str, Any]:
    found = {"model": evaluation["tasks"]}
    if reference := evaluation.get("context_at_reference"):
        found["model, context at reference"] = reference["tasks"]
    return found | {
        name.replace("_", " "): values["tasks"] for name, values in (evaluation.get("baselines") or {}).items()
    }
