"""Rows of every shape that training reads, as conversations: their turns, and their other keys for the rules that look at those.

::

    alpaca    {"instruction": "Add.", "output": "4", "model": "m", "lang": "en"}
    Chat("a.json:1", (Message("user", "Add."), Message("assistant", "4")), model="m", extra={"lang": "en"}, where="a.json:1")

ShareGPT's own shape is read as it came, out of order or empty, so that a rule can repair it (:func:`sft.curate.chat.read_chat`). The other
shapes hold checked conversations; an input of theirs follows the instruction, as training folds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sft.curate.chat import Chat, Message, read_chat
from sft.data.conversation import Conversation, fold_inputs
from sft.data.fields import RowFault
from sft.data.formats import FORMATS
from sft.data.jsonl import RawRow
from sft.data.sources import refuse_broken, sound

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "items", "messages", "system"),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "parallel_lists": ("input", "output", "system"),
    "history": ("prompt", "response", "history", "system"),
    "moss": ("chat", "meta_instruction"),
    "src_tgt": ("src", "tgt"),
    "seed_tasks": ("instruction", "instances"),
}
"""Of each format the keys of a row that its conversations are made of."""
_WRITTEN: Final = frozenset({"id", "model", "conversations", "items", "messages", "system"})
"""Keys that say something in ShareGPT's shape: another key of that name would change what is read from the rows that are written."""


def read_row(name: str, columns: Mapping[str, str], raw: RawRow, source: str) -> list[Chat]:
    """The conversations of a row, several only of a seed task with several instances.

    Args:
        name: of its format.
        columns: field -> the row's name for it.
        raw: as the file was read.
        source: label.

    Raises:
        RowFault: no conversation can be made out.
        DataError: the file breaks off at this row.
    """
    refuse_broken(raw)
    value = sound(raw)
    if name == "sharegpt" and not columns and _is_plain(value):
        return [read_chat(value, raw.where)]
    parsed = FORMATS[name](value, columns)
    base, several = parsed.id or raw.where, len(parsed.conversations) > 1
    used = {columns.get(field, field) for field in ("id", *FIELDS[name])} | _WRITTEN
    extra = {key: item for key, item in value.items() if key not in used}
    model = value.get("model")
    chats = []
    for number, turns in enumerate(parsed.conversations):
        folded = fold_inputs(Conversation(base, turns, source)).turns
        if any(turn.role == "tool" for turn in folded):
            raise RowFault("tool_turn", "a conversation with tools cannot be written in ShareGPT's shape")
        messages = tuple(Message(turn.role, turn.content) for turn in folded)
        own = f"{base}/{number}" if several else base
        chats.append(Chat(own, messages, model if isinstance(model, str) and model else None, extra, raw.where))
    return chats


def as_json(raw: RawRow) -> RawRow:
    """A row of a table with what JSON can carry: dates and the like as text, numbers that are not finite as null."""
    return replace(raw, value=_json_value(raw.value))


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _is_plain(value: Any) -> bool:
    """Whether the names are ``conversations`` of ``from`` and ``value``, or not those of any other spelling of ShareGPT's shape."""
    if not isinstance(value, Mapping) or not isinstance(turns := value.get("conversations"), list):
        return not isinstance(value, Mapping) or not any(isinstance(value.get(key), list) for key in ("items", "messages"))
    return not (turns and isinstance(turns[0], Mapping) and "from" not in turns[0] and "role" in turns[0])
