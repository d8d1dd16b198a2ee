"""Claims about encoders on a growing vocabulary: older files, hashed tails and warm starts."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encoding import (
    Encoder,
    Vocabulary,
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


def fit_frame(
    frame: pl.DataFrame,
    vocabulary: pl.DataFrame | None,
    *,
    min_count: int = 1,
    max_ids: int = 1000,
    bins: int = 4,
    base: Encoder | None = None,
) -> Encoder:
    """Extend a vocabulary by a frame and fit an encoder on it, as featurize does."""
    extended = grown(frame, vocabulary, min_count=min_count, max_ids=max_ids)
    return fit_encoder(
        frame.lazy(),
        PLAN,
        vocabulary=extended,
        min_count=min_count,
        hash_buckets=5,
        max_ids=max_ids,
        bins=bins,
        base=base,
    )


def grown(
    frame: pl.DataFrame, vocabulary: pl.DataFrame | None, *, min_count: int = 1, max_ids: int = 1000
) -> pl.DataFrame:
    counts = value_counts(frame.lazy(), PLAN)
    return extend(vocabulary, counts, min_count=min_count, max_ids=max_ids, added_on=dt.date(2026, 1, 1))


def test_an_encoder_of_the_first_format_encodes_as_it_did(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    vocabularies = {"segment": ["c", "a"], "tags": ["x"], "item_id": []}
    path.write_text(json.dumps({"vocabularies": vocabularies, "knots": {}, "lists": {"tags": ["tags", 2]}, "bins": 4}))
    encoder = load_encoder(path)
    assert encoder.cardinalities() == {"segment": 5, "tags": 4, "item_id": 3}
    found = encode(pl.DataFrame({"segment": ["c", "a", "b", None], "tags": [["x", "y"], ["y"], [], None]}), encoder)
    assert found["segment_code"].to_list() == [3, 4, 2, 1]
    assert found["tags_code"].to_list() == [[3, 2], [2, 0], [0, 0], [0, 0]]
    save_encoder(encoder, path)
    assert load_encoder(path) == encoder


def test_an_encoder_of_the_second_format_has_its_zeros_on_the_quantiles(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    segment = {"values": ["c"], "ids": [7], "first_bucket": 9, "buckets": 1}
    lists = {"tags": ["tags", 2]}
    stored = {"vocabularies": {"segment": segment}, "knots": {"price": [0.0, 0.5, 2.0]}, "lists": lists, "bins": 4}
    path.write_text(json.dumps({"format": 2, **stored}))
    encoder = load_encoder(path)
    assert encoder.zeros_apart == []
    found = encode(pl.DataFrame({"segment": ["c", "a", None, None], "price": [0.0, 0.25, 2.0, None]}), encoder)
    assert found["segment_code"].to_list() == [7, 9, 1, 1]
    assert found["price_position"].to_list() == [0.0, 0.5, 2.0, 5.0]
    save_encoder(encoder, path)
    assert json.loads(path.read_text())["format"] == 4
    assert load_encoder(path) == encoder


@pytest.mark.parametrize("form", ["5", '"2"', "null"])
def test_an_encoder_of_another_format_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "encoder.json"
    path.write_text(f'{{"format": {form}, "vocabularies": {{}}}}')
    with pytest.raises(
        ValueError, match=r"encoder\.json has format .*, expected one of \[1, 2, 3, 4\]: another version"
    ):
        load_encoder(path)


def test_counts_are_of_values_by_field_without_missing_ones() -> None:
    frame = raw(user_id=["u", "v", "v"], tags=[["x", "y"], ["x", None], None], segment=[None, "", None])
    assert value_counts(frame.lazy(), PLAN).rows() == [
        ("user_id", "v", 2),
        ("user_id", "u", 1),
        ("segment", "", 1),
        ("tags", "x", 2),
        ("tags", "y", 1),
    ]


def test_a_value_of_the_vocabulary_without_enough_training_rows_is_unseen() -> None:
    vocabulary = grown(raw(segment=list("aaabb")), None)
    encoder = fit_frame(raw(segment=list("bbac")), vocabulary, min_count=2)
    assert encoder.vocabularies["segment"] == Vocabulary(values=["b"], ids=[4])
    assert encoder.cardinalities()["segment"] == 5
    codes = encode(pl.DataFrame({"segment": ["a", "b", "c"]}), encoder)
    assert codes["segment_code"].to_list() == [2, 4, 2]


VALUE = st.none() | st.text(st.characters(codec="utf-8"), max_size=2) | st.sampled_from("abc")


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(VALUE, min_size=1, max_size=20),
    second=st.lists(VALUE, min_size=1, max_size=20),
    max_ids=st.integers(1, 6),
    min_count=st.integers(1, 2),
)
def test_codes_equal_those_of_a_plain_dictionary(
    first: list[str | None], second: list[str | None], max_ids: int, min_count: int
) -> None:
    vocabulary = grown(raw(segment=list(first)), None, max_ids=max_ids)
    encoder = fit_frame(raw(segment=list(second)), vocabulary, min_count=min_count, max_ids=max_ids)
    ids = {value: 3 + place for place, value in enumerate(naive_order(first))}
    fresh = [value for value in naive_order(second) if second.count(value) >= min_count and value not in ids]
    ids = dict(list({**ids, **{value: 3 + len(ids) + place for place, value in enumerate(fresh)}}.items())[:max_ids])
    known = {value: number for value, number in ids.items() if second.count(value) >= min_count}

    def code(value: str | None) -> int:
        if value is None:
            return 1
        return known.get(value, 3 + max_ids + crc32(value.encode()) % 5 if len(ids) == max_ids else 2)

    probes = [*first, *second, "new", None]
    frame = pl.DataFrame({"segment": probes, "tags": [[value] for value in probes]}, schema_overrides=TEXT)
    assert encode(frame, encoder)["segment_code"].to_list() == [code(value) for value in probes]
    full = 3 + max_ids + 5 if len(ids) == max_ids else max(known.values(), default=2) + 1
    assert encoder.cardinalities()["segment"] == full


TEXT = {"segment": pl.String, "tags": pl.List(pl.String)}


def naive_order(values: list[str | None]) -> list[str]:
    present = [value for value in values if value is not None]
    return sorted(set(present), key=lambda value: (-present.count(value), value.encode()))


def test_the_tail_of_a_multi_valued_feature_and_of_a_sequence_is_hashed_too() -> None:
    frame = raw(item_id=["i", "i", "j"], tags=[["x"], ["x", "y"], None])
    encoder = fit_frame(frame, None, max_ids=1)
    found = encode(raw(tags=[["y", "x"]], last_clicked_items=[["j", "i"]]), encoder)
    assert found["last_clicked_items_code"].to_list() == [[4 + crc32(b"j") % 5, 3, 0]]
    assert found["tags_code"].to_list() == [[4 + crc32(b"y") % 5, 3]]


def test_an_encoder_with_buckets_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    encoder = fit_frame(raw(segment=list("aab")), None, max_ids=1)
    assert encoder.vocabularies["segment"] == Vocabulary(values=["a"], ids=[3], first_bucket=4, buckets=5)
    save_encoder(encoder, tmp_path / "encoder.json")
    assert load_encoder(tmp_path / "encoder.json") == encoder


def test_a_warm_start_keeps_ids_knots_and_lengths_of_its_base_and_adds_the_new_values() -> None:
    earlier = raw(segment=list("aab"), price=[0.0, 1.0, 2.0], tags=[["x"], ["y", "x"], []])
    base = fit_frame(earlier, None)
    today = raw(segment=list("cb"), price=[50.0, 60.0], tags=[["x", "y", "z"], []])
    warm = fit_frame(today, grown(earlier, None), base=base)
    assert warm.vocabularies["segment"] == Vocabulary(values=["a", "b", "c"], ids=[3, 4, 5])
    assert warm.knots == base.knots
    assert warm.zeros_apart == base.zeros_apart == ["price"]
    assert warm.lists == base.lists
    cold = fit_frame(today, grown(earlier, None))
    assert cold.vocabularies["segment"] == Vocabulary(values=["b", "c"], ids=[4, 5])
    assert cold.knots != base.knots
    assert cold.zeros_apart == []
    earlier_format = replace(base, knots={"price": [0.0, 1.0, 2.0]}, zeros_apart=[])
    assert fit_frame(earlier, None, base=earlier_format).zeros_apart == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knots": {}}, r"lacks the features \['price'\] and has \[\] beyond"),
        ({"knots": {"price": [0.0], "size": [0.0]}}, r"lacks the features \[\] and has \['size'\] beyond"),
        ({"bins": 9}, "features.bins = 4 but the model to begin from has 9: undo"),
        (
            {"vocabularies": {"segment": Vocabulary(values=["b", "z"], ids=[3, 9])}},
            r"has 2 ids that the vocabulary does not give, such as 3 for segment = 'b': it was trained on another",
        ),
    ],
)
def test_a_base_of_other_features_bins_or_ids_is_refused(change: dict[str, Any], message: str) -> None:
    frame = raw(segment=list("aab"), price=[0.0, 1.0, 2.0])
    base = fit_frame(frame, None)
    changed = replace(base, **{**change, "vocabularies": base.vocabularies | change.get("vocabularies", {})})
    with pytest.raises(ValueError, match=message):
        fit_frame(frame, None, base=changed)
