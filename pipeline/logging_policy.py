"""The policy that chose what the simulated log shows: it knows the population, not the truth about clicks.

Legend of shapes: R requests, S slots of a list.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.population import Integers, Items, SimulatorConfig, Users, day_start_us

SURFACES = ("home", "search", "feed")
SURFACE_SHARES = (0.5, 0.2, 0.3)
PEAK_HOUR = 20
TASTE_SCALE = 0.5
BLOCK_CELLS = 2_000_000  # cells of a request x item block: 8 to 16 MB an array


@dataclass(frozen=True, eq=False)
class Requests:
    """Lists that were shown, in order of time."""

    times_us: Integers  # R, strictly increasing
    users: Integers  # R
    surfaces: Integers  # R, indices of SURFACES
    items: Integers  # R S, by position


@dataclass(frozen=True, eq=False)
class LoggingPolicy:
    """Top of popularity + a noisy estimate of the click taste + Gumbel noise."""

    config: SimulatorConfig
    users: Users
    items: Items

    def draw_requests(self, rng: np.random.Generator, *, day: int, count: int) -> Requests:
        """Draw a day's lists: times by the hour's traffic, users by activity, items by the policy."""
        start, end = day_start_us(self.config, day), day_start_us(self.config, day + 1)
        traffic = 1 + 0.6 * np.cos((np.arange(24) - PEAK_HOUR) * (2 * np.pi / 24))
        share_of_day = (rng.choice(24, count, p=traffic / traffic.sum()) + rng.random(count)) / 24
        # strictly, so that nobody is shown the same item twice in one microsecond
        times_us = strictly_increasing(start + (share_of_day * (end - start - count)).astype(np.int64))
        active = self.users.activity * (self.users.registered_us <= start)
        users = rng.choice(self.config.users, count, p=active / active.sum())
        surfaces = rng.choice(len(SURFACES), count, p=SURFACE_SHARES)
        rows = max(1, BLOCK_CELLS // self.config.items)
        blocks = [
            self._lists(rng, users[row : row + rows], times_us[row : row + rows]) for row in range(0, count, rows)
        ]
        return Requests(times_us, users, surfaces, np.concatenate(blocks))

    def _lists(self, rng: np.random.Generator, users: Integers, times_us: Integers) -> Integers:
        slots = self.config.slots
        born_us = self.items.available_us
        shown = np.flatnonzero(born_us <= times_us[-1])
        taste = self.users.estimated_taste[users] @ self.items.estimated_taste[shown].T
        taste *= TASTE_SCALE / np.sqrt(self.config.latent_width)
        preference = (taste + self.items.popularity[shown]).astype(np.float32)
        # smallest exponential / exp(preference) = largest preference + Gumbel, without the logarithms
        rank = rng.standard_exponential(preference.shape, dtype=np.float32) * np.exp(-preference)
        late = np.flatnonzero(born_us[shown] > times_us[0])
        rank[:, late] = np.where(born_us[shown[late]] > times_us[:, None], np.inf, rank[:, late])
        best = np.argpartition(rank, slots - 1, axis=1)[:, :slots]
        order = np.argsort(np.take_along_axis(rank, best, axis=1), axis=1)
        return shown[np.take_along_axis(best, order, axis=1)]


def strictly_increasing(times: Integers) -> Integers:
    """Sort times and move each that does not exceed the one before it to one more than that."""
    order = np.arange(times.size)
    return np.maximum.accumulate(np.sort(times) - order) + order
