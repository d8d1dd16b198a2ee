"""Sections of the HTML report about predictions and lists: what was measured on the test days.

Each takes runs by the name that they have in the page, so that two runs are drawn over each other.
"""

from collections.abc import Mapping
from typing import Any

from pipeline import charts
from pipeline.page import Block, Chart, Missing, Section, Table, Text, anchor
from pipeline.report import HEADLINE, SPACES, interval
from pipeline.run_files import RunFiles

Runs = Mapping[str, RunFiles]
Values = dict[str, Any]

METRIC_TITLES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log-loss", "pcoc": "PCOC"}
NEUTRAL = {"auc": 0.5, "pcoc": 1.0}
UNIT = {"domain": [0, 1], "nice": False}
TOP_FEATURES = 20
EVALUATE = "Evaluating this run again makes it: `counterpoise evaluate` with the run's options"


def missing(runs: Runs, key: str, what: str) -> list[Block]:
    """Say which of the runs lack a key of their evaluation."""
    return [
        Missing(f"{what} of {name} is missing: {EVALUATE}.")
        for name, run in runs.items()
        if not run.evaluation.get(key)
    ]


def having(runs: Runs, key: str) -> dict[str, Any]:
    """Return a key of the evaluations that have it, by the run's name."""
    return {name: run.evaluation[key] for name, run in runs.items() if run.evaluation.get(key)}


def defined(row: Mapping[str, Any] | None, name: str) -> list[Values]:
    """Return an interval as a named row of a chart, none where it is undefined."""
    if row is None or any(row.get(key) is None for key in ("value", "low", "high")):
        return []
    return [{"name": name, "value": row["value"], "low": row["low"], "high": row["high"]}]


def sentence_case(text: str) -> str:
    """Return text that begins with a capital, the rest as it is."""
    return text[:1].upper() + text[1:]


def calibration_section(runs: Runs) -> Section:
    """Draw observed over predicted rates, their ratio by decile of the prediction and by day."""
    curves = having(runs, "curves")
    blocks: list[Block] = [
        Text("Deciles of the predicted probability; vertical lines are 95 % intervals, the dashed line is perfect."),
        *missing(runs, "curves", "the calibration curve"),
    ]
    ratios_drawn: list[Block] = []
    for task, space in SPACES.items():
        series = {name: values[task]["calibration"] for name, values in curves.items() if task in values}
        if not series:
            continue
        blocks.append(Chart(charts.calibration(series), f"Calibration: {space}", f"calibration-{anchor(task)}"))
        ratios = {name: [row for decile in rows for row in _ratio(decile)] for name, rows in series.items()}
        spec = charts.interval_columns(ratios, x="decile of the prediction", y="observed / predicted", reference=1.0)
        ratios_drawn.append(Chart(spec, f"By decile: {space}", f"deciles-{anchor(task)}"))
    return Section("Calibration", [*blocks, *ratios_drawn, *_calibration_by_day(runs)])


def _ratio(row: Mapping[str, Any]) -> list[Values]:
    if not row["predicted"]:
        return []
    scaled = {key: row[source] / row["predicted"] for key, source in _OBSERVED.items()}
    return [{"name": str(row["bin"]), **scaled}]


_OBSERVED = {"value": "observed", "low": "low", "high": "high"}


def _calibration_by_day(runs: Runs) -> list[Block]:
    by_day = having(runs, "calibration_by_day")
    blocks: list[Block] = []
    for task, space in SPACES.items():
        series = {
            name: [row for day in tasks[task] for row in defined({**day, "value": day["pcoc"]}, str(day["day"]))]
            for name, tasks in by_day.items()
            if len(tasks.get(task, [])) > 1
        }
        if any(series.values()):
            spec = charts.interval_columns(series, x="test day", y="PCOC (predicted / observed)", reference=1.0)
            blocks.append(Chart(spec, f"By day: {space}", f"calibration-by-day-{anchor(task)}"))
    return blocks


def curves_section(runs: Runs) -> Section:
    """Draw ROC, precision-recall and lift of every task, and how the users' own AUCs are spread."""
    found = {
        task: {name: values[task] for name, values in having(runs, "curves").items() if task in values}
        for task in SPACES
    }
    makers = {"roc": _roc, "precision-recall": _precision_recall, "lift": _lift}
    blocks = missing(runs, "curves", "the curves")
    for key, make in makers.items():
        for task, curves in found.items():
            if curves:
                caption, spec = make(SPACES[task], curves)
                blocks.append(Chart(spec, caption, f"{key}-{anchor(task)}"))
    for task, curves in found.items():
        blocks += _user_auc_histogram(task, curves)
    return Section("Ranking quality", blocks)


def _roc(space: str, curves: Mapping[str, Values]) -> tuple[str, charts.Spec]:
    spec = charts.lines(
        {name: values["roc"] for name, values in curves.items()},
        x="false positive rate",
        y="true positive rate",
        reference=[[0, 0], [1, 1]],
        scales=(UNIT, UNIT),
    )
    return f"ROC: {space}", spec


def _precision_recall(space: str, curves: Mapping[str, Values]) -> tuple[str, charts.Spec]:
    spec = charts.lines(
        {name: values["precision_recall"] for name, values in curves.items()},
        x="recall",
        y="precision",
        scales=(UNIT, {"zero": True}),
    )
    averages = ", ".join(f"{values['average_precision']:.4f}" for values in curves.values())
    return f"Precision and recall: {space}; average precision {averages}", spec


def _lift(space: str, curves: Mapping[str, Values]) -> tuple[str, charts.Spec]:
    spec = charts.lines(
        {name: values["lift"] for name, values in curves.items()},
        x="share of impressions, highest predictions first",
        y="rate among them / base rate",
        reference=[[0, 1], [1, 1]],
        scales=(UNIT, {"zero": True}),
    )
    return f"Lift: {space}", spec


def _user_auc_histogram(task: str, curves: Mapping[str, Values]) -> list[Block]:
    found = {name: values["gauc_distribution"] for name, values in curves.items()}
    if not any(sum(values["users"]) for values in found.values()):
        return []
    edges = next(iter(found.values()))["edges"]
    users = {name: values["users"] for name, values in found.items()}
    spec = charts.histogram(edges, users, x="AUC within one user", y="users")
    return [Chart(spec, f"Users with both classes: {SPACES[task]}", f"user-auc-{anchor(task)}")]


def segments_section(runs: Runs) -> Section:
    """Draw AUC and PCOC within every segment, with a table a task; two runs are drawn by task, and by AUC only."""
    blocks = missing(runs, "segments", "the segments")
    found = having(runs, "segments")
    kinds = list(dict.fromkeys(row["segment"] for rows in found.values() for row in rows))
    for number, kind in enumerate(kinds):
        for key, (caption, metric, series) in _segment_charts(found, kind).items():
            if any(series.values()):
                spec = charts.interval_dots(series, x=METRIC_TITLES[metric], reference=NEUTRAL[metric])
                blocks.append(Chart(spec, f"{caption} by {kind}", f"segment-{number}-{anchor(key)}"))
    for name, rows in found.items():
        blocks += [_segment_table(name, task, rows) for task in SPACES]
    return Section("Segments", blocks)


def _segment_charts(
    found: Mapping[str, list[Values]], kind: str
) -> dict[str, tuple[str, str, dict[str, list[Values]]]]:
    """Return caption, metric and series of the charts of one kind of segment."""
    if len(found) == 1:
        rows = next(iter(found.values()))
        return {
            metric: (
                METRIC_TITLES[metric],
                metric,
                {task.replace("_", " "): _segment_rows(rows, kind, task, metric) for task in SPACES},
            )
            for metric in NEUTRAL
        }
    return {
        task: (
            f"AUC of {space},",
            "auc",
            {name: _segment_rows(rows, kind, task, "auc") for name, rows in found.items()},
        )
        for task, space in SPACES.items()
    }


def _segment_rows(rows: list[Values], kind: str, task: str, metric: str) -> list[Values]:
    return [
        drawn
        for row in rows
        if row["segment"] == kind
        for drawn in defined((row["tasks"].get(task) or {}).get(metric), str(row["value"]))
    ]


def _segment_table(name: str, task: str, rows: list[Values]) -> Table:
    cells = []
    for row in rows:
        measured = row["tasks"].get(task) or {}
        counts = [f"{row['rows']:,}", f"{row['users']:,}", f"{row['positives'][task]:,}"]
        metrics = [interval(measured.get(metric)) for metric in HEADLINE]
        cells.append([row["segment"], str(row["value"]), *counts, *metrics, str(measured.get("reason") or "")])
    columns = [
        "segment",
        "value",
        "impressions",
        "users",
        "positives",
        "AUC",
        "GAUC",
        "log-loss",
        "PCOC",
        "not measured",
    ]
    if not any(row[-1] for row in cells):
        columns, cells = columns[:-1], [row[:-1] for row in cells]
    caption = f"Segments, {SPACES[task]}, of {name}; brackets are 95 % intervals over users"
    return Table(columns, cells, caption, folded=True)


def importance_section(runs: Runs) -> Section:
    """Draw what permuting a feature costs: the features that cost the first run most."""
    blocks: list[Block] = [
        *_missing_importance(runs),
        Text("A feature's values are permuted between test impressions: what the metric loses is its importance."),
    ]
    titles = {"log_loss_increase": "increase of log-loss (nats)", "auc_decrease": "decrease of AUC"}
    for key, title in titles.items():
        for task, space in SPACES.items():
            by_run = {name: values[task] for name, values in having(runs, "importance").items() if values.get(task)}
            if by_run:
                spec = charts.interval_dots(_top_features(by_run, key), x=title, name="feature")
                blocks.append(Chart(spec, f"{sentence_case(title)}: {space}", f"{anchor(key)}-{anchor(task)}"))
    return Section("Feature importance", blocks)


def _missing_importance(runs: Runs) -> list[Block]:
    """Tell runs that switched it off, where evaluating again changes nothing, from those that lack it."""
    off = [name for name, run in runs.items() if (run.config.get("evaluation") or {}).get("importance") is False]
    others = {name: run for name, run in runs.items() if name not in off}
    return [
        *(
            Missing(f"the importance of features of {name} is switched off: its evaluation.importance is false.")
            for name in off
            if not runs[name].evaluation.get("importance")
        ),
        *missing(others, "importance", "the importance of features"),
    ]


def _top_features(by_run: Mapping[str, list[Values]], key: str) -> dict[str, list[Values]]:
    first = next(iter(by_run.values()))
    ordered = sorted((row for row in first if defined(row[key], "")), key=lambda row: -row[key]["value"])
    top = [row["feature"] for row in ordered[:TOP_FEATURES]]
    series = {}
    for name, rows in by_run.items():
        values = {row["feature"]: row[key] for row in rows}
        series[name] = [row for feature in top for row in defined(values.get(feature), feature)]
    return series
