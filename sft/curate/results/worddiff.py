"""Two texts side by side: which of their words differ.

::

    "use <b>foo</b> now"      [("use ", False), ("<b>", True), ("foo", False), ("</b>", True), (" now", False)]
    "use **foo** now"         [("use ", False), ("**", True), ("foo", False), ("**", True), (" now", False)]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

from sft.text.tokens import HAN, HANGUL, KANA

Piece = tuple[str, bool]
"""A stretch of a text, and whether the other text has it differently."""

# A tag is one piece; a Chinese, Japanese or Korean character is a word of its own.
_PIECE = re.compile(rf"</?[A-Za-z][^<>\n]{{0,400}}>|[{HAN}{KANA}{HANGUL}]|[^\W_{HAN}{KANA}{HANGUL}]+|[ \t]+|\n|.", re.S)
_MOST = 1500  # pieces of each text that are compared: the search takes the square of it at worst
_CONTEXT = 160  # characters of what is equal that stay beside a difference
_GAP = " […] "


def diff(before: str, after: str, *, whole: bool = True) -> tuple[list[Piece], list[Piece]]:
    """Both texts in stretches, marked where they differ, with long equal stretches cut in the middle.

    Args:
        before, after: what stands behind the first thousand words or so is not compared, and left out.
        whole: False if the texts are beginnings of longer ones: what only one of them has at its end says nothing then, and is left out.
    """
    olds, news = _PIECE.findall(before), _PIECE.findall(after)
    cut = not whole or len(olds) > _MOST or len(news) > _MOST
    olds, news = olds[:_MOST], news[:_MOST]
    left: list[Piece] = []
    right: list[Piece] = []
    blocks = SequenceMatcher(None, olds, news, autojunk=False).get_opcodes()
    if cut and len(blocks) > 1 and blocks[-1][0] != "equal":
        blocks.pop()
    for number, (tag, a, b, c, d) in enumerate(blocks):
        if tag == "equal":
            text = _shortened("".join(olds[a:b]), number == 0, number == len(blocks) - 1)
            left.append((text, False))
            right.append((text, False))
        else:
            left.append(("".join(olds[a:b]), True))
            right.append(("".join(news[c:d]), True))
    ending = [(_GAP, False)] if cut and not (left and left[-1][0].endswith(_GAP)) else []
    return _joined([*left, *ending]), _joined([*right, *ending])


def _shortened(text: str, first: bool, last: bool) -> str:
    """What is equal, with its middle left out; only its end where it is the first stretch, only its beginning where it is the last."""
    head, tail = ("" if first else text[:_CONTEXT]), ("" if last else text[-_CONTEXT:])
    return text if len(text) <= _CONTEXT or len(text) <= len(head) + len(tail) + len(_GAP) else head + _GAP + tail


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one stretch."""
    whole = ((("".join(text for text, _ in group)), marked) for marked, group in groupby(pieces, key=lambda piece: piece[1]))
    return [(text, marked) for text, marked in whole if text]
