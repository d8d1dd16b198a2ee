"""Items as digits: near items begin alike, all are told apart, and an item keeps its digits."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.semantic_ids import SemanticIds, load_semantic_ids, save_semantic_ids, semantic_ids_of

GENERATOR = np.random.default_rng(4)
GROUPS = GENERATOR.normal(size=(4, 6)) * 10
OF_GROUP = np.repeat(np.arange(4), 15)
VECTORS = (GROUPS[OF_GROUP] + GENERATOR.normal(size=(60, 6))).astype(np.float32)
ITEMS = pl.Series("item_id", [f"i{number:02d}" for number in range(60)])


@pytest.fixture(scope="module")
def ids() -> SemanticIds:
    return semantic_ids_of(ITEMS, VECTORS, levels=2, centres=4, seed=1)


def test_the_first_digit_is_the_group_and_the_second_halves_what_is_left_over(ids: SemanticIds) -> None:
    first = ids.digits_of(ITEMS)[:, 0]
    assert all(len(set(first[group == OF_GROUP])) == 1 for group in range(4))
    assert len(set(first)) == 4


def test_each_digit_is_the_nearest_centre_to_what_the_digits_before_left_over(ids: SemanticIds) -> None:
    for vector, digits in zip(VECTORS, ids.digits_of(ITEMS), strict=True):
        rest = vector
        for centres, digit in zip(ids.codebooks_LKW, digits[:-1], strict=True):
            assert digit == np.square(centres - rest).sum(axis=1).argmin()
            rest = rest - centres[digit]


def test_no_two_items_have_the_same_digits_and_last_digits_begin_at_0(ids: SemanticIds) -> None:
    digits = ids.digits_of(ITEMS)
    assert len(np.unique(digits, axis=0)) == 60
    for code in np.unique(digits[:, :-1], axis=0):
        last = digits[(digits[:, :-1] == code).all(axis=1), -1]
        assert sorted(last) == list(range(len(last)))
    assert ids.sizes == [4, 4, 2 * (digits[:, -1].max() + 1)]


def test_a_new_item_is_coded_by_the_same_codebooks_and_the_others_keep_their_digits(ids: SemanticIds) -> None:
    twin, elsewhere = VECTORS[7], VECTORS[7] + np.float32(0)
    more = ids.extended(pl.Series(["i07", "a-twin", "b-twin"]), np.stack([VECTORS[30], twin, elsewhere]))
    assert (more.digits_of(ITEMS) == ids.digits_of(ITEMS)).all()
    own, first, second = more.digits_of(pl.Series(["i07", "a-twin", "b-twin"]))
    assert (first[:-1] == own[:-1]).all()
    assert second[-1] == first[-1] + 1
    assert len(np.unique(more.digits_of(more.items["item_id"]), axis=0)) == 62
    assert more.sizes == ids.sizes, "a trained model could not read them"
    assert more.extended(ITEMS, VECTORS) is more


def test_an_item_without_digits_has_minus_ones(ids: SemanticIds) -> None:
    assert ids.digits_of(pl.Series(["i01", "none"]))[1].tolist() == [-1, -1, -1]


def test_equal_vectors_give_equal_digits(ids: SemanticIds) -> None:
    again = semantic_ids_of(ITEMS, VECTORS.copy(), levels=2, centres=4, seed=1)
    assert again.digest() == ids.digest()


def test_fewer_items_than_centres_are_their_own_centres() -> None:
    few = VECTORS[:3]
    assert semantic_ids_of(ITEMS[:3], few, levels=2, centres=4, seed=1).sizes == [3, 3, 2]


def test_what_was_saved_comes_back_and_what_is_damaged_is_refused(ids: SemanticIds, tmp_path: Path) -> None:
    save_semantic_ids(ids, tmp_path)
    assert load_semantic_ids(tmp_path, "sources").digest() == ids.digest()
    other = semantic_ids_of(ITEMS, VECTORS[::-1], levels=2, centres=4, seed=1)
    other.items.write_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="is not what was written"):
        load_semantic_ids(tmp_path, "sources")
    (tmp_path / "items.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_semantic_ids(tmp_path, "sources")


def test_no_item_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no item to code"):
        semantic_ids_of(ITEMS[:0], VECTORS[:0], levels=2, centres=4, seed=1)
