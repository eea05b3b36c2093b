"""Private characters that a render carries for a moment: marks around trained text, and a disguise over messages.

::

    control   <|im_end|>
    message   use <|im_end|> here<          and the template goes on with |im_end|>
    rendered  use ■■■■■■■■■■ here■          one private character for each, while special tokens are looked for

A special token may be recognised only where the template wrote every character of it. So what a message contributes to one, whole or
in part, is rendered in disguise: a match cannot contain it. The length stays, so positions need no correction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Plane 16 is private use and empty in practice; rows that contain it are dropped with a reason (template.py).
# The encoder's stand-ins (tokenize.py) count up from the first character, the disguise counts down from below the marks.
PRIVATE_FIRST, PRIVATE_LAST = "\U00100000", "\U0010ffff"
_OPEN, _CLOSE, _HIDDEN_LAST = "\U0010fff1", "\U0010fff0", "\U0010ffef"
_MARKS = re.compile(f"([{_CLOSE}{_OPEN}])")
PRIVATE = re.compile(f"[{PRIVATE_FIRST}-{PRIVATE_LAST}]")

Span = tuple[int, int]


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: the transformers tag, here putting private marks around the block."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return _OPEN + caller() + _CLOSE


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter as transformers defines it: Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=64)
def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template as transformers does, with our own meaning of the generation tag."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    return env.from_string(source)


def without_marks(raw: str) -> str:
    """A render without its marks: the text that a server would write."""
    return _MARKS.sub("", raw)


def take_marks(raw: str) -> tuple[str, tuple[Span, ...]]:
    """A render without its marks, and the ranges that they stood around.

    Raises:
        ValueError: marks that are nested or that a filter cut off.
    """
    pieces = _MARKS.split(raw)
    if pieces[1::2] != [_OPEN, _CLOSE] * (len(pieces) // 4) or len(pieces) % 4 != 1:
        raise ValueError("generation marks are nested or cut off")
    ends = list(accumulate(map(len, pieces[::2])))
    return "".join(pieces[::2]), tuple(zip(ends[:-1:2], ends[1::2], strict=True))


class Disguise:
    """Hides in messages what could pass for special tokens, or for pieces of them.

    Args:
        control: the special tokens.
    """

    def __init__(self, control: Iterable[str]) -> None:
        self._control = sorted({token for token in control if token}, key=lambda token: (-len(token), token))
        # Longest first: the tokenizer's own matcher takes the leftmost longest token.
        either = "|".join(map(re.escape, self._control)) or "(?!)"
        self._special, self._overlapping = re.compile(either), re.compile(f"(?=({either}))")
        alphabet = sorted(set("".join(self._control)))
        self._hide = {ord(char): chr(ord(_HIDDEN_LAST) - i) for i, char in enumerate(alphabet)}
        self._show = {ord(hidden): chr(char) for char, hidden in self._hide.items()}
        self._hidden = re.compile(f"[{''.join(self._hide.values())}]" if self._hide else "(?!)")
        # Proper prefixes by their last character and proper suffixes by their first, longest first.
        self._fronts = _grouped({token[:k] for token in self._control for k in range(1, len(token))}, -1)
        self._backs = _grouped({token[k:] for token in self._control for k in range(1, len(token))}, 0)
        self._longest = len(self._control[0]) if self._control else 0

    def everything(self, message: str) -> str:
        """Hide every character that occurs in any special token: sound whatever a template cuts out of the message."""
        return message.translate(self._hide)

    def pieces(self, message: str) -> str:
        """Hide what spells a special token (overlaps too), and what could be a part of one at the ends of the message.

        Sound for templates that write a message whole or trimmed, and cheap: most messages come back as they are.
        """
        ranges = self._edges(message, 0)
        if self._special.search(message):
            ranges += [match.span(1) for match in self._overlapping.finditer(message)]
        core = message.strip()
        if len(core) < len(message):
            ranges += self._edges(core, message.find(core))
        parts, done = [], 0
        for start, end in sorted(ranges):
            if end > done:  # they may overlap
                parts += [message[done:start], message[max(start, done) : end].translate(self._hide)]
                done = end
        return "".join(parts) + message[done:]

    def uncover(self, text: str) -> tuple[str, tuple[Span, ...]]:
        """The text without disguise, and where the special tokens stand that the template wrote."""
        specials = tuple(match.span() for match in self._special.finditer(text))
        return (text if text.isascii() or not self._hidden.search(text) else text.translate(self._show)), specials

    def _edges(self, text: str, at: int) -> list[Span]:
        """Ranges at the ends of a text that begin, end or continue a special token of which others write the rest.

        The longest such range holds the shorter ones, so a match that takes in any of them takes in a hidden character.
        """
        found: list[Span] = []
        if not text:
            return found
        for front in self._fronts.get(text[-1], ()):
            if text.endswith(front):
                found.append((at + len(text) - len(front), at + len(text)))
                break
        for back in self._backs.get(text[0], ()):
            if text.startswith(back):
                found.append((at, at + len(back)))
                break
        if len(text) < self._longest and any(text in token for token in self._control):
            found.append((at, at + len(text)))
        return found


def _grouped(pieces: Iterable[str], at: int) -> dict[str, Sequence[str]]:
    groups: dict[str, Sequence[str]] = {}
    for piece in sorted(pieces, key=lambda piece: (-len(piece), piece)):
        groups[piece[at]] = (*groups.get(piece[at], ()), piece)
    return groups
