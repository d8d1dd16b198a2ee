"""Row-sparse Adam against torch's SparseAdam."""

import pytest
import torch
from torch import Tensor, nn

from models.row_adam import RowAdam

ROWS, WIDTH = 50, 4


def _gradient(lookups: int) -> Tensor:
    rows_N = torch.randint(0, ROWS // 2, (lookups,))
    values_ND = torch.randn(lookups, WIDTH)
    return torch.sparse_coo_tensor(rows_N.unsqueeze(0), values_ND, (ROWS, WIDTH), check_invariants=False)


def _pair() -> tuple[nn.Parameter, nn.Parameter]:
    start = torch.randn(ROWS, WIDTH)
    return nn.Parameter(start.clone()), nn.Parameter(start.clone())


def test_ten_steps_equal_sparse_adams() -> None:
    expected, table = _pair()
    reference, optimizer = torch.optim.SparseAdam([expected], lr=0.1), RowAdam([table], learning_rate=0.1)
    for step in range(10):
        expected.grad = _gradient(5 + 10 * step)
        table.grad = expected.grad.clone()
        reference.step()  # type: ignore[no-untyped-call]
        optimizer.step()
        torch.testing.assert_close(table, expected, rtol=1e-6, atol=1e-7)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[table][name], reference.state[expected][name], rtol=1e-6, atol=1e-7)
    assert optimizer.state[table]["step"] == reference.state[expected]["step"] == 10


def test_the_rows_of_the_gradient_alone_change_in_weight_and_moments() -> None:
    _, table = _pair()
    optimizer, before = RowAdam([table], learning_rate=0.1), table.detach().clone()
    table.grad = torch.sparse_coo_tensor([[7, 3, 7]], torch.ones(3, WIDTH), (ROWS, WIDTH), check_invariants=False)
    optimizer.step()
    for changed in (table.detach() - before, optimizer.state[table]["exp_avg"], optimizer.state[table]["exp_avg_sq"]):
        assert changed.any(1).nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize(
    "gradient", [None, torch.sparse_coo_tensor(size=(ROWS, WIDTH), check_invariants=False)], ids=["none", "empty"]
)
def test_a_table_that_no_row_was_read_of_takes_no_step(gradient: Tensor | None) -> None:
    _, table = _pair()
    optimizer, before = RowAdam([table], learning_rate=0.1), table.detach().clone()
    table.grad = gradient
    optimizer.step()
    assert torch.equal(table.detach(), before)
    assert not optimizer.state


def test_each_table_counts_its_own_steps() -> None:
    first, second = _pair()
    optimizer = RowAdam([first, second], learning_rate=0.1)
    for tables in ([first], [first, second]):
        optimizer.zero_grad()
        for table in tables:
            table.grad = _gradient(9)
        optimizer.step()
    assert (optimizer.state[first]["step"], optimizer.state[second]["step"]) == (2, 1)
