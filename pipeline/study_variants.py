"""Examples as a study changes them: fewer rows, labels without order or with noise, features that are missing.

Every draw depends on a seed, the place of the day and nothing else, so that all models of a study see the same rows;
larger shares hold what smaller ones hold. Shapes: B rows of a day, F columns.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.encoding import MISSING
from models.inputs import Features
from models.losses import Targets
from models.ranker import RankerSpec
from pipeline.dataset import Examples

Noise = Literal["conversion", "click", "both"]
ROWS, ORDER, CLICK_FLIPS, CONVERSION_FLIPS, IDS, POSITIONS, LISTS = range(7)


def sampled(days: list[Examples], share: float, seed: int) -> list[Examples]:
    """Keep a share of each day's rows, at least one; a smaller share keeps some of the same rows."""
    kept = []
    for place, day in enumerate(days):
        order = _generator(seed, place, ROWS).permutation(len(day.clicks))
        rows = np.sort(order[: max(1, round(share * len(order)))])
        kept.append(_of_rows(day, torch.from_numpy(rows)))
    return kept


def shuffled_clicks(days: list[Examples], seed: int) -> list[Examples]:
    """Shuffle within each day the clicks of impressions without a conversion that count in the click loss.

    Converted impressions stay clicked: the click-and-conversion labels are the same, the click rate is the same, and
    what a click tells beyond the conversion is gone.
    """
    changed = []
    for place, day in enumerate(days):
        targets = day.supervision.targets
        clicks_B = targets.clicks_B.numpy().copy()
        rows = np.flatnonzero(_free(targets))
        clicks_B[rows] = clicks_B[_generator(seed, place, ORDER).permutation(rows)]
        changed.append(_with_labels(day, clicks_B, _converted(targets)))
    return changed


def noisy(days: list[Examples], kind: Noise, share: float, seed: int) -> list[Examples]:
    """Flip each label with a probability; a larger share flips what a smaller one flips, and more.

    'conversion' flips conversions of clicked impressions that count in the click-and-conversion loss; 'click' flips
    clicks of impressions without a conversion that count in the click loss, so that the conversions stay as they are;
    'both' flips clicks first, then conversions of what is clicked now. A conversion weighted for its delay is flipped
    to none, and one that is made by noise has weight 1.
    """
    changed = []
    for place, day in enumerate(days):
        targets = day.supervision.targets
        clicks_B, conversions_B = targets.clicks_B.numpy().copy(), _converted(targets)
        if kind != "conversion":
            flipped_B = _free(targets) & (_generator(seed, place, CLICK_FLIPS).random(len(clicks_B)) < share)
            clicks_B[flipped_B] = 1 - clicks_B[flipped_B]
        if kind != "click":
            drawn_B = _generator(seed, place, CONVERSION_FLIPS).random(len(clicks_B)) < share
            flipped_B = drawn_B & (clicks_B > 0) & (targets.conversion_mask_B.numpy() > 0)
            conversions_B[flipped_B] = (conversions_B[flipped_B] == 0).astype(np.float32)
        changed.append(_with_labels(day, clicks_B, conversions_B))
    return changed


def with_missing(days: list[Examples], share: float, spec: RankerSpec, seed: int) -> list[Examples]:
    """Take each value of each column for missing with a probability: ids, numbers, and whole lists; not the context."""
    single_F = np.array([name not in spec.context for name in spec.single], dtype=np.bool_)
    numeric_F = np.array([name not in spec.context_numeric for name in spec.numeric], dtype=np.bool_)
    changed = []
    for place, day in enumerate(days):
        features = day.features
        ids_BF = _masked(features.ids_BF, single_F, share, MISSING, _generator(seed, place, IDS))
        positions_BF = _masked(
            features.positions_BF, numeric_F, share, spec.bins + 1, _generator(seed, place, POSITIONS)
        )
        pooled = {}
        for number, (name, ids_BL) in enumerate(sorted(features.pooled.items())):
            gone_B = _generator(seed, place, LISTS + number).random(len(ids_BL)) < share
            pooled[name] = ids_BL.masked_fill(torch.from_numpy(gone_B)[:, None], 0)
        changed.append(replace(day, features=Features(ids_BF, positions_BF, pooled)))
    return changed


def as_click_model(days: list[Examples]) -> list[Examples]:
    """Put click and conversion in place of the click, so that a click model predicts the two together, directly."""
    changed = []
    for day in days:
        targets = day.supervision.targets
        both_B = targets.clicks_B * targets.conversions_B
        as_click = replace(targets, clicks_B=both_B, click_mask_B=targets.conversion_mask_B)
        changed.append(replace(day, supervision=replace(day.supervision, targets=as_click)))
    return changed


def _generator(seed: int, place: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, place, purpose])


def _free(targets: Targets) -> NDArray[np.bool_]:
    """Return which impressions have a click label that says nothing of a conversion: (B)."""
    free_B: NDArray[np.bool_] = (targets.click_mask_B.numpy() > 0) & (_converted(targets) == 0)
    return free_B


def _converted(targets: Targets) -> NDArray[np.float32]:
    """Return the conversions of clicked impressions, 0 elsewhere: (B), a copy."""
    both_B: NDArray[np.float32] = (targets.clicks_B * targets.conversions_B).numpy().copy()
    return both_B


def _with_labels(day: Examples, clicks_B: NDArray[np.float32], conversions_B: NDArray[np.float32]) -> Examples:
    targets = replace(
        day.supervision.targets, clicks_B=torch.from_numpy(clicks_B), conversions_B=torch.from_numpy(conversions_B)
    )
    return replace(
        day,
        clicks=targets.clicks_B,
        conversions=(targets.conversions_B > 0).float(),
        supervision=replace(day.supervision, targets=targets),
    )


def _of_rows(day: Examples, rows: Tensor) -> Examples:
    return Examples(
        day.features.slice(rows),
        day.clicks[rows],
        day.conversions[rows],
        day.frame[rows.numpy()],
        replace(day.supervision, targets=day.supervision.targets.select(rows, torch.device("cpu"))),
    )


def _masked(
    values_BF: Tensor, columns_F: NDArray[np.bool_], share: float, missing: int, generator: np.random.Generator
) -> Tensor:
    gone_BF = (generator.random(tuple(values_BF.shape)) < share) & columns_F
    return values_BF.masked_fill(torch.from_numpy(gone_BF), missing)
