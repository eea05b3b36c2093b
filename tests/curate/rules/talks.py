"""Conversations in short, and rules as a recipe gives them."""

from __future__ import annotations

import json
import re
from typing import Any

from sft.config import Section
from sft.curate.chat import Chat, Message
from sft.curate.rules import RuleBase, RuleSection
from sft.data.conversation import Drop

_ROLES = {"s": "system", "u": "user", "a": "assistant"}


class _Recipe(Section):
    rule: RuleSection


def rule(kind: str, **keys: Any) -> RuleBase:
    """The rule of a recipe section, read as JSON as a recipe is."""
    return _Recipe.model_validate_json(json.dumps({"rule": {"kind": kind, **keys}})).rule


def talk(*turns: str, **fields: Any) -> Chat:
    """``talk("u Hi", "a Hello.")``: a letter for the role, then the text."""
    return Chat("t", tuple(Message(_ROLES[turn[0]], turn[2:]) for turn in turns), fields.pop("model", None), fields)


def turns(found: Chat | Drop) -> list[str]:
    """The other way round."""
    assert isinstance(found, Chat), found
    return [f"{message.role[0]} {message.text}" for message in found.messages]


def answer(text: str, asked: str = "Hi there") -> Chat:
    return talk(f"u {asked}", f"a {text}")


def said(found: Chat | Drop) -> str:
    """The text of the last turn."""
    assert isinstance(found, Chat), found
    return found.messages[-1].text


def check_drop(found: Chat | Drop, reason: str, detail: str) -> None:
    """That a conversation was dropped for a reason, and what the message says (a pattern)."""
    assert isinstance(found, Drop), found
    assert found.reason == reason
    assert re.search(detail, found.detail), found.detail
    assert found.id == "t"
