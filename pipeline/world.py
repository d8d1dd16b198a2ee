"""The simulated world and its truth: p_click and p_conversion of any user and item at any time.

Legend of shapes: U users, K items of a ranked list.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.logging_policy import PEAK_HOUR, SURFACES, LoggingPolicy
from pipeline.population import (
    DAY_US,
    PILOT_STREAM,
    POPULATION_STREAM,
    Floats,
    Integers,
    Items,
    SimulatorConfig,
    Users,
    draw_items,
    draw_users,
    entity_ids,
    entity_indices,
    epoch_us,
    stream,
)

__all__ = [
    "REFERENCE_HOUR",
    "REFERENCE_POSITION",
    "REFERENCE_SURFACE",
    "SURFACES",
    "SimulatorConfig",
    "World",
    "create_world",
    "expected_conversions",
    "load_world",
    "ranked_by_truth",
    "save_world",
]

REFERENCE_POSITION = 1
REFERENCE_SURFACE = SURFACES.index("home")
REFERENCE_HOUR = PEAK_HOUR
SURFACE_EFFECTS = np.array([0.0, 0.4, -0.4])
HOUR_EFFECT = 0.15
NOVELTY_DAYS = 5.0
TASTE_SCALES = (0.6, 0.4)  # click, conversion
PRICE_EFFECT = 0.3
PILOT_REQUESTS = 20_000  # the mean probability is then within about 1 % of the whole log's
BLOCK_CELLS = 250_000  # cells of a user x item block of eight latent dimensions: 16 MB


@dataclass(frozen=True)
class World:
    """A population and the intercepts that make its logged rates those of the configuration."""

    config: SimulatorConfig
    users: Users
    items: Items
    click_intercept: float = 0.0
    conversion_intercept: float = 0.0

    def probabilities(
        self,
        *,
        users: ArrayLike,
        items: ArrayLike,
        times_us: ArrayLike,
        positions: ArrayLike = REFERENCE_POSITION,
        surfaces: ArrayLike = REFERENCE_SURFACE,
        hours: ArrayLike = REFERENCE_HOUR,
    ) -> tuple[Floats, Floats]:
        """True p_click and p_conversion of users and items by index, at times in microseconds since 1970 UTC.

        All arguments broadcast together; `surfaces` index SURFACES and `hours` are local (`World.hours`). The
        reference context is position 1 of the home surface at 20 h. An item not yet born counts as just born.
        """
        users, items = np.asarray(users), np.asarray(items)
        age_days = np.maximum(np.asarray(times_us) - self.items.available_us[items], 0) / DAY_US
        context = self.config.novelty_effect * np.exp(-age_days / NOVELTY_DAYS)
        context = context - self.config.position_effect * np.log(positions)
        context = context + SURFACE_EFFECTS[np.asarray(surfaces)]
        context = context + HOUR_EFFECT * np.cos((np.asarray(hours) - REFERENCE_HOUR) * (2 * np.pi / 24))
        price = self.users.price_sensitivity[users] * self.items.price_level[items]
        click = self.click_intercept + self._affinity(0, users, items) + context
        conversion = self.conversion_intercept + self._affinity(1, users, items) - PRICE_EFFECT * price
        return _sigmoid(click), _sigmoid(conversion)

    def _affinity(self, task: int, users: Integers, items: Integers) -> Floats:
        taste = np.einsum("...w,...w->...", self.users.taste[task][users], self.items.taste[task][items])
        taste = taste * (TASTE_SCALES[task] / np.sqrt(self.config.latent_width))
        affinity: Floats = self.users.bias[task][users] + self.items.quality[task][items] + taste
        return affinity

    def available(self, time: dt.datetime) -> NDArray[np.bool_]:
        """Which items, by index, are born at a moment with a time zone."""
        return self.items.available_us <= epoch_us(time)

    def hours(self, times_us: Integers) -> Integers:
        """Local hour of day, in the configured zone, of times in microseconds since 1970 UTC."""
        moments = pl.Series(times_us).cast(pl.Datetime("us", "UTC"))
        return moments.dt.convert_time_zone(self.config.time_zone).dt.hour().cast(pl.Int64).to_numpy()

    def user_ids(self, users: ArrayLike) -> pl.Series:
        """String ids, "u000123", of users by index."""
        return entity_ids("user_id", "u", 6, users)

    def item_ids(self, items: ArrayLike) -> pl.Series:
        """String ids, "i00042", of items by index."""
        return entity_ids("item_id", "i", 5, items)

    def user_indices(self, ids: Sequence[str] | pl.Series) -> Integers:
        """Indices of user ids; a ValueError names the first that this world lacks."""
        return entity_indices(ids, self.user_ids(np.arange(self.config.users)))

    def item_indices(self, ids: Sequence[str] | pl.Series) -> Integers:
        """Indices of item ids; a ValueError names the first that this world lacks."""
        return entity_indices(ids, self.item_ids(np.arange(self.config.items)))


def create_world(config: SimulatorConfig) -> World:
    """Draw the population, then set both intercepts by bisection on lists that the policy would show."""
    rng = stream(config, POPULATION_STREAM)
    world = World(config, draw_users(config, rng), draw_items(config, rng))
    users, items, times_us, positions, surfaces = _pilot(world)
    click, conversion = world.probabilities(
        users=users,
        items=items,
        times_us=times_us,
        positions=positions,
        surfaces=surfaces,
        hours=world.hours(times_us),
    )
    click_intercept = _intercept(click, np.ones_like(click), config.click_rate)
    clicked = _sigmoid(_logit(click) + click_intercept)
    conversion_intercept = _intercept(conversion, clicked, config.conversion_rate)
    return dataclasses.replace(world, click_intercept=click_intercept, conversion_intercept=conversion_intercept)


def ranked_by_truth(
    world: World,
    *,
    users: Integers,
    time: dt.datetime,
    k: int,
    excluded: Sequence[Integers] | None = None,
) -> Integers:
    """Best k available items of each user by p_click * p_conversion in the reference context, shape U K.

    `excluded` holds one array of item indices per user. -1 fills the places that no item is left for.
    """
    available = np.flatnonzero(world.available(time))
    best = np.full((users.size, k), -1, dtype=np.int64)
    columns = np.full(world.config.items, -1)
    columns[available] = np.arange(available.size)
    rows = max(1, BLOCK_CELLS // max(1, available.size))
    for row in range(0, users.size, rows):
        block = users[row : row + rows]
        click, conversion = world.probabilities(users=block[:, None], items=available, times_us=epoch_us(time))
        score = click * conversion
        for index, items in enumerate((excluded or [])[row : row + rows]):
            score[index, columns[items][columns[items] >= 0]] = -1
        order = np.argsort(-score, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(score, order, axis=1) >= 0
        best[row : row + rows, : order.shape[1]] = np.where(kept, available[order], -1)
    return best


def expected_conversions(world: World, *, users: Integers, lists: Integers, time: dt.datetime) -> Floats:
    """Sum of p_click * p_conversion over each user's list in the reference context, shape U.

    `lists` holds item indices, shape U K; -1 is no item and adds nothing.
    """
    click, conversion = world.probabilities(users=users[:, None], items=np.maximum(lists, 0), times_us=epoch_us(time))
    expected: Floats = np.where(lists >= 0, click * conversion, 0.0).sum(axis=1)
    return expected


def save_world(world: World, path: Path) -> None:
    """Write a world as safetensors with its configuration in the header: same world, same bytes."""
    tensors = {
        f"{group}.{field.name}": np.ascontiguousarray(getattr(getattr(world, group), field.name))
        for group, kind in (("users", Users), ("items", Items))
        for field in dataclasses.fields(kind)
    }
    header = {
        "config": world.config.model_dump(mode="json"),
        "click_intercept": world.click_intercept,
        "conversion_intercept": world.conversion_intercept,
    }
    # one key only: safetensors writes several in an order that changes from run to run
    save_file(tensors, path, metadata={"world": json.dumps(header, sort_keys=True)})


def load_world(path: Path) -> World:
    """Read a world; a ValueError names the file where it is missing, damaged or something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["world"])
            users = Users(**{f.name: file.get_tensor(f"users.{f.name}") for f in dataclasses.fields(Users)})
            items = Items(**{f.name: file.get_tensor(f"items.{f.name}") for f in dataclasses.fields(Items)})
        config = SimulatorConfig(**header.pop("config"))
        return World(config, users, items, **header)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable world file ({error}): run `counterpoise simulate` again") from error


def _pilot(world: World) -> tuple[Integers, Integers, Integers, Integers, Integers]:
    config = world.config
    rng = stream(config, PILOT_STREAM)
    policy = LoggingPolicy(config, world.users, world.items)
    count = min(config.requests_per_day, -(-PILOT_REQUESTS // config.days))
    days = [policy.draw_requests(rng, day=day, count=count) for day in range(config.days)]
    users, times_us, surfaces = (
        np.repeat(np.concatenate([getattr(day, name) for day in days]), config.slots)
        for name in ("users", "times_us", "surfaces")
    )
    items = np.concatenate([day.items for day in days])
    positions = np.broadcast_to(np.arange(1, config.slots + 1), items.shape)
    return users, items.ravel(), times_us, positions.ravel(), surfaces


def _intercept(probabilities: Floats, weights: Floats, rate: float) -> float:
    """Shift of the log-odds at which the weighted mean probability is the rate."""
    logits, low, high = _logit(probabilities), -30.0, 30.0
    for _ in range(50):  # 60 / 2 ** 50 is below the precision of the rates
        middle = (low + high) / 2
        too_high = np.average(_sigmoid(logits + middle), weights=weights) > rate
        low, high = (low, middle) if too_high else (middle, high)
    return low


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _logit(probabilities: Floats) -> Floats:
    return np.log(probabilities) - np.log1p(-probabilities)
