"""Dropout of parts of a batch is that of the whole."""

import pytest
import torch

from models.dropout import drop_units, rows_of_batch, uniform_like

ROWS = torch.randn(9, 4, 5)


def _dropped(rows: torch.Tensor, before: int, of_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    with rows_of_batch(before, of_batch):
        return drop_units(rows, 0.4, training=True), uniform_like(rows)


def test_parts_of_a_batch_lose_the_units_that_the_whole_loses() -> None:
    whole = _dropped(ROWS, 0, 9)
    parts = [_dropped(ROWS[start:stop], start, 9) for start, stop in ((0, 2), (2, 9))]
    for number, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), expected)


def test_after_a_part_with_or_without_rows_the_random_state_is_that_of_the_whole() -> None:
    states = []
    for start, stop in ((0, 9), (0, 2), (8, 9)):
        # The last one stands in for none: its process comes after all nine rows.
        _dropped(ROWS[start:stop], 9 if start else 0, 9)
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_units_are_dropped_with_their_probability_and_the_rest_keep_the_mean() -> None:
    torch.manual_seed(0)
    found = drop_units(torch.ones(400, 50), 0.3, training=True)
    assert float((found == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert not drop_units(torch.ones(4, 5), 1.0, training=True).any()


def test_nothing_is_dropped_or_drawn_outside_training_or_with_probability_zero() -> None:
    state = torch.get_rng_state()
    assert drop_units(ROWS, 0.9, training=False) is ROWS
    assert drop_units(ROWS, 0.0, training=True) is ROWS
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_at_least_zero_and_below_one_in_the_shape_of_the_rows() -> None:
    found = uniform_like(torch.empty(1000, 3, 2))
    assert found.shape == (1000, 3, 2)
    assert 0 <= float(found.min()) < 0.01
    assert 0.99 < float(found.max()) < 1
