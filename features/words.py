"""What a word of a text is, and on which side of a split a text falls."""

import hashlib

import polars as pl

WORD = r"[\p{L}\p{M}\p{N}]+"
"""A run of Unicode letters, marks and digits; all else separates words."""


def words(texts: pl.Series) -> pl.Series:
    """Return the words of each text in order, List[String], in lower case after NFKC; none of a text that is null."""
    plain = texts.cast(pl.String).str.normalize("NFKC").str.to_lowercase()
    return plain.str.extract_all(WORD).fill_null([]).rename("text")


def hash_share(text: str) -> float:
    """Return a number from 0 to 1 that a text's SHA-256 decides: splits by it keep equal texts on one side."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
