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

    0 switches a check off.
    """

    kind: Literal["repetition"] = "repetition"
    action: Removal = "drop_chat"
    """Leave the conversation out, or take out the exchange."""
    roles: tuple[Role, ...] = Field(default=("assistant",), min_length=1)
    """Whose turns are looked at."""
    digits: int = Field(default=20, ge=0)
    """The same digit so many times in a row. The original takes nine, and so 295.6666666666667 and 1000000000."""
    characters: int = Field(default=30, ge=0)
    """Any other character so many times in a row; white space and what lines are drawn with (``---``, ``===``, ``...``) aside."""
    lines: int = Field(default=8, ge=0)
    """The same line so many times, and three of ten lines or more; a refrain stays below. Labels ("Pros:") and short lines aside."""
    phrase: int = Field(default=80, ge=0)
    """A sequence of up to 32 words (CJK characters) that follows itself, so long in all, and at least six times."""

    def apply(self, chat: Chat) -> Chat | Drop:
        return refuse(chat, self.action, self._judged)

    def _judged(self, chat: Chat, at: int) -> tuple[str, str] | None:
        message = chat.messages[at]
        found = self._fault(message.text) if message.role in self.roles else None
        return None if found is None else (found[0], f"{place(chat, at)} repeats {found[1]}")

    def _fault(self, text: str) -> tuple[str, str] | None:
        text = without_code(text)
        longest = _longest_run(text)
        if self.digits and longest >= self.digits and (found := _digits(self.digits).search(text)):
            return "repeated_digits", shown(found[0])
        if self.characters and longest >= self.characters and (found := _characters(self.characters).search(text)):
            return "repeated_characters", shown(found[0])
        if self.lines and text.count("\n") + 1 >= self.lines:
            lines = [line for line in map(str.strip, text.split("\n")) if line]
            often = (
                (line, n) for line, n in Counter(lines).most_common(_OFTEN) if n >= max(self.lines, _LINE_SHARE * len(lines))
            )
            if found_line := next((one for one in often if _speaks(one[0])), None):
                return "repeated_lines", f"the line {shown(found_line[0])} {found_line[1]} times"
        loop = _loop(text, self.phrase) if self.phrase else None
        return None if loop is None else ("repeated_phrase", loop)


def _longest_run(text: str) -> int:
    """How often the most repeated character of a text, white space and all, follows itself."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if codes.size == 0:
        return 0
    ends = np.flatnonzero(codes[1:] != codes[:-1])
    if ends.size == 0:
        return int(codes.size)
    between = int((ends[1:] - ends[:-1]).max()) if ends.size > 1 else 0
    return max(between, int(ends[0]) + 1, int(codes.size - 1 - ends[-1]))


@lru_cache(maxsize=16)
def _digits(least: int) -> re.Pattern[str]:
    return re.compile(rf"(\d)\1{{{least - 1}}}")


@lru_cache(maxsize=16)
def _characters(least: int) -> re.Pattern[str]:
    return re.compile(rf"([^\s\d\-=_*.#~+|/\\<>─━═—–•·…　]|／)\1{{{least - 1}}}")


_LINE_SHARE = 0.3
_OFTEN = 3  # no more lines can make up three tenths each
_LEAST_LETTERS = 4


def _speaks(line: str) -> bool:
    """Whether a line says something by itself: a label does not, and markup and statements without a fence say it to a machine."""
    if line.rstrip("*_ ").endswith((":", "：", ";", "{", "}", ">")):
        return False
    return sum(map(str.isalnum, line[:40])) >= _LEAST_LETTERS


_LONGEST_PERIOD, _LEAST_TIMES = 32, 6
_SURE = 80  # words of a loop from which on _may_loop cannot miss it


def _may_loop(text: str) -> bool:
    """Whether pieces of a text come again soon: no loop without that, if it is spelled the same way each time.

    Six periods that are 80 characters or more hold three neighbours of 16 characters, at multiples of 16, that each come again within a
    period.
    """
    hits = 0
    for at in range(0, len(text) - _PIECE, _PIECE):
        piece = text[at : at + _PIECE]
        hits = hits + 1 if text.find(piece, at + 1, at + 32 * _PIECE) > 0 and not piece.isspace() else 0
        if hits == 3:
            return True
    return False


_PIECE = 16


def _loop(text: str, least: int) -> str | None:
    """What a text says over and over: how often, and what; None if it does not.

    A sequence of period p that covers n tokens shows as n - p equal pairs (i, i + p) in a row::

        a b a b a b        pairs at distance 2: 1 1 1 1
    """
    if len(text) < least or (least >= _SURE and not _may_loop(text)) or len(words := tokens(text)) < least:
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
        return refuse(chat, self.action, self._judged)

    def _judged(self, chat: Chat, at: int) -> tuple[str, str] | None:
        message = chat.messages[at]
        broken = message.role == ASSISTANT and bool(self._broken(message.text))
        return ("broken_list", f"{place(chat, at)} numbers every item of a list 1") if broken else None

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
