"""Claims about the vectors of texts that an encoder keeps."""

import math
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl

from features.encoding import Encoder, Vocabulary, encode, load_encoder, save_encoder
from features.text_vectors import TextVectors

VECTORS = TextVectors(
    words=["red", "shoe"],
    vectors=[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5], [0.25, 0.25]],
    bias=[0.1, -0.1],
    max_words=3,
)
ENCODER = Encoder(
    vocabularies={"title": Vocabulary(values=["red"], ids=[3])},
    knots={"title__text_0": [-1.0, 0.0, 1.0], "title__text_1": [-1.0, 1.0]},
    lists={"title": ("title", 2)},
    bins=4,
    texts={"title": VECTORS},
)


def test_a_vector_is_tanh_of_the_mean_of_the_first_words_and_the_bias() -> None:
    found = VECTORS.of(pl.Series([["Red", "shoe"], ["red shoe red shoe"], ["hat"]]))
    bucket = VECTORS.vectors[2 + crc32(b"hat") % 2]
    expected = [(1.0 / 2, 2.0 / 2), (2.0 / 3, 2.0 / 3), bucket]
    for vector, (first, second) in zip(found, expected, strict=True):
        np.testing.assert_allclose(vector, [math.tanh(first + 0.1), math.tanh(second - 0.1)], rtol=1e-12)


def test_texts_without_words_have_the_vector_of_the_bias() -> None:
    found = VECTORS.of(pl.Series([None, [], ["?"], [None]], dtype=pl.List(pl.String)))
    np.testing.assert_allclose(found, np.tile(np.tanh([0.1, -0.1]), (4, 1)))


def test_no_texts_have_no_vectors() -> None:
    assert VECTORS.of(pl.Series([], dtype=pl.List(pl.String))).shape == (0, 2)
    assert encode(pl.DataFrame(schema={"title": pl.List(pl.String)}), ENCODER).shape == (0, 3)


def test_an_encoder_gives_the_places_of_a_texts_numbers_beside_its_codes() -> None:
    frame = pl.DataFrame({"title": [["red"], None]}, schema={"title": pl.List(pl.String)})
    found = encode(frame, ENCODER)
    assert found.columns == ["title_code", "title__text_0_position", "title__text_1_position"]
    assert ENCODER.text_columns() == ["title__text_0", "title__text_1"]
    np.testing.assert_allclose(found["title__text_0_position"], 1 + np.tanh([1.1, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(found["title__text_1_position"], [(1 + math.tanh(-0.1)) / 2] * 2, rtol=1e-6)


def test_an_encoder_with_texts_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_encoder(ENCODER, tmp_path / "encoder.json")
    assert load_encoder(tmp_path / "encoder.json") == ENCODER
