"""Rows out of files, one at a time, each with the place it came from; and rows into a file, all or none.

::

    rows.jsonl    {...}\\n{...}\\n                       rows.jsonl:1, rows.jsonl:2
    rows.json     [{...}, {...}]                       rows.json:LINE, the line on which the item starts
    rows.json     {"version": 1, "data": [{...}]}      the same
    rows.json     {...}\\n{...}\\n                       like .jsonl
    rows.parquet  record batches                       rows.parquet#0, rows.parquet#1

A JSON list is decoded item by item in a window that holds little more than one item, so that a list of any length needs no
more memory than lines do. (One exception: an object around the list, all on a single line, is held in memory.)
JSON is read strictly (RFC 8259): a repeated key, NaN and Infinity, which Python's reader takes, are refused.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data.chunks import chunks
from sft.errors import DataError

ENDINGS = (".json", ".jsonl", ".parquet", ".json.gz", ".json.zst", ".jsonl.gz", ".jsonl.zst")
"""File name endings that :func:`read_rows` knows."""

_NEAR_END = 16  # characters: a token cut by the end of the window fails at most this far before it (-Infinity is 9 long)
_TOO_LONG = "A whole number of more than 4300 digits"
_PARQUET_BATCH = 1024  # rows
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BAD_BYTES = re.compile(r"[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file, read or unreadable.

    Attributes:
        where: ``file:line`` (``file:line:column`` for a further row on the same line), or ``file#index`` from 0 in a .parquet.
        value: the decoded row, of any JSON type; None if ``error`` is set.
        error: None, or ``reason: sentence`` with a snake_case reason: ``invalid_json``, ``duplicate_key``, ``not_finite``,
            ``not_utf8``, or ``broken_file`` when the rest of the file could not be read either.
    """

    where: str
    value: Any
    error: str | None = None


def ending(path: Path) -> str | None:
    """The ending of a file name that :func:`read_rows` knows, in lower case, or None."""
    return next((known for known in ENDINGS if path.name.lower().endswith(known)), None)


def read_rows(path: str | Path) -> Iterator[RawRow]:
    """Read a file row by row, in file order.

    A line that is not JSON becomes a row with an error, and reading goes on with the next line. Where a JSON list cannot be
    parsed there is no telling where its next item starts: that item becomes a ``broken_file`` row, the last of the file.
    Blank lines are no rows.

    Args:
        path: a file with one of :data:`ENDINGS`.

    Returns:
        An iterator that reads as it goes; memory does not grow with the number of rows.

    Raises:
        DataError: no such file or an unknown ending (at once); a damaged archive, UTF-16 or a damaged .parquet (on the way).
    """
    path = Path(path)
    known = ending(path)
    if known is None:
        raise DataError(f"{path}: the ending of this file is not known; use one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if known == ".parquet":
        return _parquet(path)
    window = _Window(chunks(path, known))
    return _lines(window, path) if known.startswith(".jsonl") else _json(window, path)


def write_jsonl_atomic(path: str | Path, rows: Iterable[Any]) -> int:
    """Write rows as JSON lines: a reader sees the old file or the whole new one, also after a power cut.

    Written to a neighbour file, synced, then renamed. Text stays readable (no ``\\u`` escapes) unless a row holds a lone
    surrogate, which UTF-8 cannot carry: that row is escaped. Equal rows give equal bytes.

    Args:
        path: the file to make or replace, in a folder that exists.
        rows: JSON values.

    Returns:
        How many rows were written.

    Raises:
        DataError: a row is not JSON (it is named by its index); the old file is left as it was.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    count = 0
    try:
        with draft.open("xb") as file:
            for row in rows:
                file.write(_line(row, count))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the rename itself
    os.close(folder)
    return count


def _line(row: Any, index: int) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        if not text.isascii() and _SURROGATE.search(text):
            text = json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"row {index} cannot be written as JSON: {error}") from None
    return text.encode() + b"\n"


class _Broken(Exception):
    """The rest of the file cannot be read. Arguments: the line of the row, and why."""


class _Window:
    """A stretch of text out of a stream of bytes, and where in the file it stands.

    ``text[at:]`` is not yet consumed; ``line`` and ``column``, both from 1, are the place of ``text[at]``.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.text, self.at, self.line, self.column = "", 0, 1, 1
        self.fault: str | None = None
        self._chunks, self._bom, self._ended = chunks, True, False
        # Invalid bytes come through as surrogates and are charged to the one row that holds them.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def grow(self) -> bool:
        """Read on, at least as much as is waiting, so that retries cost linear time; False (and no change) at the end."""
        kept = len(self.text) - self.at
        parts: list[str] = []
        size = 0
        while size < max(kept, 1) and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            part = self._decoder.decode(chunk or b"", final=self._ended)
            if self._bom and part:
                part, self._bom = part.removeprefix("\ufeff"), False
            parts.append(part)
            size += len(part)
        if size:
            self.text, self.at = self.text[self.at :] + "".join(parts), 0
        return size > 0

    def advance(self, to: int) -> None:
        """Consume up to ``text[to]``."""
        breaks = self.text.count("\n", self.at, to)
        self.line += breaks
        self.column = to - self.text.rfind("\n", self.at, to) if breaks else self.column + to - self.at
        self.at = to

    def peek(self) -> str:
        """The next character that is not white space, which is then at ``text[at]``; empty at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.advance(found.end() if found else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def end_of_line(self) -> int:
        """Where the line of ``text[at]`` ends: at its newline, or at the end of the file."""
        scanned = 0
        while (end := self.text.find("\n", self.at + scanned)) < 0:
            scanned = len(self.text) - self.at
            if not self.grow():
                return len(self.text)
        return end

    def take(self) -> Any:
        """Consume the JSON value at ``text[at]`` or raise :class:`_Broken`; ``fault`` then says what is wrong inside it."""
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _NEAR_END
                cut |= error.msg == _TOO_LONG and self.text[-1] in "0123456789.eE+-"  # perhaps one with a fraction
                if cut and self.grow():
                    continue
                raise self.broken(error.msg.removesuffix(" at"), error.pos) from None
            # A number at the very end may go on in the next chunk.
            if len(self.text) - end > _NEAR_END or not self.grow():
                self.advance(end)
                return value

    def parse(self, text: str, at: int) -> tuple[Any, int]:
        """Decode one JSON value and set ``fault``; raises ``json.JSONDecodeError``."""
        self.fault = None
        try:
            value, end = self._json.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, at) from None
        except ValueError:  # Python's words would count digits that may go on in the next chunk
            raise json.JSONDecodeError(_TOO_LONG, text, at) from None
        if not text.isascii() and (bad := _BAD_BYTES.search(text, at, end)):
            self.fault = f"not_utf8: the byte 0x{ord(bad.group()) - 0xDC00:02x} is not UTF-8; save the file as UTF-8"
        return value, end

    def broken(self, message: str, pos: int | None = None) -> _Broken:
        """The error for a file that cannot be read past ``text[pos]``, charged to the row at ``text[at]``."""
        row = self.line
        self.advance(self.at if pos is None else pos)
        place = f"at line {self.line} column {self.column}"
        return _Broken(row, f"broken_file: {message} {place}; the rest of the file is not read")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            self.fault = f"duplicate_key: the key {twice!r} is given twice in one object; keep one"
        return made

    def _constant(self, text: str) -> None:
        self.fault = f"not_finite: {text} is not JSON; write null or a finite number"

    def _float(self, text: str) -> float:
        if math.isinf(float(text)):
            self.fault = f"not_finite: {text} is too large for a number"
        return float(text)


def _lines(window: _Window, path: Path) -> Iterator[RawRow]:
    """One row per line, from where the window stands."""
    while window.peek():
        where = f"{path}:{window.line}"
        end = window.end_of_line()
        text, column = window.text[window.at : end], window.column
        window.advance(end)
        try:
            value, stop = window.parse(text, 0)
            if rest := text[stop:].lstrip(" \t\r"):
                raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
        except json.JSONDecodeError as error:
            hint = "; a list that spans lines belongs in a .json file" if text.rstrip() == "[" else ""
            yield RawRow(where, None, f"invalid_json: {error.msg.removesuffix(' at')} at column {column + error.pos}{hint}")
            continue
        yield RawRow(where, None if window.fault else value, window.fault)


def _json(window: _Window, path: Path) -> Iterator[RawRow]:
    """A list, one object around a list, or one object per line."""
    try:
        if window.peek() == "[":
            yield from _items(window, path)
        elif _is_one_object(window):
            yield from _wrapper(window, path)
        else:
            yield from _lines(window, path)
        if window.peek():
            raise window.broken("Extra data after the end of the JSON value")
    except _Broken as broken:
        yield RawRow(f"{path}:{broken.args[0]}", None, broken.args[1])


def _items(window: _Window, path: Path) -> Iterator[RawRow]:
    """The items of the list that starts at ``text[at]``, leaving the window behind it."""
    window.advance(window.at + 1)
    more, line = window.peek() != "]", 0
    if not more:
        window.advance(window.at + 1)
    while more:
        window.peek()
        where, line = f"{path}:{window.line}" + f":{window.column}" * (window.line == line), window.line
        value = window.take()
        yield RawRow(where, None if window.fault else value, window.fault)
        more = _goes_on(window, "]")


def _goes_on(window: _Window, closing: str) -> bool:
    """Consume the comma (True) or the closing bracket (False) after an item."""
    mark = window.peek()
    if mark not in (",", closing):
        raise window.broken(f"Expecting ',' or '{closing}'" + ("" if mark else ", but the file ends"))
    window.advance(window.at + 1)
    if mark == "," and window.peek() == closing:
        raise window.broken(f"Illegal trailing comma before '{closing}'")
    return mark == ","


def _is_one_object(window: _Window) -> bool:
    """Whether the file is one object (around a ``data`` list, or spread over lines), not one object per line."""
    if window.peek() != "{":
        return False
    end = window.end_of_line() - window.at  # relative, since growing moves ``at`` to 0
    while not (after := window.text[window.at + end :].lstrip()) and window.grow():
        pass
    line = window.text[window.at : window.at + end].rstrip()
    try:
        value, stop = window.parse(line, 0)
    except json.JSONDecodeError:
        # The start of a spread-out object, or a bad line among good ones? The characters around the line break tell.
        return line[-1] in "[{,:" or after[:1] not in ("{", "")
    return isinstance(value.get("data"), list) and stop == len(line) and not after


def _wrapper(window: _Window, path: Path) -> Iterator[RawRow]:
    """The items of the object's ``data`` list; its other keys describe the file and are passed over."""
    found, more = False, True
    window.advance(window.at + 1)
    while more:
        if window.peek() != '"':
            raise window.broken("Expecting a key in double quotes")
        key = window.take()
        if window.peek() != ":":
            raise window.broken("Expecting ':'")
        window.advance(window.at + 1)
        if window.peek() == "[" and key == "data" and not found:
            found = True
            yield from _items(window, path)
        elif key == "data":
            raise window.broken("A second 'data', or one that is no list,")
        else:
            window.take()
        more = _goes_on(window, "}")
    if not found:
        raise window.broken("One object over several lines, without a 'data' list, ends")


def _parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a .parquet file, a batch at a time."""
    import pyarrow as pa  # here, since JSON files do not need it
    import pyarrow.parquet as pq

    index = 0
    try:
        with pq.ParquetFile(path) as file:
            if len(set(names := file.schema_arrow.names)) < len(names):
                raise DataError(f"{path}: two columns have the same name ({', '.join(names)}); rename one")
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    yield RawRow(f"{path}#{index}", row)
                    index += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a sound .parquet file (after {index} rows): {error}") from None
