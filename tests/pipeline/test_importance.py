"""Claims about the importance of features by permutation."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from features.plan import CounterPlan, FeaturePlan, SidePlan
from models.inputs import Features
from models.ranker import Ranker, RankerSpec, predict
from pipeline.config import Config
from pipeline.importance import Group, feature_groups, importance
from pipeline.metrics import paired_difference
from pipeline.scored import Scored

OUTPUTS = {"click": 0, "conversion": 1}
ID, NUMBER, LIST = Group("id", [0], [], []), Group("number", [], [0], []), Group("list", [], [], ["tags"])


def drawn(rows: int = 600, days: int = 1) -> Scored:
    """Draw impressions whose clicks follow the number alone, conversions among the clicks at random."""
    generator = np.random.default_rng(1)
    number = generator.random((rows, 2)).astype(np.float32)
    clicks = generator.random(rows) < number[:, 0]
    conversions = clicks & (generator.random(rows) < 0.5)
    ids = torch.from_numpy(generator.integers(50, size=(rows, 2)))
    tags = torch.from_numpy(generator.integers(9, size=(rows, 3)))
    features = Features(ids, torch.from_numpy(number), {"tags": tags})
    size = rows // days
    parts = [slice(day * size, (day + 1) * size) for day in range(days)]
    frames = [pl.DataFrame({"date": [dt.date(2026, 1, 1 + day)] * size}) for day in range(days)]
    everywhere = np.ones(rows, dtype=bool)
    return Scored(
        frames,
        [features.slice(part) for part in parts],
        generator.integers(80, size=rows),
        {"click": clicks, "conversion": conversions},
        {"click": everywhere, "conversion": clicks},
        {},
    )


def by_number(features: Features) -> NDArray[np.float32]:
    """Predict both tasks by the first number alone."""
    number = features.positions_BF[:, 0].numpy()
    return np.stack([0.1 + 0.8 * number, 0.5 + 0.1 * number], axis=1)


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(evaluation={"replicates": 100, "importance_rows": 1000, "importance_repeats": 2})


def of_feature(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in found if row["feature"] == name)


def test_a_feature_that_the_model_ignores_costs_exactly_nothing(config: Config) -> None:
    found = importance(config, drawn(), [ID, NUMBER, LIST], OUTPUTS, by_number)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    for task in ("click", "conversion"):
        for name in ("id", "list"):
            row = of_feature(found[task], name)
            assert row["log_loss_increase"] == row["auc_decrease"] == nothing


def test_the_only_feature_costs_all_that_the_model_knows(config: Config) -> None:
    sample = drawn(6000)
    one = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"importance_rows": 6000})})
    row = of_feature(importance(one, sample, [ID, NUMBER], OUTPUTS, by_number)["click"], "number")
    known = paired_difference(
        labels=sample.labels["click"],
        probabilities=by_number(sample.features[0])[:, 0],
        baseline=np.full(6000, 0.5),
        users=sample.users,
        replicates=20,
    )
    assert row["auc_decrease"]["value"] == pytest.approx(known["auc"].value, abs=0.02)  # permuted, it orders as chance
    assert row["auc_decrease"]["low"] > 0.2
    assert row["log_loss_increase"]["low"] > -known["log_loss"].value  # and is surer than a constant would be


def test_values_and_bounds_are_those_of_the_paired_difference(config: Config) -> None:
    sample = drawn()
    generator = np.random.default_rng(config.seed)
    generator.choice(600, size=600, replace=False)
    orders = [np.argsort(generator.random(600)) for _ in range(2)]
    found = of_feature(importance(config, sample, [NUMBER], OUTPUTS, by_number)["click"], "number")
    before = by_number(sample.features[0])[:, 0]
    shared = {"labels": sample.labels["click"], "users": sample.users}
    each = [
        paired_difference(**shared, probabilities=before[order], baseline=before, replicates=100, seed=config.seed)
        for order in orders
    ]
    increase = found["log_loss_increase"]
    assert increase["value"] == pytest.approx(np.mean([one["log_loss"].value for one in each]))
    decrease = found["auc_decrease"]
    assert decrease["value"] == pytest.approx(-np.mean([one["auc"].value for one in each]))

    single = config.evaluation.model_copy(update={"importance_repeats": 1, "replicates": 1000})
    once = config.model_copy(update={"evaluation": single})
    row = of_feature(importance(once, sample, [NUMBER], OUTPUTS, by_number)["click"], "number")
    paired = paired_difference(
        **shared, probabilities=before[orders[0]], baseline=before, replicates=1000, seed=config.seed
    )
    exact, linear = paired["log_loss"], paired["auc"]
    assert list(row["log_loss_increase"].values()) == pytest.approx([exact.value, exact.low, exact.high])
    width = linear.high - linear.low
    assert row["auc_decrease"]["low"] == pytest.approx(-linear.high, abs=0.05 * width)
    assert row["auc_decrease"]["high"] == pytest.approx(-linear.low, abs=0.05 * width)


def test_rows_change_places_within_their_day_only(config: Config) -> None:
    seen: list[Features] = []

    def watched(features: Features) -> NDArray[np.float32]:
        seen.append(features)
        return by_number(features)

    sample = drawn(days=3)
    for day, features in enumerate(sample.features):
        features.positions_BF[:, 0] = (day + features.positions_BF[:, 0] / 2) / 4
        features.ids_BF[:, 0] = torch.arange(200) + 200 * day
    importance(config, sample, [NUMBER], OUTPUTS, watched)
    whole, *permuted = seen
    assert len(permuted) == 2
    for moved in permuted:
        rows = moved.ids_BF[:, 0]
        assert len(rows) > 550  # but for the rows that happen to stay
        assert torch.equal((moved.positions_BF[:, 0] * 4).floor().long(), rows // 200)
        assert (moved.positions_BF[:, 0] != whole.positions_BF[rows, 0]).all()
        assert torch.equal(moved.positions_BF[:, 1], whole.positions_BF[rows, 1])
        assert torch.equal(moved.ids_BF, whole.ids_BF[rows])
        assert torch.equal(moved.pooled["tags"], whole.pooled["tags"][rows])


def test_a_sample_is_no_larger_than_configured_and_the_same_for_a_seed(config: Config) -> None:
    sizes: list[int] = []

    def watched(features: Features) -> NDArray[np.float32]:
        sizes.append(len(features))
        return by_number(features)

    small = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"importance_rows": 150})})
    first = importance(small, drawn(), [ID, NUMBER], OUTPUTS, watched)
    assert sizes[0] == max(sizes) == 150
    assert importance(small, drawn(), [ID, NUMBER], OUTPUTS, by_number) == first
    other = small.model_copy(update={"seed": small.seed + 1})
    assert importance(other, drawn(), [ID, NUMBER], OUTPUTS, by_number) != first


def test_rows_that_keep_their_value_are_not_predicted_again(config: Config) -> None:
    sizes: list[int] = []

    def watched(features: Features) -> NDArray[np.float32]:
        sizes.append(len(features))
        return by_number(features)

    sample = drawn()
    sample.features[0].ids_BF[:, 0] = 7
    sample.features[0].ids_BF[:3, 1] = 51
    sample.features[0].ids_BF[3:, 1] = 7
    importance(config, sample, [ID, Group("rare", [1], [], [])], OUTPUTS, watched)
    assert sizes[0] == 600
    assert len(sizes) == 1 + 2  # the constant column needs none
    assert max(sizes[1:]) <= 6  # three rows lose the rare id, three get it


def test_a_task_whose_sample_holds_one_class_has_no_rows(config: Config) -> None:
    sample = drawn()
    sample.labels["conversion"][:] = False
    found = importance(config, sample, [NUMBER], OUTPUTS, by_number)
    assert found["conversion"] == []
    assert len(found["click"]) == 1


def test_columns_are_permuted_alone_and_the_features_of_a_counter_together() -> None:
    counters = tuple(
        CounterPlan(keys=keys, half_lives_days=(7.0, 30.0), smoothing=5.0, recency=False)
        for keys in (("user_id",), ("user_id", "tab"))
    )
    plan = FeaturePlan(
        users=SidePlan(numeric=("age",)),
        items=SidePlan(multi=("tag",)),
        context=("tab",),
        counters=counters,
        sequence_length=0,
        item_age=False,
        time_zone="UTC",
    )
    spec = RankerSpec(
        body="linear",
        categorical_cardinalities={"user_id": 9, "item_id": 9, "tab": 9, "tag": 9},
        numeric=plan.numeric(),
        bins=4,
        pooled={"tag": "tag"},
        single=plan.categorical(),
        context=["tab"],
        context_numeric=plan.context_numeric(),
    )
    groups = {group.name: group for group in feature_groups(spec, plan)}
    assert list(groups) == ["user_id", "item_id", "tab", "age", "user_id counter", "user_id_x_tab counter", "tag"]
    assert groups["tab"].ids == [2]
    assert groups["age"].positions == [0]
    assert groups["user_id counter"].positions == list(range(1, 9))
    assert groups["user_id_x_tab counter"].positions == list(range(9, 17))
    assert groups["tag"].pooled == ["tag"]


def test_a_ranker_that_does_not_read_a_column_loses_nothing_by_it(config: Config) -> None:
    spec = RankerSpec(
        body="linear",
        categorical_cardinalities={"first": 60, "second": 60},
        numeric=["number", "other"],
        bins=1,
        pooled={},
        single=["first", "second"],
        context=[],
        context_numeric=[],
        seed=1,
    )
    ranker = Ranker(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weights = dict(ranker.named_parameters())
        table = next(weight for name, weight in weights.items() if "table" in name)
        table.copy_(torch.randn(table.shape, generator=generator))
        table[0] = 0.0  # padding, of both
        table[-59:] = 0.0  # the other rows of `second`
    groups = [Group("first", [0], [], []), Group("second", [1], [], [])]
    found = importance(config, drawn(), groups, OUTPUTS, lambda features: predict(ranker, features, 128))
    assert of_feature(found["click"], "second")["log_loss_increase"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert of_feature(found["click"], "first")["log_loss_increase"]["value"] != 0
