"""Rules about damaged answers: text that repeats itself, lists that a browser numbered and a copy did not."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from sft.curate.chat import Chat
from sft.curate.rules.base import ASSISTANT, Removal, Role, RuleBase, of_roles, place, refuse, shown
from sft.curate.rules.prose import without_code
from sft.data.conversation import Drop
from sft.text.tokens import tokens


class RepetitionRule(RuleBase):
    """``repeated_digits``, ``repeated_characters``, ``repeated_lines``, ``repeated_phrase``: a text that got stuck. Code is not looked at.

    0 switches a check off. A number such as 1000000000 is none: zeros behind another digit may be as many as a number has.
    """

    kind: Literal["repetition"] = "repetition"
    action: Removal = "drop_chat"
    """Leave the conversation out, or take out the exchange."""
    roles: tuple[Role, ...] = Field(default=("assistant",), min_length=1)
    """Whose turns are looked at."""
    digits: int = Field(default=9, ge=0)
    """The same digit so many times in a row; the original's pattern takes nine. Zeros within a number: twice as many."""
    characters: int = Field(default=30, ge=0)
    """Any other character so many times in a row; white space and what lines are drawn with (``---``, ``===``, ``...``) aside."""
    lines: int = Field(default=8, ge=0)
    """The same line so many times, and three of ten lines or more; a refrain stays below. Labels ("Pros:") and short lines aside."""
    phrase: int = Field(default=80, ge=0)
    """A sequence of up to 32 words (CJK characters) that follows itself, so long in all, and at least six times."""

    def apply(self, chat: Chat) -> Chat | Drop:
        at = 0
        while at < len(chat.messages):
            message = chat.messages[at]
            found = self._fault(message.text) if message.role in self.roles else None
            if found is None:
                at += 1
                continue
            left = refuse(chat, at, self.action, found[0], f"{place(chat, at)} repeats {found[1]}")
            if isinstance(left, Drop):
                return left
            chat, at = left, 0
        return chat

    def _fault(self, text: str) -> tuple[str, str] | None:
        text = without_code(text)
        longest = _longest_run(text)
        if self.digits and longest >= self.digits and (found := _digits(self.digits).search(text)):
            return "repeated_digits", shown(found[0])
        if self.characters and longest >= self.characters and (found := _characters(self.characters).search(text)):
            return "repeated_characters", shown(found[0])
        if self.lines and text.count("\n") + 1 >= self.lines:
            lines = [line for line in map(str.strip, text.split("\n")) if line]
            for line, count in Counter(filter(_speaks, lines)).most_common(1):
                if count >= max(self.lines, _LINE_SHARE * len(lines)):
                    return "repeated_lines", f"the line {shown(line)} {count} times"
        loop = _loop(text, self.phrase) if self.phrase else None
        return None if loop is None else ("repeated_phrase", loop)


def _longest_run(text: str) -> int:
    """How often the most repeated character of a text, white space and all, follows itself."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if codes.size == 0:
        return 0
    changes = np.flatnonzero(codes[1:] != codes[:-1])
    return int(np.diff(changes, prepend=-1, append=codes.size - 1).max())


@lru_cache(maxsize=16)
def _digits(least: int) -> re.Pattern[str]:
    return re.compile(rf"([1-9])\1{{{least - 1}}}|(?<!\d)0{{{least},}}|0{{{2 * least}}}")


@lru_cache(maxsize=16)
def _characters(least: int) -> re.Pattern[str]:
    return re.compile(rf"([^\s\d\-=_*.#~+|/\\<>─━═—–•·…　]|／)\1{{{least - 1}}}")


_LINE_SHARE = 0.3
_LEAST_LETTERS = 4


def _speaks(line: str) -> bool:
    """Whether a line says something by itself."""
    return not line.rstrip("*_ ").endswith((":", "：")) and sum(map(str.isalnum, line[:40])) >= _LEAST_LETTERS


_LONGEST_PERIOD, _LEAST_TIMES = 32, 6


def _may_loop(text: str) -> bool:
    """Whether some piece of a text comes again soon: no loop without one, if it is spelled the same way each time.

    Six times a period that are 80 characters or more hold a piece of 16 that begins at a multiple of 32 and comes again.
    """
    pieces = ((at, text[at : at + 16]) for at in range(0, len(text) - 16, 32))
    return any(text.find(piece, at + 1, at + 512) > 0 for at, piece in pieces if not piece.isspace())


def _loop(text: str, least: int) -> str | None:
    """What a text says over and over: how often, and what; None if it does not.

    A sequence of period p that covers n tokens shows as n - p equal pairs (i, i + p) in a row::

        a b a b a b        pairs at distance 2: 1 1 1 1
    """
    if len(text) < least or not _may_loop(text) or len(words := tokens(text)) < least:
        return None
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int32, len(words))
    for period in range(1, min(_LONGEST_PERIOD, len(words) // _LEAST_TIMES) + 1):
        need = max(period * (_LEAST_TIMES - 1), least - period)
        same = ids[period:] == ids[:-period]
        if np.count_nonzero(same) < need:
            continue
        breaks = np.flatnonzero(np.concatenate(([True], ~same, [True])))
        runs = np.diff(breaks) - 1
        longest = int(runs.argmax())
        if runs[longest] >= need:
            start = int(breaks[longest])
            times = (int(runs[longest]) + period) // period
            return f"{shown(' '.join(words[start : start + period]))} {times} times"
    return None


_ITEM = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?P<number>\d{1,3})(?P<mark>[.)])(?=[ \t]+\S)|(?P<bullet>[-*+•])[ \t]|"
    r"(?P<heading>#{1,6}[ \t]|\*\*[^*\n]+\*\*:?[ \t]*$))",
    re.M,
)


class BrokenListRule(RuleBase):
    """``broken_list``: a numbered list whose items are all numbered 1, as a copy out of a browser leaves it.

    Items count as one list while they have the same indentation and stand under the same heading (a line in bold is one) and the same
    item of a list around them, whatever else stands between. Three or more that all say 1 are broken. Code is not looked at.
    """

    kind: Literal["broken_list"] = "broken_list"
    action: Literal["renumber", "drop_round", "drop_chat"] = "renumber"
    """Number the items 1, 2, 3, take out the exchange, or leave the conversation out as the original does."""
    items: int = Field(default=3, ge=2)
    """Fewest items that all say 1; with 2, two lists of one item each are taken for one."""

    def apply(self, chat: Chat) -> Chat | Drop:
        if self.action == "renumber":
            return of_roles((ASSISTANT,), self._renumbered, chat)
        at = 0
        while at < len(chat.messages):
            message = chat.messages[at]
            broken = message.role == ASSISTANT and bool(self._broken(message.text))
            if not broken:
                at += 1
                continue
            left = refuse(chat, at, self.action, "broken_list", f"{place(chat, at)} numbers every item of a list 1")
            if isinstance(left, Drop):
                return left
            chat, at = left, 0
        return chat

    def _broken(self, text: str) -> list[list[re.Match[str]]]:
        """The items of each broken list, in order."""
        if text.count("1.") + text.count("1)") < self.items:
            return []
        whole: list[list[re.Match[str]]] = []
        open_lists: dict[int, list[re.Match[str]]] = {}  # by indentation
        for line in _ITEM.finditer(without_code(text)):
            indent = len(line["indent"].expandtabs(4))
            closed = [at for at in open_lists if line["heading"] or at > indent]
            whole += [open_lists.pop(at) for at in closed]
            if line["number"]:
                open_lists.setdefault(indent, []).append(line)
        whole += open_lists.values()
        return [items for items in whole if len(items) >= self.items and all(item["number"] == "1" for item in items)]

    def _renumbered(self, text: str) -> str:
        places = [(item, number) for items in self._broken(text) for number, item in enumerate(items, 1)]
        parts, end = [], 0
        for item, number in sorted(places, key=lambda one: one[0].start()):
            parts += [text[end : item.start("number")], str(number)]
            end = item.end("number")
        return "".join(parts) + text[end:]
