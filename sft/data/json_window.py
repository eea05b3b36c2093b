"""JSON values out of a stream of bytes, decoded one at a time in a window that holds little more than one of them.

::

    bytes     ... {"a": 1}, {"a" | : 2}, {"a": 3 ...
    window           at^---------^ grows until the value at ``at`` is whole, then moves behind it

JSON is read strictly (RFC 8259): a repeated key, NaN and Infinity, which Python's reader takes, are faults.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

_NEAR_END = 16  # characters: a token cut by the end of the window fails at most this far before it (-Infinity is 9 long)
_SPACE = re.compile(r"[ \t\r\n]*")
_BAD_BYTES = re.compile(r"[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8


class Broken(Exception):
    """The rest of the file cannot be read. Arguments: the line of the row, and why."""


class Window:
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
        """Consume the JSON value at ``text[at]`` or raise :class:`Broken`; ``fault`` then says what is wrong inside it."""
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _NEAR_END
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
        except (RecursionError, ValueError) as error:  # nested too deeply, or a whole number of over 4300 digits
            raise json.JSONDecodeError(str(error), text, at) from None
        if not text.isascii() and (bad := _BAD_BYTES.search(text, at, end)):
            self.fault = f"not_utf8: the byte 0x{ord(bad.group()) - 0xDC00:02x} is not UTF-8; save the file as UTF-8"
        return value, end

    def broken(self, message: str, pos: int | None = None) -> Broken:
        """The error for a file that cannot be read past ``text[pos]``, charged to the row at ``text[at]``."""
        row = self.line
        self.advance(self.at if pos is None else pos)
        place = f"at line {self.line} column {self.column}"
        return Broken(row, f"broken_file: {message} {place}; the rest of the file is not read")

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
