"""Which days train, validate and test: by time, globally."""

import datetime as dt
from dataclasses import dataclass

from pipeline.sections import Split


@dataclass(frozen=True)
class Days:
    """Days of each part, in order; `scored_for` is the day that the lists serve."""

    train: list[dt.date]
    validation: list[dt.date]
    test: list[dt.date]
    scored_for: dt.date

    def all(self) -> list[dt.date]:
        """Return all days."""
        return [*self.train, *self.validation, *self.test]


def resolve_days(split: Split, present: list[dt.date], date: dt.date | None, scored_for: dt.date | None) -> Days:
    """Fill in the default split: the last day tests, the day before validates, all before train.

    Args:
        split: ranges of the configuration.
        present: days that have rows, in order.
        date: last day to use, or None for the last present one.
        scored_for: day of the lists, or None for the day after the last test day.

    Raises:
        ValueError: a part has no rows, parts overlap or are out of order, or lists would be for another time.
    """
    if not present:
        raise ValueError("tables/interactions has no days: run `counterpoise ingest` first")
    usable = [day for day in present if date is None or day <= date]
    if date is not None and date not in present:
        raise ValueError(f"--date {date} has no rows: the table holds {present[0]} to {present[-1]}")
    test = _range(split.test, usable) if split.test else usable[-1:]
    before_test = [day for day in usable if day < test[0]] if test else []
    validation = _range(split.validation, usable) if split.validation else before_test[-1:]
    before_validation = [day for day in usable if validation and day < validation[0]]
    train = _range(split.train, usable) if split.train else before_validation
    train = train[-split.train_days :] if split.train_days else train
    for name, part in (("test", test), ("validation", validation), ("train", train)):
        if not part:
            raise ValueError(
                f"split.{name} has no day with rows: the table holds {usable[0]} to {usable[-1]}; "
                "at least 3 days are needed"
            )
    if not (train[-1] < validation[0] and validation[-1] < test[0]):
        raise ValueError(
            f"split is out of order: train ends {train[-1]}, validation is {validation[0]} to "
            f"{validation[-1]}, test begins {test[0]}; each must end before the next begins"
        )
    serving = scored_for or test[-1] + dt.timedelta(days=1)
    if not test[0] <= serving <= test[-1] + dt.timedelta(days=1):
        raise ValueError(f"ranking.scored_for = {serving} is outside {test[0]} to the day after {test[-1]}")
    return Days(train, validation, test, serving)


def _range(given: tuple[dt.date, dt.date], usable: list[dt.date]) -> list[dt.date]:
    first, last = given
    return [day for day in usable if first <= day <= last]
