"""The section of the HTML report about the days after: what the published lists came to, and what has drifted."""

from pathlib import Path
from typing import Any

from pipeline import charts
from pipeline.page import Alarm, Block, Chart, Missing, Section, Table, Text, write_page
from pipeline.report import SPACES, interval
from pipeline.report_quality import Runs, sentence_case

SHOWN = 15
TITLE = "Watch"
EXPLAINED = Text(
    "Predictions are those of the published lists, made at the context's reference values, on the impressions whose "
    "item stood in the list of their user. PCOC is predicted over realised; lists hold what was predicted highest, so "
    "that a PCOC somewhat above 1 is in their nature. The alarm looks at impressions whose context, but for the hour, "
    "is that reference. Brackets are 95 % intervals of a bootstrap over groups of users."
)

LABELS = {
    "final": "All labels are final",
    "drop": "Impressions whose labels may still change are left out",
    "weight": "Conversions that may still come are weighed in by their usual delay",
    "keep": "Labels that may still change count as they are known today",
}


def watch_section(runs: Runs) -> Section:
    """Tell what the watch found when each run was the newest; empty where none was watched."""
    watched = {name: run.watch for name, run in runs.items() if run.watch is not None}
    blocks = [block for number, found in enumerate(watched.values()) for block in watch_blocks(found, number)]
    return Section(TITLE, blocks)


def write_watch_page(found: dict[str, Any], path: Path) -> None:
    """Write what the watch found as a page of its own, also where the newest run has no report."""
    title = f"Watch of {found['data_set']}, {found['newest_day']}"
    write_page(path, title, [Section(TITLE, watch_blocks(found, 0))])


def watch_blocks(found: dict[str, Any], number: int) -> list[Block]:
    """Return the blocks of one watch; the number tells its charts from those of another on the page."""
    head = f"Run {found['run']}, watched at {found['watched_at']}. {found['freshness']['sentence']}"
    return [
        Text(head),
        *(Alarm(alarm["sentence"]) for alarm in found["alarms"]),
        *_days(found, number),
        *_segments(found["segments"]),
        *_drift(found["drift"], number),
        *_shares(found["drift"]["features"].get("shares", [])),
        *_quarantine(found["quarantine"]),
        *_stages(found["stages"]),
    ]


def _days(found: dict[str, Any], number: int) -> list[Block]:
    blocks: list[Block] = [EXPLAINED, Text(f"{LABELS.get(found['labels'], found['labels'])}.")]
    rows = [_day_row(day) for day in found["days"] if "version" in day]
    if rows:
        columns = ["day", "version", "impressions", "in the lists", "active users with a list", "users", "items"]
        blocks.append(Table(columns, rows, "Published lists on their day"))
    blocks += [Missing(f"{sentence_case(day['reason'])}.") for day in found["days"] if "reason" in day]
    rates = [
        [name, *_task_row(task, figures)]
        for name, tasks in [
            *((day["day"], day.get("tasks", {})) for day in found["days"]),
            ("all", found["tasks"]),
            ("all, context at reference", found["at_reference"]),
        ]
        for task, figures in tasks.items()
    ]
    if rates:
        columns = ["day", "task", "rows", "positives", "PCOC", "log-loss"]
        blocks.append(Table(columns, rates, "Predicted against realised"))
    series = {
        task: [
            {"name": day["day"], **day["tasks"][task]["pcoc"]}
            for day in found["days"]
            if day.get("tasks", {}).get(task, {}).get("pcoc")
        ]
        for task in SPACES
    }
    drawn = {task.replace("_", " "): points for task, points in series.items() if points}
    if drawn:
        spec = charts.interval_columns(drawn, x="day", y="predicted / realised", reference=1.0)
        blocks.append(Chart(spec, "PCOC of the published lists by day", f"watch-pcoc-{number}"))
    return blocks


def _day_row(day: dict[str, Any]) -> list[str]:
    return [
        day["day"],
        day["version"]["model_version"],
        f"{day['impressions']:,}",
        f"{day['explained_share']:.1%}",
        f"{day['active_users_share']:.1%}",
        f"{day['list_users']:,}",
        f"{day['list_items']:,}",
    ]


def _task_row(task: str, figures: dict[str, Any]) -> list[str]:
    told = [interval(figures["pcoc"]), interval(figures["log_loss"])]
    return [task.replace("_", " "), f"{figures['rows']:,}", f"{figures['positives']:,}", *told]


def _segments(segments: list[dict[str, Any]]) -> list[Block]:
    rows = [
        [one["segment"], one["value"], *_task_row(task, figures)]
        for one in segments
        for task, figures in one["tasks"].items()
    ]
    columns = ["segment", "value", "task", "rows", "positives", "PCOC", "log-loss"]
    return [Table(columns, rows, "Segments, all watched days together", folded=True)] if rows else []


def _drift(drift: dict[str, Any], number: int) -> list[Block]:
    blocks: list[Block] = []
    for part, found in drift.items():
        if "reason" in found:
            blocks.append(Missing(f"Drift of {part} is not measured: {found['reason']}."))
            continue
        above = [one for one in found["columns"] if one["excess"] > 0]
        chance = len(found["columns"]) / (found["days"] + 1)
        blocks.append(
            Text(
                f"Drift of {part}: {len(above)} of {len(found['columns'])} columns lie above their noise floor, made "
                f"of {found['days']} days; about {chance:.1f} would by chance."
            )
        )
        rows = [
            [one["column"], f"{one['divergence']:.5f}", f"{one['floor']:.5f}", f"{one['excess']:.5f}"] for one in above
        ]
        if rows:
            columns = ["column", "Jensen-Shannon divergence, bits", "noise floor", "excess"]
            blocks.append(Table(columns, rows, f"Drifted {part}", folded=len(rows) > SHOWN))
            spec = _dots(above[:SHOWN])
            blocks.append(Chart(spec, f"Drifted {part} over their noise floors", f"watch-drift-{part}-{number}"))
    return blocks


def _dots(columns: list[dict[str, Any]]) -> charts.Spec:
    series = {
        label: [{"name": one["column"], "value": one[key], "low": one[key], "high": one[key]} for one in columns]
        for label, key in (("newest day", "divergence"), ("noise floor", "floor"))
    }
    return charts.interval_dots(series, x="bits", reference=0.0)


def _shares(shares: list[dict[str, Any]]) -> list[Block]:
    kept = [one for one in shares if any(one.get(f"{kind}_newest", 0) > 0 for kind in ("missing", "unseen"))]
    rows = [
        [
            one["column"],
            *(
                f"{one[f'{kind}_{part}']:.2%}" if f"{kind}_{part}" in one else "-"
                for kind in ("unseen", "missing")
                for part in ("newest", "training")
            ),
        ]
        for one in kept
    ]
    columns = ["column", "unseen, newest day", "unseen, training days", "missing, newest day", "missing, training days"]
    return [Table(columns, rows, "Unseen and missing values", folded=len(rows) > SHOWN)] if rows else []


def _quarantine(found: dict[str, Any]) -> list[Block]:
    reasons = list(dict.fromkeys([*found["now"], *(reason for run in found["runs"] for reason in run["rows"])]))
    if not reasons:
        return [Text("Quarantine: no row was refused.")]
    columns = ["reason", *(run["run"][: len("YYYY-MM-DD")] for run in found["runs"]), "now"]
    rows = [
        [reason, *(f"{part.get(reason, 0):,}" for part in [*(run["rows"] for run in found["runs"]), found["now"]])]
        for reason in reasons
    ]
    return [Table(columns, rows, "Quarantine: rows by reason, as each run found them")]


def _stages(stages: list[dict[str, Any]]) -> list[Block]:
    if not stages:
        return [Missing("No stage of these runs has a record.")]
    runs = list(stages[0]["seconds"])
    rows = [
        [one["stage"], *("-" if one["seconds"][run] is None else f"{one['seconds'][run]:.1f}" for run in runs)]
        for one in stages
    ]
    return [Table(["stage", *(run[: len("YYYY-MM-DD")] for run in runs)], rows, "Seconds of the stages by run")]
