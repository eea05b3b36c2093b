"""What a template writes around messages, found once for each sequence of roles and then filled in.

::

    roles    user assistant
    frame    <s>A chat ... USER: | ASSISTANT: |</s>       two gaps
    filled   <s>A chat ... USER: Hi ASSISTANT: Hello.</s>

Only for templates that write every message whole, once and in order, whatever it says: ours do, and a test holds them to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

_FILLER = 0x108000  # private characters between those of marks and of stand-ins (marks.py)
_MOST_FILLERS = 1 << 14

Span = tuple[int, int]
_Place = tuple[int, int]  # characters of the frame, and gaps, that stand before


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Text with gaps.

    Attributes:
        pieces: what stands before, between and behind the gaps.
        spans: ranges of the text, gaps in them included.
        specials: further ranges; those of special tokens.
    """

    pieces: tuple[str, ...]
    spans: tuple[tuple[_Place, _Place], ...]
    specials: tuple[tuple[_Place, _Place], ...]

    @classmethod
    def cut(cls, text: str, fillers: Sequence[str], spans: Iterable[Span], specials: Iterable[Span]) -> Frame | None:
        """The frame of a text with fillers, one character each, in its gaps; None if they do not stand there once and in order."""
        pieces, rest = [], text
        for filler in fillers:
            before, found, rest = rest.partition(filler)
            if not found:
                return None
            pieces.append(before)
        pieces.append(rest)
        if len(set(fillers)) < len(fillers) or not set(fillers).isdisjoint("".join(pieces)):
            return None
        gaps = [i + end for i, end in enumerate(accumulate(map(len, pieces[:-1])))]

        def places(ranges: Iterable[Span]) -> tuple[tuple[_Place, _Place], ...]:
            return tuple((_place(start, gaps), _place(end, gaps)) for start, end in ranges)

        return cls(tuple(pieces), places(spans), places(specials))

    def fill(self, messages: Sequence[str]) -> tuple[str, tuple[Span, ...], tuple[Span, ...]]:
        """The text with messages in its gaps, its spans and its special tokens."""
        out = [""] * (2 * len(messages) + 1)
        out[::2], out[1::2] = self.pieces, messages
        before = [0, *accumulate(map(len, messages))]
        spans = tuple([(a + before[i], b + before[j]) for (a, i), (b, j) in self.spans])
        specials = tuple([(a + before[i], b + before[j]) for (a, i), (b, j) in self.specials])
        return "".join(out), spans, specials


def fillers(count: int) -> list[str]:
    """Characters that stand for messages while a frame is made; so many and no more, so that a frame for more is none."""
    return [chr(_FILLER + i % _MOST_FILLERS) for i in range(count)]


def _place(position: int, gaps: Sequence[int]) -> _Place:
    many = bisect_left(gaps, position)
    return position - many, many
