"""Encode raw features: ids of vocabularies and positions on quantile knots, fitted on training days only.

Ids are 0 padding, 1 missing, 2 unseen, 3.. known values as the append-only vocabulary numbers them. Once a
field's vocabulary is full, every value that is not known falls into one of a fixed number of hash buckets behind
the ids. A number becomes its coordinate on the training quantiles (k + share of the way to knot k + 1), clipped
to 0..bins; a missing one is bins + 1, and zero is bins + 2 where enough training rows have it, the quantiles then
being those of the other values. Models turn the coordinate into a piecewise-linear or a periodic encoding
(Gorishniy et al. 2022).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl

from features.numeric import NumberScale, fit_scale, number_positions
from features.plan import FeaturePlan
from features.text_vectors import TextVectors

PADDING, MISSING, UNSEEN, FIRST_KNOWN = range(4)
LONGEST_LIST = 32
FORMAT = 4
COUNTS = {"field": pl.String, "value": pl.String, "rows": pl.Int64}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Known values of a field, and the hash buckets of all others.

    Attributes:
        values: the known values.
        ids: their ids, increasing; ids between them belong to values that this encoder does not know.
        first_bucket: id of the first hash bucket.
        buckets: number of hash buckets; 0 while the field has room, other values are then unseen.
    """

    values: list[str]
    ids: list[int]
    first_bucket: int = 0
    buckets: int = 0

    @property
    def cardinality(self) -> int:
        """Return the number of ids, padding, missing and unseen included."""
        return self.first_bucket + self.buckets if self.buckets else (self.ids or [UNSEEN])[-1] + 1

    @cached_property
    def categories(self) -> pl.Enum:
        """Return the type whose physical values are places in `values`."""
        return pl.Enum(self.values)

    @cached_property
    def id_of_place(self) -> pl.Series:
        """Return the ids as Int32."""
        return pl.Series(self.ids, dtype=pl.Int32)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Fitted encodings by feature name.

    Attributes:
        vocabularies: field to its known values and their ids.
        knots: numeric feature to its increasing quantiles, at most bins + 1.
        lists: multi-valued feature to its vocabulary's field and its encoded length.
        bins: number of bins that positions refer to.
        zeros_apart: numeric features whose zeros have a bin of their own; none in encoders before format 3.
        texts: multi-valued feature to the vectors of its words; none in encoders before format 4.
    """

    vocabularies: dict[str, Vocabulary]
    knots: dict[str, list[float]]
    lists: dict[str, tuple[str, int]]
    bins: int
    zeros_apart: list[str] = field(default_factory=list)
    texts: dict[str, TextVectors] = field(default_factory=dict)

    def text_columns(self) -> list[str]:
        """Return the names of the numbers that texts become, in order; each has knots."""
        return [column for name, of_text in self.texts.items() for column in vector_columns(name, of_text.width)]

    def cardinalities(self) -> dict[str, int]:
        """Return the number of ids of each field, padding, missing and unseen included."""
        return {name: vocabulary.cardinality for name, vocabulary in self.vocabularies.items()}


def vector_columns(name: str, width: int) -> list[str]:
    """Return the names of the numbers of a text's vector."""
    return [f"{name}__text_{place}" for place in range(width)]


def value_counts(raw: pl.LazyFrame, plan: FeaturePlan) -> pl.DataFrame:
    """Return field, value and rows: how often each value occurs, by falling rows within a field.

    An element of a multi-valued feature counts each time; a missing value does not.
    """
    columns = {name: pl.col(name) for name in plan.categorical()}
    columns |= {name: pl.col(name).list.explode() for name in plan.multi()}
    counted = [_counts(raw.select(column.alias("value")), name) for name, column in columns.items()]
    return pl.concat([pl.DataFrame(schema=COUNTS), *counted])


def sum_counts(parts: pl.LazyFrame) -> pl.DataFrame:
    """Return the value counts of some rows from those of their parts, sorted by field and value."""
    return parts.group_by("field", "value").agg(pl.col("rows").sum()).sort("field", "value").collect()


def _counts(column: pl.LazyFrame, name: str) -> pl.DataFrame:
    counts = column.drop_nulls().group_by("value").agg(pl.len().cast(pl.Int64).alias("rows"))
    ordered = counts.sort("rows", "value", descending=[True, False]).collect()
    return ordered.select(pl.lit(name).alias("field"), pl.col("value").cast(pl.String), "rows")


def fit_encoder(  # noqa: PLR0913  # each is a setting of its own
    raw: pl.LazyFrame,
    plan: FeaturePlan,
    *,
    vocabulary: pl.DataFrame,
    min_count: int,
    hash_buckets: int,
    max_ids: int,
    bins: int,
    base: Encoder | None,
    counts: pl.DataFrame | None = None,
) -> Encoder:
    """Fit an encoder on the raw features of the training rows.

    Known are the values of the vocabulary with enough training rows, and all that the base knows. A base also
    gives its knots, bins of zeros and list lengths, so that weights trained on them keep their meaning.

    Args:
        raw: the training rows only.
        plan: the features.
        vocabulary: ids of all values, as `features.vocabulary.extend` returns them.
        min_count: training rows that a value needs for an embedding of its own, and a number's zeros for a bin.
        hash_buckets: buckets of a field whose vocabulary is full.
        max_ids: values at which a field is full.
        bins: quantile bins.
        base: encoder of the model that a warm start begins from; None fits all anew.
        counts: `value_counts` of the training rows where they are counted already.

    Raises:
        ValueError: the base has other features, bins or ids.
    """
    if base is not None:
        _check_base(base, plan, bins)
    known = _known(value_counts(raw, plan) if counts is None else counts, vocabulary, min_count, base)
    sizes = dict(vocabulary.group_by("field").len().iter_rows())
    assert max(sizes.values(), default=0) <= max_ids, (sizes, max_ids)
    vocabularies = {}
    for name in (*plan.categorical(), *plan.multi()):
        of_field = known.filter(pl.col("field") == name)
        buckets = hash_buckets if sizes.get(name, 0) == max_ids else 0
        vocabularies[name] = Vocabulary(
            values=of_field["value"].to_list(),
            ids=of_field["id"].to_list(),
            first_bucket=FIRST_KNOWN + max_ids if buckets else 0,
            buckets=buckets,
        )
    if base is not None:
        return replace(base, vocabularies=vocabularies)
    scales = {name: _scale(raw, name, bins, min_count) for name in plan.numeric()}
    return Encoder(
        vocabularies=vocabularies,
        knots={name: scale.knots for name, scale in scales.items()},
        lists=_lists(raw, plan),
        bins=bins,
        zeros_apart=[name for name, scale in scales.items() if scale.zero_apart],
    )


def _check_base(base: Encoder, plan: FeaturePlan, bins: int) -> None:
    cure = "undo the change of the features, or train once without training.warm_start"
    if base.bins != bins:
        raise ValueError(f"features.bins = {bins} but the model to begin from has {base.bins}: {cure}")
    has = {*base.vocabularies, *base.knots, *base.lists} - {*base.text_columns()}
    needed = {*plan.categorical(), *plan.numeric(), *plan.multi(), *plan.sequences()}
    if has != needed:
        raise ValueError(
            f"the model to begin from lacks the features {sorted(needed - has)} and has {sorted(has - needed)} "
            f"beyond those of this configuration: {cure}"
        )


def _known(counts: pl.DataFrame, vocabulary: pl.DataFrame, min_count: int, base: Encoder | None) -> pl.DataFrame:
    """Return field, value and id of the values that are known, by field and id."""
    frequent = counts.filter(pl.col("rows") >= min_count).select("field", "value")
    if base is not None:
        frequent = pl.concat([frequent, _base_values(base, vocabulary)]).unique()
    active = frequent.join(vocabulary.select("field", "value", "id"), on=["field", "value"])
    return active.sort("field", "id")


def _base_values(base: Encoder, vocabulary: pl.DataFrame) -> pl.DataFrame:
    held = pl.concat(
        pl.select(
            pl.lit(name).alias("field"),
            pl.Series("value", of_field.values, dtype=pl.String),
            of_field.id_of_place.alias("id"),
        )
        for name, of_field in base.vocabularies.items()
    )
    strangers = held.join(vocabulary, on=["field", "value", "id"], how="anti", maintain_order="left")
    if strangers.height:
        field, value, number = strangers.row(0)
        raise ValueError(
            f"the model to begin from has {strangers.height} ids that the vocabulary does not give, such as {number} "
            f"for {field} = {value!r}: it was trained on another vocabulary; train once without training.warm_start"
        )
    return held.select("field", "value")


def _lists(raw: pl.LazyFrame, plan: FeaturePlan) -> dict[str, tuple[str, int]]:
    lists = {name: (name, _longest(raw, name)) for name in plan.multi()}
    return lists | dict.fromkeys(plan.sequences(), ("item_id", plan.sequence_length))


def _longest(raw: pl.LazyFrame, name: str) -> int:
    longest = raw.select(pl.col(name).list.len().max()).collect().item()
    return max(1, min(int(longest or 1), LONGEST_LIST))


def _scale(raw: pl.LazyFrame, name: str, bins: int, min_zeros: int) -> NumberScale:
    column = raw.select(pl.col(name).drop_nulls()).collect().to_series()
    return fit_scale(column, bins=bins, min_zeros=min_zeros)


def encode(frame: pl.DataFrame, encoder: Encoder) -> pl.DataFrame:
    """Return the encodings of all features that a frame holds, in its rows' order.

    Returns:
        `<name>_code` Int32 for a single value, List[Int32] of the encoder's length for a multi-valued one
        (padded with 0 at the end), `<name>_position` Float32 for a number, and `<name>__text_<k>_position` for the
        numbers of a text's vector.
    """
    columns: list[pl.Series] = []
    for name in frame.columns:
        if name in encoder.lists:
            columns.append(_encode_list(frame[name], *encoder.lists[name], encoder))
        elif name in encoder.vocabularies:
            columns.append(_encode_single(frame[name], encoder.vocabularies[name]))
        elif name in encoder.knots:
            scale = NumberScale(encoder.knots[name], name in encoder.zeros_apart)
            columns.append(number_positions(frame[name], scale, encoder.bins))
        if name in encoder.texts:
            columns += _encode_text(frame[name], encoder)
    return pl.DataFrame(columns)


def _encode_text(column: pl.Series, encoder: Encoder) -> list[pl.Series]:
    of_text = encoder.texts[column.name]
    return [
        number_positions(pl.Series(name, numbers), NumberScale(encoder.knots[name], zero_apart=False), encoder.bins)
        for name, numbers in zip(vector_columns(column.name, of_text.width), of_text.of(column).T, strict=True)
    ]


def _encode_single(column: pl.Series, vocabulary: Vocabulary) -> pl.Series:
    place = column.cast(vocabulary.categories, strict=False).to_physical()
    codes = vocabulary.id_of_place.gather(place).fill_null(UNSEEN).alias(f"{column.name}_code")
    if column.null_count():
        codes = codes.set(column.is_null(), MISSING)
    return _with_buckets(codes, column, vocabulary) if vocabulary.buckets else codes


def _with_buckets(codes: pl.Series, column: pl.Series, vocabulary: Vocabulary) -> pl.Series:
    """Replace the code of unseen values by their hash bucket."""
    unseen = codes == UNSEEN
    tail = column.filter(unseen)
    values = tail.unique()
    # CRC-32 is the same on every machine and in every version of polars, which its own hash is not.
    buckets = [vocabulary.first_bucket + crc32(value.encode()) % vocabulary.buckets for value in values]
    hashed = pl.Series(buckets, dtype=pl.Int32).gather(tail.cast(pl.Enum(values)).to_physical())
    return codes.scatter(unseen.arg_true(), hashed)


def _encode_list(column: pl.Series, field: str, length: int, encoder: Encoder) -> pl.Series:
    name = f"{column.name}_code"
    trimmed = column.cast(pl.List(pl.String)).fill_null([]).list.tail(length)
    flat = trimmed.explode(empty_as_null=False) if trimmed.list.len().sum() else pl.Series([], dtype=pl.String)
    codes = _encode_single(flat, encoder.vocabularies[field]).to_numpy()
    counts = trimmed.list.len().to_numpy().astype(np.int64)
    padded = np.zeros((len(column), length), dtype=np.int32)
    filled = np.arange(length)[None, :] < counts[:, None]
    padded[filled] = codes
    return pl.Series(name, padded).cast(pl.List(pl.Int32))


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write an encoder as JSON."""
    document = {"format": FORMAT, **asdict(encoder)}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def load_encoder(path: Path) -> Encoder:
    """Read an encoder that `save_encoder` wrote, today or in an earlier version.

    Raises:
        ValueError: the file is missing, no encoder, or of a later format.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        form = document.get("format", 1)
        if form in READERS:
            return _read(document, READERS[form])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no encoder ({error}): run featurize again") from None
    raise ValueError(
        f"{path} has format {form!r}, expected one of {list(READERS)}: another version of counterpoise wrote it; "
        "use that version, or run featurize again"
    )


def _read(document: dict[str, Any], read_vocabulary: Callable[[Any], Vocabulary]) -> Encoder:
    return Encoder(
        vocabularies={name: read_vocabulary(held) for name, held in document["vocabularies"].items()},
        knots=document["knots"],
        lists={name: (str(field), int(length)) for name, (field, length) in document["lists"].items()},
        bins=int(document["bins"]),
        zeros_apart=[str(name) for name in document.get("zeros_apart", [])],
        texts={name: TextVectors(**held) for name, held in document.get("texts", {}).items()},
    )


def _vocabulary_1(values: list[str]) -> Vocabulary:
    """Read a vocabulary of the first format: a list whose place n had id n + 3."""
    return Vocabulary(values=values, ids=list(range(FIRST_KNOWN, FIRST_KNOWN + len(values))))


def _vocabulary_2(held: dict[str, Any]) -> Vocabulary:
    return Vocabulary(
        values=held["values"],
        ids=held["ids"],
        first_bucket=int(held["first_bucket"]),
        buckets=int(held["buckets"]),
    )


READERS: dict[object, Callable[[Any], Vocabulary]] = {
    1: _vocabulary_1,
    2: _vocabulary_2,
    3: _vocabulary_2,
    4: _vocabulary_2,
}
