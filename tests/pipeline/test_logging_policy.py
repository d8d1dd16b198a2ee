"""Claims about what the logging policy shows, to whom and when."""

import numpy as np
import pytest

from pipeline.logging_policy import LoggingPolicy, strictly_increasing
from pipeline.population import SimulatorConfig, day_start_us, draw_items, draw_users, stream

CONFIG = SimulatorConfig(users=300, items=200, days=4, slots=5, new_item_share=0.5, new_user_share=0.5)


@pytest.fixture(scope="module")
def policy() -> LoggingPolicy:
    rng = stream(CONFIG, 0)
    return LoggingPolicy(CONFIG, draw_users(CONFIG, rng), draw_items(CONFIG, rng))


def test_no_list_shows_an_item_twice_or_before_its_birth(policy: LoggingPolicy) -> None:
    requests = policy.draw_requests(stream(CONFIG, 5), day=2, count=3000)
    assert (np.diff(np.sort(requests.items, axis=1)) > 0).all()
    assert (policy.items.available_us[requests.items] <= requests.times_us[:, None]).all()
    born_that_day = policy.items.available_us >= day_start_us(CONFIG, 2)
    assert born_that_day[requests.items].any()


def test_request_times_increase_strictly_within_their_day_and_peak_in_the_evening(
    policy: LoggingPolicy,
) -> None:
    times_us = policy.draw_requests(stream(CONFIG, 5), day=1, count=5000).times_us
    assert (np.diff(times_us) > 0).all()
    assert day_start_us(CONFIG, 1) <= times_us[0]
    assert times_us[-1] < day_start_us(CONFIG, 2)
    hours = (times_us - day_start_us(CONFIG, 1)) // 3_600_000_000
    assert (hours == 20).sum() > 2 * (hours == 8).sum()


def test_equal_times_are_moved_apart_and_others_stay() -> None:
    assert strictly_increasing(np.array([9, 5, 5, 6, 1])).tolist() == [1, 5, 6, 7, 9]
    assert strictly_increasing(np.array([], dtype=np.int64)).tolist() == []


def test_only_users_registered_before_the_day_are_shown_anything(policy: LoggingPolicy) -> None:
    requests = policy.draw_requests(stream(CONFIG, 5), day=1, count=3000)
    assert (policy.users.registered_us[requests.users] <= day_start_us(CONFIG, 1)).all()


def test_popular_items_and_items_near_the_estimated_taste_are_shown_more(policy: LoggingPolicy) -> None:
    requests = policy.draw_requests(stream(CONFIG, 5), day=3, count=3000)
    seen = policy.items.popularity[requests.items].mean(axis=0)
    assert seen[0] > seen[-1] > policy.items.popularity.mean()
    liked = policy.users.estimated_taste[requests.users] @ policy.items.estimated_taste.T
    assert np.take_along_axis(liked, requests.items, axis=1).mean() > liked.mean() + 0.3


def test_blocks_of_requests_do_not_change_what_can_be_shown(
    policy: LoggingPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.logging_policy.BLOCK_CELLS", 1)
    requests = policy.draw_requests(stream(CONFIG, 5), day=2, count=50)
    assert requests.items.shape == (50, 5)
    assert (policy.items.available_us[requests.items] <= requests.times_us[:, None]).all()
