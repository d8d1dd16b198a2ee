"""Adam for the rows of embedding tables that a batch has read.

Shapes: R different rows, D width.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.rows import gather, summed_by_row

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class RowAdam(Optimizer):
    """Steps the rows that have a gradient; the moments of the others wait until they are read again.

    This is torch's SparseAdam, which adds sparse tensors to whole tables; here the rows are gathered, updated and
    written back: 5.5 ms instead of 15 at 82 thousand lookups of 16 numbers, of 20 thousand different rows among 1.2
    million, one thread.
    """

    def __init__(self, tables: Iterable[Tensor], *, learning_rate: float) -> None:
        super().__init__(tables, {"lr": learning_rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nothing evaluates the loss again
        """Updates the rows of each table whose gradient, a sparse one, has any."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    rows_R, gradient_RD = summed_by_row(table.grad)
                    if len(rows_R):
                        self._update(table, rows_R, gradient_RD, group["lr"])

    def _update(self, table: Tensor, rows_R: Tensor, gradient_RD: Tensor, learning_rate: float) -> None:
        state: dict[str, Any] = self.state[table]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(table), "exp_avg_sq": torch.zeros_like(table)}
        state["step"] += 1
        first_RD, second_RD = (gather(state[name], rows_R) for name in ("exp_avg", "exp_avg_sq"))
        # lerp_ would save two passes, and round otherwise than SparseAdam.
        first_RD.add_(torch.sub(gradient_RD, first_RD).mul_(1 - BETAS[0]))
        second_RD.add_(gradient_RD.square().sub_(second_RD).mul_(1 - BETAS[1]))
        state["exp_avg"].index_copy_(0, rows_R, first_RD)
        state["exp_avg_sq"].index_copy_(0, rows_R, second_RD)
        bias_first, bias_second = (1 - beta ** state["step"] for beta in BETAS)
        step_size = learning_rate * math.sqrt(bias_second) / bias_first
        change_RD = first_RD.div_(second_RD.sqrt_().add_(EPSILON)).mul_(-step_size)
        # index_add_ goes by scatter_add_, in twice the time.
        table.index_copy_(0, rows_R, gather(table, rows_R).add_(change_RD))
