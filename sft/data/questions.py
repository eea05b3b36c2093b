"""Questions that models are compared on, in the two shapes that FastChat made common.

::

    {"question_id": 1, "text": "How ...?", "category": "generic"}                                    Vicuna's 80, one turn
    {"question_id": 81, "turns": ["Write ...", "Now ..."], "category": "math", "reference": [...]}   MT-bench, answers to hold to
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data.jsonl import read_rows
from sft.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: unique in its file.
        category: such as ``math``; ``general`` where the file names none.
        turns: what is asked, one after the other.
        reference: what a right answer to each turn says, or ""; no entry if nobody wrote one down.
    """

    id: int | str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """sha256 over what is asked."""
        return hashlib.sha256(json.dumps(self.turns, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def read_questions(path: str | Path) -> list[Question]:
    """Read a file of questions, in file order.

    Raises:
        DataError: no such file, a row that is no question, or an id that is there twice, with ``file:line``.
    """
    found: list[Question] = []
    places: dict[int | str, str] = {}
    for row in read_rows(path):
        if row.error is not None:
            raise DataError(f"{row.where}: {row.error}")
        question = _question(row.value, row.where)
        if question.id in places:
            raise DataError(
                f"{row.where}: question_id {question.id!r} stands at {places[question.id]} already; give it another"
            )
        places[question.id] = row.where
        found.append(question)
    if not found:
        raise DataError(f"{path}: there is no question in this file")
    return found


def _question(value: Any, where: str) -> Question:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a question is an object with question_id, and text or turns")
    name, category = value.get("question_id"), value.get("category", "general")
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise DataError(f"{where}: question_id must be a number or a name, not {name!r}")
    if not isinstance(category, str) or not category:
        raise DataError(f"{where}: category must be a word, not {category!r}")
    if ("turns" in value) == ("text" in value):
        raise DataError(f"{where}: give one of text and turns")
    turns = _texts(value["turns"] if "turns" in value else [value["text"]], "turns" if "turns" in value else "text", where)
    given = value.get("reference") or []
    reference = _texts([given] if isinstance(given, str) else given, "reference", where, empty=True)  # MT-bench has some
    if len(reference) > len(turns):
        raise DataError(f"{where}: {len(reference)} references for {len(turns)} turns; give one for each")
    if not turns:
        raise DataError(f"{where}: turns is empty; write what is asked")
    return Question(name, category, turns, reference)


def _texts(value: Any, key: str, where: str, *, empty: bool = False) -> tuple[str, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or not all(isinstance(text, str) and (empty or text.strip()) for text in value):
        raise DataError(f"{where}: {key} must be text{'' if empty else ' that is not empty'}")
    return tuple(value)
