"""The sequence source learns what follows what, lists available items only, and blends its decoders."""

import numpy as np
import polars as pl
import pytest
import torch

from models.beam import beam_search, build_trie
from models.sequence import SequenceModel
from pipeline.histories import LABELS, Coding
from pipeline.retrieve import NONE
from pipeline.semantic_ids import SemanticIds, semantic_ids_of
from pipeline.sequence_fit import Pairs
from pipeline.sequence_source import CHOICES, USERS, catalogue_of, fit_source, sequence_lists, users_at_once

COUNT = 12
ITEMS = pl.Series("item_id", [f"i{number:02d}" for number in range(COUNT)])
VECTORS = np.random.default_rng(5).normal(size=(COUNT, 4)).astype(np.float32)
CODING = Coding(semantic_ids_of(ITEMS, VECTORS, levels=1, centres=4, seed=0))


def _sources(last: torch.Tensor) -> torch.Tensor:
    """Write histories of one click each, on the given items."""
    tokens = torch.from_numpy(CODING.tokens(ITEMS))[last]
    action = torch.full((len(last), 2), CODING.starts[-1])
    action[:, 1] += 2
    return torch.cat([tokens, action], dim=1).unsqueeze(1)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    """A model of a world where a click on item n is followed by one on n + 1 and a conversion of n + 2."""
    last = torch.arange(COUNT).repeat(40)
    tokens = torch.from_numpy(CODING.tokens(ITEMS))
    targets = {"click": tokens[(last + 1) % COUNT].unsqueeze(1), "conversion": tokens[(last + 2) % COUNT].unsqueeze(1)}
    fitted, curve = fit_source(CODING, Pairs(_sources(last), targets), epochs=40, seed=1)
    assert curve[-1] < 0.5 * curve[0]
    return fitted


def _lists(model: SequenceModel, weight: float, width: int, items: pl.Series = ITEMS) -> np.ndarray:
    source = _sources(torch.arange(COUNT))
    return sequence_lists(model, catalogue_of(CODING, items), source, conversion_weight=weight, width=width)


def test_each_decoder_finds_what_follows(model: SequenceModel) -> None:
    assert _lists(model, 0.0, 3)[:, 0].tolist() == [(item + 1) % COUNT for item in range(COUNT)]
    assert _lists(model, 1.0, 3)[:, 0].tolist() == [(item + 2) % COUNT for item in range(COUNT)]


def test_a_blend_orders_items_by_the_weighted_sum_of_both_probabilities(model: SequenceModel) -> None:
    found = _lists(model, 0.3, COUNT)
    catalogue = catalogue_of(CODING, ITEMS)
    chances = np.zeros((COUNT, COUNT))
    for label, weight in zip(LABELS, (0.7, 0.3), strict=True):
        beam = beam_search(model, label, _sources(torch.arange(COUNT)), width=COUNT, length=2, allowed=catalogue.trie)
        for user, numbers in enumerate(catalogue.numbers_of(beam.ids_BWT)):
            chances[user, numbers] += weight * beam.log_p_BW[user].double().exp().numpy()
    ordered = np.take_along_axis(chances, found, axis=1)
    assert (np.sort(found, axis=1) == np.arange(COUNT)).all()
    assert (np.diff(ordered, axis=1) <= 1e-12).all()


def test_only_available_items_are_listed_and_by_their_numbers_of_the_day(model: SequenceModel) -> None:
    available = pl.Series("item_id", ["i01", "i04", "new", "i09"])
    found = _lists(model, 0.5, 6, available)
    assert set(found[found != NONE].tolist()) == {0, 1, 3}
    assert (found[:, 3:] == NONE).all()
    assert found[0, 0] == 0, "item 1 follows item 0 and has the first number of the day"


def test_a_user_without_a_history_has_no_items(model: SequenceModel) -> None:
    source = torch.cat([torch.zeros_like(_sources(torch.tensor([0]))), _sources(torch.tensor([3]))])
    found = sequence_lists(model, catalogue_of(CODING, ITEMS), source, conversion_weight=0.5, width=2)
    assert (found[0] == NONE).all()
    assert (found[1] != NONE).all()


def test_a_day_without_an_item_that_can_be_decoded_is_refused() -> None:
    with pytest.raises(ValueError, match="no available item has digits"):
        catalogue_of(CODING, pl.Series("item_id", ["new"]))


@pytest.mark.parametrize(("twins", "width", "users"), [(10, 200, USERS), (1_000, 200, 20), (100_000, 200, 1)])
def test_items_of_one_code_do_not_multiply_the_memory(twins: int, width: int, users: int) -> None:
    """64 users with lists of 200 and 5,000 items of one code took 3.3 GiB."""
    last = torch.arange(twins) + 4
    trie = build_trie(torch.stack([torch.full_like(last, 3), last], dim=1))
    assert users_at_once(trie, width) == users
    assert users == 1 or users * width * twins <= CHOICES


def test_items_of_eight_levels_are_told_apart_by_their_first_digits() -> None:
    """As one integer in base 512 they overflowed: 971 of 973 items came back as others."""
    first = np.unravel_index(np.arange(900), (30, 30))
    digits = np.concatenate([np.stack(first, axis=1), np.ones((900, 6)), np.zeros((900, 1))], axis=1).astype(np.int32)
    items = pl.DataFrame({"item_id": [f"i{number:03d}" for number in range(900)], "digits": digits})
    coding = Coding(SemanticIds([np.zeros((32, 2), dtype=np.float32)] * 8, items, 252))
    assert coding.target_vocabulary == 512
    tokens = torch.from_numpy(coding.tokens(items["item_id"]))
    found = catalogue_of(coding, items["item_id"]).numbers_of(torch.stack([tokens, torch.zeros_like(tokens)]))
    assert found[0].tolist() == list(range(900))
    assert (found[1] == NONE).all()
