"""Claims about the plan: a counter's keys decide where it is computed, and no feature is lost."""

import pytest

from features.plan import CounterPlan, FeaturePlan


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        (("user_id",), "user"),
        (("segment",), "user"),
        (("user_id", "segment"), "user"),
        (("item_id",), "item"),
        (("brand", "first_tags"), "item"),
        (("user_id", "item_id"), "pair"),
        (("segment", "brand"), "pair"),
        (("surface",), "pair"),
        (("user_id", "surface"), "pair"),
    ],
)
def test_the_keys_decide_the_level(plan: FeaturePlan, keys: tuple[str, ...], level: str) -> None:
    assert plan.level(CounterPlan(keys=keys, half_lives_days=(7.0,), smoothing=1.0, recency=False)) == level


def test_each_counter_is_at_one_level_and_each_feature_in_one_group(plan: FeaturePlan) -> None:
    levels = [counter for level in ("user", "item", "pair") for counter in plan.at_level(level)]
    assert sorted(counter.name for counter in levels) == sorted(counter.name for counter in plan.counters)
    columns = [*plan.user_columns(), *plan.item_columns(), *plan.pair_columns()]
    assert len(set(columns)) == len(columns)
    encoded = {*plan.categorical(), *plan.numeric(), *plan.multi(), *plan.sequences()}
    assert encoded == {*columns, "user_id", "item_id", *plan.context}


def test_features_are_named_by_keys_measure_and_half_life() -> None:
    counter = CounterPlan(keys=("user_id", "tab"), half_lives_days=(0.5, 7.0), smoothing=1.0, recency=True)
    names = counter.features()
    assert len(names) == 10
    assert names[0] == "user_id_x_tab__impressions_0.5d"
    assert names[5] == "user_id_x_tab__click_rate_7d"
    assert names[-1] == "user_id_x_tab__hours_since_click"


def test_context_numbers_are_those_of_counters_over_the_context(plan: FeaturePlan) -> None:
    assert {name.split("__")[0] for name in plan.context_numeric()} == {"user_id_x_surface"}


def test_key_columns_are_the_side_columns_that_counters_need(plan: FeaturePlan) -> None:
    assert plan.key_columns("user") == {"segment"}
    assert plan.key_columns("item") == {"brand", "first_tags"}
