"""The retriever's two spaces, its blend, and what its loss converges to."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.inputs import Features
from models.retriever import Retriever, RetrieverSpec, in_batch_softmax, query_vectors
from models.serialization import weights_digest

SPEC = RetrieverSpec(
    categorical_cardinalities={"user": 12, "item": 9},
    bins=4,
    user_single=["user"],
    item_single=["item"],
    user_numeric=["age"],
    item_numeric=["price", "popularity"],
    user_pooled={"clicked_items": "item"},
    item_pooled={},
    hidden=(8,),
    space_width=5,
)


def _users(rows: int) -> Features:
    pooled = {"clicked_items": torch.randint(0, 9, (rows, 4))}
    return Features(torch.randint(1, 12, (rows, 1)), torch.rand(rows, 1) * 4, pooled)


def _items(rows: int) -> Features:
    return Features(torch.randint(1, 9, (rows, 1)), torch.rand(rows, 2) * 4)


def test_vectors_have_length_one_in_each_of_two_different_spaces() -> None:
    retriever = Retriever(SPEC)
    for vectors_B2S in (retriever.users(_users(6)), retriever.items(_items(6))):
        assert vectors_B2S.shape == (6, 2, 5)
        torch.testing.assert_close(vectors_B2S.norm(dim=-1), torch.ones(6, 2))
        assert not torch.allclose(vectors_B2S[:, 0], vectors_B2S[:, 1])


def test_zeros_that_lie_apart_move_a_vector_and_need_a_zero_bin() -> None:
    items = Features(torch.full((1, 1), 4), torch.tensor([[0.0, 1.0]]))
    zeros = Features(items.ids_BF, torch.full((1, 2), SPEC.bins + 2.0))
    retriever = Retriever(replace(SPEC, zero_bin=True))
    assert not torch.allclose(retriever.items(zeros), retriever.items(items))
    with pytest.raises(AssertionError):
        Retriever(SPEC).items(zeros)


def test_both_towers_read_one_embedding_of_an_item() -> None:
    retriever, items = Retriever(SPEC), Features(torch.tensor([[4]]), torch.ones(1, 2))
    users = Features(torch.tensor([[3]]), torch.ones(1, 1), {"clicked_items": torch.tensor([[4]])})
    before = [retriever.users(users), retriever.items(items)]
    with torch.no_grad():
        # Users have ids 1 to 11 in rows 1 to 11, so item 4 has row 15.
        retriever.table.table.weight[15] += 1.0
    assert not torch.allclose(retriever.users(users), before[0])
    assert not torch.allclose(retriever.items(items), before[1])


@pytest.mark.parametrize("conversion_weight", [0.0, 0.3, 1.0])
def test_the_blend_at_query_time_is_the_weighted_sum_of_both_scores(conversion_weight: float) -> None:
    retriever = Retriever(SPEC)
    users_B2S, items_B2S = retriever.users(_users(7)), retriever.items(_items(5))
    click_BB, conversion_BB = (users_B2S[:, space] @ items_B2S[:, space].T for space in range(2))
    scores_BB = query_vectors(users_B2S, conversion_weight=conversion_weight) @ items_B2S.flatten(1).T
    expected_BB = (1 - conversion_weight) * click_BB + conversion_weight * conversion_BB
    torch.testing.assert_close(scores_BB, expected_BB, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conversion_weight", [-0.1, 1.1, float("nan")])
def test_a_blend_outside_zero_to_one_is_refused(conversion_weight: float) -> None:
    with pytest.raises(ValueError, match=r"conversion_weight is .*, expected a share between 0 and 1"):
        query_vectors(torch.ones(1, 2, 3), conversion_weight=conversion_weight)


def test_equal_seeds_give_equal_weights() -> None:
    state = torch.get_rng_state()
    assert weights_digest(Retriever(SPEC)) == weights_digest(Retriever(SPEC))
    assert weights_digest(Retriever(replace(SPEC, seed=1))) != weights_digest(Retriever(SPEC))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_single": ["brand"]}, r"fields \['brand'\] have no cardinality"),
        ({"item_single": [], "item_numeric": []}, "the item tower has no input: name at least one column"),
        ({"user_single": [], "user_numeric": [], "user_pooled": {}}, "the user tower has no input"),
        ({"hidden": ()}, "hidden is empty, expected the width of at least one layer"),
        ({"temperature": 0.0}, r"temperature is 0\.0, expected a number above 0"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)  # type: ignore[arg-type]


def _loss(users_BS: Tensor, items_BS: Tensor, ids: list[int], weights: list[float]) -> Tensor:
    return in_batch_softmax(
        users_BS,
        items_BS,
        item_ids_B=torch.tensor(ids),
        log_q_B=torch.full((len(ids),), -2.0),
        weights_B=torch.tensor(weights),
        temperature=0.5,
    )


def test_the_loss_of_distinct_items_equals_the_weighted_cross_entropy() -> None:
    users_BS, items_BS, weights_B = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1.0, 0.0, 2.0, 1.0])
    q_B = torch.tensor([0.5, 0.1, 0.01, 0.3])
    inclusion_B = 1 - (1 - q_B) ** 4
    expected = torch.zeros(())
    for row in range(4):
        terms_B = (users_BS[row] * items_BS).sum(1).div(0.1).exp() / inclusion_B
        expected -= weights_B[row] * (terms_B[row] / terms_B.sum()).log() / weights_B.sum()
    loss = in_batch_softmax(
        users_BS,
        items_BS,
        item_ids_B=torch.arange(4),
        log_q_B=q_B.log(),
        weights_B=weights_B,
        temperature=0.1,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_another_row_with_the_positives_item_is_no_negative() -> None:
    users_BS, items_BS = torch.randn(3, 4), torch.randn(3, 4)
    moved_BS = items_BS.clone()
    moved_BS[2] += 1.0
    # Row 2 holds row 0's item once more, and has no weight itself.
    for ids, equal in (([7, 8, 7], True), ([7, 8, 9], False)):
        losses = [_loss(users_BS, vectors_BS, ids, [1.0, 0.0, 0.0]) for vectors_BS in (items_BS, moved_BS)]
        assert torch.equal(*losses) == equal


def test_an_item_drawn_several_times_is_one_negative() -> None:
    users_BS, items_BS = torch.randn(4, 4), torch.randn(4, 4)
    moved_BS = items_BS.clone()
    moved_BS[3] += 1.0
    # Row 3 holds row 2's item once more; rows 0 and 1 are the positives.
    for ids, equal in (([7, 8, 9, 9], True), ([7, 8, 9, 6], False)):
        losses = [_loss(users_BS, vectors_BS, ids, [1.0, 1.0, 0.0, 0.0]) for vectors_BS in (items_BS, moved_BS)]
        assert torch.equal(*losses) == equal


def test_a_repeated_item_is_still_its_own_rows_positive() -> None:
    users_BS = torch.randn(3, 4)
    items_BS = torch.randn(3, 4, requires_grad=True)
    torch.autograd.backward(_loss(users_BS, items_BS, [7, 8, 7], [0.0, 0.0, 1.0]))
    assert items_BS.grad is not None
    assert items_BS.grad.abs().sum(1).gt(0).tolist() == [False, True, True]


def test_rows_without_weight_are_negatives_and_a_batch_without_weight_costs_nothing() -> None:
    users_BS = torch.randn(3, 4, requires_grad=True)
    items_BS = torch.randn(3, 4, requires_grad=True)
    torch.autograd.backward(_loss(users_BS, items_BS, [0, 1, 2], [0.0, 1.0, 0.0]))
    assert users_BS.grad is not None
    assert items_BS.grad is not None
    assert users_BS.grad.abs().sum(1).gt(0).tolist() == [False, True, False]
    assert items_BS.grad.abs().sum(1).gt(0).all()
    loss = _loss(users_BS, items_BS, [0, 1, 2], [0.0, 0.0, 0.0])
    assert float(loss.detach()) == 0.0
    (gradient_BS,) = torch.autograd.grad(loss, users_BS)
    assert not gradient_BS.any()


def _divergence_of_fit(*, items: int, batch: int, sign: float) -> float:
    """Fits free scores of 3 users on sampled batches; returns their KL divergence from p(item | user).

    Items are popular by Zipf's law and batches are drawn from p(user) p(item | user), so a popular item is
    often another row's negative. `sign` 1 takes the loss as it is, 0 undoes its correction, -1 reverses it.
    """
    true_UI = (0.7 * torch.randn(3, items)).exp() / torch.arange(1.0, items + 1)
    true_UI /= true_UI.sum(1, keepdim=True)
    log_q_I = true_UI.mean(0).log()
    log_inclusion_I = (1 - (1 - log_q_I.exp()) ** batch).log()
    scores_UI, mean_UI = torch.zeros(3, items, requires_grad=True), torch.zeros(3, items)
    optimizer = torch.optim.Adam([scores_UI], lr=0.03)
    for step in range(600):
        users_B = torch.randint(0, 3, (batch,))
        items_B = torch.multinomial(true_UI[users_B], 1).squeeze(1)
        loss = in_batch_softmax(
            # With one-hot item vectors the product is the free score.
            scores_UI[users_B] + (1 - sign) * log_inclusion_I,
            torch.eye(items)[items_B],
            item_ids_B=items_B,
            log_q_B=log_q_I[items_B],
            weights_B=torch.ones(batch),
            temperature=1.0,
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        mean_UI += scores_UI.detach() * (step >= 400)
    fitted_UI = (mean_UI / 200).log_softmax(1)
    return float((true_UI * (true_UI.log() - fitted_UI)).sum(1).mean())


def test_the_correction_by_log_q_recovers_the_full_softmax_and_its_opposite_does_not() -> None:
    corrected, uncorrected, opposite = (
        _divergence_of_fit(items=200, batch=128, sign=sign) for sign in (1.0, 0.0, -1.0)
    )
    assert corrected < 0.01
    assert uncorrected > 0.15
    assert opposite > 0.5


def test_items_that_are_in_every_batch_are_recovered_too() -> None:
    # Masking the positive's repeats but correcting by log q alone leaves 0.045 here.
    assert _divergence_of_fit(items=8, batch=64, sign=1.0) < 0.003
