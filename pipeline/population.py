"""Users and items of the simulated world: its configuration, and one draw of both from a seeded stream.

Legend of shapes: T task (0 click, 1 conversion), U users, I items, W latent width, V words of a title.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DAY_US = 86_400_000_000
POPULATION_STREAM, PILOT_STREAM, FIRST_DAY_STREAM = range(3)
FIRST_FAULT_STREAM = 10_000  # beyond the streams of the most days that a simulation may have
UTC_TIME = pl.Datetime("us", "UTC")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
PRICE_SENSITIVITY_BANDS = ("low", "medium", "high")
BACKLOG_DAYS = 60  # items of the first day are at most this old
HOME_SHARE = 0.6  # items of a brand that are in the brand's own category
TITLE_WORDS = 8
MISTAKEN_SHARE = 0.08  # visible segment, price band and quality words are wrong this often
QUALITY_TIERS = 5
WORDS_PER_TIER = 12
WORDS_PER_CATEGORY = 24
COMMON_WORDS = 100
CATEGORY_WORDS_FROM = COMMON_WORDS + 2 * QUALITY_TIERS * WORDS_PER_TIER
SYLLABLES = "ba ce di fo gu ha ji ke lo mu na pe qui ro su ta ve wi xo zu".split()  # noqa: SIM905


class SimulatorConfig(BaseModel):
    """What world to simulate, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(default=6000, ge=2, le=10_000_000, description="users of the world")
    items: int = Field(default=2000, ge=2, le=1_000_000, description="items of the world")
    days: int = Field(default=14, ge=1, le=3660, description="days of impressions")
    first_day: dt.date = Field(default=dt.date(2026, 1, 1), description="first day, in `time_zone`")
    requests_per_day: int = Field(default=10_000, ge=1, le=9_999_999, description="lists shown a day")
    slots: int = Field(default=10, ge=1, le=99, description="impressions a request, at positions 1..slots")
    seed: int = Field(default=1, ge=0, description="seed of every draw: same seed, same bytes")
    task_correlation: float = Field(
        default=0.5, ge=-1, le=1, description="correlation of the latents for click with those for conversion"
    )
    click_rate: float = Field(default=0.05, ge=0.001, le=0.5, description="clicks an impression")
    conversion_rate: float = Field(default=0.08, ge=0.001, le=0.5, description="conversions a click")
    time_zone: str = Field(default="UTC", description="IANA zone in which days begin and hours count")
    conversion_delay_hours_mean: float = Field(
        default=4.0, gt=0, le=720, description="mean hours from click to conversion, before the cut"
    )
    conversion_window_days: int = Field(
        default=3, ge=1, le=90, description="no conversion comes later than this after its click"
    )
    latent_width: int = Field(default=8, ge=2, le=256, description="dimensions of a latent taste")
    categories: int = Field(default=20, ge=2, le=300, description="categories of items")
    brands: int = Field(default=100, ge=2, le=100_000, description="brands of items")
    segments: int = Field(default=12, ge=2, le=1000, description="clusters of users")
    new_item_share: float = Field(
        default=0.25, ge=0, le=0.9, description="share of the items born during the simulated days"
    )
    new_user_share: float = Field(
        default=0.1, ge=0, le=0.9, description="share of the users registered during the simulated days"
    )
    position_effect: float = Field(
        default=0.35, ge=0, le=2, description="click log-odds lost per unit of log(position)"
    )
    novelty_effect: float = Field(
        default=0.6, ge=0, le=3, description="click log-odds gained at birth, decaying with age"
    )
    late_share: float = Field(
        default=0.01, ge=0, le=0.2, description="share of the events that arrive only on a later day"
    )
    duplicate_share: float = Field(default=0.01, ge=0, le=0.2, description="share of the events delivered twice")
    disorder_share: float = Field(
        default=0.01, ge=0, le=0.2, description="share of the events at a random place of their day's file"
    )
    malformed_share: float = Field(
        default=0.01, ge=0, le=0.2, description="share of the events whose only line is broken"
    )
    late_hours_mean: float = Field(
        default=24.0, gt=0, le=720, description="mean hours that a late event arrives after the end of its day"
    )

    @field_validator("time_zone")
    @classmethod
    def _known_time_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"unknown time zone {name!r}: give an IANA name such as 'Europe/Paris'")
        return name

    @model_validator(mode="after")
    def _enough_items_for_a_list(self) -> Self:
        old_items = self.items - new_count(self.items, self.new_item_share)
        if old_items < self.slots:
            raise ValueError(
                f"{old_items} items exist before the first day, but a request shows {self.slots}: "
                "raise items, or lower slots or new_item_share"
            )
        return self


@dataclass(frozen=True, eq=False)
class Users:
    """All users, by index: latents that only the world knows, and what the user table shows of them."""

    bias: Floats  # T U
    taste: Floats  # T U W
    estimated_taste: Floats  # U W, what the logging policy believes
    price_sensitivity: Floats  # U
    activity: Floats  # U, unnormalised
    registered_us: Integers  # U
    segment: Integers  # U, as shown: sometimes mistaken
    age_band: Integers  # U
    price_sensitivity_band: Integers  # U, as shown: sometimes mistaken


@dataclass(frozen=True, eq=False)
class Items:
    """All items, by index: latents that only the world knows, and what the item table shows of them."""

    quality: Floats  # T I
    taste: Floats  # T I W
    estimated_taste: Floats  # I W, what the logging policy believes
    popularity: Floats  # I, log-odds of being shown
    available_us: Integers  # I
    category: Integers  # I
    brand: Integers  # I
    price: Floats  # I
    price_level: Floats  # I, standardised log(price)
    words: Integers  # I V, -1 after the last word


def new_count(total: int, share: float) -> int:
    """Count of the entities that appear during the simulated days."""
    return int(total * share)


def day_start_us(config: SimulatorConfig, day: int) -> int:
    """Start of the day-th simulated day in the configured time zone, in microseconds since 1970 UTC."""
    date = config.first_day + dt.timedelta(days=day)
    return epoch_us(dt.datetime.combine(date, dt.time(), tzinfo=ZoneInfo(config.time_zone)))


def epoch_us(moment: dt.datetime) -> int:
    """Microseconds since 1970 UTC of a moment; a ValueError where it has no time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: give an aware datetime")
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def stream(config: SimulatorConfig, number: int) -> np.random.Generator:
    """Stream of random numbers of one purpose, independent of all the others of the seed."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(number,)))


def entity_ids(name: str, prefix: str, digits: int, indices: ArrayLike) -> pl.Series:
    """String ids of indices: the prefix and the zero-filled index."""
    return (prefix + pl.Series(np.asarray(indices)).cast(pl.String).str.zfill(digits)).rename(name)


def entity_indices(ids: Sequence[str] | pl.Series, known: pl.Series) -> Integers:
    """Indices of ids within the known ones; a ValueError names the first that is unknown."""
    wanted = pl.Series("id", ids, dtype=pl.String)
    indices = wanted.replace_strict(known, np.arange(len(known)), default=None, return_dtype=pl.Int64)
    if indices.null_count():
        raise ValueError(f"{known.name} {wanted.filter(indices.is_null())[0]!r} is not in this world")
    return indices.to_numpy()


def draw_users(config: SimulatorConfig, rng: np.random.Generator) -> Users:
    """Draw all users: segment and age band explain most of what they like."""
    count = config.users
    segment = rng.choice(config.segments, count, p=_zipf(config.segments, 0.5))
    age_band = rng.choice(len(AGE_BANDS), count, p=(0.15, 0.3, 0.25, 0.18, 0.12))
    taste = _latents(rng, [(segment, 0.9)], config.latent_width, config.task_correlation)
    bias = _latents(rng, [(segment, 0.45), (age_band, 0.3)], 1, config.task_correlation)[..., 0]
    spread = _latents(rng, [(segment, 0.5)], 1, 1.0)[0, :, 0]
    band = np.searchsorted(np.quantile(spread, (1 / 3, 2 / 3)), spread)
    return Users(
        bias=bias * np.array([[0.5], [0.35]]),
        taste=taste,
        estimated_taste=taste[0] + 0.7 * rng.standard_normal(taste[0].shape),
        price_sensitivity=np.exp(0.6 * spread - 0.18),
        activity=rng.lognormal(0.0, 1.0, count),
        registered_us=_births_us(rng, config, (count, config.new_user_share, 365)),
        segment=_mistaken(rng, segment, config.segments),
        age_band=age_band,
        price_sensitivity_band=_mistaken(rng, band, len(PRICE_SENSITIVITY_BANDS)),
    )


def draw_items(config: SimulatorConfig, rng: np.random.Generator) -> Items:
    """Draw all items: category and brand explain most of who likes them and how good they are."""
    count = config.items
    brand = rng.choice(config.brands, count, p=_zipf(config.brands, 0.7))
    home = rng.choice(config.categories, config.brands, p=_zipf(config.categories, 0.5))
    anywhere = rng.choice(config.categories, count, p=_zipf(config.categories, 0.5))
    category = np.where(rng.random(count) < HOME_SHARE, home[brand], anywhere)
    taste = _latents(rng, [(category, 0.5), (brand, 0.4)], config.latent_width, config.task_correlation)
    quality = _latents(rng, [(category, 0.35), (brand, 0.45)], 1, config.task_correlation)[..., 0]
    log_price = 3 + 0.8 * _latents(rng, [(category, 0.5), (brand, 0.2)], 1, 1.0)[0, :, 0]
    price: Floats = np.exp(log_price).round(2)
    return Items(
        quality=quality * np.array([[0.75], [0.45]]),
        taste=taste,
        estimated_taste=taste[0] + 0.7 * rng.standard_normal(taste[0].shape),
        popularity=1.2 * rng.standard_normal(count) + 0.3 * quality[0],
        available_us=_births_us(rng, config, (count, config.new_item_share, BACKLOG_DAYS)),
        category=category,
        brand=brand,
        price=price,
        price_level=(np.log(price) - 3) / 0.8,
        words=_title_words(rng, category, quality),
    )


def title_text(words: Integers) -> list[str]:
    """Titles of word indices, shape I V: made-up words in lower case; -1 is no word."""
    vocabulary = [_word(index) for index in range(int(words.max(initial=0)) + 1)]
    return [" ".join(vocabulary[word] for word in row if word >= 0) for row in words.tolist()]


def _word(index: int) -> str:
    base = len(SYLLABLES)
    scattered = index * 3571 % base**3  # coprime to 20 ** 3: neighbours look different, none collide
    return SYLLABLES[scattered // base**2] + SYLLABLES[scattered // base % base] + SYLLABLES[scattered % base]


def _title_words(rng: np.random.Generator, category: Integers, quality: Floats) -> Integers:
    """Six to eight words: two of the category, three of the quality for click and conversion, then common."""
    count = category.size
    cuts = np.linspace(0, 1, QUALITY_TIERS + 1)[1:-1]
    click, conversion = (np.searchsorted(np.quantile(task, cuts), task) for task in quality)
    tiers = np.stack([click, conversion + QUALITY_TIERS, conversion + QUALITY_TIERS], axis=1)
    tiers[:, 0] = _mistaken(rng, tiers[:, 0], QUALITY_TIERS)
    tiers[:, 2] = _mistaken(rng, tiers[:, 2] - QUALITY_TIERS, QUALITY_TIERS) + QUALITY_TIERS
    words = rng.integers(COMMON_WORDS, size=(count, TITLE_WORDS))
    words[:, :2] = CATEGORY_WORDS_FROM + category[:, None] * WORDS_PER_CATEGORY
    words[:, :2] += rng.integers(WORDS_PER_CATEGORY, size=(count, 2))
    words[:, 2:5] = COMMON_WORDS + tiers * WORDS_PER_TIER + rng.integers(WORDS_PER_TIER, size=tiers.shape)
    length = rng.integers(6, TITLE_WORDS + 1, count)
    return np.where(np.arange(TITLE_WORDS) < length[:, None], words, -1)


def _zipf(count: int, exponent: float) -> Floats:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: Floats = weights / weights.sum()
    return shares


def _mistaken(rng: np.random.Generator, codes: Integers, count: int) -> Integers:
    return np.where(rng.random(codes.size) < MISTAKEN_SHARE, rng.integers(count, size=codes.size), codes)


def _births_us(rng: np.random.Generator, config: SimulatorConfig, kind: tuple[int, float, int]) -> Integers:
    """Births in random order: a share during the simulated days, the others before them (days back)."""
    count, share, backlog_days = kind
    new = new_count(count, share)
    start, end = day_start_us(config, 0), day_start_us(config, config.days)
    old_births = rng.integers(start - backlog_days * DAY_US, start, count - new)
    return rng.permutation(np.concatenate([old_births, rng.integers(start, end, new)]))


def _latents(
    rng: np.random.Generator, groups: Sequence[tuple[Integers, float]], width: int, correlation: float
) -> Floats:
    """Latents of unit variance, shape T N W: groups (codes, share of variance) share parts of them."""
    count = groups[0][0].size
    latents: Floats = _correlated(rng, count, width, correlation) * np.sqrt(1 - sum(share for _, share in groups))
    for codes, share in groups:
        part = _correlated(rng, int(codes.max()) + 1, width, correlation)
        latents += np.sqrt(share) * part[:, codes]
    return latents


def _correlated(rng: np.random.Generator, count: int, width: int, correlation: float) -> Floats:
    """Normal latents, shape T N W: second moment 1 and task correlation exact in the sample.

    Exact, because a dozen segments left to chance would put the correlation anywhere within +-0.2.
    """
    click, other = rng.standard_normal((2, count, width))
    click /= np.sqrt(np.mean(click**2))
    other -= click * np.mean(click * other)
    other /= max(np.sqrt(np.mean(other**2)), 1e-9)  # one group of width one leaves nothing to scale
    return np.stack([click, correlation * click + np.sqrt(1 - correlation**2) * other])
