"""JSONL: lines that are flat, certainly valid objects in one fast call, all others one by one, with equal results.

The rules, whichever way a line is read: a number keeps the text that it is written in; true and false are that
text; null and an absent key are null; a nested value is its JSON text, numbers in it as written; of a key that
stands twice the first counts. A line is broken that is not UTF-8, no object, no JSON (but NaN and Infinity are
numbers), too deeply nested, or holds half of a surrogate pair in a wanted value. A blank line is no row.
"""

import json
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.source_files import SourceFile, missing_column
from pipeline.text_lines import BLANK, BROKEN, Lines, beginning, in_order, whole_lines

SPACE = r"[ \t\r]*"
# Half a surrogate pair is valid JSON but no text; keys with escapes are left to the slow way.
ESCAPE = r'\\["\\/bfnrt]|\\u(?:[0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})'
STRING = rf'"(?:[^"\\\x00-\x1f]|{ESCAPE})*"'
KEY = r'"[^"\\\x00-\x1f]*"'
# Numbers whose text survives a 64-bit integer, or a 64-bit float: up to 15 digits, none of them a last zero.
KEPT_NUMBER = r"0|-?[1-9][0-9]{0,17}|-?(?:0|[1-9][0-9]{0,8})\.[0-9]{0,5}[1-9]"
# Numbers that the parser takes, being far below the largest float; their text is read from the line.
ANY_NUMBER = r"-?(?:0|[1-9][0-9]{0,29})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?"
NUMBER_TEXT = r"(-?[0-9][0-9.eE+-]*)?"
KEY_WITH_ESCAPE = rf'\\[^"]*"{SPACE}:'
LINES_WITH_KEYS = 1000


def _flat_object(number: str) -> str:
    pair = rf"{KEY}{SPACE}:{SPACE}(?:{STRING}|{number}|true|false|null){SPACE}"
    return rf"^{SPACE}\{{{SPACE}{pair}(?:,{SPACE}{pair})*\}}{SPACE}\n$"


FLAT = _flat_object(KEPT_NUMBER)
FLAT_ANY_NUMBER = _flat_object(ANY_NUMBER)


class _Number(str):
    """The text of a number, told from a string."""

    __slots__ = ()


def read_json_lines(file: SourceFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file: text columns, and BROKEN with the beginning of a line that is no JSON object.

    Raises:
        ValueError: no line of the file has one of the columns.
    """
    unseen, found, objects = set(columns), set[str](), 0
    with file.open_input_stream() as stream:
        for block in whole_lines(stream):
            lines = Lines.of(block)
            rows = parse_lines(lines, columns)
            objects += rows[BROKEN].null_count()
            unseen = {name for name in unseen if rows[name].null_count() == rows.height}
            if unseen:
                keys = _first_keys(lines)
                found |= keys
                unseen = {name for name in unseen - keys if not _has_key(lines, name)}
            yield rows
    if unseen and objects:
        raise missing_column(file, next(name for name in columns if name in unseen), found)


def parse_lines(lines: Lines, columns: list[str]) -> pl.DataFrame:
    """Read a block's lines: text columns and BROKEN, a row a line that is not blank."""
    kept = lines.matching(FLAT)
    others = np.flatnonzero(~kept)
    rest = lines.texts[others]
    rewritten, odd = np.zeros_like(kept), np.zeros_like(kept)
    rewritten[others] = rest.str.contains(FLAT_ANY_NUMBER).fill_null(value=False).to_numpy()
    odd[others] = ~rest.str.contains(BLANK).fill_null(value=False).to_numpy()
    odd &= ~rewritten
    odd_lines = [lines.at(place) for place in np.flatnonzero(odd).tolist()]
    return in_order(
        [
            (np.flatnonzero(kept | rewritten), _read_flat(lines, kept | rewritten, rewritten, columns)),
            (np.flatnonzero(odd), line_by_line(odd_lines, columns)),
        ],
        columns,
    )


def line_by_line(lines: list[bytes], columns: list[str]) -> pl.DataFrame:
    """Read lines one by one: text columns, and BROKEN with the beginning of a line that is no JSON object."""
    schema = {**dict.fromkeys(columns, pl.String), BROKEN: pl.String}
    return pl.DataFrame([_row(line, columns) for line in lines], schema=schema, orient="row")


def _read_flat(
    lines: Lines, chosen: NDArray[np.bool_], rewritten: NDArray[np.bool_], columns: list[str]
) -> pl.DataFrame:
    """Read flat objects; the parser writes some numbers anew (1.50 as 1.5), their text is taken from the line."""
    schema = dict.fromkeys(columns, pl.String)
    if not chosen.any():
        return pl.DataFrame(schema=schema)
    rows = pl.read_ndjson(lines.bytes_of(chosen), schema=schema)
    assert rows.height == chosen.sum(), "a row a line"
    if not rewritten.any():
        return rows
    texts = lines.texts.filter(pl.Series(rewritten))
    numbers = {name: texts.str.extract(_key_pattern(name) + NUMBER_TEXT) for name in columns}
    is_rewritten = rewritten[chosen]
    origin = pl.Series(np.cumsum(is_rewritten) - 1).set(pl.Series(~is_rewritten), None)
    return rows.with_columns(
        pl.coalesce(pl.lit(values.gather(origin)), pl.col(name)).alias(name)
        for name, values in numbers.items()
        if values.null_count() < len(values)
    )


def _key_pattern(name: str) -> str:
    return rf'[{{,]{SPACE}"{pl.escape_regex(name)}"{SPACE}:{SPACE}'


def _row(line: bytes, columns: list[str]) -> list[str | None]:
    try:
        values = _object(line)
        row = [_text(values.get(name)) for name in columns]
        "".join(filter(None, row)).encode()  # half of a surrogate pair cannot be encoded
    except (ValueError, RecursionError):
        return [*(None for _ in columns), beginning(line)]
    return [*row, None]


def _object(line: bytes) -> dict[str, object]:
    """Parse an object; bytes are decoded first, since `json` guesses UTF-16 from NUL bytes."""
    values = json.loads(
        line.decode("utf-8"),
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=_Number,
        object_pairs_hook=_first_of_each,
    )
    if not isinstance(values, dict):
        raise ValueError("no object")  # noqa: TRY004  # the one exception of a line that is broken
    return values


def _first_of_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else dict(reversed(pairs))


def _text(value: object) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_json(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value)


def _keys(line: bytes) -> set[str]:
    try:
        return set(_object(line))
    except (ValueError, RecursionError):
        return set()


def _first_keys(lines: Lines) -> set[str]:
    """Return the keys of a block's first thousand lines."""
    return set().union(*(_keys(lines.at(place)) for place in range(min(LINES_WITH_KEYS, len(lines.texts)))))


def _has_key(lines: Lines, name: str) -> bool:
    """Return whether a line has a key; only lines that may have it are parsed."""
    places = np.flatnonzero(lines.matching(rf"{_key_pattern(name)}|{KEY_WITH_ESCAPE}"))
    return any(name in _keys(lines.at(place)) for place in places.tolist())
