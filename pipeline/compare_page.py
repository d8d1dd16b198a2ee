"""What `counterpoise compare` shows: an HTML page, and a table on the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as TerminalTable

from pipeline.charts import interval_dots
from pipeline.compare import BASELINES, COMPARED, CONTROL, SHOWN
from pipeline.page import Block, Chart, Section, Table, Text, write_page
from pipeline.report import SPACES
from pipeline.significance import least_replicates

SELECTED_HERE = (
    "These days also selected the epoch of every model, so all levels are somewhat too good; the test day is looked "
    "at once, with --on test."
)
BASELINES_SELECTED_HERE = (
    " For the baselines these days also selected regularisation and number of trees, and fitted Platt's line from "
    "the SVM's scores to probabilities."
)
WORDS = {"beats": "Better", "loses": "Worse", "nothing shown": "No difference shown"}
ALONE = "With one seed every interval holds for that seed alone, and so does what a model is said to beat. "


def write_compare_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a comparison: what it shows, then task by task levels and differences, costs, data."""
    sections = [
        Section("What it shows", [Text(result["rule"]), *map(Text, too_few(result)), *map(Text, sentences(result))]),
        *(_task_section(result, task) for task in SPACES),
        Section("Costs", [_costs(result["models"])]),
        Section("Data", [Text(data_text(result))]),
    ]
    write_page(path, f"Comparison of models on {result['data_set']}", sections)


def references(result: Mapping[str, Any]) -> list[str]:
    """Return the models that all others are held against on the page: the control, and the first that was named."""
    names = list(result["models"])
    return list(dict.fromkeys([*(name for name in names if name == CONTROL), names[0]]))


def too_few(result: Mapping[str, Any]) -> list[str]:
    """Say that nothing can be shown where the resamples are too few for the number of pairs, else nothing."""
    pairs = math.comb(len(result["models"]), 2)
    replicates, least = result["replicates"], least_replicates(pairs)
    if replicates >= least:
        return []
    said = (
        f"With {replicates} resamples no p-value adjusted for {pairs} pairs is below 0.05, whatever the models: "
        f"nothing can be shown, raise --replicates to {least} or more."
    )
    return [said]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Say, for each task and reference, which models beat it on AUC, which lose to it, and which show nothing."""
    said = []
    for task, space in SPACES.items():
        for reference in references(result):
            parts = [
                f"{words}: {'; '.join(names)}"
                for shows, words in WORDS.items()
                if (names := _that_show(result["differences"][task][reference], shows))
            ]
            said.append(f"AUC of {space}, against {reference}. {'. '.join(parts)}.")
    return said


def _that_show(family: Mapping[str, Any], shows: str) -> list[str]:
    return [
        f"{name} {estimate_text(one['auc'])}, adjusted p {_number(one['auc']['p_holm'], '.3f')}"
        for name, one in family.items()
        if one["auc"]["shows"] == shows
    ]


def terminal_table(result: Mapping[str, Any]) -> TerminalTable:
    """Return one row a model: AUC and GAUC of each task, and the AUC's difference to the first reference."""
    reference = references(result)[0]
    table = TerminalTable(
        title=f"{result['data_set']}, {result['on']} {', '.join(result['days'])}, seeds: {result['seeds']}; "
        f"differences to {reference}, * where Holm's p < 0.05",
        title_justify="left",
        caption=" ".join(too_few(result)) or None,
        caption_justify="left",
    )
    for heading in (
        "model",
        *(f"{task}\nAUC / GAUC" for task in SPACES),
        *(f"{task}\nAUC difference" for task in SPACES),
    ):
        table.add_column(heading)
    for heading in ("weights outside\nembeddings", "train\nCPU s", "rows scored\na CPU s"):
        table.add_column(heading, justify="right")
    for name, model in result["models"].items():
        levels = [
            " / ".join(_number(model["tasks"][task][metric]["mean"], ".4f") for metric in ("auc", "gauc"))
            for task in SPACES
        ]
        differences = [_starred(result["differences"][task][reference].get(name)) for task in SPACES]
        table.add_row(name, *levels, *differences, *_cost_cells(model)[1:4])
    return table


def _task_section(result: Mapping[str, Any], task: str) -> Section:
    blocks: list[Block] = [_levels(result["models"], task)]
    for reference in references(result):
        family = result["differences"][task][reference]
        dots = {
            metric: [{"name": name, **one[metric]} for name, one in family.items() if one[metric]["low"] is not None]
            for metric in ("auc", "gauc")
        }
        spec = interval_dots({name: rows for name, rows in dots.items() if rows}, x=f"difference to {reference}")
        caption = f"Differences to {reference}, 95 % intervals over users and seeds; right of the line is better"
        blocks += [
            Chart(spec, caption, f"{task}-to-{reference}".replace("_", "-")),
            _difference_table(family, f"Differences to {reference}"),
        ]
    return Section(SPACES[task].capitalize(), [*blocks, every_pair(result["differences"][task])])


def every_pair(differences: Mapping[str, Any]) -> Table:
    """Tabulate the difference in AUC of each model (row) to each other one (column), * where it is shown."""
    names = list(differences)
    rows = [[name, *(_starred(differences[other].get(name)) for other in names)] for name in names]
    return Table(["AUC", *(f"- {name}" for name in names)], rows, "Every pair, * where Holm's p is below 0.05")


def _levels(models: Mapping[str, Any], task: str) -> Table:
    rows = [[name, *(_level(model["tasks"][task][metric]) for metric in SHOWN)] for name, model in models.items()]
    return Table(
        ["model", *SHOWN], rows, "Mean over seeds ± standard deviation of one seed; probabilities before calibration"
    )


def _difference_table(family: Mapping[str, Any], caption: str) -> Table:
    columns = ["model", *(f"{metric} [95 %], Holm's p" for metric in COMPARED), "AUC by DeLong [95 %]", "shown on AUC"]
    rows = [
        [
            name,
            *(f"{estimate_text(one[metric])}, {_number(one[metric]['p_holm'], '.3f')}" for metric in COMPARED),
            estimate_text(one["delong"]),
            one["auc"]["shows"],
        ]
        for name, one in family.items()
    ]
    return Table(columns, rows, caption)


def _costs(models: Mapping[str, Any]) -> Table:
    columns = [
        "model",
        "weights",
        "weights outside embeddings",
        "training, CPU seconds",
        "rows scored a CPU second",
        "peak MiB of the process",
    ]
    return Table(columns, [[name, *_cost_cells(model)] for name, model in models.items()])


def _cost_cells(model: Mapping[str, Any]) -> list[str]:
    return [
        _number(model["parameters"], ",.0f"),
        _number(model["parameters_outside_tables"], ",.0f"),
        _number(model["training_cpu_seconds"], ".1f"),
        _number(model["scoring_rows_per_cpu_second"], ",.0f"),
        _number(model["peak_mib"], ",.0f"),
    ]


def data_text(result: Mapping[str, Any]) -> str:
    """Say what was measured, on which days, and with how many seeds."""
    counted = ", ".join(f"{value:,} {name}" for name, value in result["counts"].items())
    alone = ALONE if result["seeds"] == 1 else ""
    tuned = BASELINES_SELECTED_HERE if set(BASELINES) & set(result.get("models", {})) else ""
    warning = SELECTED_HERE + tuned if result["on"] == "validation" else ""
    return (
        f"Measured on the {result['on']} day {', '.join(result['days'])}: {counted}. Seeds: {result['seeds']}; "
        f"resamples of users: {result['replicates']}; read from {result['source']}. {alone}{warning}"
    )


def estimate_text(estimate: Mapping[str, float | None]) -> str:
    """Write a difference with its interval, or a dash where it is undefined."""
    if estimate["value"] is None or estimate["low"] is None:
        return "-"
    return f"{estimate['value']:+.4f} [{estimate['low']:+.4f}, {estimate['high']:+.4f}]"


def _starred(family: Mapping[str, Any] | None) -> str:
    if family is None:
        return "-"
    return estimate_text(family["auc"]) + ("" if family["auc"]["shows"] == "nothing shown" else " *")


def _level(level: Mapping[str, Any]) -> str:
    mean, spread = level["mean"], level["standard_deviation"]
    return _number(mean, ".4f") + ("" if spread is None else f" ± {spread:.4f}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def difference_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return named estimates as rows of a chart, without those that are undefined."""
    return [
        {"name": cell["name"], "value": cell["value"], "low": cell["low"], "high": cell["high"]}
        for cell in cells
        if cell["low"] is not None
    ]
