"""Rules about who speaks and whether anything is said: role repair, empty turns, least length, first exchange only."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import Field

from sft.curate.chat import Chat, Message
from sft.curate.rules.base import ASSISTANT, SYSTEM, USER, Messages, RuleBase, answered, cut, place, rounds
from sft.data.conversation import Drop
from sft.text.tokens import HAN, HANGUL, KANA


class RoleRepairRule(RuleBase):
    """Brings roles into the order that training rows must have: (system) user assistant user assistant ...

    Removed: answers that stand before the first question, questions after the last answer.
    ``no_exchange`` if no question with an answer is left, ``role_order`` for what ``doubled`` does not allow to be repaired.
    """

    kind: Literal["role_repair"] = "role_repair"
    doubled: Literal["merge", "keep_last", "drop_chat"] = "merge"
    """Someone speaks twice in a row: join both turns, keep the last (as after a regenerated answer), or leave the conversation out.

    A system message in the middle moves to the start, joined to one that is there; ``drop_chat`` leaves the conversation out."""
    separator: str = "\n\n"
    """Between turns that are joined."""

    def apply(self, chat: Chat) -> Chat | Drop:
        head, spoken = _without_ends(chat.messages)
        late = tuple(message for message in spoken if message.role == SYSTEM)
        if late and self.doubled != "drop_chat":
            head, spoken = head + late, answered([message for message in spoken if message.role != SYSTEM])
        if not any(message.role == ASSISTANT for message in spoken):
            return chat.drop("no_exchange", "no question with an answer is left once roles are in order; nothing to train on")
        runs = [spoken[0]]
        for message in spoken[1:]:
            if message.role != runs[-1].role:
                runs.append(message)
            elif self.doubled != "drop_chat":
                runs[-1] = message if self.doubled == "keep_last" else self._joined([runs[-1], message])
        if self.doubled == "drop_chat" and (late or len(runs) < len(spoken)):
            fault = "a system message stands in the middle" if late else "someone speaks twice in a row"
            return chat.drop("role_order", f"{fault}; 'doubled: merge' would repair it")
        return chat.with_messages((*([self._joined(head)] if head else []), *runs))

    def _joined(self, messages: Messages | list[Message]) -> Message:
        return messages[0] if len(messages) == 1 else Message(messages[0].role, self.separator.join(m.text for m in messages))


def _without_ends(messages: Messages) -> tuple[Messages, Messages]:
    """System messages before the first question, and what is spoken from there to the last answer."""
    start = next((at for at, message in enumerate(messages) if message.role == USER), len(messages))
    return tuple(m for m in messages[:start] if m.role == SYSTEM), answered(messages[start:])


class EmptyTurnRule(RuleBase):
    """``empty_turn``: a turn that says nothing, or holds what no text can; the conversation ends before it.

    Nothing is said by white space and characters without a shape (zero-width spaces and the like). A NUL, half a surrogate pair, or a
    control or private character at the very start mean a damaged text. An empty system message is only taken out.
    """

    kind: Literal["empty_turn"] = "empty_turn"
    action: Literal["cut", "drop_chat"] = "cut"
    """End the conversation before the turn and its question, or leave it out."""

    def apply(self, chat: Chat) -> Chat | Drop:
        if any(message.role == SYSTEM and not message.text.strip() for message in chat.messages):
            chat = chat.with_messages(tuple(m for m in chat.messages if m.role != SYSTEM or m.text.strip()))
        for at, message in enumerate(chat.messages):
            fault = _fault(message.text)
            if fault:
                detail = f"{place(chat, at)} {fault}"
                return chat.drop("empty_turn", detail) if self.action == "drop_chat" else cut(chat, at, "empty_turn", detail)
        return chat


_VISIBLE = re.compile(r"[!-~\u00a1-\u00ac\u00ae-\u02ff\u3001-\ud7a3]")
_BROKEN = re.compile("[\0\ud800-\udfff]")


def _fault(text: str) -> str | None:
    """What is wrong with a text as a whole; None for a sound one."""
    bare = text.lstrip()
    if not bare:
        return "is empty"
    if not _VISIBLE.match(bare):
        # not Cn: what this version of Unicode does not know yet may be an emoji
        if all(unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc", "Cf") for c in bare):
            return "shows nothing but white space and invisible characters"
        if unicodedata.category(bare[0]) in ("Cc", "Co", "Cs"):
            return f"begins with U+{ord(bare[0]):04X}, which is no text"
    found = _BROKEN.search(text) if "\0" in text or not text.isascii() else None
    return f"holds U+{ord(found[0]):04X}, which is no text" if found else None


_WIDE = re.compile(rf"[{HAN}{KANA}{HANGUL}]")


class MinLengthRule(RuleBase):
    """``too_few_turns``, ``too_short``: a conversation that is hardly one."""

    kind: Literal["min_length"] = "min_length"
    characters: int = Field(default=16, ge=0)
    """Fewest characters of all turns together, white space aside; a Chinese, Japanese or Korean one counts as two."""
    turns: int = Field(default=2, ge=0)
    """Fewest turns, the system message not counted."""

    def apply(self, chat: Chat) -> Chat | Drop:
        turns = sum(message.role != SYSTEM for message in chat.messages)
        if turns < self.turns:
            return chat.drop("too_few_turns", f"{turns} turns; the least is {self.turns}")
        found = 0
        for message in chat.messages:
            if found >= self.characters:
                break
            found += _width(message.text)
        if found >= self.characters:
            return chat
        return chat.drop("too_short", f"{found} characters in all turns; the least is {self.characters}")


def _width(text: str) -> int:
    """Characters without white space; wide ones twice."""
    bare = "".join(text.split())
    return len(bare) if bare.isascii() else len(bare) + len(_WIDE.findall(bare))


class SingleRoundRule(RuleBase):
    """Keeps the system message and the first question with its answer; ``no_exchange`` if there is none."""

    kind: Literal["single_round"] = "single_round"

    def apply(self, chat: Chat) -> Chat | Drop:
        head, exchanges = rounds(chat.messages)
        first = answered(exchanges[0]) if exchanges else ()
        if not first:
            return chat.drop("no_exchange", "the first question has no answer; role_repair before this rule may mend it")
        return chat.with_messages((*(message for message in head if message.role == SYSTEM), *first))
