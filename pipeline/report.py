"""The evaluation report in Markdown, and the table that ends a run."""

from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.config import Config
from pipeline.split import Days

METRICS = ("auc", "gauc", "log_loss", "normalised_entropy", "pcoc", "ece")
HEADLINE = ("auc", "gauc", "log_loss", "pcoc")
SPACES = {
    "click": "click, on impressions",
    "click_and_conversion": "click and conversion, on impressions",
    "conversion": "conversion, on clicks",
}


def interval(values: dict[str, float | None] | None) -> str:
    """Write a value with its interval, or a dash where it is undefined."""
    if values is None or values["value"] is None:
        return "-"
    return f"{values['value']:.4f} [{values['low']:.4f}, {values['high']:.4f}]"


def write_report(path: Path, config: Config, days: Days, result: dict[str, Any]) -> None:
    """Write report.md: tasks beside baselines, lists, counts, days."""
    counts = result["counts"]
    lines = [
        f"# Evaluation of {config.name}, {days.test[0]} to {days.test[-1]}",
        "",
        (
            f"Trained on {days.train[0]} to {days.train[-1]}, selected on {days.validation[0]} to "
            f"{days.validation[-1]}; "
            f"{counts['impressions']:,} test impressions of {counts['users']:,} users, {counts['clicks']:,} clicks, "
            f"{counts['conversions']:,} conversions. Brackets are 95 % intervals over users "
            f"({config.evaluation.replicates} bootstrap replicates)."
        ),
        *_immature_labels(counts),
        *_task_tables(result),
        *_list_tables(result),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _immature_labels(counts: dict[str, Any]) -> list[str]:
    if not counts["immature"]:
        return []
    return [
        "",
        (
            f"{counts['immature']:,} of {counts['impressions']:,} test labels may still change until "
            f"{counts['immature_until']}: clicks and conversions that come by then are counted as none here."
        ),
    ]


def _models(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    models = {
        "model": result["tasks"],
        "model, context at reference": result["context_at_reference"]["tasks"],
    }
    return models | {name.replace("_", " "): values["tasks"] for name, values in result["baselines"].items()}


def _task_tables(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for task, space in SPACES.items():
        lines += ["", f"## {space.capitalize()}", "", "| | " + " | ".join(METRICS) + " |", "|---" * 7 + "|"]
        for name, tasks in _models(result).items():
            lines.append(f"| {name} | " + " | ".join(interval(tasks[task][metric]) for metric in METRICS) + " |")
        difference = result["difference_to_logistic_regression"][task]
        lines.append(
            "| uncalibrated - logistic regression | "
            + " | ".join(interval(difference[metric]) for metric in METRICS)
            + " |"
        )
        if "share_of_oracle" in result:
            lines += ["", f"Share of the oracle's AUC above 0.5: {result['share_of_oracle'][task]:.3f}."]
    return lines


def _list_tables(result: dict[str, Any]) -> list[str]:
    lists = result["lists"]
    lines = ["", f"## Lists for {lists['scored_for']}", ""]
    lines += ["| lists | measure | label | k | value |", "|---|---|---|---|---|"]
    named = {"ranked": "retrieval", "candidates": "candidate_retrieval", "popularity": "popular_retrieval"}
    for name, key in named.items():
        for measure in ("recall", "ndcg"):
            for label, by_k in result[key][measure].items():
                lines += [f"| {name} | {measure} | {label} | {k} | {interval(value)} |" for k, value in by_k.items()]
    lines += [
        "",
        (
            f"{lists['users']:,} users, {lists['items']:,} available items, {lists['coverage']:.1%} of them shown, "
            f"Gini of exposure {lists['gini']:.3f}; {lists['index']['kind']} index, recall "
            f"{lists['index']['recall']:.4f} at {lists['index']['recall_k']} against exact search."
        ),
    ]
    if (expected := lists.get("expected_conversions_of_top_10")) is not None:
        lines += [
            "",
            (
                f"Expected conversions of a top-10 list under the truth: model {expected['model']:.4f}, popularity "
                f"{expected['popularity']:.4f} (factor {expected['model_over_popularity']:.2f}), oracle "
                f"{expected['oracle']:.4f} (share {expected['model_share_of_oracle']:.3f})."
            ),
        ]
    return lines


def feed_line(published: dict[str, Any]) -> str:
    """Say which lists readers see since a run, and why they are not its own."""
    if published["version"] is None:
        return f"not published: {published['kept']}"
    live = (
        f"{published['store']} has version {published['version']}, lists for {published['scored_for']} of model "
        f"version {published['model_version']}"
    )
    return f"not published: {published['kept']}; {live}" if published["kept"] else f"published: {live}"


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """Return a line a verdict, those that alarm first and marked."""
    verdicts = sorted(summary["evaluation"]["diagnostics"]["verdicts"], key=lambda verdict: not verdict["alarm"])
    return [("ALARM: " if verdict["alarm"] else "") + verdict["sentence"] for verdict in verdicts]


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the table that `counterpoise run` prints at its end."""
    result = summary["evaluation"]
    table = Table(title=f"run {summary['run']}", title_justify="left")
    table.add_column("")
    for metric in HEADLINE:
        table.add_column(f"{metric} [95 %]")
    rows = {"": result["tasks"]} | {
        f", {name.replace('_', ' ')}": values["tasks"] for name, values in result["baselines"].items()
    }
    for task, space in SPACES.items():
        for name, tasks in rows.items():
            table.add_row(space + name if not name else f"  {name[2:]}", *(interval(tasks[task][m]) for m in HEADLINE))
    for label, by_k in result["retrieval"]["recall"].items():
        for k, value in by_k.items():
            table.add_row(f"recall@{k} of next-day {label}s", interval(value))
    return table
