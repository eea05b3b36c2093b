"""Rules about what a row says besides its turns: the model that answered, and any other key."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field

from sft.config import KeyedError
from sft.curate.chat import Chat
from sft.curate.rules.base import RuleBase, no_blanks, shown
from sft.data.conversation import Drop


class ModelRule(RuleBase):
    """``other_model``, ``model_missing``: by the row's ``model``. Patterns with ``*`` and ``?``; case does not matter."""

    kind: Literal["model"] = "model"
    keep: tuple[str, ...] = ()
    """Keep only what one of these matches; empty keeps all."""
    skip: tuple[str, ...] = ()
    """Leave out what one of these matches, even if ``keep`` matches too."""
    missing: Literal["keep", "drop"] = "keep"
    """Rows that name no model. The original writes an empty name into them and so drops them."""

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> ModelRule:
        _one_of_both(self.keep, self.skip, "model: gpt-4*", self.missing == "drop")
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        if chat.model is None or not chat.model.strip():
            if self.missing == "drop":
                return chat.drop("model_missing", "the row does not say which model answered; 'missing: keep' would keep it")
            return chat
        if _matches([chat.model], self.skip) or (self.keep and not _matches([chat.model], self.keep)):
            return chat.drop("other_model", f"the model is {shown(chat.model)}")
        return chat


class FieldRule(RuleBase):
    """``field_value``, ``field_set``, ``field_missing``: by any other key of the row.

    A key that is absent, null, or holds an empty text, list or object is missing. A list is matched by any of its items; numbers, true
    and false as JSON writes them.
    """

    kind: Literal["field"] = "field"
    field: str = Field(min_length=1)
    """The key, such as ``plugins`` or ``lang``; dots lead into objects (``meta.source``)."""
    keep: tuple[str, ...] = ()
    """Keep only what one of these matches (``*`` and ``?``; case does not matter); empty keeps all."""
    skip: tuple[str, ...] = ()
    """Leave out what one of these matches, even if ``keep`` matches too."""
    present: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out every row with the key, as the original does for ``plugins``."""
    missing: Literal["keep", "drop"] = "keep"
    """Rows without it."""
    required: bool = True
    """Stop if no row of any source has the key: it is taken for a misspelt one. ``false`` where a set may well be without it."""

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> FieldRule:
        if self.field in ("id", "model", "conversations"):
            raise KeyedError("field", f"{self.field!r} is no further key of the row; the rule 'model' looks at the model")
        if self.present == "drop" and (self.keep or self.skip):
            raise KeyedError("present", "drops every row with the key, so 'keep' and 'skip' decide nothing; remove one of them")
        _one_of_both(self.keep, self.skip, "lang: en", "drop" in (self.present, self.missing))
        return self

    def apply(self, chat: Chat) -> Chat | Drop:
        found = _value(chat.extra, self.field)
        if found is None or (isinstance(found, (str, list, tuple, dict)) and not found):
            return chat.drop("field_missing", f"the row has no {self.field!r}") if self.missing == "drop" else chat
        if self.present == "drop":
            return chat.drop("field_set", f"the row has {self.field!r}: {shown(_text(found))}")
        texts = [_text(item) for item in found] if isinstance(found, (list, tuple)) else [_text(found)]
        if _matches(texts, self.skip) or (self.keep and not _matches(texts, self.keep)):
            return chat.drop("field_value", f"{self.field!r} is {shown(_text(found))}")
        return chat


def has_field(extra: Mapping[str, Any], field: str) -> bool:
    """Whether the key is there, be it null or empty; dots lead into objects."""
    *outer, last = field.split(".")
    inside = _value(extra, ".".join(outer)) if outer else extra
    return isinstance(inside, Mapping) and last in inside


def _value(extra: Mapping[str, Any], field: str) -> Any:
    found: Any = extra
    for key in field.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _one_of_both(keep: tuple[str, ...], skip: tuple[str, ...], example: str, other: bool) -> None:
    no_blanks("keep", keep)
    no_blanks("skip", skip)
    if not (keep or skip or other):
        raise KeyedError("keep", f"the rule does nothing: say what to keep or to skip, such as {example}")


def _matches(texts: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(text.casefold().strip(), pattern.casefold()) for text in texts for pattern in patterns)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
