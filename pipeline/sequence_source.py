"""The sequence source: a user's history translated into the next clicks and, by a second decoder, the next conversions.

Shapes: R users, L actions, C ids of an action, W beam width, D digits of an item, K places of a list.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.beam import Trie, beam_search, build_trie
from models.sequence import PADDING, SequenceModel, SequenceSpec
from pipeline.exact_search import NONE
from pipeline.histories import LABELS, Coding
from pipeline.sequence_fit import Pairs, SequenceFit, fit_sequence
from pipeline.stage import progress

USERS = 64
CHOICES = 1 << 22
"""Next ids of all hypotheses that are weighed at once: 53 bytes each, so 220 MiB."""
BATCH = 128
LEARNING_RATE = 2e-3
DROPOUT = 0.1


@dataclass(frozen=True)
class Catalogue:
    """The items that may be listed, as what the decoders may write."""

    trie: Trie
    codes: NDArray[np.void]
    """The ids of each item, ascending."""
    numbers: NDArray[np.int64]
    """The item's number, in the order of the codes."""
    digits: int

    def numbers_of(self, ids_RWD: Tensor) -> NDArray[np.int64]:
        """Return the items' numbers (R, W) of decoded ids, -1 of padding."""
        codes_RW = _codes(ids_RWD.numpy())
        place = np.minimum(np.searchsorted(self.codes, codes_RW), len(self.codes) - 1)
        return np.where(self.codes[place] == codes_RW, self.numbers[place], NONE)


def catalogue_of(coding: Coding, item_ids: pl.Series) -> Catalogue:
    """Return what may be decoded on a day; an item without digits that the model knows is left out.

    Raises:
        ValueError: no item is left.
    """
    tokens = coding.tokens(item_ids)
    numbers = np.flatnonzero((tokens != PADDING).all(axis=1))
    if not len(numbers):
        raise ValueError("no available item has digits that the model knows: code the day's items and train again")
    codes = _codes(tokens[numbers])
    order = np.argsort(codes)
    trie = build_trie(torch.from_numpy(tokens[numbers]))
    return Catalogue(trie, codes[order], numbers[order], tokens.shape[1])


def _codes(ids: NDArray[np.int64]) -> NDArray[np.void]:
    """Write the ids along the last axis as one value that orders as they do: eight digits overflow any integer."""
    written = np.ascontiguousarray(ids, dtype=">i4")
    return written.view(np.dtype((np.void, 4 * ids.shape[-1])))[..., 0]


def fit_source(coding: Coding, pairs: Pairs, *, epochs: int, seed: int) -> tuple[SequenceModel, list[float]]:
    """Fit the encoder with its two decoders; see `fit_sequence` for what comes back and what it raises."""
    sizes = dict.fromkeys(LABELS, coding.target_vocabulary)
    spec = SequenceSpec(source_vocabulary=coding.source_vocabulary, targets=sizes, dropout=DROPOUT, seed=seed)
    steps = epochs * -(-len(pairs) // BATCH)
    return fit_sequence(spec, SequenceFit(steps, BATCH, LEARNING_RATE, seed), pairs)


def sequence_lists(
    model: SequenceModel, catalogue: Catalogue, source_RLC: Tensor, *, conversion_weight: float, width: int
) -> NDArray[np.int64]:
    """Return the items (R, K = width) of users by the blend of both decoders' probabilities, best first.

    Each decoder's beam is as wide as the list; an item that only one of them finds has probability 0 in the other. A
    user without a history has no items: -1. Memory holds `CHOICES` choices, or those of a single user where items of
    one code are so many.
    """
    items = np.full((len(source_RLC), width), NONE, dtype=np.int64)
    rows = torch.nonzero((source_RLC != PADDING).any(-1).any(-1)).flatten()
    for part in progress(torch.split(rows, users_at_once(catalogue.trie, width)), "decode"):
        if len(part):
            items[part.numpy()] = _blended(model, catalogue, source_RLC[part], conversion_weight, width)
    return items


def users_at_once(trie: Trie, width: int) -> int:
    """Return how many users are decoded together: fewer where many items are of one code, as those without features."""
    children = int(trie.first_S.diff().max())
    return max(1, min(USERS, CHOICES // (width * children)))


def _blended(
    model: SequenceModel, catalogue: Catalogue, source_RLC: Tensor, conversion_weight: float, width: int
) -> NDArray[np.int64]:
    numbers, shares = [], []
    for label, weight in zip(LABELS, (1.0 - conversion_weight, conversion_weight), strict=True):
        found = beam_search(model, label, source_RLC, width=width, length=catalogue.digits, allowed=catalogue.trie)
        numbers.append(catalogue.numbers_of(found.ids_BWT))
        shares.append(weight * found.log_p_BW.double().exp().numpy())
    items, chances = np.concatenate(numbers, axis=1), np.concatenate(shares, axis=1)
    order = np.argsort(items, axis=1, kind="stable")
    items, chances = np.take_along_axis(items, order, axis=1), np.take_along_axis(chances, order, axis=1)
    again = (items[:, 1:] == items[:, :-1]) & (items[:, 1:] != NONE)  # found by both decoders
    chances[:, :-1] += np.where(again, chances[:, 1:], 0.0)
    items[:, 1:][again] = NONE
    best = np.argsort(np.where(items == NONE, np.inf, -chances), axis=1, kind="stable")[:, :width]
    return np.take_along_axis(items, best, axis=1)
