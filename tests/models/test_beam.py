"""Beam search against an exhaustive one and a naive one, and that it keeps to what is allowed."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from models.beam import beam_search, build_trie
from models.sequence import BEGIN, END, FIRST_KNOWN, PADDING, SequenceModel, SequenceSpec

VOCABULARY, LENGTH = 7, 3
SPEC = SequenceSpec(source_vocabulary=11, targets={"words": VOCABULARY}, width=16, heads=2, seed=5)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    made = SequenceModel(SPEC)
    with torch.no_grad():
        # Away from uniform, so that searches have something to miss.
        made.decoders["words"].output.weight.mul_(4.0)
    return made.eval()


@pytest.fixture(scope="module")
def source() -> Tensor:
    return torch.randint(FIRST_KNOWN, 11, (3, 5, 1), generator=torch.Generator().manual_seed(1))


def _log_p(model: SequenceModel, source: Tensor, ids: tuple[int, ...]) -> float:
    """Sum the log-probabilities of a target's ids, one step at a time."""
    total, given = 0.0, [BEGIN]
    with torch.inference_mode():
        for one in ids:
            logits = model.decode("words", model.encode(source[None]), torch.tensor([[given]]))
            total += float(logits[0, 0, -1].log_softmax(0)[one])
            given.append(one)
    return total


def _all_targets() -> list[tuple[int, ...]]:
    """Return all targets of up to three ids that end with END, and all of three that do not."""
    ids = [one for one in range(VOCABULARY) if one not in {PADDING, BEGIN, END}]
    ended = [(*start, END) for length in range(LENGTH) for start in product(ids, repeat=length)]
    return ended + list(product(ids, repeat=LENGTH))


def test_a_beam_as_wide_as_all_targets_gives_the_order_of_an_exhaustive_search(
    model: SequenceModel, source: Tensor
) -> None:
    targets = _all_targets()
    found = beam_search(model, "words", source, width=VOCABULARY**LENGTH, length=LENGTH)
    for row in range(len(source)):
        scored = sorted(((_log_p(model, source[row], ids), ids) for ids in targets), reverse=True)
        expected = torch.tensor([[*ids, *[PADDING] * (LENGTH - len(ids))] for _, ids in scored])
        assert torch.equal(found.ids_BWT[row, : len(targets)], expected)
        torch.testing.assert_close(found.log_p_BW[row, : len(targets)], torch.tensor([p for p, _ in scored]))
        assert found.log_p_BW[row, len(targets) :].isneginf().all()
        assert not found.ids_BWT[row, len(targets) :].any()


def test_a_beam_of_one_takes_the_likeliest_id_at_each_step(model: SequenceModel, source: Tensor) -> None:
    found = beam_search(model, "words", source, width=1, length=6)
    for row in range(len(source)):
        given = [BEGIN]
        with torch.inference_mode():
            while len(given) < 7 and given[-1] != END:
                logits = model.decode("words", model.encode(source[row : row + 1]), torch.tensor([[given]]))[0, 0, -1]
                logits[[PADDING, BEGIN]] = -torch.inf
                given.append(int(logits.argmax()))
        greedy = given[1:] + [PADDING] * (7 - len(given))
        assert found.ids_BWT[row, 0].tolist() == greedy


def _naive(
    model: SequenceModel, source_LC: Tensor, *, width: int, length: int, allowed: Tensor | None
) -> list[tuple[list[int], float]]:
    """Search one source's targets by the decoder's pass over each whole prefix at every step."""
    memory, beam = model.encode(source_LC[None]), [([], 0.0)]
    for _ in range(length):
        given = torch.tensor([[[BEGIN, *ids] for ids, _ in beam]])
        log_p = model.decode("words", memory, given)[0, :, -1].log_softmax(-1).tolist()
        longer = []
        for (ids, total), row in zip(beam, log_p, strict=True):
            if ids and ids[-1] in {END, PADDING}:
                longer.append(([*ids, PADDING], total))
            else:
                longer += [([*ids, one], total + row[one]) for one in _next(ids, allowed)]
        beam = sorted(longer, key=lambda one: -one[1])[:width]
    return beam


def _next(ids: list[int], allowed: Tensor | None) -> list[int]:
    if allowed is None:
        return [one for one in range(VOCABULARY) if one not in {PADDING, BEGIN}]
    return sorted({other[len(ids)] for other in allowed.tolist() if other[: len(ids)] == ids})


@pytest.mark.parametrize("is_constrained", [False, True])
@pytest.mark.parametrize(("width", "length", "layers"), [(1, 7, 2), (3, 1, 1), (4, 6, 3), (50, 4, 2)])
@torch.inference_mode()
def test_a_beam_finds_what_a_naive_search_over_whole_prefixes_finds(
    *, width: int, length: int, layers: int, is_constrained: bool
) -> None:
    generator = torch.Generator().manual_seed(width)
    model = SequenceModel(replace(SPEC, width=24, heads=3, layers=layers, seed=width)).eval()
    model.decoders["words"].output.weight.mul_(4.0)
    source = torch.randint(FIRST_KNOWN, 11, (4, 6, 2), generator=generator)
    source[1, 3:], source[2, 1:], source[3] = PADDING, PADDING, PADDING
    allowed = torch.randint(END, VOCABULARY, (60, length), generator=generator) if is_constrained else None
    trie = None if allowed is None else build_trie(allowed)
    found = beam_search(model, "words", source, width=width, length=length, allowed=trie)
    # In double precision, so that ids differ only where a float's rounding decides.
    exact = deepcopy(model).double()
    for row in range(len(source)):
        expected = _naive(exact, source[row], width=width, length=length, allowed=allowed)
        assert found.ids_BWT[row, : len(expected)].tolist() == [ids for ids, _ in expected]
        log_p = torch.tensor([total for _, total in expected])
        torch.testing.assert_close(found.log_p_BW[row, : len(expected)], log_p, rtol=0, atol=1e-5)
        assert found.log_p_BW[row, len(expected) :].isneginf().all()


def test_a_wider_beam_finds_nothing_less_likely(model: SequenceModel, source: Tensor) -> None:
    best = [beam_search(model, "words", source, width=width, length=5).log_p_BW[:, 0] for width in (1, 4, 7**5)]
    assert (best[2] >= best[0] - 1e-6).all()
    assert (best[2] >= best[1] - 1e-6).all()
    assert (best[2] > best[0] + 1e-3).any(), "greedy search misses nothing here: the test shows nothing"


def test_what_a_beam_finds_does_not_depend_on_other_sources(model: SequenceModel, source: Tensor) -> None:
    together = beam_search(model, "words", source, width=4, length=4)
    for row in range(len(source)):
        alone = beam_search(model, "words", source[row : row + 1], width=4, length=4)
        assert torch.equal(alone.ids_BWT[0], together.ids_BWT[row])


ALLOWED = torch.tensor([[6, 4, 4], [4, 5, 6], [4, 5, 5], [4, 6, 4], [5, 4, 4], [4, 5, 6]])


def test_a_constrained_beam_that_is_wide_enough_returns_all_allowed_targets_likeliest_first(
    model: SequenceModel, source: Tensor
) -> None:
    found = beam_search(model, "words", source, width=8, length=LENGTH, allowed=build_trie(ALLOWED))
    different = {tuple(row) for row in ALLOWED.tolist()}
    for row in range(len(source)):
        scored = sorted(((_log_p(model, source[row], ids), ids) for ids in different), reverse=True)
        assert [tuple(ids) for ids in found.ids_BWT[row, :5].tolist()] == [ids for _, ids in scored]
        torch.testing.assert_close(found.log_p_BW[row, :5], torch.tensor([p for p, _ in scored]))
        assert found.log_p_BW[row, 5:].isneginf().all()


def test_a_narrow_constrained_beam_returns_allowed_targets_only(model: SequenceModel, source: Tensor) -> None:
    allowed = {tuple(row) for row in ALLOWED.tolist()}
    for width in (1, 2, 3):
        found = beam_search(model, "words", source, width=width, length=LENGTH, allowed=build_trie(ALLOWED))
        listed = [tuple(ids) for ids in found.ids_BWT.flatten(0, 1).tolist()]
        assert set(listed) <= allowed
        assert all(len(set(listed[start : start + width])) == width for start in range(0, len(listed), width))


def test_of_equally_likely_targets_those_of_smaller_ids_come_first(source: Tensor) -> None:
    model = SequenceModel(SPEC).eval()
    with torch.no_grad():
        model.decoders["words"].output.weight.zero_()
        model.decoders["words"].output.bias.zero_()
    ordered = sorted({tuple(ids) for ids in ALLOWED.tolist()})
    for width in (1, 2, 5):
        found = beam_search(model, "words", source, width=width, length=LENGTH, allowed=build_trie(ALLOWED))
        assert [tuple(ids) for ids in found.ids_BWT[0].tolist()] == ordered[:width]


def test_a_trie_leads_along_each_allowed_sequence_and_nowhere_else() -> None:
    trie = build_trie(ALLOWED)
    walked = [((), 0)]
    for _ in range(3):
        longer = []
        for prefix, node in walked:
            ids, nodes, exists = (part[0, 0] for part in trie.edges(torch.tensor([[node]])))
            assert ids[exists].tolist() == sorted(set(ids[exists].tolist()))
            longer += [((*prefix, int(one)), int(to)) for one, to in zip(ids[exists], nodes[exists], strict=True)]
        walked = longer
    assert sorted(prefix for prefix, _ in walked) == sorted({tuple(row) for row in ALLOWED.tolist()})
    assert not trie.edges(torch.tensor([[node for _, node in walked]]))[2].any(), "a whole sequence goes on"


def test_what_cannot_be_searched_is_refused(model: SequenceModel, source: Tensor) -> None:
    with pytest.raises(ValueError, match="no sequence is allowed: give at least one"):
        build_trie(torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="an allowed sequence holds padding"):
        build_trie(torch.tensor([[4, 5, 0]]))
    with pytest.raises(ValueError, match="beam width is 0 and target length 3, expected 1 or more"):
        beam_search(model, "words", source, width=0, length=3)
