"""Ten thousand mutated lines a format: nothing crashes, and every line comes out once, as a plain reader reads it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline import text_lines
from pipeline.readers import read_chunks
from pipeline.source_files import find_files

FILES = 25
LINES_A_FILE = 400
COLUMNS = ("user_id", "value", "note")
Row = tuple[str | None, ...]
BROKEN: Row = ("broken",)

NOTES = ["", "plain", "é\U0001f600", 'say "hi", x', "a\\b", "\u2028", "tab\t", "1.50"]
NUMBERS = [
    "0",
    "7",
    "1.50",
    "-0",
    "1e400",
    "12345678901234567890",
    "1" * 400,
    "1e-5",
    "true",
    "null",
    "NaN",
    r'"\ud800"',
]
BITS = [b'"', b'""', b",", b"\\", b"{", b"}", b"[", b":", b"\r", b"\r\n", b"\n", b"\x00", b"\x1f", b"\xff", b"\xc3"]
BITS += [b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"[" * 3000, b"9" * 5000, b"null", b" ", b"\xe2\x80\xa8"]


def json_line(random_: random.Random) -> bytes:
    note = json.dumps(random_.choice(NOTES), ensure_ascii=random_.random() < 0.5)
    extra = random_.choice(["", ', "more": {"user_id": 1}', ', "list": [1, "x"]', ', "value": 5.0'])
    line = f'{{"user_id": "u{random_.randrange(99)}", "value": {random_.choice(NUMBERS)}, "note": {note}{extra}}}\n'
    return line.encode()


def csv_line(random_: random.Random) -> bytes:
    note = random_.choice([*NOTES, "two\nlines", "\n\n"])
    quoted = '"' + note.replace('"', '""') + '"'
    if random_.random() < 0.3 and not set(note) & set(',"\n'):
        quoted = note
    return f"u{random_.randrange(99)},{random_.choice(NUMBERS)},{quoted}\n".encode()


def mutated(line: bytes, random_: random.Random) -> bytes:
    """Return a line after up to three changes; half of the lines stay as they are."""
    changed = bytearray(line)
    for _ in range(random_.choice([0, 0, 0, 1, 2, 3])):
        place = random_.randrange(len(changed) + 1)
        change = random_.randrange(5)
        if change == 0 and place < len(changed):
            changed[place] ^= 1 << random_.randrange(8)
        elif change == 1:
            changed[place:place] = random_.choice(BITS)
        elif change == 2:
            del changed[place : place + random_.randrange(1, 4)]
        elif change == 3:
            del changed[place:]
        else:
            middle = random_.randrange(place + 1)
            changed[:place] = changed[middle:place] + changed[:middle]
    return bytes(changed)


def plain_json(text: bytes) -> Iterator[Row]:
    """Read JSONL as the standard library does, a line at a time, numbers as text."""
    for line in text.split(b"\n"):
        if not line.strip(b" \t\r"):
            continue
        try:
            pairs = json.loads(
                line.decode(), object_pairs_hook=lambda pairs: dict(reversed(pairs)), parse_int=str, parse_float=str
            )
            assert isinstance(pairs, dict)
            row = tuple(_text(pairs.get(name)) for name in COLUMNS)
            "".join(value or "" for value in row).encode()
        except (ValueError, RecursionError, AssertionError):
            row = BROKEN
        yield row


def _text(value: object) -> str | None:
    return value if isinstance(value, str | None) else json.dumps(value)


def plain_csv(text: bytes) -> Iterator[Row]:
    """Read CSV a byte at a time."""
    place = 0
    while place < len(text):
        end = text.index(b"\n", place) + 1
        if text[place:end].strip(b" \t\r\n"):
            row, row_end = _csv_row(text, place)
            yield row if row_end else BROKEN
            end = row_end or end
        place = end


def _csv_row(text: bytes, place: int) -> tuple[Row, int]:
    """Return a row and where it ends, which is 0 where there is none."""
    start, values = place, list[bytes | None]()
    while True:
        value, place = (_quoted if text[place : place + 1] == b'"' else _bare)(text, place)
        values.append(value)
        if text[place : place + 1] == b",":
            place += 1
            continue
        place += text[place : place + 2] == b"\r\n"
        ended = text[place : place + 1] == b"\n"
        if not ended or len(values) != len(COLUMNS) or b"\x00" in text[start:place]:
            return BROKEN, 0
        try:
            return tuple(None if value is None else value.decode() for value in values), place + 1
        except UnicodeDecodeError:
            return BROKEN, 0


def _quoted(text: bytes, place: int) -> tuple[bytes, int]:
    value, place = bytearray(), place + 1
    while place < len(text):
        if text[place] == ord('"'):
            place += 1
            if text[place : place + 1] != b'"':
                return bytes(value), place
        value.append(text[place])
        place += 1
    return bytes(value), place


def _bare(text: bytes, place: int) -> tuple[bytes | None, int]:
    comma, end = text.find(b",", place), text.index(b"\n", place)
    if 0 <= comma < end:
        return text[place:comma] or None, comma
    end -= text[place:end].endswith(b"\r")
    return text[place:end] or None, end


CASES = {
    "log.jsonl": (b"", b'{"user_id": "u", "value": 1, "note": "x"}\n', json_line, plain_json),
    "log.csv": (b"user_id,value,note\n", b"u,1,x\n", csv_line, plain_csv),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mutated_line_comes_out_once_as_a_row_or_as_broken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, whole, line_of, plain = CASES[name]
    broken = 0
    for seed in range(FILES):
        random_ = random.Random(seed)  # noqa: S311  # mutations are no secrets
        text = whole + b"".join(mutated(line_of(random_), random_) for _ in range(LINES_A_FILE)) + b"\n"
        monkeypatch.setattr(text_lines, "CHUNK_BYTES", random_.choice([50, 1000, 10_000, 2**24]))
        found = _read(tmp_path / name, head + text)
        assert found["row"].to_list() == list(range(1, found.height + 1))
        expected = list(plain(text))
        rows = [BROKEN if row[-1] is not None else row[:-1] for row in found.select(*COLUMNS, "broken").iter_rows()]
        assert rows == expected, f"seed {seed}"
        broken += expected.count(BROKEN)
    assert 0.1 < broken / (FILES * LINES_A_FILE) < 0.7, "both ways are taken"


@pytest.mark.parametrize("name", CASES)
def test_random_bytes_are_read_or_named(name: str, tmp_path: Path) -> None:
    random_ = random.Random(1)  # noqa: S311
    for _ in range(200):
        content = random_.randbytes(random_.randrange(1, 300))
        try:
            found = _read(tmp_path / name, content).height
        except ValueError as error:
            found, message = -1, str(error)
        assert found == len(list(plain_json(content + b"\n"))) if found >= 0 else message.startswith(f"{name}: ")


def _read(path: Path, content: bytes) -> pl.DataFrame:
    path.write_bytes(content)
    (file,) = find_files(path.parent, path.name)
    return pl.concat(list(read_chunks(file, {column: [column] for column in COLUMNS})))
