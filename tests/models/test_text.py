"""The shared text encoder against plain loops, its loss with missing labels, and what reaches the shared weights."""

import math
from pathlib import Path

import pytest
import torch

from models.serialization import weights_digest
from models.text import TextClassifier, TextSpec, load_text, save_text, text_loss
from models.text_fit import LabelledTexts, TextBudget, fit_text, mean_loss, text_logits, text_vectors

SPEC = TextSpec(cardinality=12, classes={"kind": 3, "demand": 2}, token_width=6, vector_width=4, seed=3)
IDS = torch.tensor([[3, 4, 5, 0], [7, 0, 0, 0], [4, 4, 9, 11], [0, 0, 0, 0]])


def test_vectors_and_logits_equal_a_naive_loop() -> None:
    model = TextClassifier(SPEC).eval().requires_grad_(requires_grad=False)
    table, output = model.table.weight.tolist(), model.output
    for row, vector, logits in zip(
        IDS.tolist(), text_vectors(model, IDS), text_logits(model, IDS)["kind"], strict=True
    ):
        tokens = [table[number] for number in row if number != 0]
        mean = [sum(token[place] for token in tokens) / max(1, len(tokens)) for place in range(6)]
        expected = [
            math.tanh(bias + sum(weight * value for weight, value in zip(weights, mean, strict=True)))
            for weights, bias in zip(output.weight.tolist(), output.bias.tolist(), strict=True)
        ]
        torch.testing.assert_close(vector, torch.tensor(expected))
        torch.testing.assert_close(logits, model.heads[0].weight @ vector + model.heads[0].bias)


def test_more_padding_changes_nothing_beyond_rounding() -> None:
    model = TextClassifier(SPEC)
    padded = torch.cat([IDS, torch.zeros(4, 40, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(text_vectors(model, padded), text_vectors(model, IDS), rtol=1e-6, atol=1e-7)


def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_texts_summed_over_tasks() -> None:
    logits = {
        "kind": torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]),
        "demand": torch.tensor([[0.5, 0.0], [0.0, 1.0]]),
    }
    labels = torch.tensor([[2, -1], [0, 1]])
    kind = [-2 + math.log(math.exp(1) + 1 + math.exp(2)), math.log(2 + math.exp(3))]
    demand = -1 + math.log(1 + math.exp(1))
    assert float(text_loss(logits, labels)) == pytest.approx(sum(kind) / 2 + demand, rel=1e-6)


def test_a_task_without_labels_adds_nothing_and_moves_nothing() -> None:
    model = TextClassifier(SPEC).eval()
    only_first = torch.tensor([[0, -1], [1, -1], [2, -1], [0, -1]])
    text_loss(model(IDS), only_first).backward()
    assert float(model.heads[1].weight.grad.abs().sum()) == 0
    assert text_loss(model(IDS), torch.full((4, 2), -1)).item() == 0


@pytest.mark.parametrize("task", [0, 1])
def test_the_loss_of_each_task_reaches_the_shared_embeddings(task: int) -> None:
    model = TextClassifier(SPEC).eval()
    labels = torch.full((4, 2), -1)
    labels[:, task] = 1
    text_loss(model(IDS), labels).backward()
    moved = model.table.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 7, 9, 11]
    assert float(model.output.weight.grad.abs().sum()) > 0


def test_equal_specs_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    assert weights_digest(TextClassifier(SPEC)) == weights_digest(TextClassifier(SPEC))
    assert torch.equal(torch.random.get_rng_state(), before)


def _texts(count: int) -> LabelledTexts:
    """Texts of two words, whose first tells the kind and whose second the demand."""
    generator = torch.Generator().manual_seed(count)
    kind, demand = (torch.randint(classes, (count,), generator=generator) for classes in (3, 2))
    return LabelledTexts(torch.stack([3 + kind, 6 + demand], 1), torch.stack([kind, demand], 1))


def test_a_fit_learns_every_task_and_repeats_to_the_bit() -> None:
    budget = TextBudget(epochs=25, batch_size=16, learning_rate=0.02)
    fits = [fit_text(SPEC, _texts(300), _texts(60), budget) for _ in range(2)]
    assert weights_digest(fits[0]) == weights_digest(fits[1])
    held_out = _texts(101)
    for column, logits in enumerate(text_logits(fits[0], held_out.ids_NL).values()):
        assert torch.equal(logits.argmax(1), held_out.labels_NT[:, column])


def test_the_epoch_with_the_least_validation_loss_is_kept() -> None:
    training = _texts(200)
    against = LabelledTexts(
        training.ids_NL, torch.stack([(training.labels_NT[:, 0] + 1) % 3, -1 * torch.ones(200)], 1).long()
    )
    fits = [fit_text(SPEC, training, against, TextBudget(epochs=epochs, batch_size=16)) for epochs in (3, 6, 9)]
    losses = [mean_loss(fit, against) for fit in fits]
    assert losses[0] >= losses[1] == losses[2]  # on opposite labels each further epoch is worse


def test_a_saved_model_gives_the_same_bits(tmp_path: Path) -> None:
    model = TextClassifier(SPEC)
    save_text(model, tmp_path)
    assert torch.equal(text_vectors(load_text(tmp_path), IDS), text_vectors(model, IDS))


def test_a_spec_without_tasks_or_with_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="classes names no task"):
        TextSpec(cardinality=5, classes={})
    with pytest.raises(ValueError, match=r"tasks \['same'\] have fewer than 2 classes"):
        TextSpec(cardinality=5, classes={"same": 1, "kind": 2})
