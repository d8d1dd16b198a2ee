"""What the features are: plain values, so that features know no configuration file."""

import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo

USER = "user_id"
ITEM = "item_id"
ACTIONS = ("clicked", "converted")


@dataclass(frozen=True, kw_only=True)
class CounterPlan:
    """Decayed counts for each value of some key columns.

    Half-lives are in days; smoothing is the number of impressions (or clicks) that the prior rate is worth.
    """

    keys: tuple[str, ...]
    half_lives_days: tuple[float, ...]
    smoothing: float
    recency: bool

    @property
    def name(self) -> str:
        """Return the name that prefixes the counter's features, such as user_id_x_tab."""
        return "_x_".join(self.keys)

    def features(self) -> list[str]:
        """Return the names of its features, in order."""
        rates = [
            f"{self.name}__{measure}_{half_life:g}d"
            for half_life in self.half_lives_days
            for measure in ("impressions", "click_rate", "conversion_rate", "click_and_conversion_rate")
        ]
        recency = ["hours_since_impression", "hours_since_click"] if self.recency else []
        return rates + [f"{self.name}__{measure}" for measure in recency]


@dataclass(frozen=True, kw_only=True)
class SidePlan:
    """Feature columns of a side table."""

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    multi: tuple[str, ...] = ()

    def keys(self) -> set[str]:
        """Return the columns that a counter may be keyed by."""
        return {*self.categorical, *(f"first_{name}" for name in self.multi)}


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """All features of an example, by what they depend on: the user, the item, or the pair and its context."""

    users: SidePlan
    items: SidePlan
    context: tuple[str, ...]
    counters: tuple[CounterPlan, ...]
    sequence_length: int
    item_age: bool
    time_zone: str

    def level(self, counter: CounterPlan) -> str:
        """Return 'user', 'item' or 'pair': what a counter's value depends on."""
        keys = set(counter.keys)
        if keys <= {USER, *self.users.keys()}:
            return "user"
        if keys <= {ITEM, *self.items.keys()}:
            return "item"
        return "pair"

    def at_level(self, level: str) -> list[CounterPlan]:
        """Return the counters of one level, in order."""
        return [counter for counter in self.counters if self.level(counter) == level]

    def sequences(self) -> list[str]:
        """Return the names of the sequence features."""
        return [f"last_{action}_items" for action in ACTIONS] if self.sequence_length else []

    def user_columns(self) -> list[str]:
        """Return the features that depend on the user alone."""
        side = [*self.users.categorical, *self.users.numeric, *self.users.multi]
        return [
            *side,
            *(name for counter in self.at_level("user") for name in counter.features()),
            *self.sequences(),
        ]

    def item_columns(self) -> list[str]:
        """Return the features that depend on the item alone."""
        side = [*self.items.categorical, *self.items.numeric, *self.items.multi]
        age = ["item_age_days"] if self.item_age else []
        return [*side, *age, *(name for counter in self.at_level("item") for name in counter.features())]

    def pair_columns(self) -> list[str]:
        """Return the features that depend on user and item, or on the context."""
        return [name for counter in self.at_level("pair") for name in counter.features()]

    def key_columns(self, level: str) -> set[str]:
        """Return the side columns of one level that some counter is keyed by."""
        side = self.users.keys() if level == "user" else self.items.keys()
        return {key for counter in self.counters for key in counter.keys if key in side}

    def categorical(self) -> list[str]:
        """Return the single-valued categorical features, ids first and context last."""
        return [USER, ITEM, *self.users.categorical, *self.items.categorical, *self.context]

    def numeric(self) -> list[str]:
        """Return the numeric features."""
        age = ["item_age_days"] if self.item_age else []
        counters = [name for counter in self.counters for name in counter.features()]
        return [*self.users.numeric, *self.items.numeric, *age, *counters]

    def multi(self) -> list[str]:
        """Return the multi-valued features with a vocabulary of their own."""
        return [*self.users.multi, *self.items.multi]

    def context_numeric(self) -> list[str]:
        """Return the numeric features that need the context to be known."""
        return [
            name for counter in self.counters if set(counter.keys) & set(self.context) for name in counter.features()
        ]

    def start_of(self, day: dt.date) -> dt.datetime:
        """Return the first moment of a business day as UTC."""
        return dt.datetime.combine(day, dt.time(), tzinfo=ZoneInfo(self.time_zone)).astimezone(dt.UTC)
