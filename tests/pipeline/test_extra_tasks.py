"""Tasks beyond click and conversion, from the log's columns to the score of a list."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.inputs import Features
from models.losses import Targets
from models.ranker import RankerSpec
from pipeline import tables
from pipeline.config import Config, load_config
from pipeline.dataset import Examples, examples_from
from pipeline.extra_metrics import evaluate_extra, normalised_gini
from pipeline.featurize import days_of, run_folder
from pipeline.ingest import ingest
from pipeline.label_sums import LabelSums, base_means, check_extra, sums_of
from pipeline.maturity import Maturity, Supervision
from pipeline.rank import weights_of
from pipeline.run import run
from pipeline.workspace import Workspace

TASKS = {
    "top": {"label": "click AND position <= 2", "space": "click"},
    "depth": {"label": "position", "kind": "value"},
    "price": {"label": "value", "kind": "value", "space": "conversion"},
}
Made = tuple[Config, Workspace, dict[str, Any]]


@pytest.fixture(scope="module")
def made(simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = load_config(
        Path(__file__).parents[2] / "examples" / "simulated.toml",
        {
            "source.time_zone": "Asia/Shanghai",
            "source.columns.value": "value",
            "labels.numeric": ["position"],
            "labels.tasks": TASKS,
            "ranking.weights": {"p_click": 0.1, "expected_price": 1.0},
            "retriever.epochs": 1,
            "evaluation.replicates": 20,
            "gate.pcoc": (0.01, 100.0),  # the model of a world this small need not be good
            "gate.tolerance": {"log_loss": 9.0, "gauc": 1.0, "recall": 1.0, "coverage": 1.0},
            "gate.blocking_alarms": [],
        },
    )
    workspace = Workspace(tmp_path_factory.mktemp("tasks") / "workspace")
    return config, workspace, run(config, workspace, simulated_source)


def test_the_score_of_a_list_is_the_weighted_sum_that_names_the_expected_value(made: Made) -> None:
    _, workspace, _ = made
    lists = tables.scan(workspace.table("candidates")).collect()
    assert {"p_top", "expected_depth", "expected_price"} <= set(lists.columns)
    expected = 0.1 * lists["p_click"].cast(pl.Float64) + lists["expected_price"].cast(pl.Float64)
    np.testing.assert_allclose(lists["score"].to_numpy(), expected.to_numpy(), rtol=1e-6)
    assert lists.select((pl.col("score").diff().over("user_id") <= 0).fill_null(value=True).all()).item()


def test_a_task_within_clicks_is_less_likely_than_the_click(made: Made) -> None:
    _, workspace, _ = made
    lists = tables.scan(workspace.table("candidates")).collect()
    assert lists.select((pl.col("p_top") <= pl.col("p_click")).all()).item()


def test_every_task_is_measured_with_intervals_and_predicts_its_mean(made: Made) -> None:
    _, _, summary = made
    measured = summary["evaluation"]["extra_tasks"]
    assert set(measured) == set(TASKS)
    assert measured["top"]["auc"]["value"] > 0.55
    assert 0.8 < measured["depth"]["ratio"]["value"] < 1.25
    assert 0.3 < measured["price"]["ratio"]["value"] < 3
    for name, metric in (("top", "pcoc"), ("depth", "ratio"), ("price", "gini")):
        interval = measured[name][metric]
        assert interval["low"] <= interval["value"] <= interval["high"]


def test_the_examples_hold_the_labels_of_tasks_and_the_training_curve_their_losses(made: Made) -> None:
    config, workspace, _ = made
    examples = tables.scan(workspace.table("examples")).collect()
    interactions = tables.scan(workspace.table("interactions")).collect()
    joined = examples.join(interactions, on="impression_id", suffix=":given")
    position = joined["label_depth:given"]
    assert joined["label_depth"].equals(position)
    assert joined["label_price"].equals(joined["value"], null_equal=True)
    assert joined["label_top"].equals((joined["click"] & (position <= 2)).cast(pl.Float64), check_names=False)
    folder = run_folder(config, workspace, days_of(config, workspace, None))
    curve = json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))["ranker"]
    assert set(TASKS) <= set(curve[0])


def test_rows_whose_number_is_negative_or_no_number_are_quarantined_and_missing_ones_kept(
    make_config: Callable[..., Config], write_log: Callable[..., Path], log_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    for row, seconds in zip(log_rows, ["3", "-1", "soon", ""] + ["2.5"] * 8, strict=True):
        row["seconds"] = seconds
    config = make_config(
        labels={"tasks": {"watch": {"label": "seconds / 2", "kind": "value"}}},
        source={"max_quarantine_share": 0.5},
    )
    workspace = Workspace(tmp_path / "workspace")
    ingest(config, workspace, write_log("log.csv", log_rows))
    kept = tables.scan(workspace.table("interactions")).sort("event_time").collect()
    assert kept["label_watch"].to_list() == [1.5, None] + [1.25] * 8
    reasons = tables.scan(workspace.table("quarantine")).collect()["reason"].to_list()
    assert sorted(reasons) == ["label is no number: seconds", "label of task watch is negative"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"labels": {"tasks": {"click": {"label": "a"}}}}, "labels.tasks.click is the pipeline's own name"),
        ({"labels": {"tasks": {"price": {"label": "value"}}}}, "label 'value' needs kind = 'value' and space = 'conv"),
        ({"ranking": {"weights": {"p_like": 1.0}}}, r"ranking.weights names \['p_like'\], which are no outputs"),
        (
            {
                "source": {"interactions": None, "streams": [{"files": "*.csv"}]},
                "labels": {"tasks": {"like": {"label": "is_like"}}},
            },
            "labels.tasks.like.label = 'is_like' reads columns of a labelled log, but the source is raw",
        ),
    ],
)
def test_a_task_that_cannot_work_is_refused(
    sections: dict[str, object], message: str, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**sections)


def test_a_score_that_needs_an_output_the_champion_lacks_is_refused(make_config: Callable[..., Config]) -> None:
    config = make_config(labels={"tasks": {"like": {"label": "is_like"}}}, ranking={"weights": {"p_like": 1.0}})
    with pytest.raises(ValueError, match=r"ranking.weights needs \['p_like'\], model version 3 gives \['p_click'\]"):
        weights_of(config, ["p_click"], "3")


def _targets(labels: list[float], mask: list[float]) -> Targets:
    ones = torch.ones(len(labels))
    return Targets(torch.tensor([1.0, 1, 0]), ones, ones, ones, {"task": (torch.tensor(labels), torch.tensor(mask))})


def _sums(targets: Targets) -> LabelSums:
    return sums_of(Supervision(targets, {}))


def test_training_starts_at_means_within_the_space() -> None:
    sums = _sums(_targets([1, 0, 0], [1, 1, 1])) + _sums(_targets([1, 1, 0], [1, 0, 1]))
    assert base_means(sums, {"task": "click"}, {}) == {"task": (2 + 1) / (3 + 2)}
    assert base_means(sums, {"task": "impression"}, {}) == {"task": (2 + 1) / (5 + 2)}
    assert base_means(sums, {}, {"task": "impression"}) == {"task": 2 / 5}


def test_a_task_that_never_happens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels.tasks.task is above 0 on none of the 2 training rows"):
        check_extra(_sums(_targets([0, 0, 5], [1, 1, 0])))


def test_gini_is_one_in_the_actual_order_zero_without_order_and_minus_one_reversed() -> None:
    actual = np.array([0.0, 0, 1, 5, 20])
    assert normalised_gini(actual, actual) == pytest.approx(1)
    assert normalised_gini(actual, -actual) == pytest.approx(-1)
    assert normalised_gini(actual, np.ones(5)) == pytest.approx(0)
    assert np.isnan(normalised_gini(np.zeros(5), actual))


def test_an_event_stream_gives_the_value_of_its_conversions(make_config: Callable[..., Config]) -> None:
    config = make_config(
        source={"interactions": None, "streams": [{"files": "*.csv", "value": "value"}]},
        labels={"tasks": {"price": {"label": "value", "kind": "value", "space": "conversion"}}},
        ranking={"weights": {"expected_price": 1.0}},
    )
    assert config.labels.tasks["price"].weight == 1
    assert config.labels.conversion_window == dt.timedelta(days=7)


def _day(labels: list[float], known: list[bool], spec: RankerSpec) -> Examples:
    rows = len(labels)
    frame = pl.DataFrame({"user_id": [f"u{n}" for n in range(rows)]})
    mask = torch.tensor(known, dtype=torch.float32)
    ones = torch.ones(rows)
    targets = Targets(ones, ones, ones, ones, {name: (torch.tensor(labels) * mask, mask) for name in spec.value_tasks})
    features = Features(torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, 0))
    return Examples(features, ones, ones, frame, Supervision(targets, {}))


SPEC = RankerSpec(
    body="linear",
    categorical_cardinalities={"item_id": 4},
    numeric=[],
    bins=4,
    pooled={},
    single=["item_id"],
    context=[],
    context_numeric=[],
    value_tasks={"watch": "impression"},
)


def test_impressions_without_a_label_are_left_out_of_the_ratio_and_counted(make_config: Callable[..., Config]) -> None:
    day = _day([1.0] * 10, [True] * 5 + [False] * 5, SPEC)
    outputs = np.ones((10, 4), dtype=np.float32)
    (measured,) = evaluate_extra(make_config(), SPEC, [day], outputs).values()
    assert measured["ratio"]["value"] == 1
    assert (measured["rows"], measured["without_label"]) == (5, 5)


def test_a_test_day_on_which_a_task_never_happens_is_told_and_stops_nothing(make_config: Callable[..., Config]) -> None:
    day = _day([0.0] * 4, [True] * 4, SPEC)
    (measured,) = evaluate_extra(make_config(), SPEC, [day], np.ones((4, 4), dtype=np.float32)).values()
    assert measured["reason"] == "0 of 4 test rows are above 0"


def test_the_label_of_a_click_that_was_not_known_before_the_cutoff_trains_nothing() -> None:
    cutoff = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    hour, shown = dt.timedelta(hours=1), cutoff - dt.timedelta(hours=2)
    known = [cutoff + hour, cutoff - hour, None]
    frame = pl.DataFrame(
        {
            "impression_id": ["a", "b", "c"],
            "user_id": ["u", "v", "w"],
            "item_id": ["i", "i", "i"],
            "event_time": [shown] * 3,
            "received_time": [shown] * 3,
            "date": [shown.date()] * 3,
            "click": [True, True, False],
            "conversion": [False] * 3,
            "click_known_at": known,
            "conversion_known_at": pl.Series([None] * 3, dtype=pl.Datetime("us", "UTC")),
            "label_matures_at": [shown] * 3,
            "label_watch": [5.0, 6.0, 7.0],
            "item_id_code": [3, 3, 3],
        }
    )
    maturity = Maturity(
        immature="keep",
        cutoff=cutoff,
        conversion_window=dt.timedelta(0),
        min_known_share=0.1,
        delays_us=np.zeros(0, np.int64),
    )
    labels, mask = examples_from(frame, SPEC, maturity).supervision.targets.extra["watch"]
    assert mask.tolist() == [0, 1, 1]
    assert labels.tolist() == [0, 6, 7]
