"""Evaluate: metrics with user-bootstrap intervals on the test days, beside baselines and, where known, the truth."""

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.asof import KNOWN_FROM, example_features
from features.encoding import encode
from models.ranker import load_ranker, predict
from pipeline import tables
from pipeline.config import Config
from pipeline.dataset import Examples, examples_from, read_examples, without_tasks
from pipeline.diagnose import REPORTED, Evaluated, diagnose
from pipeline.example_tasks import KEPT
from pipeline.extra_metrics import evaluate_extra
from pipeline.feature_plan import plan_of, side_frame
from pipeline.featurize import run_folder, table_versions
from pipeline.figures import figures
from pipeline.fit import PREDICT_ROWS
from pipeline.html_report import write_evaluation_report
from pipeline.list_quality import evaluate_day_lists
from pipeline.metrics import Interval, evaluate_task, paired_difference
from pipeline.report import write_report
from pipeline.scored import Scored
from pipeline.scoring import Bundle, load_run_bundle
from pipeline.source_files import find_files, local_folder
from pipeline.split import Days
from pipeline.stage import LOG, Outcome
from pipeline.states import load_state
from pipeline.workspace import Workspace, replaced_folder, write_json, write_parquet

TASKS = ("click", "click_and_conversion", "conversion")
OUTPUT_OF = {"click": 0, "conversion": 1, "click_and_conversion": 2}
SMOOTHING = 20.0
ALARM_AUC = 0.99


@dataclass(frozen=True)
class Impressions:
    """All test impressions with their final labels, users as integer codes."""

    clicks: NDArray[np.bool_]
    conversions: NDArray[np.bool_]
    users: NDArray[np.int64]

    def of_task(self, task: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the labels of a task and the impressions of its space."""
        everywhere = np.ones(len(self.clicks), dtype=np.bool_)
        if task == "click":
            return self.clicks, everywhere
        return self.conversions, (self.clicks if task == "conversion" else everywhere)


def evaluate(config: Config, workspace: Workspace, days: Days, source: str | Path) -> Outcome:
    """Write runs/<id>/evaluation: evaluation.json, diagnostics.json, report.md and .html, and predictions.parquet.

    Each task is measured in its own space: click and click-and-conversion on all impressions, conversion on
    clicked ones. Labels count as known today, and those that may still change are counted; the model saw only what
    was known before the first test day.

    Raises:
        ValueError: a stage before is missing, or the test days hold one class only.
    """
    folder = run_folder(config, workspace, days)
    bundle = load_run_bundle(folder)
    table, version = workspace.table("examples"), table_versions(folder)["examples"]
    examples = [read_examples(table, version, day, bundle.ranker.spec, None) for day in days.test]
    rows = impressions_of(examples)
    predictions = _predictions(config, workspace, days, examples, bundle, folder)
    truth = _truth(config, source, examples)
    baselines = {name: predictions[name] for name in ("popularity", "logistic_regression", "uncalibrated")}
    if truth is not None:
        baselines["oracle"] = truth
    lists = [evaluate_day_lists(config, workspace, bundle, folder, day, source) for day in days.test]
    result: dict[str, Any] = {
        "tasks": _measure(config, rows, predictions["model"]),
        "context_at_reference": {"tasks": _measure(config, rows, predictions["reference"])},
        "baselines": {name: {"tasks": _measure(config, rows, values)} for name, values in baselines.items()},
        "difference_to_logistic_regression": _difference(config, rows, predictions),
        "extra_tasks": evaluate_extra(config, bundle.ranker.spec, examples, predictions["model"]),
        **_merge_days(lists),
        "counts": _counts(rows, examples, days) | _immature(workspace, folder, examples),
        "config": config.model_dump(mode="json"),
    }
    if truth is not None:
        result["share_of_oracle"] = _oracle_shares(result)
    _alarm(result["tasks"])
    scored = _scored(rows, examples, predictions["model"])
    tested = Evaluated(scored, _by_task(predictions["reference"]), result["tasks"])
    diagnosis = diagnose(config, workspace, days, bundle.ranker, tested)
    result["diagnostics"] = {key: diagnosis[key] for key in REPORTED}
    result = _without_nan(result | figures(config, workspace, days, folder, bundle, scored))
    with replaced_folder(folder / "evaluation") as evaluation:
        write_json(evaluation / "evaluation.json", result)
        write_json(evaluation / "diagnostics.json", _without_nan(diagnosis))
        write_parquet(_prediction_frame(examples, predictions["model"]), evaluation / "predictions.parquet")
        write_report(evaluation / "report.md", config, days, result)
        write_evaluation_report(folder, evaluation)
    for verdict in diagnosis["verdicts"]:
        if verdict["alarm"]:
            LOG.warning("evaluate: %s", verdict["sentence"])
    auc = result["tasks"]["click_and_conversion"]["auc"]["value"]
    return Outcome(len(rows.clicks), len(rows.clicks), {"click_and_conversion_auc": round(auc, 4)})


def impressions_of(examples: list[Examples]) -> Impressions:
    """Return labels and users of several days as arrays."""
    frame = pl.concat([day.frame for day in examples])
    codes = frame["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    return Impressions(frame["click"].to_numpy(), frame["conversion"].to_numpy(), codes)


def _scored(rows: Impressions, examples: list[Examples], outputs: NDArray[np.float64]) -> Scored:
    of_tasks = {task: rows.of_task(task) for task in TASKS}
    return Scored(
        [day.frame for day in examples],
        [day.features for day in examples],
        rows.users,
        {task: labels for task, (labels, _) in of_tasks.items()},
        {task: space for task, (_, space) in of_tasks.items()},
        _by_task(outputs),
    )


def _by_task(outputs: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {task: outputs[:, OUTPUT_OF[task]] for task in TASKS}


def _predictions(
    config: Config, workspace: Workspace, days: Days, examples: list[Examples], bundle: Bundle, folder: Path
) -> dict[str, NDArray[np.float64]]:
    baseline = load_ranker(folder / "model" / "logistic_regression")
    own: list[NDArray[np.floating[Any]]] = [predict(bundle.ranker, day.features, PREDICT_ROWS) for day in examples]
    made: dict[str, list[NDArray[np.floating[Any]]]] = {
        "model": [bundle.calibration.apply(outputs, bundle.ranker.spec) for outputs in own],
        "uncalibrated": own,
        "logistic_regression": [predict(baseline, day.features, PREDICT_ROWS) for day in examples],
        "reference": [_at_reference(config, workspace, bundle, folder, date) for date in days.test],
        "popularity": [
            popularity_rates(config, workspace, date, day.frame) for date, day in zip(days.test, examples, strict=True)
        ],
    }
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in made.items()}


def _at_reference(
    config: Config, workspace: Workspace, bundle: Bundle, folder: Path, date: dt.date
) -> NDArray[np.float32]:
    """Predict a test day with the context at its reference values, its counters included, as ranking does: (N, 3)."""
    plan, references = plan_of(config), config.context.references()
    raw = pl.read_parquet(folder / "features" / f"raw-{date}.parquet").select(KEPT)
    rows = raw.with_columns(pl.lit(value).alias(name) for name, value in references.items())
    users, items = side_frame(workspace, "users", config.users), side_frame(workspace, "items", config.items)
    features = example_features(load_state(folder / "features", date), rows, users, items, plan)
    encoded = pl.concat([rows.select(KEPT), encode(features, bundle.encoder)], how="horizontal")
    return bundle.predict(examples_from(encoded, without_tasks(bundle.ranker.spec), None).features, PREDICT_ROWS)


def popularity_rates(config: Config, workspace: Workspace, date: dt.date, rows: pl.DataFrame) -> NDArray[np.float64]:
    """Predict for each row its item's smoothed rates of what was known before the day: (N, 3)."""
    start = plan_of(config).start_of(date)
    history = tables.scan(workspace.table("interactions")).filter(
        (pl.col("date") < date) & (pl.col("received_time") < start)
    )
    known = {label: (pl.col(KNOWN_FROM[label]) < start).fill_null(value=False) for label in ("click", "conversion")}
    counts = (
        history.group_by("item_id")
        .agg(pl.len().alias("impressions"), *(rule.sum().alias(label) for label, rule in known.items()))
        .collect()
    )
    total = counts.select(pl.col("impressions", "click", "conversion").sum()).row(0)
    joined = rows.select("item_id").join(counts, on="item_id", how="left", maintain_order="left").fill_null(0)
    impressions = joined["impressions"].to_numpy() + SMOOTHING
    click = (joined["click"].to_numpy() + SMOOTHING * total[1] / total[0]) / impressions
    both = (joined["conversion"].to_numpy() + SMOOTHING * total[2] / total[0]) / impressions
    return np.stack([click, np.minimum(both / np.maximum(click, 1e-9), 1.0), both], axis=1)


def _truth(config: Config, source: str | Path, examples: list[Examples]) -> NDArray[np.float64] | None:
    """Read the simulator's probabilities of the test impressions: (N, 3)."""
    if config.evaluation.truth is None:
        return None
    files = find_files(local_folder(source, "evaluation.truth"), config.evaluation.truth)
    truth = pl.scan_parquet([file.path for file in files])
    wanted = pl.concat([day.frame.select("impression_id") for day in examples])
    found = wanted.join(truth.collect(), on="impression_id", how="left", maintain_order="left")
    if found["p_click"].null_count():
        raise ValueError(
            f"{config.evaluation.truth} lacks {found['p_click'].null_count()} test impressions: is it of this source?"
        )
    click, conversion = found["p_click"].to_numpy(), found["p_conversion"].to_numpy()
    return np.stack([click, conversion, click * conversion], axis=1)


def _measure(
    config: Config, rows: Impressions, probabilities: NDArray[np.float64]
) -> dict[str, dict[str, dict[str, float]]]:
    measured = {}
    for task in TASKS:
        labels, space = rows.of_task(task)
        found = evaluate_task(
            labels=labels[space],
            probabilities=probabilities[space, OUTPUT_OF[task]],
            users=rows.users[space],
            replicates=config.evaluation.replicates,
            seed=config.seed,
        )
        measured[task] = _as_dicts(found)
    return measured


def _difference(
    config: Config, rows: Impressions, predictions: dict[str, NDArray[np.float64]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Hold the ranker against the logistic regression, both uncalibrated."""
    differences = {}
    for task in TASKS:
        labels, space = rows.of_task(task)
        found = paired_difference(
            labels=labels[space],
            probabilities=predictions["uncalibrated"][space, OUTPUT_OF[task]],
            baseline=predictions["logistic_regression"][space, OUTPUT_OF[task]],
            users=rows.users[space],
            replicates=config.evaluation.replicates,
            seed=config.seed,
        )
        differences[task] = _as_dicts(found)
    return differences


def _as_dicts(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def _merge_days(lists: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the lists' figures of the last test day, with those of each day where there are several."""
    merged = dict(lists[-1])
    if len(lists) > 1:
        merged["retrieval_by_day"] = {day["lists"]["scored_for"]: day["retrieval"] for day in lists}
    return merged


def _counts(rows: Impressions, examples: list[Examples], days: Days) -> dict[str, Any]:
    return {
        "impressions": len(rows.clicks),
        "clicks": int(rows.clicks.sum()),
        "conversions": int(rows.conversions.sum()),
        "users": int(rows.users.max()) + 1,
        "items": pl.concat([day.frame["item_id"] for day in examples]).n_unique(),
        "test_days": [str(day) for day in days.test],
    }


def _immature(workspace: Workspace, folder: Path, examples: list[Examples]) -> dict[str, Any]:
    """Count test labels that may still change, as of the newest moment that the run's interactions know of."""
    times = [pl.col(name).max() for name in ("received_time", "click_known_at", "conversion_known_at")]
    interactions = tables.scan(workspace.table("interactions"), table_versions(folder)["interactions"])
    newest = interactions.select(pl.max_horizontal(times)).collect().item()
    matures = pl.concat([day.frame["label_matures_at"] for day in examples])
    rows = int((matures > newest).sum())
    return {"immature": rows, "immature_until": str(matures.max()) if rows else None}


def _oracle_shares(result: dict[str, Any]) -> dict[str, float]:
    """Return (AUC - 0.5) of the model over that of the true probabilities, for each task."""
    oracle = result["baselines"]["oracle"]["tasks"]
    return {
        task: (result["tasks"][task]["auc"]["value"] - 0.5) / (oracle[task]["auc"]["value"] - 0.5) for task in TASKS
    }


def _alarm(tasks: dict[str, dict[str, dict[str, float]]]) -> None:
    for task, metrics in tasks.items():
        if metrics["auc"]["low"] > ALARM_AUC:
            raise ValueError(
                f"test AUC of {task} is {metrics['auc']['value']:.4f}, above {ALARM_AUC}: a feature holds the label; "
                "remove the column that is known only after the impression"
            )


def _without_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


def _prediction_frame(examples: list[Examples], probabilities: NDArray[np.float64]) -> pl.DataFrame:
    frame = pl.concat([day.frame for day in examples])
    named = {"p_click": 0, "p_conversion": 1, "p_click_and_conversion": 2}
    return frame.with_columns(pl.Series(name, probabilities[:, n]).cast(pl.Float32) for name, n in named.items())
