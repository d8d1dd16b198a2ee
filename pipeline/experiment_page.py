"""What `counterpoise experiment` shows: an HTML page, and a table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table as TerminalTable

from pipeline.charts import interval_dots, lines
from pipeline.compare_page import data_text, difference_rows, estimate_text
from pipeline.page import Alarm, Block, Chart, Section, Table, Text, anchor, write_page

AXES = {
    "sharing": "AUC, joint - single-task",
    "efficiency": "log of cost, joint / separate",
    "robustness": "slope of AUC per unit of noise, joint - single-task",
}


def write_experiment_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of an experiment: question, rule, verdict, the cells that fail, all cells, levels, data."""
    verdict = f"{outcome(result)}. {result['sentence']}"
    failures: list[Block] = [Alarm(text) for text in result["failures"]]
    sections = [
        Section("Question and rule", [Text(result["question"]), Text(result["rule"])]),
        Section("Verdict", [Text(verdict) if result["passed"] else Alarm(verdict)]),
        Section("Where it fails", failures or [Text("In no cell.")]),
        *_chart(result),
        Section("Cells", [Table(["cell", "value [95 %]", "rule", "verdict", "detail"], _rows(result["cells"]))]),
        *_levels(result),
        *_costs(result),
        Section("Data", [*_capacity(result), Text(data_text(result))]),
    ]
    write_page(path, f"Experiment {result['experiment']} on {result['data_set']}: {outcome(result)}", sections)


def outcome(result: Mapping[str, Any]) -> str:
    """Return whether the rule is met, in a word."""
    return "passed" if result["passed"] else "failed"


def experiment_table(result: Mapping[str, Any]) -> TerminalTable:
    """Return one row a cell."""
    table = TerminalTable(
        title=f"{result['experiment']}, {result['body']} on {result['data_set']}, seeds: {result['seeds']}",
        title_justify="left",
    )
    for heading in ("cell", "value [95 %]", "rule", "", "detail"):
        table.add_column(heading)
    for row in _rows(result["cells"]):
        table.add_row(*row)
    return table


def _rows(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [cell["name"], estimate_text(cell), cell["role"], "passed" if cell["passed"] else "failed", cell["detail"]]
        for cell in cells
    ]


def _chart(result: Mapping[str, Any]) -> list[Section]:
    rows = difference_rows(result["cells"])
    if not rows:
        return []
    spec = interval_dots({"": rows}, x=AXES[result["experiment"]])
    return [Section("Estimates", [Chart(spec, "With 95 % intervals", f"cells-{result['experiment']}")])]


def _levels(result: Mapping[str, Any]) -> list[Section]:
    """Draw the mean AUC of each side over training sizes or noise levels."""
    charts: list[Block] = []
    for title, series, x in _series(result):
        points = {name: [[at, value] for at, value in zip(x, values, strict=True)] for name, values in series.items()}
        logarithmic = {"type": "symlog", "constant": 0.01} if result["experiment"] == "sharing" else {}
        axis = (
            "share of the training rows" if result["experiment"] == "sharing" else "share of flipped or missing values"
        )
        spec = lines(points, x=axis, y="AUC, mean over seeds", scales=(logarithmic, {}))
        charts.append(Chart(spec, title, f"levels-{anchor(title)}"))
    return [Section("Levels", charts)] if charts else []


def _series(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Sequence[float]], list[float]]]:
    if "auc_by_level" in result:
        return [(title, series, result["levels"]) for title, series in result["auc_by_level"].items()]
    by_size = result.get("auc_by_size", {})
    tasks = list(next(iter(by_size.values()), {}))
    sizes = [float(size) for size in by_size]
    return [
        (
            task,
            {name: [by_size[size][task][name] for size in by_size] for name in next(iter(by_size.values()))[task]},
            sizes,
        )
        for task in tasks
    ]


def _costs(result: Mapping[str, Any]) -> list[Section]:
    """Show what each network of an efficiency experiment cost, and its loss as it trained with the first seed."""
    if "runs" not in result:
        return []
    columns = ["network", "weights", "training, CPU seconds", "rows scored a CPU second", "peak MiB of the process"]
    rows, losses = [], {}
    for name in result["runs"][0]:
        records = [run[name] for run in result["runs"]]
        mean = {key: fmean(record[key] for record in records) for key in ("training_cpu_seconds", "peak_mib")}
        scored, spent = (sum(record[key] for record in records) for key in ("scored_rows", "scoring_cpu_seconds"))
        pace = f"{scored / spent:,.0f}" if spent else "-"
        weights, seconds = f"{records[0]['parameters']:,}", f"{mean['training_cpu_seconds']:.1f}"
        rows.append([name.replace("_", " "), weights, seconds, pace, f"{mean['peak_mib']:,.0f}"])
        for task, curve in _curves(name, records[0]["checks"]).items():
            losses[f"{name.replace('_', ' ')}: {task}"] = curve
    chart = Chart(lines(losses, x="training steps", y="validation log-loss"), "Quality, first seed", "quality")
    return [Section("Costs", [Table(columns, rows, "Means over seeds")]), Section("Quality", [chart])]


def _curves(name: str, checks: Sequence[Mapping[str, float]]) -> dict[str, list[list[float]]]:
    """Return losses over steps by task; the network of click and conversion has its task's loss as that of click."""
    tasks = {"click": "click", "click_and_conversion": "click and conversion"} if name == "joint" else {"click": "own"}
    return {words: [[check["steps"], check[task]] for check in checks] for task, words in tasks.items()}


def _capacity(result: Mapping[str, Any]) -> list[Block]:
    if "capacity" not in result:
        return []
    rows = [
        [side, one["body"], " x ".join(map(str, one["hidden"])), f"{one['weights']:,}"]
        for side, one in result["capacity"].items()
    ]
    return [Table(["side", "body", "hidden widths", "weights outside embeddings"], rows)]
