"""What a word of a text is."""

import polars as pl

WORD = r"[\p{L}\p{M}\p{N}]+"
"""A run of Unicode letters, marks and digits; all else separates words."""


def words(texts: pl.Series) -> pl.Series:
    """Return the words of each text in order, List[String], in lower case after NFKC; none of a text that is null."""
    plain = texts.cast(pl.String).str.normalize("NFKC").str.to_lowercase()
    return plain.str.extract_all(WORD).fill_null([]).rename("text")
