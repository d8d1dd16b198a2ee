"""Tasks beyond click and conversion: further binary ones, and means such as an order's value or a watch time.

Each has a space in which its label exists: every impression, clicked ones, or converted ones. Its head predicts
the label within that space; its output, over all impressions, is that times the probability of the space.
Shapes: B batch, H head (0 click, 1 conversion given a click, then binary tasks, then values), X task.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.losses import Targets

SPACES = ("impression", "click", "conversion")
FIRST_HEAD = 2
LARGEST_LOG_MEAN = 30.0  # exp(30) is 1e13: no overflow, and beyond any value that a log holds


def check_spaces(binary: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Raises ValueError for a space that does not exist, or a task that is named twice."""
    for name, space in [*binary.items(), *values.items()]:
        if space not in SPACES:
            raise ValueError(f"task {name!r} has the space {space!r}, expected one of {list(SPACES)}")
    if twice := sorted(set(binary) & set(values)):
        raise ValueError(f"tasks {twice} are both binary and a value: name them differently")


def extra_outputs(logits_BH: Tensor, binary: Mapping[str, str], values: Mapping[str, str]) -> Tensor:
    """Returns each binary task's probability and each value's mean over all impressions: (B, X) float32.

    A value's head is the logarithm of its mean within its space.
    """
    columns = []
    for head, (name, space) in enumerate([*binary.items(), *values.items()], start=FIRST_HEAD):
        within_B = logits_BH[:, head]
        log_B = logsigmoid(within_B) if name in binary else within_B.clamp(max=LARGEST_LOG_MEAN)
        columns.append((sum_of_log_sigmoids(space_logits(logits_BH, space)) + log_B).exp())
    return torch.stack(columns, dim=1) if columns else logits_BH[:, :0]


def extra_losses(
    logits_BH: Tensor, targets: Targets, binary: Mapping[str, str], values: Mapping[str, str]
) -> dict[str, Tensor]:
    """Returns the loss of each further task over the impressions that its mask keeps, divided by the batch size.

    A binary task is supervised over the entire space, through the product with its space, as a conversion is (ESMM,
    Ma et al. 2018, equation 3). A value is supervised within its space by the Poisson quasi-likelihood
    mean - value * log(mean), whose minimum is the mean for any label that is not negative, zeros included
    (Gourieroux, Monfort and Trognon 1984).
    """
    losses = {}
    for head, (name, space) in enumerate([*binary.items(), *values.items()], start=FIRST_HEAD):
        labels_B, mask_B = targets.extra[name]
        if name in binary:
            chain = [*space_logits(logits_BH, space), logits_BH[:, head]]
            loss_B = -labels_B * sum_of_log_sigmoids(chain) - (1 - labels_B) * log_complement(chain)
        else:
            log_mean_B = logits_BH[:, head].clamp(max=LARGEST_LOG_MEAN)
            loss_B = log_mean_B.exp() - labels_B * log_mean_B
        losses[name] = (mask_B * loss_B).mean()
    return losses


def space_logits(logits_BH: Tensor, space: str) -> list[Tensor]:
    """Returns the logits whose events must all happen for an impression to be in a space: none, one or two (B)."""
    return [logits_BH[:, head] for head in range(SPACES.index(space))]


def sum_of_log_sigmoids(chain: list[Tensor]) -> Tensor:
    """Returns the log-probability that all of a chain of events happen: (B), 0 for none."""
    return torch.stack([logsigmoid(logits_B) for logits_B in chain]).sum(0) if chain else torch.zeros(())


def log_complement(chain: list[Tensor]) -> Tensor:
    """Returns the log-probability that not all of a chain of events happen: (B), finite for finite logits.

    The events are disjoint by the first that does not happen: 1 - abc = (1 - a) + a (1 - b) + ab (1 - c).
    """
    happened_B = torch.zeros_like(chain[0])
    parts = []
    for logits_B in chain:
        parts.append(happened_B + logsigmoid(-logits_B))
        happened_B = happened_B + logsigmoid(logits_B)
    return torch.logsumexp(torch.stack(parts), dim=0)
