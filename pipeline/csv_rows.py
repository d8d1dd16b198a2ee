r"""CSV: lines that are certainly one whole row in one fast call, all others one by one, with equal results.

The rules: fields are split by commas; a field that begins with a quote ends at the next single quote and may hold
commas, line ends and doubled quotes; any other field ends at a comma or line end. A row has as many fields as the
header. A row may span lines only inside quotes. Where a line begins no row (too few or many fields, a quote that
nothing closes, a NUL byte, no UTF-8), that line alone is broken and reading goes on with the next line. Blank lines
between rows are no rows. An empty field is null, an empty field in quotes is empty text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.source_files import SourceFile, missing_column
from pipeline.text_lines import BLANK, BROKEN, MAX_LINE_BYTES, Lines, beginning, in_order, whole_lines

# polars drops a byte order mark where its input begins, which is the middle of a file here.
CERTAIN_FIELD = r'(?:"(?:[^"\x00\n]|"")*"|[^",\r\n\x00\x{FEFF}]*)'
QUOTED = rb'"(?:[^"\x00]++|"")*+'
# Atomic, so that a field is read in one way only: no backtracking, time linear in what is scanned.
FIELD = rb'(?>%b"|(?:[^",\n\x00][^,\n\x00]*+)?+)' % QUOTED
END = rb"\r?\n"
FIELD_TEXT = re.compile(r'("(?:[^"]++|"")*+"|(?:[^",\n][^,\n]*+)?+)(?:,|\r?\n)')
BLANK_LINES = re.compile(rb"(?:[ \t\r]*+\n)*+")
HEADER = re.compile(rb"%b(?:,%b)*+%b" % (FIELD, FIELD, END))


@dataclass(frozen=True)
class Grammar:
    """What the rows of a file with a given header look like."""

    header: list[str]
    certain: str
    row: re.Pattern[bytes]
    unclosed: re.Pattern[bytes]

    @classmethod
    def of(cls, header: list[str]) -> "Grammar":
        """Compile the expressions for a header's number of fields."""
        more = len(header) - 1
        return cls(
            header,
            rf"^{CERTAIN_FIELD}(?:,{CERTAIN_FIELD}){{{more}}}\r?\n$",
            re.compile(rb"%b(?:,%b){%d}%b" % (FIELD, FIELD, more, END)),
            re.compile(rb"(?:%b,){0,%d}%b\Z" % (FIELD, more, QUOTED)),
        )


@dataclass(frozen=True)
class Rows:
    """The rows of a block that were read one by one, the lines they took, and how many lines the block is done with."""

    places: NDArray[np.int64]
    rows: pl.DataFrame
    taken: NDArray[np.bool_]
    done_lines: int


def read_csv_rows(file: SourceFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file: text columns, and BROKEN with the beginning of a line that is no row.

    Raises:
        ValueError: the header cannot be read, lacks a column or has it twice.
    """
    grammar: Grammar | None = None
    rest = b""
    with file.open_input_stream() as stream:
        for block in whole_lines(stream):
            text = rest + block
            if grammar is None:
                header, text = _split_header(file, text)
                grammar = _grammar(file, header, columns) if header else None
            if grammar is None or not text:
                continue
            rows, done_bytes = parse_block(text, grammar, columns, is_last=False)
            rest = text[done_bytes:]
            yield rows
    if grammar is None:
        raise ValueError(f"{file.name}: the file is empty; restore it or remove it")
    if rest:
        yield parse_block(rest, grammar, columns, is_last=True)[0]


def parse_block(text: bytes, grammar: Grammar, columns: list[str], *, is_last: bool) -> tuple[pl.DataFrame, int]:
    """Read the rows of a block of whole lines, up to a row that the block's end cuts.

    Returns:
        Text columns and BROKEN, and the number of bytes that were read.
    """
    lines = Lines.of(text)
    blank = lines.matching(BLANK)
    certain = lines.matching(grammar.certain) & ~blank
    others = one_by_one(lines, np.flatnonzero(~certain & ~blank), grammar, columns, is_last=is_last)
    certain &= ~others.taken
    certain[others.done_lines :] = False
    rows = in_order(
        [(np.flatnonzero(certain), _read_certain(lines, certain, grammar, columns)), (others.places, others.rows)],
        columns,
    )
    return rows, int(lines.offsets[others.done_lines])


def one_by_one(lines: Lines, places: NDArray[np.int64], grammar: Grammar, columns: list[str], *, is_last: bool) -> Rows:
    """Read the rows that begin at some lines of a block, and may go on in the lines after them.

    Args:
        lines: the block.
        places: the lines; those that are part of an earlier row begin none.
        grammar: what a row looks like.
        columns: the columns to keep.
        is_last: whether the file ends with this block; if not, a row that the block's end cuts is left to the next.
    """
    wanted = [grammar.header.index(name) for name in columns]
    found: list[tuple[int, list[str | None]]] = []
    taken = np.zeros(len(lines.texts), dtype=np.bool_)
    done_lines = len(lines.texts)
    for place in places.tolist():
        if taken[place]:
            continue
        start = int(lines.offsets[place])
        if not is_last and _is_cut(lines, start, grammar):
            done_lines = place
            break
        fields, end = _fields(lines.block, start, grammar)
        if fields is None:
            found.append((place, [*(None for _ in wanted), beginning(lines.at(place))]))
            taken[place] = True
        else:
            found.append((place, [*(fields[index] for index in wanted), None]))
            taken[place : np.searchsorted(lines.offsets, end)] = True
    schema = {**dict.fromkeys(columns, pl.String), BROKEN: pl.String}
    rows = pl.DataFrame([values for _, values in found], schema=schema, orient="row")
    return Rows(np.array([place for place, _ in found], dtype=np.int64), rows, taken, done_lines)


def _is_cut(lines: Lines, start: int, grammar: Grammar) -> bool:
    """Return whether a quote of the row is still open at the block's end, and may be closed by the next block."""
    return len(lines.block) - start <= MAX_LINE_BYTES and grammar.unclosed.match(lines.block, start) is not None


def _fields(block: bytes, start: int, grammar: Grammar) -> tuple[list[str | None] | None, int]:
    """Return the fields of the row that begins at a byte, and where it ends; None where there is no row."""
    row = grammar.row.match(block, start)
    if row is None:
        return None, start
    try:
        return _values(row[0].decode("utf-8")), row.end()
    except UnicodeDecodeError:
        return None, start


def _values(row: str) -> list[str | None]:
    texts = FIELD_TEXT.findall(row)
    if not texts[-1].startswith('"'):
        texts[-1] = texts[-1].removesuffix("\r")
    return [text[1:-1].replace('""', '"') if text.startswith('"') else (text or None) for text in texts]


def _read_certain(lines: Lines, chosen: NDArray[np.bool_], grammar: Grammar, columns: list[str]) -> pl.DataFrame:
    if not chosen.any():
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    numbered = {str(place): pl.String() for place in range(len(grammar.header))}
    rows = pl.read_csv(
        lines.bytes_of(chosen),
        has_header=False,
        schema=numbered,
        columns=sorted({grammar.header.index(name) for name in columns}),
    )
    assert rows.height == chosen.sum(), "a row a line"
    return rows.select(pl.col(str(grammar.header.index(name))).alias(name) for name in columns)


def _split_header(file: SourceFile, text: bytes) -> tuple[list[str], bytes]:
    """Split the header from the lines after it; no header where all lines are blank so far."""
    blank = BLANK_LINES.match(text)
    assert blank is not None, "matches nothing at least"
    if blank.end() == len(text):
        return [], b""
    line = HEADER.match(text, blank.end())
    if line is None:
        raise ValueError(f"{file.name}: the header cannot be read (a quote or a NUL byte): correct the first line")
    try:
        names = _values(line[0].decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{file.name}: the header is not UTF-8: correct the first line") from None
    return [name or "" for name in names], text[line.end() :]


def _grammar(file: SourceFile, header: list[str], columns: list[str]) -> Grammar:
    for name in columns:
        if name not in header:
            raise missing_column(file, name, set(header))
        if header.count(name) > 1:
            raise ValueError(f"{file.name}: the header has {name!r} {header.count(name)} times: name columns apart")
    return Grammar.of(header)
