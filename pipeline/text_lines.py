"""Text files as blocks of whole lines, and a block's lines as one polars column without a copy."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 2**20
MAX_LINE_BYTES = 64 * 2**20
SCAN_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BROKEN = ":broken"
BROKEN_CHARACTERS = 200
BLANK = r"^[ \t\r]*\n$"
LINE_FEED = ord("\n")
FIRST_BEYOND_ASCII = 0x80


class LineTooLongError(Exception):
    """A line is longer than what memory is planned for."""


def whole_lines(stream: pa.NativeFile) -> Iterator[bytes]:
    r"""Yield blocks of whole lines, each line with its `\n`; the last line gets one where it lacks it.

    A byte order mark at the start is left out. What is read doubles while a line has no end, so that a long line
    costs linear time.

    Raises:
        LineTooLongError: a line is longer than MAX_LINE_BYTES.
    """
    rest, mark = b"", BYTE_ORDER_MARK
    while (buffer := _read_after(rest, stream)) is not None:
        block = buffer.getvalue()
        first, end = block.find(b"\n", len(rest)), block.rfind(b"\n", len(rest)) + 1
        if (first if end else len(block)) > MAX_LINE_BYTES:
            raise LineTooLongError(f"a line is longer than {MAX_LINE_BYTES} bytes")
        rest = block[end:]
        if end:
            del block  # else the buffer's bytes are shared, and cutting them copies them
            buffer.truncate(end)
            yield buffer.getvalue().removeprefix(mark)
            mark = b""
    if rest:
        yield rest.removeprefix(mark) + b"\n"


def _read_after(rest: bytes, stream: pa.NativeFile) -> io.BytesIO | None:
    """Read a block into memory that begins with the rest of the one before: joining them costs 30 % of reading."""
    buffer = io.BytesIO(bytes(len(rest) + max(CHUNK_BYTES, len(rest))))
    with buffer.getbuffer() as view:
        view[: len(rest)] = rest
        read_bytes = stream.readinto(view[len(rest) :])
    buffer.truncate(len(rest) + read_bytes)
    return buffer if read_bytes else None


@dataclass(frozen=True)
class Lines:
    r"""A block's lines with their `\n`: N + 1 offsets into its bytes, and the text, null where it is not UTF-8."""

    block: bytes
    offsets: NDArray[np.int64]
    texts: pl.Series

    @classmethod
    def of(cls, block: bytes) -> "Lines":
        """Find the lines of a block that ends with a line end."""
        assert block.endswith(b"\n"), "a block holds whole lines"
        offsets = np.concatenate([np.zeros(1, np.int64), *_line_ends(block)])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block)]
        lines = pl.from_arrow(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers))
        assert isinstance(lines, pl.Series)
        return cls(block, offsets, _texts(block, offsets, lines))

    def matching(self, pattern: str) -> NDArray[np.bool_]:
        """Return which lines are text that a linear-time regular expression finds."""
        return self.texts.str.contains(pattern).fill_null(value=False).to_numpy()

    def at(self, place: int) -> bytes:
        """Return the bytes of one line."""
        return self.block[self.offsets[place] : self.offsets[place + 1]]

    def bytes_of(self, chosen: NDArray[np.bool_]) -> bytes:
        """Return the bytes of the chosen lines, end to end."""
        if chosen.all():
            return self.block
        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        view = memoryview(self.block)
        starts, ends = self.offsets[edges[::2]].tolist(), self.offsets[edges[1::2]].tolist()
        return b"".join([view[start:end] for start, end in zip(starts, ends, strict=True)])


def _line_ends(block: bytes) -> Iterator[NDArray[np.int64]]:
    """Find line ends in pieces that stay in the cache: 4 times faster than in one pass over 16 MiB."""
    codes = np.frombuffer(block, np.uint8)
    for start in range(0, len(codes), SCAN_BYTES):
        yield np.flatnonzero(codes[start : start + SCAN_BYTES] == LINE_FEED) + (start + 1)


def _texts(block: bytes, offsets: NDArray[np.int64], lines: pl.Series) -> pl.Series:
    """Cast lines to text; a cast has no way to make null what is not UTF-8, so that such lines are left out of it."""
    try:
        return lines.cast(pl.String)
    except pl.exceptions.ComputeError:
        is_text = np.bitwise_or.reduceat(np.frombuffer(block, np.uint8), offsets[:-1]) < FIRST_BEYOND_ASCII
        for place in np.flatnonzero(~is_text).tolist():
            is_text[place] = _is_text(block[offsets[place] : offsets[place + 1]])
        known = lines.zip_with(pl.Series(is_text), pl.Series([b""])).cast(pl.String)
        return known.set(pl.Series(~is_text), None)


def _is_text(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def beginning(line: bytes) -> str:
    """Return the first 200 characters of a line that could not be read, without its line end."""
    longest_bytes = 4 * BROKEN_CHARACTERS
    return line[:longest_bytes].rstrip(b"\r\n").decode("utf-8", errors="replace")[:BROKEN_CHARACTERS]


def in_order(parts: list[tuple[NDArray[np.int64], pl.DataFrame]], columns: list[str]) -> pl.DataFrame:
    """Put rows that were read in parts into the order of their places.

    Args:
        parts: the places of the rows in the block, and the rows: `columns`, and BROKEN where some are broken.
        columns: the columns of the result, besides BROKEN.
    """
    schema = {**dict.fromkeys(columns, pl.String), BROKEN: pl.String}
    frames = [
        rows if BROKEN in rows.columns else rows.with_columns(pl.lit(None, pl.String).alias(BROKEN))
        for _, rows in parts
        if rows.height
    ]
    rows = pl.concat([pl.DataFrame(schema=schema), *(frame.select(schema.keys()) for frame in frames)])
    if len(frames) <= 1:
        return rows
    places = np.concatenate([places for places, _ in parts])
    return rows[np.argsort(places)]
