"""Claims about the truth: its effects, its calibration, its oracle lists and its file."""

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from pipeline.population import day_start_us
from pipeline.world import (
    REFERENCE_HOUR,
    SURFACES,
    SimulatorConfig,
    World,
    create_world,
    expected_conversions,
    load_world,
    ranked_by_truth,
    save_world,
)

NOW = dt.datetime(2026, 1, 3, 12, tzinfo=dt.UTC)
NOW_US = 1_767_441_600_000_000


@pytest.fixture(scope="module")
def world() -> World:
    return create_world(SimulatorConfig(users=120, items=90, days=4, requests_per_day=300))


def test_clicks_fall_with_position_and_conversions_do_not_depend_on_it(world: World) -> None:
    click, conversion = world.probabilities(users=3, items=5, times_us=NOW_US, positions=np.arange(1, 11))
    assert (np.diff(click) < 0).all()
    assert np.ptp(conversion) == 0
    odds = click / (1 - click)
    assert odds[0] / odds[9] == pytest.approx(10**world.config.position_effect)


def test_clicks_fall_with_the_age_of_an_item(world: World) -> None:
    days = np.arange(20)
    ages_us = world.items.available_us[7] + days * 86_400_000_000
    click, _ = world.probabilities(users=3, items=7, times_us=ages_us)
    assert (np.diff(click) < 0).all()
    odds = click / (1 - click)
    gained = world.config.novelty_effect * (1 - np.exp(-19 / 5))
    assert odds[0] / odds[19] == pytest.approx(np.exp(gained))


def test_an_item_not_yet_born_counts_as_just_born(world: World) -> None:
    born_us = world.items.available_us[7]
    early, at_birth = world.probabilities(users=3, items=7, times_us=np.array([born_us - 10**12, born_us]))[0]
    assert early == at_birth


def test_surfaces_and_hours_shift_clicks(world: World) -> None:
    click, _ = world.probabilities(users=1, items=2, times_us=NOW_US, surfaces=np.arange(3))
    home, search, feed = click
    assert SURFACES == ("home", "search", "feed")
    assert search > home > feed
    by_hour, _ = world.probabilities(users=1, items=2, times_us=NOW_US, hours=np.arange(24))
    assert by_hour.argmax() == REFERENCE_HOUR
    assert by_hour.argmin() == (REFERENCE_HOUR + 12) % 24


def test_effects_that_are_switched_off_are_gone() -> None:
    flat = create_world(
        SimulatorConfig(users=60, items=40, days=2, requests_per_day=50, position_effect=0, novelty_effect=0)
    )
    click, _ = flat.probabilities(users=1, items=2, times_us=NOW_US + np.arange(5) * 10**11, positions=np.arange(1, 6))
    assert np.ptp(click) == 0


def test_price_sensitive_users_convert_less_on_dear_items(world: World) -> None:
    users = np.argsort(world.users.price_sensitivity)
    _, conversion = world.probabilities(users=users[:, None], items=np.arange(90), times_us=NOW_US)
    logits = np.log(conversion / (1 - conversion))
    slopes = [np.polyfit(world.items.price_level, row, 1)[0] for row in logits]
    assert np.mean(slopes[-30:]) < np.mean(slopes[:30]) - 0.1


def test_the_reference_context_is_position_1_home_at_20_h(world: World) -> None:
    stated = world.probabilities(users=4, items=6, times_us=NOW_US, positions=1, surfaces=0, hours=20)
    assert world.probabilities(users=4, items=6, times_us=NOW_US) == stated


def test_arguments_broadcast_to_a_matrix_equal_to_its_cells(world: World) -> None:
    users, items = np.arange(5), np.arange(8)
    click, conversion = world.probabilities(users=users[:, None], items=items, times_us=NOW_US)
    assert click.shape == conversion.shape == (5, 8)
    cell = world.probabilities(users=2, items=3, times_us=NOW_US)
    assert (click[2, 3], conversion[2, 3]) == pytest.approx(cell)


def test_an_item_is_available_from_its_birth_on(world: World) -> None:
    item = int(world.items.available_us.argmax())
    birth = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=int(world.items.available_us[item]))
    assert world.available(birth)[item]
    assert not world.available(birth - dt.timedelta(microseconds=1))[item]


def test_hours_are_local_and_follow_summer_time() -> None:
    config = SimulatorConfig(users=20, items=20, days=1, requests_per_day=5, time_zone="America/New_York")
    noons = [dt.datetime(2026, month, 10, 12, tzinfo=dt.UTC).timestamp() for month in (1, 7)]
    times_us = (np.array(noons) * 1e6).astype(np.int64)
    assert create_world(config).hours(times_us).tolist() == [7, 8]


def test_ids_map_to_indices_and_back(world: World) -> None:
    assert world.user_ids([0, 119]).to_list() == ["u000000", "u000119"]
    assert world.item_ids(np.array([42])).to_list() == ["i00042"]
    assert world.user_indices(["u000119", "u000000"]).tolist() == [119, 0]
    assert world.item_indices(pl.Series(["i00042"])).tolist() == [42]
    with pytest.raises(ValueError, match="user_id 'u000120' is not in this world"):
        world.user_indices(["u000120"])


def test_the_oracle_ranks_like_a_full_sort_of_the_available_items(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = np.array([3, 50, 7])
    born = np.flatnonzero(world.available(NOW))
    click, conversion = world.probabilities(users=users[:, None], items=born, times_us=NOW_US)
    naive = born[np.argsort(-click * conversion, axis=1)][:, :10]
    assert (ranked_by_truth(world, users=users, time=NOW, k=10) == naive).all()
    monkeypatch.setattr("pipeline.world.BLOCK_CELLS", 1)
    excluded = [row[:2] for row in naive]
    assert (ranked_by_truth(world, users=users, time=NOW, k=8, excluded=excluded) == naive[:, 2:]).all()


def test_places_without_an_item_hold_minus_one(world: World) -> None:
    born = np.flatnonzero(world.available(NOW))
    unborn = np.flatnonzero(~world.available(NOW))
    excluded = [np.concatenate([born[2:], unborn])]
    ranked = ranked_by_truth(world, users=np.array([0]), time=NOW, k=100, excluded=excluded)[0]
    assert set(ranked[:2]) == set(born[:2])
    assert (ranked[2:] == -1).all()
    before_all = ranked_by_truth(world, users=np.array([0, 1]), time=NOW - dt.timedelta(days=90), k=3)
    assert (before_all == -1).all()


def test_expected_conversions_sum_a_list_and_the_oracle_has_the_most(world: World) -> None:
    users = np.array([3, 50])
    lists = np.array([[4, 9, -1], [8, -1, -1]])
    click, conversion = world.probabilities(users=[3, 3, 50], items=[4, 9, 8], times_us=NOW_US)
    product = click * conversion
    expected = expected_conversions(world, users=users, lists=lists, time=NOW)
    assert expected == pytest.approx([product[0] + product[1], product[2]])
    best = ranked_by_truth(world, users=users, time=NOW, k=3)
    assert (expected_conversions(world, users=users, lists=best, time=NOW) > expected).all()
    assert expected_conversions(world, users=users, lists=lists[:, :0], time=NOW).tolist() == [0, 0]


def test_a_saved_world_is_the_same_when_loaded_and_saved_again(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "first")
    loaded = load_world(tmp_path / "first")
    save_world(loaded, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert loaded.config == world.config
    every = np.arange(90)
    before = world.probabilities(users=every, items=every, times_us=NOW_US)
    after = loaded.probabilities(users=every, items=every, times_us=NOW_US)
    assert np.array_equal(before, after)


def test_a_damaged_missing_or_foreign_world_file_is_named(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    (tmp_path / "garbage").write_bytes(b"\xff" * 100)
    save_file({"x": np.zeros(2)}, tmp_path / "foreign")
    save_file({"x": np.zeros(2)}, tmp_path / "header", metadata={"world": "[]"})
    for name in ("cut", "garbage", "foreign", "header", "absent"):
        with pytest.raises(ValueError, match=f"{name} is not a readable world file"):
            load_world(tmp_path / name)


def test_worlds_of_two_seeds_differ() -> None:
    small = SimulatorConfig(users=20, items=20, days=2, requests_per_day=10)
    first, second = (create_world(small.model_copy(update={"seed": seed})) for seed in (1, 2))
    assert (first.users.taste != second.users.taste).any()
    assert day_start_us(small, 0) == day_start_us(second.config, 0)
