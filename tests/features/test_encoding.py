"""Claims about encodings: ids of the vocabulary, positions on quantiles, row by row, and back from disk."""

import datetime as dt
import math
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encoding import (
    LONGEST_LIST,
    Encoder,
    encode,
    fit_encoder,
    load_encoder,
    save_encoder,
    value_counts,
)
from features.plan import FeaturePlan, SidePlan
from features.vocabulary import extend

PLAN = FeaturePlan(
    users=SidePlan(categorical=("segment",)),
    items=SidePlan(numeric=("price",), multi=("tags",)),
    context=(),
    counters=(),
    sequence_length=3,
    item_age=False,
    time_zone="UTC",
)
SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "segment": pl.String,
    "price": pl.Float64,
    "tags": pl.List(pl.String),
    "last_clicked_items": pl.List(pl.String),
    "last_converted_items": pl.List(pl.String),
}


def raw(**columns: list[object]) -> pl.DataFrame:
    """Return a frame with the plan's columns, missing where they are not given."""
    height = max(len(values) for values in columns.values())
    values = {name: columns.get(name, [None] * height) for name in SCHEMA}
    return pl.DataFrame(values, schema=SCHEMA)


def fit(min_count: int = 1, bins: int = 4, **columns: list[object]) -> Encoder:
    return fit_frame(raw(**columns), min_count=min_count, bins=bins)


def fit_frame(frame: pl.DataFrame, *, min_count: int = 1, bins: int = 4) -> Encoder:
    """Make a vocabulary of a frame and fit an encoder on it, as the first featurize does."""
    rows, counts = frame.lazy(), value_counts(frame.lazy(), PLAN)
    limits = {"min_count": min_count, "max_ids": 1000}
    vocabulary = extend(None, counts, **limits, added_on=dt.date(2026, 1, 1))
    return fit_encoder(rows, PLAN, vocabulary=vocabulary, **limits, hash_buckets=5, bins=bins, base=None)


def test_ids_are_missing_1_unseen_2_and_known_from_3_by_falling_count_then_by_value() -> None:
    encoder = fit(segment=["b", "c", "c", "a", "c", None, "b", "a"])
    assert encoder.vocabularies["segment"].values == ["c", "a", "b"]
    assert encoder.cardinalities()["segment"] == 6
    codes = encode(pl.DataFrame({"segment": [None, "new", "c", "a", "b", ""]}), encoder)
    assert codes["segment_code"].to_list() == [1, 2, 3, 4, 5, 2]
    assert codes["segment_code"].dtype == pl.Int32


@pytest.mark.parametrize(("min_count", "known"), [(1, ["c", "b", "a"]), (2, ["c", "b"]), (3, ["c"]), (4, [])])
def test_a_value_needs_min_count_rows_for_an_id_of_its_own(min_count: int, known: list[str]) -> None:
    encoder = fit(min_count=min_count, segment=list("cbacbc"))
    assert encoder.vocabularies["segment"].values == known
    codes = encode(pl.DataFrame({"segment": ["a", "b", "c"]}), encoder)["segment_code"].to_list()
    assert codes == [3 + known.index(value) if value in known else 2 for value in "abc"]


def test_a_column_without_any_value_is_all_missing() -> None:
    encoder = fit(user_id=["u"])
    found = encode(raw(user_id=["u", "v"]), encoder)
    assert found["segment_code"].to_list() == [1, 1]
    assert found["user_id_code"].to_list() == [3, 2]
    assert found["price_position"].to_list() == [5.0, 5.0]
    assert found["tags_code"].to_list() == [[0], [0]]


@pytest.mark.parametrize(
    ("value", "position"),
    [
        (5.0, 0.0),
        (0.0, 0.0),
        (-9.0, 0.0),
        (7.5, 0.5),
        (10.0, 1.0),
        (15.0, 1.5),
        (20.0, 2.0),
        (30.0, 2.5),
        (40.0, 3.0),
        (100.0, 3.5),
        (160.0, 4.0),
        (1e9, 4.0),
        (None, 5.0),
        (math.nan, 5.0),
    ],
)
def test_a_number_s_position_is_its_place_between_knots(value: float | None, position: float) -> None:
    encoder = fit(price=[160.0, 5.0, 10.0, 20.0, 40.0, None])
    assert encoder.knots["price"] == [5.0, 10.0, 20.0, 40.0, 160.0]
    found = encode(pl.DataFrame({"price": [value]}, schema={"price": pl.Float64}), encoder)
    assert found["price_position"].to_list() == [position]
    assert found["price_position"].dtype == pl.Float32


def test_a_constant_number_is_at_0_and_repeated_quantiles_are_one_knot() -> None:
    constant = fit(price=[7.0, 7.0, 7.0])
    assert constant.knots["price"] == [7.0]
    numbers = pl.DataFrame({"price": [7.0, 8.0, None]})
    assert encode(numbers, constant)["price_position"].to_list() == [0.0, 0.0, 5.0]
    assert fit(price=[2.0] * 9 + [3.0]).knots["price"] == [2.0, 3.0]


def test_zero_has_a_bin_of_its_own_and_the_quantiles_are_those_of_the_other_values() -> None:
    encoder = fit(price=[0.0] * 90 + [1.0, 2.0, 3.0, 4.0, 5.0, None])
    assert encoder.zeros_apart == ["price"]
    assert encoder.knots["price"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    numbers = pl.DataFrame({"price": [0.0, -0.0, None, 0.5, 1.0, 2.5, 1e-300]})
    assert encode(numbers, encoder)["price_position"].to_list() == [6.0, 6.0, 5.0, 0.0, 0.0, 1.5, 0.0]


@pytest.mark.parametrize(
    ("values", "min_count", "knots"),
    [([0.0, 1.0, 2.0], 2, [0.0, 1.0, 2.0]), ([0.0, 0.0], 1, [0.0]), ([1.0, 3.0], 1, [1.0, 3.0]), ([], 1, [])],
)
def test_zero_stays_on_the_quantiles_where_rows_are_few_or_no_other_value_occurs(
    values: list[object], min_count: int, knots: list[float]
) -> None:
    encoder = fit(min_count=min_count, user_id=["u"] * 4, price=[*values, *[None] * (4 - len(values))])
    assert encoder.zeros_apart == []
    assert encoder.knots["price"] == knots
    assert encode(raw(price=[0.0]), encoder)["price_position"].to_list() == [0.0 if knots else 5.0]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=60),
    bins=st.integers(1, 20),
)
def test_positions_rise_with_the_number_and_stay_within_the_bins(values: list[float], bins: int) -> None:
    encoder = fit(bins=bins, price=list(values))
    knots = encoder.knots["price"]
    assert knots == sorted(set(knots))
    assert len(knots) <= bins + 1
    probes = pl.Series("price", sorted([*values, -1e9, 1e9, 0.0, 0.0]))
    positions = encode(probes.to_frame(), encoder)["price_position"].to_numpy()
    is_zero = (probes == 0).to_numpy()
    assert encoder.zeros_apart == (["price"] if 0 in values and any(values) else [])
    if encoder.zeros_apart:
        assert (positions[is_zero] == bins + 2).all()
        assert 0 not in knots
        positions = positions[~is_zero]
    assert (np.diff(positions) >= 0).all()
    assert positions.min() == 0
    assert positions.max() <= bins


def test_lists_are_padded_at_the_end_to_the_longest_of_the_training_rows() -> None:
    encoder = fit(tags=[["x", "y"], ["x"], None, [], ["x", "y", "z"]])
    assert encoder.lists["tags"] == ("tags", 3)
    found = encode(raw(tags=[["y", "new"], None, [], ["a", "x", "y", "z"]]), encoder)["tags_code"]
    assert found.to_list() == [[4, 2, 0], [0, 0, 0], [0, 0, 0], [3, 4, 5]]
    assert found.dtype == pl.List(pl.Int32)
    longest = fit(tags=[[f"t{n}" for n in range(99)]])
    assert longest.lists["tags"] == ("tags", LONGEST_LIST)


def test_sequences_share_the_ids_of_items() -> None:
    encoder = fit(item_id=["i1", "i1", "i2"])
    found = encode(raw(last_clicked_items=[["i2", "i1"], ["i3"], None]), encoder)
    assert found["last_clicked_items_code"].to_list() == [[4, 3, 0], [2, 0, 0], [0, 0, 0]]


ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u", "v", "w"]),
        "item_id": st.sampled_from(["i", "j"]),
        "segment": st.sampled_from(["a", "b", None]),
        "price": st.none() | st.just(0.0) | st.floats(-10, 10),
        "tags": st.none() | st.lists(st.sampled_from("xyz"), max_size=4),
        "last_clicked_items": st.none() | st.lists(st.sampled_from("ijk"), max_size=3),
        "last_converted_items": st.just([]),
    }
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=20), order=st.randoms(use_true_random=False))
def test_neither_the_fit_nor_the_codes_depend_on_the_order_of_the_rows(rows: list[object], order: Random) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    places = list(range(len(rows)))
    order.shuffle(places)
    encoder = fit_frame(frame)
    assert fit_frame(frame[places]) == encoder
    codes = encode(frame, encoder)
    assert encode(frame[places], encoder).equals(codes[places])
    assert encode(frame.head(1), encoder).equals(codes.head(1)), "a row is encoded alike in any company"


def test_an_encoder_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    encoder = fit(segment=["ä", 'q"', "b"], price=[0.1, 1e-300, 0.0], tags=[["x"], ["y", "z"], []])
    assert encoder.zeros_apart == ["price"]
    save_encoder(encoder, tmp_path / "encoder.json")
    assert load_encoder(tmp_path / "encoder.json") == encoder


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"vocabularies": {}, "knots": {}, "bins": 4}', "\xff"])
def test_a_file_that_is_no_encoder_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "encoder.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"encoder\.json is no encoder \(.*\): run featurize again"):
        load_encoder(path)
