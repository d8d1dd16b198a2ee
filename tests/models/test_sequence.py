"""The encoder and its decoders: what reaches what, what is trained together, and what comes back from a folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.sequence import (
    BEGIN,
    FIRST_KNOWN,
    PADDING,
    SequenceModel,
    SequenceSpec,
    forward_operations,
    given_of,
    load_sequence_model,
    save_sequence_model,
)
from models.serialization import weights_digest

SPEC = SequenceSpec(source_vocabulary=11, targets={"words": 9, "roman": 7}, width=16, heads=2)


def _ids(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(FIRST_KNOWN, high, shape, generator=torch.Generator().manual_seed(seed))


def _logits(model: SequenceModel, source: Tensor, target: Tensor) -> Tensor:
    return model.decode("words", model.encode(source), given_of(target))


def test_padding_a_source_or_a_target_changes_no_logit() -> None:
    model, source, target = SequenceModel(SPEC), _ids(11, 3, 5, 2), _ids(9, 3, 1, 4)
    plain = _logits(model, source, target)
    longer_source = torch.nn.functional.pad(source, (0, 0, 0, 3))
    longer_target = torch.nn.functional.pad(target, (0, 2))
    torch.testing.assert_close(_logits(model, longer_source, target), plain)
    torch.testing.assert_close(_logits(model, source, longer_target)[:, :, :4], plain)


def test_a_source_that_is_all_padding_gives_what_an_empty_one_gives() -> None:
    model, target = SequenceModel(SPEC), _ids(9, 2, 1, 3)
    empty = _logits(model, torch.zeros(2, 0, 1, dtype=torch.int64), target)
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(_logits(model, torch.zeros(2, 4, 1, dtype=torch.int64), target), empty)


def test_a_later_id_of_a_target_changes_no_earlier_logit() -> None:
    model, source, target = SequenceModel(SPEC), _ids(11, 1, 5, 1), _ids(9, 1, 1, 6)
    plain = _logits(model, source, target)
    for place in range(5):
        changed = target.clone()
        changed[..., place] = (changed[..., place] - FIRST_KNOWN + 1) % 5 + FIRST_KNOWN
        moved = (_logits(model, source, changed) - plain).abs().amax(-1).flatten()
        assert (moved[: place + 1] == 0).all()
        assert (moved[place + 1 :] > 0).all()


def test_each_place_of_a_source_and_each_of_its_ids_reaches_the_logits() -> None:
    model, source, target = SequenceModel(SPEC), _ids(10, 1, 4, 2), _ids(9, 1, 1, 3)
    plain = _logits(model, source, target)
    for place in range(4):
        for column in range(2):
            changed = source.clone()
            changed[0, place, column] += 1
            assert not torch.allclose(_logits(model, changed, target), plain)
    swapped = source[:, [1, 0, 2, 3]]
    assert not torch.allclose(_logits(model, swapped, target), plain)


def test_targets_of_one_source_are_predicted_as_if_each_were_alone() -> None:
    model, source, targets = SequenceModel(SPEC), _ids(11, 2, 5, 1), _ids(9, 2, 3, 4)
    together = _logits(model, source, targets)
    for number in range(3):
        alone = _logits(model, source, targets[:, number : number + 1])
        torch.testing.assert_close(together[:, number : number + 1], alone)


def test_ids_that_are_read_one_by_one_give_the_logits_of_all_at_once() -> None:
    model, source, targets = SequenceModel(replace(SPEC, layers=3)), _ids(11, 3, 5, 2), _ids(9, 3, 4, 6)
    source[1, 2:], source[2] = PADDING, PADDING
    given, memory = given_of(targets), model.encode(source)
    expected, decoder = model.decode("words", memory, given), model.decoder("words")
    order = torch.tensor([[2, 2, 0, 1], [3, 1, 1, 1], [0, 1, 2, 3]])
    # As many prefixes as wanted grow out of the empty one; later some go on more than once and others do not.
    prefixes = decoder.begin(memory).taken(torch.zeros_like(order))
    for place in range(3):
        logits, prefixes = decoder.step(prefixes, given[..., place])
        torch.testing.assert_close(logits, expected[:, :, place])
    prefixes = prefixes.taken(order)
    rows = torch.arange(3).unsqueeze(1)
    for place in range(3, 6):
        logits, prefixes = decoder.step(prefixes, given[rows, order, place])
        torch.testing.assert_close(logits, expected[rows, order, place])


def test_the_loss_is_the_mean_of_minus_the_log_probability_of_all_ids_that_are_no_padding() -> None:
    model, source = SequenceModel(SPEC), _ids(11, 2, 5, 1)
    target = torch.tensor([[[4, 5, 2, 0]], [[6, 2, 0, 0]]])
    log_p = _logits(model, source, target).log_softmax(-1)
    terms = [log_p[row, 0, place, target[row, 0, place]] for row, length in ((0, 3), (1, 2)) for place in range(length)]
    losses = model.losses(source, {"words": target, "roman": torch.zeros(2, 1, 3, dtype=torch.int64)})
    torch.testing.assert_close(losses["words"], -sum(terms, torch.zeros(())) / 5)
    assert losses["roman"] == 0


def test_both_decoders_train_the_encoder_and_neither_trains_the_other() -> None:
    source, targets = _ids(11, 2, 5, 1), {"words": _ids(9, 2, 1, 3), "roman": _ids(7, 2, 1, 3)}
    gradients = {}
    for name, other in (("words", "roman"), ("roman", "words")):
        model = SequenceModel(SPEC)
        model.losses(source, targets)[name].backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is None or not weight.grad.any() for weight in model.decoders[other].parameters())
        gradients[name] = [weight.grad for weight in model.encoder.parameters()]
    joint = SequenceModel(SPEC)
    torch.stack(list(joint.losses(source, targets).values())).sum().backward()  # type: ignore[no-untyped-call]
    for weight, one, two in zip(joint.encoder.parameters(), *gradients.values(), strict=True):
        assert one is not None
        assert two is not None
        assert one.any()
        assert two.any()
        torch.testing.assert_close(weight.grad, one + two)


def test_dropout_acts_in_training_and_not_in_use() -> None:
    model, source, target = SequenceModel(replace(SPEC, dropout=0.5)), _ids(11, 2, 5, 1), _ids(9, 2, 1, 3)
    assert not torch.allclose(_logits(model, source, target), _logits(model, source, target))
    model.eval()
    torch.testing.assert_close(_logits(model, source, target), _logits(model, source, target))


def test_equal_specs_give_equal_weights_and_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = SequenceModel(SPEC), SequenceModel(SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_digest(first) == weights_digest(second)
    assert weights_digest(SequenceModel(replace(SPEC, seed=1))) != weights_digest(first)


def test_a_saved_model_comes_back_with_all_that_it_computes(tmp_path: Path) -> None:
    model = SequenceModel(SPEC)
    save_sequence_model(model, tmp_path)
    loaded, source, target = load_sequence_model(tmp_path), _ids(11, 2, 5, 1), _ids(9, 2, 1, 3)
    assert torch.equal(_logits(loaded, source, target), _logits(model, source, target))


def test_what_a_decoder_is_given_begins_with_begin_and_lacks_the_last_id() -> None:
    given = given_of(torch.tensor([[[5, 6, 2]], [[7, 2, PADDING]]]))
    assert given.tolist() == [[[BEGIN, 5, 6]], [[BEGIN, 7, 2]]]


def test_the_stated_operations_are_those_that_the_products_of_a_pass_take() -> None:
    # By hand: an encoder of one layer over 1 + 2 positions, a decoder of one layer over 2.
    spec = SequenceSpec(source_vocabulary=5, targets={"a": 6}, width=4, heads=1, layers=1)
    square = 4 * 4
    encoder = 3 * 2 * (4 * square + 8 * square) + 2 * (2 * 3 * 3 * 4)
    own = 2 * 2 * 4 * square + 2 * (2 * 2 * 2 * 4)
    across = 2 * 2 * 2 * square + 3 * 2 * 2 * square + 2 * (2 * 2 * 3 * 4)
    feed, output = 2 * 2 * 8 * square, 2 * 2 * 4 * 6
    assert forward_operations(spec, 2, {"a": 2}) == encoder + own + across + feed + output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {}}, "targets is empty: name at least one decoder"),
        ({"targets": {"words": 3}}, "words has 3 ids, expected 4 or more"),
        ({"source_vocabulary": 2}, "source_vocabulary has 2 ids, expected 4 or more"),
        ({"width": 18}, "width is 18 with 2 heads, expected a multiple of 4"),
    ],
)
def test_a_spec_that_makes_no_model_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)  # type: ignore[arg-type]
