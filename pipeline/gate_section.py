"""The table [gate] of a configuration file: when a model may become champion."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.sections import Positive, Rate, Section, Share

Alarm = Literal["constant_predictions", "dead_task", "one_expert", "experts_alike", "dead_units", "seesaw"]


class Tolerance(Section):
    """How much worse than the champion a challenger may be shown to be."""

    log_loss: float = Field(default=0.0, ge=0, description="nats, of every task, segments included")
    gauc: float = Field(default=0.0, ge=0)
    recall: float = Field(default=0.0, ge=0, description="of the candidates")
    coverage: Share = Field(default=0.2, description="share of the champion's coverage; it has no interval")


class Gate(Section):
    """What register asks of a model before it becomes champion; it changes no model, and no run's name."""

    tolerance: Tolerance = Tolerance()
    pcoc: tuple[Rate, Rate] = Field(default=(0.9, 1.1), description="predicted over observed, of every task")
    surfaces: int = Field(default=3, ge=0, description="most frequent values of each context column that are checked")
    min_rows: Positive = Field(default=500, description="test impressions that a segment needs to be checked")
    min_positives: Positive = Field(default=50, description="positives, and negatives, that any check needs")
    blocking_alarms: list[Alarm] = Field(
        default=["constant_predictions", "dead_task", "one_expert", "experts_alike"],
        description="verdicts on the run whose alarm keeps it from becoming champion; the others warn: what dead units "
        "or sharing cost, the other checks see",
    )

    @model_validator(mode="after")
    def _pcoc_in_order(self) -> Self:
        low, high = self.pcoc
        if not low < 1 < high:
            raise ValueError(f"gate.pcoc = [{low}, {high}]: expected bounds around 1 such as [0.9, 1.1]")
        return self
