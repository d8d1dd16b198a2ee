"""A table with a text column and label columns: read, checked, and split into training, validation and test rows.

Rows are split by time where a time column is named: the earliest 70 % train, the next 10 % validate, the last 20 %
test, and rows of one moment stay together. Otherwise a hash of a text's words decides with the same shares, so that
equal texts (but for case and punctuation) are on one side; rows are never split at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.words import hash_share, words

READERS: dict[str, Callable[[IO[bytes]], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": partial(pl.read_csv, infer_schema=False),
    ".jsonl": partial(pl.read_ndjson, infer_schema_length=None),
}
BOUNDS = (0.7, 0.8)
PARTS = ("training", "validation", "test")
MOST_CLASSES = 1000
NO_CLASS = -1


@dataclass(frozen=True)
class TextTable:
    """The rows of a table that have a text with a word."""

    texts: pl.Series
    part: NDArray[np.int64]
    """0 training, 1 validation, 2 test."""
    distinct: NDArray[np.int64]
    """A number for each distinct text."""
    classes: dict[str, list[str]]
    """Classes of each label column: those of its training rows, sorted."""
    labels: NDArray[np.int64]
    """Rows x label columns: place among the classes, -1 without a label, and the number of classes for a stranger."""
    without_words: int
    """Rows left out, since their text is missing or has no word."""
    split_by: str


def read_text_table(path: Path, text: str, labels: Sequence[str], time: str | None) -> TextTable:
    """Read and split a table.

    Raises ValueError for a file that cannot be read, for a column that is missing, repeated or of the wrong type,
    for a label with one class or more than 1000, for a part of the rows without text or label, and for validation
    rows without any label that the training rows have.
    """
    frame = read_table(path)
    _check_columns(frame, path, text, labels, time)
    tokens = words(frame[text])
    has_words = tokens.list.len() > 0
    frame, tokens = frame.filter(has_words), tokens.filter(has_words)
    if frame.is_empty():
        raise ValueError(f"{path}: no row of column {text!r} has a word: name the column that holds the texts")
    joined = tokens.list.join(" ")
    part = _parts_by_hash(joined) if time is None else _parts_by_time(frame[time])
    found = [_classes(frame[name], part) for name in labels]
    return TextTable(
        texts=frame[text].cast(pl.String),
        part=part,
        distinct=joined.rank("dense").to_numpy().astype(np.int64),
        classes={name: classes for name, (classes, _) in zip(labels, found, strict=True)},
        labels=np.stack([codes for _, codes in found], axis=1),
        without_words=int((~has_words).sum()),
        split_by="a hash of the text" if time is None else f"time, column {time!r}",
    )


def read_table(path: Path) -> pl.DataFrame:
    """Read a file by its ending; numbers of a CSV are text.

    Raises ValueError for a file that is missing, of another ending or damaged.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"--table {path}: expected a file that ends in one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"--table {path} does not exist: give the path of a table")
    try:
        with path.open("rb") as file:  # given a path, polars takes brackets for a pattern
            return reader(file)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"--table {path} cannot be read as {path.suffix[1:]}: {error}") from error


def _check_columns(frame: pl.DataFrame, path: Path, text: str, labels: Sequence[str], time: str | None) -> None:
    named = [text, *labels, *([] if time is None else [time])]
    if strangers := [name for name in named if name not in frame.columns]:
        raise ValueError(f"{path} has no columns {strangers}: expected some of {frame.columns}")
    if len(set(named)) < len(named):
        raise ValueError(f"columns {named} are named twice: --text, --time and each --label need one of their own")
    if frame.schema[text] != pl.String:
        raise ValueError(f"column {text!r} is {frame.schema[text]}, expected text: name the column of the texts")
    for name in labels:
        kind = frame.schema[name]
        if not (kind in {pl.String, pl.Boolean, pl.Categorical, pl.Enum} or kind.is_integer()):
            raise ValueError(f"label column {name!r} is {kind}, expected text, whole numbers or booleans: cut it first")


def _parts_by_hash(joined: pl.Series) -> NDArray[np.int64]:
    shares = np.array([hash_share(text) for text in joined])
    return np.searchsorted(np.array(BOUNDS), shares, side="right").astype(np.int64)


def _parts_by_time(column: pl.Series) -> NDArray[np.int64]:
    name, times = column.name, column
    if times.dtype == pl.String:
        times = times.str.to_datetime(time_zone="UTC", strict=False)
    if not (times.dtype.is_temporal() or times.dtype.is_numeric()):
        raise ValueError(f"time column {name!r} is {times.dtype}, expected times, numbers or ISO 8601 text")
    if times.dtype.is_float():
        times = times.fill_nan(None)
    if times.null_count():
        example = column.filter(times.is_null())[0]
        raise ValueError(
            f"time column {name!r} has {times.null_count()} values that are no time, such as {example!r}: expected ISO "
            "8601 such as 2026-01-14 or 2026-01-14T08:00:00; correct or leave out their rows"
        )
    rank = times.rank("max").to_numpy() / len(times)
    return np.searchsorted(np.array(BOUNDS), rank, side="left").astype(np.int64)


def _classes(column: pl.Series, part: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    values = column.cast(pl.String).replace("", None)
    for number, name in enumerate(PARTS):
        if values.filter(part == number).count() == 0:
            raise ValueError(
                f"label column {column.name!r} has no value in the {name} rows, {int((part == number).sum())} of "
                f"{len(part)}: give a table with more rows, or another --label or --time"
            )
    classes = values.filter(part == 0).drop_nulls().unique().sort().to_list()
    if len(classes) == 1:
        raise ValueError(
            f"label column {column.name!r} has one class in the training rows, {classes[0]!r}: nothing can be learned "
            "of it; leave it out or give rows of other classes"
        )
    if len(classes) > MOST_CLASSES:
        raise ValueError(
            f"label column {column.name!r} has {len(classes)} classes, expected at most {MOST_CLASSES}: is it an id?"
        )
    if not values.filter(part == 1).is_in(classes).any():
        raise ValueError(
            f"label column {column.name!r} has no value in the validation rows that the training rows have: they "
            "choose the epoch that is kept; give a table with more rows, or another --label or --time"
        )
    codes = values.replace_strict(classes, range(len(classes)), default=len(classes), return_dtype=pl.Int64)
    return classes, codes.set(values.is_null(), NO_CLASS).to_numpy()
