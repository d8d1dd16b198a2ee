"""Vectors of texts from those of their words: what an encoder keeps of a trained text model.

Shapes: N distinct texts, K words (then hash buckets), V width of a vector, W all words of the texts.
"""

from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.words import words


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """A text's vector is tanh of the bias and the mean over its first words of their vectors.

    Attributes:
        words: the known words.
        vectors: theirs, then those of the hash buckets that any other word falls into.
        bias: added to the mean; the vector of a text without a word is its tanh.
        max_words: words of a text that are read.
    """

    words: list[str]
    vectors: list[list[float]]
    bias: list[float]
    max_words: int

    @property
    def width(self) -> int:
        """Return the width V of a text's vector."""
        return len(self.bias)

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """Return the vectors of words and buckets, K V."""
        return np.array(self.vectors)

    def of(self, texts: pl.Series) -> NDArray[np.float64]:
        """Return the texts' vectors, N V; the words of a list are read as one text."""
        joined = (texts.list.join(" ", ignore_nulls=True) if texts.dtype == pl.List else texts).fill_null("")
        distinct = joined.unique(maintain_order=True)
        place = joined.replace_strict(distinct, range(len(distinct)), return_dtype=pl.Int64).to_numpy().astype(np.int64)
        vectors_NV: NDArray[np.float64] = self._distinct(distinct)[place]
        return vectors_NV

    def _distinct(self, texts: pl.Series) -> NDArray[np.float64]:
        read = words(texts).list.head(self.max_words)
        counts = read.list.len().to_numpy().astype(np.int64)
        rows_W = self._rows(read.explode(empty_as_null=False))
        sums_NV = np.zeros((len(texts), self.width))
        np.add.at(sums_NV, np.repeat(np.arange(len(texts)), counts), self.table[rows_W])
        vectors_NV: NDArray[np.float64] = np.tanh(sums_NV / np.maximum(counts, 1)[:, None] + np.array(self.bias))
        return vectors_NV

    def _rows(self, flat: pl.Series) -> NDArray[np.int64]:
        """Return the row of each word's vector."""
        known = len(self.words)
        rows = dict(zip(self.words, range(known), strict=True))
        buckets = len(self.vectors) - known
        distinct = flat.unique()
        found = [rows.get(word, known + crc32(word.encode()) % buckets) for word in distinct]
        return flat.replace_strict(distinct, found, return_dtype=pl.Int64).to_numpy().astype(np.int64)
