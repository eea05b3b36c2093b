"""A shared conversation as it came: who said what, nothing repaired yet; and what a rule makes of it.

::

    {"id": "a", "model": "m", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "lang": "en"}
    Chat("a", (Message("user", "Hi"), Message("assistant", "Hello.")), model="m", extra={"lang": "en"}, where="a.json:1")

A ``system`` field becomes the first message. The reader of training rows (:mod:`sft.data.formats`) refuses what is out of order. Here it
is kept as it is, so that a rule can repair it or leave it out with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from sft.data.conversation import Drop
from sft.data.fields import RowFault

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

ROLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing"), ASSISTANT),
    "system": SYSTEM,
}
"""Role names of the field, as :mod:`sft.data.formats` reads them."""
_WRITTEN: Final[Mapping[str, str]] = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}
_OWN_KEYS: Final = frozenset({"id", "conversations", "model"})


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: a role (one of :data:`ROLES`' values) and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A shared conversation.

    Attributes:
        id: the row's own id, or its place where it has none.
        messages: in order; any roles in any order, any text, possibly none.
        model: of the row's ``model`` field; None where it says nothing.
        extra: all other keys of the row, carried along unchanged.
        where: ``file:line`` of the row.
    """

    id: str
    messages: tuple[Message, ...]
    model: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    def with_messages(self, messages: tuple[Message, ...]) -> Chat:
        """This conversation with other messages; itself if they are the same."""
        return self if messages == self.messages else replace(self, messages=messages)

    def drop(self, reason: str, detail: str) -> Drop:
        """Leave this conversation out."""
        place = self.id if not self.where or self.id == self.where else f"{self.where} ({self.id})"
        return Drop(place, reason, detail)

    def to_row(self) -> dict[str, Any]:
        """The row in ShareGPT's shape."""
        row: dict[str, Any] = {"id": self.id}
        if self.model is not None:
            row["model"] = self.model
        row["conversations"] = [{"from": _WRITTEN[m.role], "value": m.text} for m in self.messages]
        return {**row, **self.extra}


class Rule(Protocol):
    """What a section of the recipe's ``rules`` can do. Pure: the same conversation gives the same result in any process.

    Applied to its own result a rule changes nothing more.
    """

    @property
    def kind(self) -> str: ...

    def apply(self, chat: Chat) -> Chat | Drop:
        """The conversation itself (the same object: nothing to do), another one (changed), or why it is left out."""
        ...


def read_chat(value: Any, where: str) -> Chat:
    """A decoded ShareGPT row as a conversation.

    Raises:
        RowFault: no conversation can be made out: ``not_an_object``, ``missing_field``, ``wrong_type``, ``unknown_role``.
    """
    if not isinstance(value, Mapping):
        raise RowFault("not_an_object", "a row is an object with a list 'conversations'")
    turns = value.get("conversations")
    if not isinstance(turns, list):
        raise RowFault("missing_field" if turns is None else "wrong_type", "'conversations' must be a list of {from, value}")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise RowFault("wrong_type", f"turn {number} must be an object with texts 'from' and 'value'")
        role = ROLES.get(turn["from"])
        if role is None:
            raise RowFault("unknown_role", f"turn {number} is from {turn['from']!r}; known are {', '.join(ROLES)}")
        messages.append(Message(role, turn["value"]))
    own, model = value.get("id"), value.get("model")
    named = str(own) if isinstance(own, (str, int)) and not isinstance(own, bool) and own != "" else where
    extra = {key: item for key, item in value.items() if key not in _OWN_KEYS}
    system = extra.pop("system", None)
    if not (system is None or isinstance(system, str)):
        raise RowFault("wrong_type", "'system' must be text")
    if system and not (messages and messages[0].role == SYSTEM):
        messages.insert(0, Message(SYSTEM, system))
    return Chat(named, tuple(messages), model if isinstance(model, str) and model else None, extra, where)
