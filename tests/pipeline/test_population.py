"""Claims about the simulated users and items, and about what configuration is refused."""

import datetime as dt
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.population import (
    BACKLOG_DAYS,
    DAY_US,
    Items,
    SimulatorConfig,
    day_start_us,
    draw_items,
    draw_users,
    entity_ids,
    entity_indices,
    epoch_us,
    stream,
    title_text,
)

CONFIG = SimulatorConfig(users=3000, items=1500)


def items_of(config: SimulatorConfig) -> Items:
    return draw_items(config, stream(config, 0))


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.5, 1.0])
def test_latents_of_the_two_tasks_have_the_chosen_correlation(correlation: float) -> None:
    config = CONFIG.model_copy(update={"task_correlation": correlation})
    for entities in (draw_users(config, stream(config, 0)), items_of(config)):
        click, conversion = entities.taste.reshape(2, -1)
        assert np.corrcoef(click, conversion)[0, 1] == pytest.approx(correlation, abs=0.05)


def test_activity_and_popularity_are_heavy_tailed() -> None:
    users, items = draw_users(CONFIG, stream(CONFIG, 0)), items_of(CONFIG)
    for weights in (users.activity, np.exp(items.popularity)):
        largest_first = np.sort(weights)[::-1]
        assert largest_first[: weights.size // 10].sum() > 0.35 * weights.sum()


def test_segment_category_and_brand_explain_most_of_the_tastes() -> None:
    users, items = draw_users(CONFIG, stream(CONFIG, 0)), items_of(CONFIG)
    assert share_explained(users.segment, users.taste[0]) > 0.7
    assert 0.3 < share_explained(items.category, items.taste[0]) < 0.8
    assert share_explained(items.brand, items.taste[1]) > 0.3


def share_explained(groups: np.ndarray[Any, Any], taste: np.ndarray[Any, Any]) -> float:
    frame = pl.DataFrame({"group": groups, "first": taste[:, 0]})
    within = frame.select(pl.col("first") - pl.col("first").mean().over("group")).to_numpy()
    return float(1 - within.var() / taste[:, 0].var())


def test_title_words_tell_conversion_quality() -> None:
    items = items_of(CONFIG)
    best = items.words[items.quality[1] > np.quantile(items.quality[1], 0.8)]
    worst = items.words[items.quality[1] < np.quantile(items.quality[1], 0.2)]
    assert not set(best[:, 3]) & set(worst[:, 3])
    assert 0 < np.isin(best[:, 4], worst[:, 4]).mean() < 0.3  # the noisy view is sometimes mistaken


def test_titles_are_six_to_eight_words_and_no_two_words_look_alike() -> None:
    lengths = {len(title.split()) for title in title_text(items_of(CONFIG).words)}
    assert lengths == {6, 7, 8}
    vocabulary = title_text(np.arange(7520)[:, None])
    assert len(set(vocabulary)) == 7520


def test_the_chosen_share_of_items_is_born_during_the_simulated_days() -> None:
    config = CONFIG.model_copy(update={"new_item_share": 0.4})
    born = items_of(config).available_us
    start, end = day_start_us(config, 0), day_start_us(config, config.days)
    assert ((born >= start) & (born < end)).sum() == 600
    assert born.min() >= start - BACKLOG_DAYS * DAY_US
    assert born.max() < end


def test_a_day_that_loses_an_hour_to_summer_time_has_23_hours() -> None:
    config = SimulatorConfig(first_day=dt.date(2026, 3, 8), time_zone="America/New_York")
    assert day_start_us(config, 1) - day_start_us(config, 0) == 23 * 3_600_000_000


def test_the_smallest_groups_give_finite_latents() -> None:
    config = SimulatorConfig(users=2, items=2, slots=1, brands=2, categories=2, segments=2, latent_width=2)
    for seed in range(20):
        assert np.isfinite(draw_items(config, stream(config, seed)).quality).all()
        assert np.isfinite(draw_users(config, stream(config, seed)).bias).all()


def test_ids_and_indices_are_inverses() -> None:
    ids = entity_ids("item_id", "i", 5, np.array([0, 42]))
    assert ids.to_list() == ["i00000", "i00042"]
    assert entity_indices(["i00042", "i00000", "i00042"], ids).tolist() == [1, 0, 1]
    assert entity_indices([], ids).tolist() == []


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(ValueError, match="item_id 'i9' is not in this world"):
        entity_indices(["i00000", "i9"], entity_ids("item_id", "i", 5, np.arange(2)))


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        epoch_us(dt.datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("users", 1, "greater than or equal to 2"),
        ("days", 0, "greater than or equal to 1"),
        ("click_rate", 0.0, "greater than or equal to 0.001"),
        ("conversion_rate", 0.9, "less than or equal to 0.5"),
        ("task_correlation", 1.5, "less than or equal to 1"),
        ("conversion_delay_hours_mean", 0.0, "greater than 0"),
        ("time_zone", "Mars/Olympus", "unknown time zone 'Mars/Olympus': give an IANA name"),
        ("items", 10, "8 items exist before the first day, but a request shows 10: raise items"),
        ("clicks", 3, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_value_is_refused_with_its_reason(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SimulatorConfig.model_validate({key: value})


def test_every_field_is_described() -> None:
    assert all(field.description for field in SimulatorConfig.model_fields.values())
