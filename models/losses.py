"""The ranker's training loss.

Shapes: B batch, T task (0 click, 1 conversion given a click).
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.entire_space import entire_space


def joint_loss(logits_BT: Tensor, clicks_B: Tensor, conversions_B: Tensor, *, conversion_weight: float) -> Tensor:
    """Adds the cross-entropies of click and of click-and-conversion, both over all impressions.

    Logits are (B, 2) float32, labels (B) float32 of 0 and 1; the loss is a mean over the batch. A conversion
    is supervised only through its product with the click, so impressions without a click are no missing data.
    Source: ESMM, Ma et al. 2018, equation 3.
    """
    space = entire_space(logits_BT)
    both_B = clicks_B * conversions_B
    log_likelihood_B = both_B * space.click_and_conversion_B + (1 - both_B) * space.no_click_and_conversion_B
    click_loss = binary_cross_entropy_with_logits(logits_BT[:, 0], clicks_B)
    return click_loss - conversion_weight * log_likelihood_B.mean()
