"""Conversations about who the model is, so that a tuned model knows its own name instead of its teacher's.

The questions and answers lie in ``sft/curate/lists/identity_{en,zh}.jsonl``: on each line questions that ask for the same, and answers
that fit all of them. Every question meets every answer, ``{name}`` and ``{organisation}`` filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from typing import Final

from sft.curate.chat import ASSISTANT, USER, Chat, Message
from sft.errors import InputError

LANGUAGES: Final = ("en", "zh")
"""Languages that pairs exist in."""


def identity_chats(name: str, organisation: str, languages: Sequence[str] = LANGUAGES) -> Iterator[Chat]:
    """One conversation of one round for each question and each of its answers.

    Args:
        name: what the model is called.
        organisation: who made it, as it stands within a sentence ("the Language Lab").
        languages: of :data:`LANGUAGES`, in the order of the result.

    Returns:
        Conversations, always the same and in the same order, ``about`` in their extra keys.
        Questions that hold the name or the organisation are left out.

    Raises:
        InputError: an empty name, or a language without pairs.
    """
    if not name.strip() or not organisation.strip():
        raise InputError("identity: name and organisation must say something; they stand in every answer")
    strange = [language for language in languages if language not in LANGUAGES]
    if strange:
        raise InputError(f"identity: there are no pairs in {', '.join(strange)}; choose from {', '.join(LANGUAGES)}")
    return _chats(name, organisation, languages)


def _chats(name: str, organisation: str, languages: Sequence[str]) -> Iterator[Chat]:
    for language in languages:
        number = 0
        for about, questions, answers in pairs(language):
            # "Are you Ada?" is answered with no: asked of Ada herself it would teach a lie
            fitting = [
                q for q in questions if name.casefold() not in q.casefold() and organisation.casefold() not in q.casefold()
            ]
            for question in fitting:
                for answer in answers:
                    text = _SENTENCE_START.sub(_capital, answer.replace("{organisation}", organisation)).replace("{name}", name)
                    row = f"identity_{language}_{number}"
                    yield Chat(row, (Message(USER, question), Message(ASSISTANT, text)), extra={"about": about}, where=row)
                    number += 1


_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))the ")


def _capital(article: re.Match[str]) -> str:
    """The article of "the Language Lab" at the start of a sentence."""
    return article[0].capitalize()


@lru_cache(maxsize=2)
def pairs(language: str) -> tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]:
    """What the pairs of a language are about, the questions, and the answers that fit each of them."""
    text = (resources.files("sft.curate") / "lists" / f"identity_{language}.jsonl").read_text(encoding="utf-8")
    rows = (json.loads(line) for line in text.splitlines())
    return tuple((row["about"], tuple(row["questions"]), tuple(row["answers"])) for row in rows)
