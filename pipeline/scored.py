"""The test impressions with what the model predicts of them: what the report's figures are computed from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.inputs import Features

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskRows:
    """Labels, predictions and users of the impressions that belong to a task's space, all of shape (N,)."""

    labels: NDArray[np.bool_]
    probabilities: Floats
    users: NDArray[np.int64]

    def of(self, rows: NDArray[np.bool_]) -> "TaskRows":
        """Select rows by a mask (N,)."""
        return TaskRows(self.labels[rows], self.probabilities[rows], self.users[rows])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays under the names that `pipeline.metrics` gives them."""
        return {"labels": self.labels, "probabilities": self.probabilities, "users": self.users}


@dataclass(frozen=True)
class Scored:
    """All test impressions, day after day in the order of their examples.

    Attributes:
        frames: ids, date and labels of each test day.
        features: likewise.
        users: (N,) integer codes.
        labels: by task, (N,).
        spaces: by task, (N,) whether an impression belongs to the task's space.
        probabilities: by task, (N,).
    """

    frames: list[pl.DataFrame]
    features: list[Features]
    users: NDArray[np.int64]
    labels: Mapping[str, NDArray[np.bool_]]
    spaces: Mapping[str, NDArray[np.bool_]]
    probabilities: Mapping[str, Floats]

    def task(self, name: str, among: NDArray[np.bool_] | None = None) -> TaskRows:
        """Return the rows of a task's space, of all impressions or among those of a mask (N,)."""
        rows = self.spaces[name] if among is None else self.spaces[name] & among
        return TaskRows(self.labels[name], self.probabilities[name], self.users).of(rows)

    def tasks(self) -> dict[str, TaskRows]:
        """Return the rows of every task's space."""
        return {name: self.task(name) for name in self.labels}

    @property
    def day_numbers(self) -> NDArray[np.int64]:
        """Return the place of each impression's day among the test days: (N,)."""
        return np.repeat(np.arange(len(self.frames)), [frame.height for frame in self.frames])
