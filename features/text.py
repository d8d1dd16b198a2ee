"""Texts as token ids: a vocabulary fitted on given rows, hash buckets for every other word.

Ids are 0 padding, 3.. known words, then the hash buckets.
"""

import datetime as dt

import polars as pl

from features.encoding import FIRST_KNOWN, Encoder, Vocabulary, encode
from features.vocabulary import extend
from features.words import words

FIELD = "text"


def extend_words(
    vocabulary: pl.DataFrame | None, texts: pl.Series, *, min_count: int, max_words: int, added_on: dt.date
) -> pl.DataFrame:
    """Return the vocabulary with an id for each word that has none yet and stands in enough of the texts.

    The rules are those of `features.vocabulary.extend`: ids are given once, by falling count, then by word.

    Raises:
        ValueError: the vocabulary holds more than max_words already.
    """
    counts = (
        pl.DataFrame({"value": words(texts).list.unique().explode(empty_as_null=False)}, schema={"value": pl.String})
        .group_by("value")
        .agg(pl.len().cast(pl.Int64).alias("rows"))
        .select(pl.lit(FIELD).alias("field"), "value", "rows")
    )
    return extend(vocabulary, counts, min_count=min_count, max_ids=max_words, added_on=added_on)


def known_words(vocabulary: pl.DataFrame, *, max_words: int, hash_buckets: int) -> Vocabulary:
    """Return the ids of a vocabulary's words and of the buckets behind all ids that it may ever give."""
    ordered = vocabulary.sort("id")
    return Vocabulary(
        values=ordered["value"].to_list(),
        ids=ordered["id"].to_list(),
        first_bucket=FIRST_KNOWN + max_words,
        buckets=hash_buckets,
    )


def token_ids(texts: pl.Series, vocabulary: Vocabulary, *, max_tokens: int) -> pl.Series:
    """Return the ids of each text's first words: List[Int32] of max_tokens ids, padded with 0 at the end.

    A text without any word is padding alone.
    """
    first = words(texts).list.head(max_tokens).rename(FIELD)
    encoder = Encoder(vocabularies={FIELD: vocabulary}, knots={}, lists={FIELD: (FIELD, max_tokens)}, bins=1)
    return encode(pl.DataFrame({FIELD: first}), encoder).to_series()
