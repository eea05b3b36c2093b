"""Rows of JSON-lines files by their place, so that whoever works on a part can read it where he is.

::

    pieces   |----16 MiB----|----16 MiB----|--      counted wherever there is a free core: lines that begin there, rows among them
    parts    2000 |2000 |2000 |2000 |2000 |200      rows; each part begins some rows behind the beginning of a piece
    slice    (file, begin of the piece, rows to skip, rows to take)

What a slice reads is what :func:`sft.data.jsonl.read_rows` reads there, places and faults included. Only a plain ``.jsonl`` file can be
read from the middle: in a list, or behind a packer, there is no telling where a row begins.
"""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final

from sft.data.jsonl import RawRow, ending, read_rows
from sft.data.sources import resolve_files
from sft.errors import DataError
from sft.recipe import Source

PIECE: Final = 1 << 24
"""Bytes that are counted together: no part has to skip more than these."""
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a file: the lines that begin in it.

    Attributes:
        path: the file.
        begin: byte at which the first of the lines begins; before it is counted, the first byte of the stretch.
        end: first byte behind the stretch.
        lines: that begin in it.
        rows: lines among them that are not blank.
    """

    path: str
    begin: int
    end: int
    lines: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of a file.

    Attributes:
        path: the file, as its rows name it.
        begin: byte at which a line begins.
        line: number of that line, from 1.
        skip: rows to pass over from there.
        rows: to take.
    """

    path: str
    begin: int
    line: int
    skip: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Slice:
        """The slice that :meth:`to_json` told."""
        return Slice(**value)


def pieces_of(source: Source, size: int = PIECE) -> list[Piece] | None:
    """All stretches of a source in their order, not yet counted; None if it has a file that cannot be read from the middle.

    Raises:
        DataError: no files.
    """
    if source.hub is not None:
        return None
    files = resolve_files(source)
    if any(ending(path) != ".jsonl" for path in files):
        return None
    sizes = [path.stat().st_size for path in files]
    return [
        Piece(str(path), begin, min(begin + size, length))
        for path, length in zip(files, sizes, strict=True)
        for begin in range(0, length, size)
    ]


def count(piece: Piece) -> Piece:
    """Find the first line that begins in a stretch, and count lines and rows."""
    with Path(piece.path).open("rb") as file:
        file.seek(max(piece.begin - 1, 0))
        if piece.begin > 0:
            _rest_of_line(file)  # of the line before; only its newline if the stretch begins with a line
        first, lines, rows = file.tell(), 0, 0
        while file.tell() < piece.end and (line := file.readline()):
            lines += 1
            rows += not _blank(line, at_start=piece.begin == 0 and lines == 1)
    return replace(piece, begin=first, lines=lines, rows=rows)


def _rest_of_line(file: BinaryIO) -> None:
    while (some := file.readline(PIECE)) and not some.endswith(b"\n"):
        pass


def _blank(line: bytes, at_start: bool) -> bool:
    return not (line.removeprefix(codecs.BOM_UTF8) if at_start else line).strip(_SPACE)


def cut(pieces: Sequence[Piece], rows: int, limit: int | None) -> Iterator[tuple[Slice, ...]]:
    """The slices of each part.

    Args:
        pieces: of one source, counted, in order.
        rows: of a part.
        limit: rows to read of the source; None reads all.
    """
    ends = list(accumulate(piece.rows for piece in pieces))
    whole = min(ends[-1] if ends else 0, limit if limit is not None else 1 << 62)
    lines = _first_lines(pieces)
    number = 0
    for first in range(0, whole, rows):
        last, slices = min(first + rows, whole), list[Slice]()
        while first < last:
            while ends[number] <= first:
                number += 1
            piece, skip = pieces[number], first - (ends[number] - pieces[number].rows)
            end = number
            while ends[end] < last and end + 1 < len(pieces) and pieces[end + 1].path == piece.path:
                end += 1
            taken = min(last, ends[end]) - first
            slices.append(Slice(piece.path, piece.begin, lines[number], skip, taken))
            first += taken
        yield tuple(slices)


def _first_lines(pieces: Iterable[Piece]) -> list[int]:
    """For each piece the number of its first line in its file, from 1."""
    found: list[int] = []
    path, line = "", 1
    for piece in pieces:
        line = line if piece.path == path else 1
        found.append(line)
        path, line = piece.path, line + piece.lines
    return found


def read_slices(slices: Iterable[Slice]) -> Iterator[RawRow]:
    """The rows of some slices, in order.

    Raises:
        DataError: a file cannot be read, or is not the one that was counted.
    """
    for one in slices:
        yield from _read(one)


def _read(one: Slice) -> Iterator[RawRow]:
    """A slice, read as a file of its own by the reader of all rows, its lines numbered as in the file that it comes from."""
    with tempfile.TemporaryDirectory(prefix="sft-slice-") as folder:
        copy = Path(folder) / "rows.jsonl"
        before = one.line - 1 + _copy(one, copy)
        found = 0
        try:
            for raw in read_rows(copy):
                line = int(raw.where.removeprefix(f"{copy}:"))
                found += 1
                yield replace(raw, where=f"{one.path}:{before + line}")
        except DataError as error:
            raise DataError(str(error).replace(str(copy), one.path)) from None
        if found != one.rows:
            raise DataError(f"{one.path}: it changed while it was read; run the command again")


def _copy(one: Slice, to: Path) -> int:
    """Write the lines of a slice; returns what to add to their numbers there, seen from the slice's first line."""
    with Path(one.path).open("rb") as file, to.open("wb") as copy:
        file.seek(one.begin)
        skipped = passed = taken = 0
        while skipped < one.skip and (line := file.readline()):
            skipped += not _blank(line, at_start=one.begin == 0 and passed == 0)
            passed += 1
        if begins_inside := file.tell() > 0:
            copy.write(b"\n")  # else the reader would take a byte-order mark here for one that begins a file
        at_start = not begins_inside
        while taken < one.rows and (line := file.readline()):
            copy.write(line)
            taken += not _blank(line, at_start)
            at_start = False
    return passed - begins_inside
