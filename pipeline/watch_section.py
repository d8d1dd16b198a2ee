"""The table [watch] of a configuration file: what is looked at on the next days, and from when on it alarms."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.sections import Positive, Rate, Section, Share


class Watch(Section):
    """What `counterpoise watch` looks at, and its limits; it changes no model, and no run's name."""

    days: Positive = Field(default=7, description="last days of data whose published lists are held against the log")
    pcoc: tuple[Rate, Rate] = Field(
        default=(0.8, 1.25),
        description="predicted over realised, of every task on listed impressions whose context is that of scoring; an "
        "interval wholly outside alarms",
    )
    min_users_share: Share = Field(default=0.5, description="active users of the newest day that had a list, at least")
    min_explained_share: Share = Field(
        default=0.0, description="impressions of the newest day whose item stood in the user's list, at least"
    )
    max_behind_days: Annotated[int, Field(ge=0)] = Field(
        default=0, description="days that the live lists may lie before the day that the newest data allow"
    )
    floor_quantile: Share = Field(default=0.95, description="of earlier days' own divergence: the noise floor")
    top_values: Positive = Field(default=50, description="most frequent values of a column that are told apart")
    min_drift: Rate = Field(default=0.01, description="bits of divergence above the floor from which drift alarms")
    max_share_increase: Share = Field(
        default=0.1, description="how much the share of unseen or missing values may exceed that of the training days"
    )
    slow_factor: Rate = Field(default=3.0, description="seconds of a stage over the median of the runs before, at most")

    @model_validator(mode="after")
    def _pcoc_in_order(self) -> Self:
        low, high = self.pcoc
        if not low < 1 < high:
            raise ValueError(f"watch.pcoc = [{low}, {high}]: expected bounds around 1 such as [0.8, 1.25]")
        return self
