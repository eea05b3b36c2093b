"""What the rules share: the base of their sections, and ways of taking a part out of a conversation that leave its roles in order.

::

    system user assistant user assistant user          messages
    ------ -------------- -------------- ----
    head   round 0        round 1        round 2 (unanswered)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from importlib import resources
from typing import Literal

from sft.config import KeyedError, Section
from sft.curate.chat import ASSISTANT, SYSTEM, USER, Chat, Message
from sft.data.conversation import Drop

Role = Literal["system", "user", "assistant"]
Messages = tuple[Message, ...]
Removal = Literal["drop_round", "drop_chat"]
"""What to do about an exchange that a rule refuses: take out the question with its answer, or leave the whole conversation out."""


class RuleBase(Section):
    """Base of the rules: frozen, told apart by ``kind``, pure (the same conversation gives the same result in any process)."""

    def apply(self, chat: Chat) -> Chat | Drop:
        """The same object if there is nothing to do, another conversation, or why this one is left out."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Read what the rule needs besides its section, so that a fault of it is found before any row is read; nothing here.

        Raises:
            DataError: it cannot be used.
        """

    @property
    def reads(self) -> tuple[str, ...]:
        """Files, folders and globs that decisions depend on, besides the section itself; its key ``files`` names them."""
        return ()


def no_blanks(name: str, phrases: Collection[str]) -> None:
    """Refuse a list with an empty phrase: it would match everywhere.

    Raises:
        KeyedError: which names the list.
    """
    if any(not phrase.strip() for phrase in phrases):
        raise KeyedError(name, "an empty phrase would match everywhere; remove it")


def of_roles(roles: Collection[str], change: Callable[[str], str], chat: Chat) -> Chat:
    """The conversation with ``change`` done to the texts of some roles; itself where no text changed."""
    made = tuple(
        message if message.role not in roles or (text := change(message.text)) == message.text else Message(message.role, text)
        for message in chat.messages
    )
    return chat.with_messages(made)


def answered(messages: Sequence[Message]) -> Messages:
    """Messages without a tail that nobody answers; none if there is no answer at all."""
    end = len(messages)
    while end and messages[end - 1].role != ASSISTANT:
        end -= 1
    return tuple(messages[:end])


def cut(chat: Chat, at: int, reason: str, detail: str) -> Chat | Drop:
    """The conversation up to its message ``at`` (from 0), ending with an answer; dropped for the reason if none comes before."""
    kept = answered(chat.messages[:at])
    return chat.with_messages(kept) if kept else chat.drop(reason, detail)


def rounds(messages: Sequence[Message]) -> tuple[Messages, list[Messages]]:
    """What stands before the first user turn, and the rounds: a user turn with all up to the next user turn.

    Messages without any user turn are all head.
    """
    starts = [at for at, message in enumerate(messages) if message.role == USER]
    if not starts:
        return tuple(messages), []
    ends = [*starts[1:], len(messages)]
    return tuple(messages[: starts[0]]), [tuple(messages[a:b]) for a, b in zip(starts, ends, strict=True)]


def refuse(chat: Chat, action: Removal, judge: Callable[[Chat, int], tuple[str, str] | None]) -> Chat | Drop:
    """Take out each round that holds a refused message, or the conversation.

    Also the conversation if no answer is left. A refused message before the first user turn is taken out alone.

    Args:
        chat: the conversation.
        action: what to do about a refused message.
        judge: the reason and the detail if a message (its place from 0) is refused, by its text and that of the one before it.
    """
    at = 0
    while at < len(chat.messages):
        fault = judge(chat, at)
        if fault is None:
            at += 1
            continue
        begin, end = _round_of(chat.messages, at)
        kept = chat.messages[:begin] + chat.messages[end:]
        if action == "drop_chat" or not any(message.role == ASSISTANT for message in kept):
            return chat.drop(*fault)
        chat, at = chat.with_messages(kept), begin  # what stands before was judged already
    return chat


def _round_of(messages: Messages, at: int) -> tuple[int, int]:
    """Where the round with a message begins and ends; of one that nobody asked for, itself."""
    begin, end = at, at + 1
    while begin > 0 and messages[begin].role != USER:
        begin -= 1
    if messages[begin].role != USER:
        return at, at + 1
    while end < len(messages) and messages[end].role != USER:
        end += 1
    return begin, end


def place(chat: Chat, at: int) -> str:
    """A message in the words of a detail: ``turn 3 (assistant)``."""
    return f"turn {at + 1} ({chat.messages[at].role})"


def shown(text: str, most: int = 60) -> str:
    """A piece of text for a detail, on one line and quoted."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= most else flat[: most - 3] + "...")


@lru_cache(maxsize=8)
def read_list(name: str) -> dict[str, tuple[str, ...]]:
    """A list of phrases that this package ships: ``[section]`` lines, one phrase on each line below, ``#`` begins a comment."""
    text = (resources.files("sft.curate") / "lists" / f"{name}.txt").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    phrases: list[str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            phrases = found.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            assert phrases is not None, f"{name}: a phrase before any section"
            phrases.append(line)
    return {section: tuple(phrases) for section, phrases in found.items()}


__all__ = [
    "ASSISTANT",
    "SYSTEM",
    "USER",
    "Messages",
    "Removal",
    "Role",
    "RuleBase",
    "answered",
    "cut",
    "no_blanks",
    "of_roles",
    "place",
    "read_list",
    "refuse",
    "rounds",
    "shown",
]
