"""The HTML report of one run beside the one before it, and of two runs against each other."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.gate_page import promotion_section
from pipeline.metrics import METRICS, paired_difference
from pipeline.page import Alarm, Block, Missing, Section, Table, Text, write_page
from pipeline.report import HEADLINE, SPACES, feed_line, interval
from pipeline.report_inputs import config_section, data_section, versions_section
from pipeline.report_lists import retrieval_section
from pipeline.report_model import baselines_section, experts_section, training_section, verdicts
from pipeline.report_quality import (
    METRIC_TITLES,
    Runs,
    Values,
    calibration_section,
    curves_section,
    importance_section,
    segments_section,
    sentence_case,
)
from pipeline.report_sources import sources_section
from pipeline.report_watch import watch_section
from pipeline.run_files import RunFiles, earlier_run, read_run
from pipeline.workspace import read_json

REPLICATES = 200
EXPLAINED = Text(
    "GAUC is the AUC within users, weighted by their impressions; the log-loss is in nats; PCOC is the predicted over "
    "the observed number, best at 1."
)
PROBABILITY_OF = {
    "click": "p_click",
    "click_and_conversion": "p_click_and_conversion",
    "conversion": "p_conversion",
}


def write_run_report(folder: Path, output: Path) -> None:
    """Write the report of a run as one HTML file, beside yesterday's figures.

    What a stage has not made yet is named with the stage that makes it.

    Raises:
        ValueError: the run has not been evaluated.
    """
    _write(read_run(folder), output)


def write_evaluation_report(folder: Path, evaluation: Path) -> None:
    """Write report.html beside an evaluation.json that is not yet the run's.

    What a later stage left of an earlier try is not read: that of an equal run is equal.
    """
    found = read_json(evaluation / "evaluation.json", "evaluate")
    training = read_json(folder / "model" / "training.json", "train")
    _write(RunFiles(folder, found, training, register=None, published=None, summary=None), evaluation / "report.html")


def _write(run: RunFiles, output: Path) -> None:
    runs = {run.name: run}
    first = Section("Headline", [*_introduction(run), *_beside_yesterday(run), *verdicts(runs)])
    title = f"Evaluation of {run.data_set or 'an unnamed data set'}, {_days(run)}"
    write_page(output, title, [first, *_sections(runs)])


def write_comparison(folder: Path, other: Path, output: Path) -> None:
    """Write a report of two runs over each other: what the first is more or less than the second.

    Where both predicted the same impressions their differences are paired, with intervals over users; where not,
    differences have none.

    Raises:
        ValueError: a run has not been evaluated, or both are the same.
    """
    if folder == other:
        raise ValueError(f"--compare {other.name} is the run itself: give another run")
    runs = {run.name: run for run in (read_run(folder), read_run(other))}
    blocks = [_days_of_both(runs), *_differences(*runs.values()), *verdicts(runs)]
    title = f"{folder.name} against {other.name}"
    write_page(output, title, [Section("Headline", blocks), *_sections(runs)])


def _sections(runs: Runs) -> list[Section]:
    makers = (
        promotion_section,
        watch_section,
        baselines_section,
        calibration_section,
        curves_section,
        segments_section,
        experts_section,
        training_section,
        retrieval_section,
        sources_section,
        importance_section,
        data_section,
        versions_section,
        config_section,
    )
    return [section for maker in makers if (section := maker(runs)).blocks]


def _days(run: RunFiles) -> str:
    days = run.evaluation["counts"]["test_days"]
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _introduction(run: RunFiles) -> list[Block]:
    counts = run.evaluation["counts"]
    blocks: list[Block] = [
        Text(
            f"Run {run.name}: {counts['impressions']:,} test impressions of {counts['users']:,} users and "
            f"{counts['items']:,} items, {counts['clicks']:,} clicks, {counts['conversions']:,} conversions. Brackets "
            "are 95 % intervals of a bootstrap over users."
        )
    ]
    if counts.get("immature"):
        blocks.append(
            Text(
                f"{counts['immature']:,} test labels may still change until {counts['immature_until']}: clicks and "
                "conversions that come by then are counted as none here."
            )
        )
    if run.register is None:
        return [*blocks, Missing("Not registered yet: `counterpoise register` decides whether it becomes champion.")]
    blocks.append(Text(f"Version {run.register['version']}: {run.register['decision']}."))
    if run.published is None:
        return [*blocks, Missing("Not published yet: `counterpoise publish` decides whether its lists are read.")]
    return [*blocks, (Alarm if run.published["kept"] else Text)(f"{sentence_case(feed_line(run.published))}.")]


def _beside_yesterday(run: RunFiles) -> list[Block]:
    before = earlier_run(run)
    if before is None:
        note = "No earlier run of this data set is in the workspace."
    else:
        note = (
            f"The run before is {before.name} ({_days(before)}), that of this data set with the latest test day before "
            "this one's. The days differ, so the change holds the difference of the days too."
        )
    tables = []
    for task, space in SPACES.items():
        rows = []
        for metric in HEADLINE:
            now = run.evaluation["tasks"][task][metric]
            then = before.evaluation["tasks"][task][metric] if before else None
            cells = [METRIC_TITLES[metric], interval(now)]
            rows.append([*cells, _change(now, then), interval(then)] if then else cells)
        columns = ["", "this run", "change", "the run before"]
        tables.append(Table(columns if before else columns[:2], rows, sentence_case(space)))
    return [Text(note), *tables, EXPLAINED, *_extra_tasks(run)]


def _extra_tasks(run: RunFiles) -> list[Block]:
    found: Values = run.evaluation.get("extra_tasks") or {}
    rows = [
        [task, metric.replace("_", " "), _cell(value)]
        for task, metrics in found.items()
        for metric, value in metrics.items()
    ]
    return [Table(["task", "metric", "this run"], rows, "Further tasks")] if rows else []


def _cell(value: Values | int | str | None) -> str:
    """Write an interval, a count, or why there is none."""
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else interval(value)


def _change(now: Values, then: Values) -> str:
    if now["value"] is None or then["value"] is None:
        return "-"
    return f"{now['value'] - then['value']:+.4f}"


def _days_of_both(runs: Runs) -> Block:
    return Text("; ".join(f"{name}: test days {_days(run)}" for name, run in runs.items()) + ".")


def _differences(run: RunFiles, other: RunFiles) -> list[Block]:
    paired, note = _paired(run, other)
    tables = []
    for task, space in SPACES.items():
        rows = []
        for metric in HEADLINE:
            values = [of.evaluation["tasks"][task][metric] for of in (run, other)]
            change = interval(paired[task][metric]) if paired else _change(*values)
            rows.append([METRIC_TITLES[metric], *map(interval, values), change])
        tables.append(Table(["", run.name, other.name, "first - second"], rows, sentence_case(space)))
    return [Text(note), *tables, EXPLAINED]


def _paired(run: RunFiles, other: RunFiles) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the paired differences by task and metric, {} where the runs predicted other impressions, and say so."""
    paths = [of.folder / "evaluation" / "predictions.parquet" for of in (run, other)]
    absent = [path.parent.parent.name for path in paths if not path.exists()]
    if absent:
        return (
            {},
            f"Unpaired, no interval: predictions.parquet of {' and '.join(absent)} is missing; evaluate makes it.",
        )
    first, second = (pl.read_parquet(path) for path in paths)
    columns = ["impression_id", "click", "conversion", *PROBABILITY_OF.values()]
    both = first.join(second.select(columns), on="impression_id", how="inner", suffix="_other")
    if not len(both) == len(first) == len(second):
        note = (
            f"Unpaired, no interval: the runs predicted {len(first):,} and {len(second):,} impressions, "
            f"{len(both):,} of them the same."
        )
        return {}, note
    differing = both.filter(
        (pl.col("click") != pl.col("click_other")) | (pl.col("conversion") != pl.col("conversion_other"))
    )
    note = (
        f"Paired: both runs predicted the same {len(both):,} impressions; intervals of the differences are over users. "
        f"{len(differing):,} labels became known in between; those of {run.name} are used for both."
    )
    return {task: _paired_task(run, both, task) for task in SPACES}, note


def _paired_task(run: RunFiles, both: pl.DataFrame, task: str) -> dict[str, Any]:
    space = both.filter(pl.col("click")) if task == "conversion" else both
    column = PROBABILITY_OF[task]
    labels = space["click" if task == "click" else "conversion"].to_numpy()
    settings = run.config.get("evaluation") or {}
    if labels.all() or not labels.any():
        return dict.fromkeys(METRICS)
    found = paired_difference(
        labels=labels,
        probabilities=space[column].to_numpy().astype(np.float64),
        baseline=space[f"{column}_other"].to_numpy().astype(np.float64),
        users=space["user_id"].rank("dense").to_numpy().astype(np.int64),
        replicates=int(settings.get("replicates", REPLICATES)),
        seed=int(run.config.get("seed", 0)),
    )
    return {metric: _finite(value.as_dict()) for metric, value in found.items()}


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in values.items()}
