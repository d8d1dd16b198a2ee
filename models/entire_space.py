"""Click and conversion over all impressions, in log space.

Shapes: B batch, T task (0 click, 1 conversion given a click).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TASKS = 2
"""Click, and conversion given a click."""


class EntireSpace(NamedTuple):
    """Log-probabilities over the entire space of impressions, each (B) float32."""

    click_B: Tensor
    click_and_conversion_B: Tensor
    no_click_and_conversion_B: Tensor
    """log(1 - p_click_and_conversion)."""


def entire_space(logits_BT: Tensor) -> EntireSpace:
    """Chains click and conversion into their joint probability, in log space.

    Takes logits of click and of conversion given a click in the first two columns; further ones are not read.
    Finite logits give finite values and gradients.
    Source: ESMM, Ma et al. 2018, equation 1.
    """
    assert logits_BT.shape[-1] >= TASKS, logits_BT.shape
    click_B, conversion_B = logits_BT[:, 0], logits_BT[:, 1]
    both_B = logsigmoid(click_B) + logsigmoid(conversion_B)
    return EntireSpace(logsigmoid(click_B), both_B, _log_complement(click_B, conversion_B, both_B))


def entire_space_probabilities(logits_BT: Tensor) -> Tensor:
    """Returns p_click, p_conversion and p_click_and_conversion, in that order: (B, 2) to (B, 3) float32."""
    p_both_B = (logsigmoid(logits_BT[:, 0]) + logsigmoid(logits_BT[:, 1])).exp()
    return torch.cat([logits_BT.sigmoid(), p_both_B.unsqueeze(-1)], dim=-1)


def _log_complement(a_B: Tensor, b_B: Tensor, both_B: Tensor) -> Tensor:
    # log(1 - p) for log p = both. Below p = 1/2 it is log1p(-p), exact for rare events (Maechler 2012,
    # log1mexp). Above, log(-expm1(log p)) would be log 0 once both sigmoids round to 1, so the complement is
    # written in the logits: 1 - s(a) s(b) = (exp(-a) + exp(-b) + exp(-a-b)) s(a) s(b). The clamp keeps the
    # branch that is not taken, and with it the gradient, finite.
    rare_B = torch.log1p(-both_B.clamp(max=-math.log(2)).exp())
    frequent_B = torch.logsumexp(torch.stack([-a_B, -b_B, -a_B - b_B]), dim=0) + both_B
    return torch.where(both_B < -math.log(2), rare_B, frequent_B)
