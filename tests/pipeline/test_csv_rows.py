"""Claims about CSV: rows in quotes over lines and block edges, lines that are no row, headers that are none."""

import csv
import io
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import text_lines
from pipeline.csv_rows import Grammar, one_by_one, parse_block
from pipeline.readers import read_chunks
from pipeline.source_files import find_files
from pipeline.text_lines import Lines

GOOD = b"1,2,3\n"


def read(folder: Path, content: bytes, *columns: str) -> pl.DataFrame:
    (folder / "log.csv").write_bytes(content)
    (file,) = find_files(folder, "log.csv")
    return pl.concat(list(read_chunks(file, {name: [name] for name in columns})))


def rows(folder: Path, lines: bytes) -> list[tuple[str | None, ...]]:
    """Return fields, number and broken text of the rows after a header of three columns."""
    return read(folder, b"a,b,c\n" + lines, "a", "b", "c").select("a", "b", "c", "row", "broken").rows()


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"x,,z\n", ("x", None, "z")),
        (b",,\n", (None, None, None)),
        (b'"","x",""\n', ("", "x", "")),
        (b'"a,b","say ""hi""","c\nd"\n', ("a,b", 'say "hi"', "c\nd")),
        (b'"\n\n","\r\n"," "\r\n', ("\n\n", "\r\n", " ")),
        (b'5" pipe,a"b"c, "x"\n', ('5" pipe', 'a"b"c', ' "x"')),
        (b"x,y,z\r\n", ("x", "y", "z")),
        (b"x,y\r,z\r\r\n", ("x", "y\r", "z\r")),
        ("\ufeffx,y,z\ufeff\n".encode(), ("\ufeffx", "y", "z\ufeff")),
        ("é,\U0001f600,\u2028\n".encode(), ("é", "\U0001f600", "\u2028")),
    ],
)
def test_a_row_is_read_wherever_it_stands(tmp_path: Path, line: bytes, fields: tuple[str | None, ...]) -> None:
    other = ("1", "2", "3")
    assert rows(tmp_path, line) == [(*fields, 1, None)]
    assert rows(tmp_path, line.removesuffix(b"\n")) == [(*fields, 1, None)]
    assert rows(tmp_path, GOOD + line + line + GOOD) == [
        (*other, 1, None),
        (*fields, 2, None),
        (*fields, 3, None),
        (*other, 4, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"x,y",
        b"x",
        b"x,y,z,",
        b"x,y,z,w",
        b'"x,y,z',
        b'x,y,"z',
        b'"x"y,y,z',
        b'"x","y","z"w',
        b"x,\xff,z",
        b"x,\x00,z",
        b'"x",\xff,z',
        b'"x","\x00",z',
        b"\xff",
        b"\xc3\xa9" * 300,
    ],
    ids=repr,
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_is_no_row_is_broken_and_the_rest_is_read(tmp_path: Path, line: bytes, end: bytes) -> None:
    beginning = line.decode(errors="replace")[:200]
    assert rows(tmp_path, GOOD + line + end + GOOD + line) == [
        ("1", "2", "3", 1, None),
        (None, None, None, 2, beginning),
        ("1", "2", "3", 3, None),
        (None, None, None, 4, beginning),
    ]


def test_each_line_of_a_long_row_that_is_none_is_read_for_itself(tmp_path: Path) -> None:
    assert rows(tmp_path, b'"x\n1,2,3\ny",2\n') == [
        (None, None, None, 1, '"x'),
        ("1", "2", "3", 2, None),
        (None, None, None, 3, 'y",2'),
    ]


def test_blank_lines_between_rows_are_no_rows(tmp_path: Path) -> None:
    assert rows(tmp_path, b"\n\r\n" + GOOD + b" \t\n" + GOOD + b"\n\n\r\n\n") == [
        ("1", "2", "3", 1, None),
        ("1", "2", "3", 2, None),
    ]
    one_column = read(tmp_path, b'a\n\nx\n""\n\n', "a")
    assert one_column.select("a", "row").rows() == [("x", 1), ("", 2)]


@pytest.mark.parametrize("chunk_bytes", range(1, 40))
def test_a_block_never_ends_inside_a_row(tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'1,2,3\n"a\nb","c\n","\n"\n\n"open,2,3\n4,"5\n,6","7"\n1,2\n8,9,"x\n'
    expected = rows(tmp_path, lines)
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", chunk_bytes)
    assert rows(tmp_path, lines) == expected
    assert [row[3:] for row in expected] == [
        (1, None),
        (2, None),
        (3, '"open,2,3'),
        (4, None),
        (5, "1,2"),
        (6, '8,9,"x'),
    ]


def test_a_byte_order_mark_and_lines_before_the_header_are_no_data(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf\r\n\n"a","b ""x"""\r\n1,2\r\n', "a", 'b "x"').row(0)[:2] == ("1", "2")


def test_a_header_without_rows_and_one_in_a_block_of_its_own_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (b"a,b", b"a,b\n", b"a,b\n\n"):
        assert read(tmp_path, content, "a").height == 0
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", 4)
    assert read(tmp_path, b"\n\n\n\n\n\na,b\n1,2\n", "b")["b"].to_list() == ["2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"a,b\n1,2\n', "the header cannot be read"),
        (b'"a"x,b\n1,2\n', "the header cannot be read"),
        (b"a,\x00b\n1,2\n", "the header cannot be read"),
        (b"a,b\xff\n1,2\n", "the header is not UTF-8"),
        (b"a,b,a\n1,2,3\n", "the header has 'a' 2 times: name columns apart"),
        (b"b,c\n1,2\n", r"column 'a' is missing \(found: b, c\)"),
        (b"\n\n", "the file is empty"),
        (b"", "the file is empty"),
    ],
)
def test_a_header_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"log\.csv: {message}"):
        read(tmp_path, content, "a")


def test_a_column_that_stands_twice_and_is_not_wanted_does_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, b"a,b,b,,\n1,2,3,4,5\n", "a")["a"].to_list() == ["1"]


FIELDS = st.text(st.sampled_from(list('ab",\n\r é\U0001f600')), max_size=5)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@settings(deadline=None)
@given(table=st.lists(st.lists(FIELDS, min_size=3, max_size=3), min_size=1, max_size=20))
def test_what_pythons_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, quoting: int, table: list[list[str]]
) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=quoting).writerows(table)
    found = rows(tmp_path_factory.getbasetemp(), out.getvalue().encode())
    assert [tuple(value or "" for value in row[:3]) for row in found] == [tuple(row) for row in table]
    assert all(row[4] is None for row in found)


PIECES = st.sampled_from(
    [
        b'"',
        b'""',
        b",",
        b"\n",
        b"\r\n",
        b"a",
        b"bc",
        b" ",
        b"\xff",
        b"\x00",
        b"\xef\xbb\xbf",
        b"1,2,3\n",
        b'"x",y,"z"\n',
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=40))
def test_lines_read_fast_and_one_by_one_are_equal(pieces: list[bytes]) -> None:
    text = b"".join(pieces) + b"\n"
    grammar, names = Grammar.of(["a", "b", "c"]), ["a", "b", "c"]
    fast, done_bytes = parse_block(text, grammar, names, is_last=True)
    lines = Lines.of(text)
    slow = one_by_one(lines, np.flatnonzero(~lines.matching(text_lines.BLANK)), grammar, names, is_last=True)
    assert fast.equals(slow.rows)
    assert done_bytes == len(text)


@pytest.mark.parametrize("unit", [b'"x\n', b'"\n', b'x,"y\n', b'"a""\n', b'x","y\n', b'"",""\n', b'"' * 7 + b"\n"])
def test_a_file_full_of_open_quotes_costs_linear_time(tmp_path: Path, unit: bytes) -> None:
    start = time.process_time()
    found = rows(tmp_path, unit * 30_000)
    assert len(found) >= 15_000
    assert time.process_time() - start < 5, "quadratic time would be a minute"
