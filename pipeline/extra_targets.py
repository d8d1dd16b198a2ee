"""Targets of tasks beyond click and conversion: labels within their spaces and masks.

A label stands in column `label_<task>` of tables/examples as a number, null where the log does not give it.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import polars as pl
import torch

from models.losses import Targets

NONE: Mapping[str, str] = MappingProxyType({})


def binary_target(column: pl.Series, space: str, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return label and mask of a further task that is true or false: false outside its space.

    In the conversion's space it carries the delay's correction. What the log does not give is masked. Labels outside
    the conversion's space are taken as known once the click is.
    """
    label, known, happened, mask = _label(column, space, targets)
    return label * happened, mask * known


def value_target(column: pl.Series, space: str, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return label and mask of a further task that is a number: masked outside its space.

    In the conversion's space the mask carries the delay's correction.
    """
    label, known, happened, mask = _label(column, space, targets)
    return label, mask * known * happened


def _label(column: pl.Series, space: str, targets: Targets) -> tuple[torch.Tensor, ...]:
    """Return the label (0 where the log has none), whether it has one, its space, and the mask of that space's task."""
    happened = in_space(space, targets)
    mask = targets.conversion_mask_B if space == "conversion" else targets.click_mask_B
    known = torch.from_numpy(column.is_not_null().to_numpy().astype(np.float32))
    label = torch.from_numpy(column.fill_null(0.0).to_numpy().astype(np.float32))
    return label, known, happened, mask


def in_space(space: str, targets: Targets) -> torch.Tensor:
    """Return what an impression counts for in a space: 0 outside, else 1 or an early conversion's target, (B)."""
    return {
        "impression": torch.ones_like(targets.clicks_B),
        "click": targets.clicks_B,
        "conversion": targets.clicks_B * targets.conversions_B,
    }[space]
