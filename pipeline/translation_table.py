"""Pairs of texts for `translate-train`: their table, tokens by white space, vocabularies, and the split.

Shapes: R pairs, L tokens of the longest text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from features.words import hash_share
from models.sequence import END, FIRST_KNOWN, PADDING, UNKNOWN
from pipeline.text_table import read_table

TEST_SHARE = 0.2
"""Of the sources, by their hash."""
MOST_TOKENS = 512
"""Of a text: all texts of a batch are as long as its longest, and training keeps about 1.5 GiB at this length."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a column's training texts, in order; their ids begin at FIRST_KNOWN."""

    tokens: list[str]

    @property
    def size(self) -> int:
        """Return how many ids there are, the special ones included."""
        return FIRST_KNOWN + len(self.tokens)

    def encode(self, texts: Sequence[str], *, ended: bool) -> Tensor:
        """Return the ids (R, L) int64 of texts, padded with 0 and with an END each where asked for."""
        number = {token: FIRST_KNOWN + place for place, token in enumerate(self.tokens)}
        rows = [[number.get(token, UNKNOWN) for token in text.split()] + [END] * ended for text in texts]
        ids_RL = torch.full((len(rows), max(map(len, rows), default=0)), PADDING)
        for row, ids in enumerate(rows):
            ids_RL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return ids_RL

    def decode(self, ids_RL: Tensor) -> list[str]:
        """Return the text of ids up to their END; an id without a token is `?`."""
        texts = []
        for ids in ids_RL.tolist():
            kept = ids[: ids.index(END)] if END in ids else ids
            words = [self.tokens[one - FIRST_KNOWN] if one >= FIRST_KNOWN else "?" for one in kept if one != PADDING]
            texts.append(" ".join(words))
        return texts


def vocabulary_of(texts: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of all tokens of some texts, in the order of their code points."""
    return Vocabulary(sorted({token for text in texts for token in text.split()}))


def read_pairs(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Read text columns of a CSV, Parquet or JSON-lines file, the source first, its tokens one space apart.

    Raises:
        ValueError: the file is missing, of another kind or without rows, a column is missing or no text, or a text is
            missing, empty or longer than 512 tokens.
    """
    frame = read_table(path)
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"--table {path} has no column {missing}, expected some of {frame.columns}")
    if not frame.height:
        raise ValueError(f"--table {path} has no rows")
    kinds = {name: str(frame.schema[name]) for name in columns}
    if nested := {name: kind for name, kind in kinds.items() if frame.schema[name].is_nested() or kind == "Binary"}:
        raise ValueError(f"--table {path} has columns that are no text: {nested}, expected tokens apart by spaces")
    texts = {name: [" ".join((text or "").split()) for text in frame[name].cast(pl.String)] for name in columns}
    if bad := {name: column.count("") for name, column in texts.items() if "" in column}:
        raise ValueError(f"--table {path} has missing or empty texts, by column: {bad}; leave these rows out")
    counts = {name: sum(text.count(" ") >= MOST_TOKENS for text in column) for name, column in texts.items()}
    if long := {name: count for name, count in counts.items() if count}:
        raise ValueError(
            f"--table {path} has texts of more than {MOST_TOKENS} tokens, by column: {long}; cut them or leave them out"
        )
    return pl.DataFrame(texts)


def is_test(sources: Sequence[str]) -> pl.Series:
    """Tell which pairs test: by the hash of the source, so that equal sources are on one side in every table."""
    return pl.Series([hash_share(text) for text in sources], dtype=pl.Float64) < TEST_SHARE
