"""Claims about words and token ids."""

import datetime as dt

import polars as pl
import pytest

from features.text import extend_words, known_words, token_ids
from features.words import words

TODAY = dt.date(2026, 1, 1)
TEXTS = pl.Series(["Red shoe", "red RED hat", "blue shoe", None])


def _vocabulary(texts: pl.Series, known: pl.DataFrame | None = None, min_count: int = 1) -> pl.DataFrame:
    return extend_words(known, texts, min_count=min_count, max_words=10, added_on=TODAY)


def _ids(texts: list[str | None], vocabulary: pl.DataFrame, max_tokens: int = 4) -> list[list[int]]:
    known = known_words(vocabulary, max_words=10, hash_buckets=5)
    return token_ids(pl.Series(texts, dtype=pl.String), known, max_tokens=max_tokens).to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop-me 2day!", ["don", "t", "stop", "me", "2day"]),
        ("Ünïcode CAFÉ ﬁn", ["ünïcode", "café", "fin"]),
        ("東京 2026 नमस्ते", ["東京", "2026", "नमस्ते"]),
        (" ...!? ", []),
        (None, []),
    ],
)
def test_a_word_is_a_run_of_letters_marks_and_digits_in_lower_case(text: str | None, expected: list[str]) -> None:
    assert words(pl.Series([text], dtype=pl.String)).to_list() == [expected]


def test_words_get_ids_by_the_texts_that_hold_them_and_rare_ones_get_none() -> None:
    assert _vocabulary(TEXTS, min_count=2).select("value", "id").rows() == [("red", 3), ("shoe", 4)]


def test_a_vocabulary_only_grows() -> None:
    first = _vocabulary(TEXTS)
    later = _vocabulary(pl.Series(["green hat", "green hat", "green hat"]), known=first)
    assert later.head(first.height).equals(first)
    assert later.tail(1).select("value", "id").row(0) == ("green", 3 + first.height)


def test_ids_are_those_of_the_first_words_padded_at_the_end() -> None:
    vocabulary = _vocabulary(TEXTS, min_count=2)
    assert _ids(["shoe, RED", "red red red red shoe"], vocabulary) == [[4, 3, 0, 0], [3, 3, 3, 3]]


def test_unknown_words_share_buckets_behind_all_ids_that_may_be_given() -> None:
    found = _ids(["never seen these words"], _vocabulary(TEXTS))[0]
    assert all(13 <= number < 18 for number in found)
    assert found == _ids(["Never SEEN these words"], _vocabulary(TEXTS, min_count=2))[0]


def test_a_text_without_words_is_padding_alone() -> None:
    assert _ids([None, "", "?!"], _vocabulary(TEXTS)) == [[0, 0, 0, 0]] * 3
