"""A decoded row seen through the user's column names: its fields by type, or a fault that says what is wrong with them.

::

    row       {"question": "Why?", "output": 3}      columns  {instruction: question}
    text      instruction -> "Why?"                  output -> RowFault: 'output' is a number; it must be text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RowFault(Exception):
    """A row that cannot become a conversation: a snake_case reason to count it by, and a sentence with the cure."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class Row:
    """A row seen through the user's column names. A missing key, and null as Arrow fills it in, count as absent."""

    def __init__(self, value: Any, columns: Mapping[str, str], place: str = "") -> None:
        if not isinstance(value, Mapping):
            raise RowFault("not_an_object", f"{place or 'the row'} is {kind_of(value)}; write an object with named fields")
        self._value, self._columns, self.place = value, columns, f" of {place}" if place else ""

    def name(self, field: str) -> str:
        """The column that holds a field."""
        return self._columns.get(field, field)

    def get(self, *fields: str) -> Any:
        """The value of the first field that is there, else None."""
        return next((v for f in fields if (v := self._value.get(self.name(f))) is not None), None)

    def text(self, *fields: str) -> str:
        """A required text field."""
        return str(self._typed(str, "text", *fields))

    def optional_text(self, field: str) -> str:
        """A text field, or the empty string."""
        return "" if self.get(field) is None else self.text(field)

    def items(self, *fields: str) -> list[Any]:
        """A required list field."""
        return list(self._typed(list, "a list", *fields))

    def entries(self, *fields: str) -> list[Row]:
        """A required list of objects, each known by its number from 1."""
        name = self.called(*fields)
        return [self.inner(value, f"entry {number} of {name}") for number, value in enumerate(self.items(*fields), 1)]

    def inner(self, value: Any, place: str) -> Row:
        """An object inside this row, under the same column names."""
        return Row(value, self._columns, place)

    def called(self, *fields: str) -> str:
        """The fields by their column names, for messages."""
        first, *others = (f"'{self.name(field)}'" for field in fields)
        return first + (f" (or {', '.join(others)})" if others else "") + self.place

    def _typed(self, kind: type, word: str, *fields: str) -> Any:
        value = self.get(*fields)
        if value is None:
            raise RowFault("missing_field", f"{self.called(*fields)} is missing or null; 'columns' can map another name to it")
        if not isinstance(value, kind):
            raise RowFault("wrong_type", f"{self.called(*fields)} is {kind_of(value)}; it must be {word}")
        return value


def kind_of(value: Any) -> str:
    """What a value is, in the words of the messages."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")
