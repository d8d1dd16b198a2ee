"""Claims about the traditional baselines: their representation, their models and what they are told of labels."""

import sys
from dataclasses import replace
from itertools import accumulate
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from models.inputs import Features
from models.losses import Targets
from models.ranker import RankerSpec
from pipeline.baselines import STRENGTHS, Labelled, Name, design_matrix, fit_baseline, tree_table
from pipeline.dataset import Examples
from pipeline.maturity import Supervision
from pipeline.study_data import Study

SPEC = RankerSpec(
    body="linear",
    categorical_cardinalities={"user": 12, "tags": 6, "item": 9},
    numeric=["price", "age"],
    bins=4,
    zero_bin=True,
    pooled={"clicked_items": "item", "tags": "tags"},
    single=["user", "item"],
    context=[],
    context_numeric=[],
)
LINEAR: tuple[Name, ...] = ("sk_logistic_regression", "linear_svm")


def drawn_features(rows: int, seed: int = 0) -> Features:
    """Draw ids and positions; the first rows are missing, zero apart, on the last knot, and without any tag."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    positions_BF = torch.rand(rows, 2, generator=generator) * SPEC.bins
    positions_BF[:3, 0] = torch.tensor([5.0, 6.0, 4.0])
    pooled = {"tags": ids(0, 6, rows, 3), "clicked_items": ids(0, 9, rows, 5)}
    pooled["tags"][0] = 0
    return Features(torch.stack([ids(1, 12, rows), ids(1, 9, rows)], dim=1), positions_BF, pooled)


def drawn_day(rows: int, seed: int) -> Examples:
    """Draw a day whose clicks and conversions depend on the item and on the price."""
    features = drawn_features(rows, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    logits = features.ids_BF[:, 1] / 4 - 1.5 + (features.positions_BF[:, 0] - 2) / 2
    clicks = (torch.rand(rows, generator=generator) < logits.sigmoid()).float()
    conversions = clicks * (torch.rand(rows, generator=generator) < (1 - logits).sigmoid()).float()
    ones = torch.ones(rows)
    supervision = Supervision(Targets(clicks, conversions, ones, ones), {})
    return Examples(features, clicks, conversions, pl.DataFrame(), supervision)


@pytest.fixture(scope="module")
def training() -> list[Examples]:
    return [drawn_day(400, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def validation() -> list[Examples]:
    return [drawn_day(400, 2)]


def _dense(features: Features) -> NDArray[np.float64]:
    """Build the design matrix entry by entry."""
    widths = [12, 9, 9, 6, 7, 7]
    user, item, clicked, tags, *numeric = accumulate([0, *widths[:-1]])
    made = np.zeros((len(features), sum(widths)))
    for row in range(len(features)):
        made[row, user + features.ids_BF[row, 0]] = 1
        made[row, item + features.ids_BF[row, 1]] = 1
        for name, start in (("clicked_items", clicked), ("tags", tags)):
            present = [int(one) for one in features.pooled[name][row] if one != 0]
            for one in present:
                made[row, start + one] += 1 / len(present)
        for column, start in enumerate(numeric):
            position = float(features.positions_BF[row, column])
            for knot in range(7):
                made[row, start + knot] = max(0.0, 1 - abs(position - knot))
    return made


def test_the_design_matrix_is_what_its_description_says() -> None:
    features = drawn_features(200)
    made = design_matrix(features, SPEC)
    np.testing.assert_allclose(made.toarray(), _dense(features), atol=1e-7)
    assert made.nnz == np.count_nonzero(_dense(features))
    assert made.nnz <= 200 * (2 + 3 + 5 + 2 * 2)


def test_the_order_of_multi_valued_columns_is_the_specs() -> None:
    features = drawn_features(20)
    turned = Features(features.ids_BF, features.positions_BF, dict(reversed(features.pooled.items())))
    assert (design_matrix(features, SPEC) != design_matrix(turned, SPEC)).nnz == 0
    np.testing.assert_array_equal(tree_table(features, SPEC), tree_table(turned, SPEC))


def test_trees_read_ids_the_newest_of_a_sequence_its_length_and_numbers() -> None:
    features = Features(
        torch.tensor([[3, 4]]),
        torch.tensor([[2.5, 5.0]]),
        {"clicked_items": torch.tensor([[7, 8, 0, 0, 0]]), "tags": torch.tensor([[0, 0, 0]])},
    )
    np.testing.assert_array_equal(tree_table(features, SPEC), [[3, 4, 8, 0, 2, 0, 2.5, np.nan]])


def test_logistic_regression_is_scikit_learns_at_the_strength_that_the_validation_day_prefers(
    training: list[Examples], validation: list[Examples]
) -> None:
    made = fit_baseline("sk_logistic_regression", training, validation, SPEC, 1).predict(validation[0].features)
    x = np.concatenate([_dense(day.features) for day in training])
    held_out = _dense(validation[0].features)
    clicks, conversions = (
        np.concatenate([getattr(day, name).numpy() for day in training]) for name in ("clicks", "conversions")
    )
    for column, labels, rows, measured in (
        (0, clicks, np.full(800, fill_value=True), (validation[0].clicks, slice(None))),
        (1, conversions, clicks > 0, (validation[0].conversions, validation[0].clicks.numpy() > 0)),
        (2, conversions, np.full(800, fill_value=True), (validation[0].conversions, slice(None))),
    ):
        fits = [LogisticRegression(C=c, max_iter=1000).fit(x[rows], labels[rows]) for c in STRENGTHS]
        predicted = [fit.predict_proba(held_out)[:, 1] for fit in fits]
        actual, among = measured[0].numpy()[measured[1]], measured[1]
        losses = [-(np.log(np.where(actual > 0, p[among], 1 - p[among]))).mean() for p in predicted]
        np.testing.assert_allclose(made[:, column], predicted[int(np.argmin(losses))], atol=2e-3)


def test_the_svm_orders_as_scikit_learns_and_sums_to_the_validation_days_clicks(
    training: list[Examples], validation: list[Examples]
) -> None:
    made = fit_baseline("linear_svm", training, validation, SPEC, 1).predict(validation[0].features)
    x = np.concatenate([_dense(day.features) for day in training])
    clicks = np.concatenate([day.clicks.numpy() for day in training])
    scores = [
        LinearSVC(C=c, dual=False).fit(x, clicks).decision_function(_dense(validation[0].features)) for c in STRENGTHS
    ]
    assert max(np.corrcoef(made[:, 0].argsort().argsort(), one.argsort().argsort())[0, 1] for one in scores) > 0.999
    assert made[:, 0].sum() == pytest.approx(float(validation[0].clicks.sum()), rel=1e-3)
    assert made[validation[0].clicks.numpy() > 0, 1].sum() == pytest.approx(
        float(validation[0].conversions.sum()), rel=1e-3
    )


@pytest.mark.parametrize("name", get_args(Name))
def test_each_task_has_a_model_of_its_own_that_learns_and_repeats_itself(
    name: Name, training: list[Examples], validation: list[Examples]
) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    test = drawn_day(2000, 3)
    made = fit_baseline(name, training, validation, SPEC, 1).predict(test.features)
    assert made.shape == (2000, 3)
    assert ((made > 0) & (made < 1)).all()
    clicked = test.clicks.numpy() > 0
    assert roc_auc_score(test.clicks, made[:, 0]) > 0.65
    assert roc_auc_score(test.conversions[clicked], made[clicked, 1]) > 0.6
    assert 0.75 < made[:, 2].mean() / float(test.conversions.mean()) < 1.3
    assert not np.allclose(made[:, 2], made[:, 0] * made[:, 1], rtol=1e-3)
    np.testing.assert_array_equal(made, fit_baseline(name, training, validation, SPEC, 1).predict(test.features))


@pytest.mark.parametrize("name", get_args(Name))
def test_a_baseline_reads_what_the_pipeline_encodes(name: Name, small_study: Study) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    spec = small_study.spec("linear", 1)
    made = fit_baseline(name, small_study.training, small_study.validation, spec, 1)
    predicted = made.predict(small_study.measured[0].features)
    assert predicted.shape == (len(small_study.measured[0].clicks), 3)
    assert predicted[:, 0].mean() == pytest.approx(float(small_study.measured[0].clicks.mean()), rel=0.6)


@pytest.mark.parametrize("name", get_args(Name))
def test_days_without_mature_conversions_fix_what_they_would_choose(name: Name, training: list[Examples]) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    day = drawn_day(400, 2)
    targets = replace(day.supervision.targets, conversion_mask_B=torch.zeros(400))
    unknown = replace(day, supervision=Supervision(targets, {}))
    made = fit_baseline(name, training, [unknown], SPEC, 1).predict(day.features)
    assert 0.7 < made[:, 2].mean() / float(day.conversions.mean()) < 1.4


def test_delay_corrected_conversions_keep_the_rate() -> None:
    rows = Labelled(None, np.array([2.0, 0, 0, 0, 1, 0, 0, 0]))
    assert rows.weights.sum() == 8
    assert rows.weights[rows.targets > 0].tolist() == [2, 1]
    assert set(rows.weights[rows.targets == 0]) == {5 / 6}


@pytest.mark.parametrize("name", LINEAR)
def test_early_conversions_that_count_twice_predict_the_full_rate(name: Name, validation: list[Examples]) -> None:
    whole = [drawn_day(2000, seed) for seed in (0, 1)]
    early = []
    for day in whole:
        known = torch.rand(2000, generator=torch.Generator().manual_seed(7)) < 0.5
        targets = replace(day.supervision.targets, conversions_B=day.conversions * known * 2)
        early.append(replace(day, supervision=Supervision(targets, {})))
    made = fit_baseline(name, early, validation, SPEC, 1).predict(whole[0].features)
    assert 0.85 < made[:, 2].mean() / float(whole[0].conversions.mean()) < 1.15


def test_a_task_of_one_class_is_refused(training: list[Examples], validation: list[Examples]) -> None:
    never = [
        replace(
            day,
            supervision=Supervision(replace(day.supervision.targets, conversions_B=torch.zeros_like(day.clicks)), {}),
        )
        for day in training
    ]
    message = r"baseline linear_svm: conversion has targets of 0 in \d+ training rows, expected both classes"
    with pytest.raises(ValueError, match=message):
        fit_baseline("linear_svm", never, validation, SPEC, 1)


def test_a_missing_lightgbm_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, training: list[Examples], validation: list[Examples]
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ValueError, match=r"not installed: pip install counterpoise\[bench\]"):
        fit_baseline("lightgbm", training, validation, SPEC, 1)
