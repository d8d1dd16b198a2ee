"""Claims about JSONL: fast and slow lines alike, text kept as written, broken lines named, keys of the whole file."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import json_lines, text_lines
from pipeline.json_lines import FLAT, FLAT_ANY_NUMBER, line_by_line, parse_lines
from pipeline.readers import read_chunks
from pipeline.source_files import find_files
from pipeline.text_lines import BLANK, Lines

COLUMNS = ["a", "b", "key with space", "é"]


def read(folder: Path, content: bytes, *columns: str) -> pl.DataFrame:
    (folder / "log.jsonl").write_bytes(content)
    (file,) = find_files(folder, "log.jsonl")
    return pl.concat(list(read_chunks(file, {name: [name] for name in columns})))


def value_of(line: bytes) -> str | None:
    """Read `a` of a line both ways, which must agree."""
    fast = parse_lines(Lines.of(line + b"\n"), ["a"])
    assert fast.equals(line_by_line([line + b"\n"], ["a"])), line
    value: str | None = fast["a"][0]
    return value


def is_broken(line: bytes) -> bool:
    fast = parse_lines(Lines.of(line + b"\n"), ["a"])
    assert fast.equals(line_by_line([line + b"\n"], ["a"])), line
    return fast[":broken"][0] is not None


NUMBERS = [
    *("0", "-0", "7", "-7", "1.0", "1.50", "0.5", "-0.5", "0.000001", "0.1234567", "123456789.123456"),
    *("12345678901234567890", "123456789012345678901234567890123", "-9223372036854775808", "999999999999999999"),
    *("1e5", "1E5", "1.5e-7", "1e+99", "1e400", "-1e-400", "0.12345678901234567", "1" * 5000, "0.1" + "0" * 400),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:20])
def test_a_number_keeps_the_text_that_it_is_written_in(number: str) -> None:
    for line in ('{"a":%s}', '{"b":"x", "a" : %s }', '{"n":{"a":2},"a":%s}', '{"a":%s,"b":1.50}', '{"a":%s,"b":1e400}'):
        assert value_of((line % number).encode()) == number


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (rb'{"a":true}', "true"),
        (rb'{"a":null}', None),
        (rb'{"b":1}', None),
        (rb"{}", None),
        (rb'{"a":""}', ""),
        (rb'{"a":"\u00e9\n\"\ud83d\ude00"}', 'é\n"\N{GRINNING FACE}'),
        (rb'{"a":"\u0000"}', "\x00"),
        (rb'{"\u0061":"x"}', "x"),
        (rb'{"a":"b\":\"a\",\"a\":5.0","b":5.0}', 'b":"a","a":5.0'),
        (rb'{"b":5.0,"x\",\"a":7.0}', None),
        (rb'{"a":[1.50, {"b": 1e400}, "x", null, true]}', '[1.50, {"b": 1e400}, "x", null, true]'),
        (rb'{"a":NaN}', "NaN"),
        (rb'{"a":-Infinity}', "-Infinity"),
        (b'\t{"a"\r:\t1 } \r', "1"),
    ],
)
def test_a_value_is_read_alike_both_ways(line: bytes, value: str | None) -> None:
    assert value_of(line) == value


@pytest.mark.parametrize("second", [b"2", b"2.0", b'"y"', b"null", b"[2]"])
@pytest.mark.parametrize("first", [b"1", b"1.0", b'"x"', b"null"])
def test_of_a_key_that_stands_twice_the_first_counts(first: bytes, second: bytes) -> None:
    expected = value_of(b'{"a":%b}' % first)
    assert value_of(b'{"a":%b,"b":0.0,"a":%b}' % (first, second)) == expected
    many = b",".join(b'"k%d":%d' % (n, n) for n in range(60))
    assert value_of(b'{%b,"a":%b,"a":%b}' % (many, first, second)) == expected


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 2, "b"',
        b"[1, 2]",
        b"null",
        b'"a"',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        rb'{"a": "\ud800"}',
        rb'{"a": "\udc00\ud800"}',
        b'{"a": "\x01"}',
        b'{"a": "\x00"}',
        b'{"a": "\t"}',
        b'{\x00"\x00a\x00"\x00:\x001\x00}\x00',
        b'{"a": 01}',
        b'{"a": 1.}',
        b'{"a": .5}',
        b'{"a": +1}',
        b'{"a": 1,}',
        b'{"a": 1}{"a": 2}',
        b'{"a": 1} x',
        b"{'a': 1}",
        b"{a: 1}",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\\x"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b"\x0c",
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_json_object_is_broken(line: bytes) -> None:
    assert is_broken(line)


def test_half_a_surrogate_pair_breaks_a_line_only_where_it_is_wanted() -> None:
    assert value_of(rb'{"a": 1, "b": "\ud800"}') == "1"


def test_a_broken_line_keeps_its_number_and_its_beginning(tmp_path: Path) -> None:
    lines = [
        b'{"a": 1, "b": true}',
        b'{"a": 2, "b"',
        b"",
        b" \t\r",
        b'{"a": "\xff"}\r',
        b"\xc3\xa9" * 300,
        b'{"a": 2.5}',
    ]
    frame = read(tmp_path, b"\n".join(lines), "a", "b")
    assert frame.select("a", "b", "row").rows() == [
        ("1", "true", 1),
        (None, None, 2),
        (None, None, 3),
        (None, None, 4),
        ("2.5", None, 5),
    ], "a blank line is no row"
    assert frame["broken"].to_list() == [None, '{"a": 2, "b"', '{"a": "\ufffd"}', "é" * 200, None]


def test_a_byte_order_mark_windows_line_ends_and_no_last_line_end_are_no_data(tmp_path: Path) -> None:
    frame = read(tmp_path, b'\xef\xbb\xbf{"a": "x"}\r\n\r\n{"a": "y"}\r\n{"a": "z"}', "a")
    assert frame.select("a", "row", "broken").rows() == [("x", 1, None), ("y", 2, None), ("z", 3, None)]


@pytest.mark.parametrize(
    "late", [b'{"a": 1, "late": "x"}', b'{"a": 1, "late": null}', rb'{"a": [], "la\u0074e": null}']
)
def test_a_key_that_only_a_late_line_has_is_not_missing(
    tmp_path: Path, late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_lines, "LINES_WITH_KEYS", 1)
    early = b'{"a": 1, "b": "late"}\n{"a": {"late": 1}}\n' * 20
    frame = read(tmp_path, early + late + b"\n" + early, "a", "late")
    assert frame.height == 81
    assert frame["late"].null_count() >= 80
    with pytest.raises(ValueError, match=r"log\.jsonl: column 'late' is missing \(found: a, b\)"):
        read(tmp_path, early, "a", "late")


def test_a_file_of_broken_or_blank_lines_only_lacks_no_column(tmp_path: Path) -> None:
    assert read(tmp_path, b"{\nx\n", "a")["broken"].to_list() == ["{", "x"]
    empty = read(tmp_path, b"\n\n", "a")
    assert (empty.height, empty.columns) == (0, ["a", "broken", "file", "row"])


KEYS = st.sampled_from([*COLUMNS, "c", 'a"', "b\\", "a\n"])
TEXTS = st.text(st.sampled_from(list('ab1.0,:{}[]"\\ \n\té\U0001f600\x7f')), max_size=8)
FLAT_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-20, 20), st.floats(allow_nan=False), TEXTS
)
VALUES = st.one_of(FLAT_VALUES, FLAT_VALUES, st.lists(FLAT_VALUES, max_size=2), st.dictionaries(KEYS, FLAT_VALUES))


@st.composite
def json_line(draw: st.DrawFn) -> bytes:
    values = draw(st.dictionaries(KEYS, VALUES, max_size=5))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")]))
    return json.dumps(values, ensure_ascii=draw(st.booleans()), separators=separators).encode() + b"\n"


@settings(deadline=None)
@given(st.lists(json_line(), min_size=1, max_size=30))
def test_lines_read_fast_and_one_by_one_are_equal_and_hold_what_was_written(lines: list[bytes]) -> None:
    frame = parse_lines(Lines.of(b"".join(lines)), COLUMNS)
    assert frame.equals(line_by_line(lines, COLUMNS))
    assert frame[":broken"].null_count() == len(lines)
    for line, row in zip(lines, frame.iter_rows(named=True), strict=True):
        for name, value in json.loads(line).items():
            if name in COLUMNS:
                assert row[name] == value if isinstance(value, str | None) else json.loads(row[name]) == value


def test_usual_lines_go_the_fast_way() -> None:
    usual = '{"event_id":"e-1","user":"u\\u00e9 \\/","position":4,"price":12.5,"ok":true,"value":null}\n'
    texts = pl.Series([usual, usual.replace("12.5", "12.0"), usual.replace("null", "[]"), " \r\n"])
    assert texts.str.contains(FLAT).to_list() == [True, False, False, False]
    assert texts.str.contains(FLAT_ANY_NUMBER).to_list() == [True, True, False, False]
    assert texts.str.contains(BLANK).to_list() == [False, False, False, True]
