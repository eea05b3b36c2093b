"""Conversations that hold what an evaluation set asks; the search itself is :mod:`sft.text.contamination`."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import Field

from sft.curate.chat import Chat
from sft.curate.rules.base import Removal, Role, RuleBase, place, refuse, shown
from sft.curate.rules.prose import without_code
from sft.data.conversation import Drop
from sft.data.jsonl import read_rows
from sft.data.sources import resolve_files
from sft.errors import DataError
from sft.recipe import Source
from sft.text.contamination import FIELDS, EvaluationTexts


class ContaminationRule(RuleBase):
    """``in_evaluation_set``, ``overlaps_evaluation_set``: a turn is an evaluation text, or shares a run of words with one.

    Words in any case and with any punctuation; Chinese, Japanese and Korean by characters. An evaluation text that is shorter than
    ``ngram`` is looked for whole, and below six words it must be all that the turn says.
    """

    kind: Literal["contamination"] = "contamination"
    files: tuple[str, ...] = Field(min_length=1)
    """Evaluation sets: files, folders or globs, of the endings that a source may have. Each must hold rows."""
    fields: tuple[str, ...] = Field(default=FIELDS, min_length=1)
    """Keys of their rows that hold texts, or lists of texts."""
    ngram: int = Field(default=13, ge=4, le=100)
    """Words in a row (characters, in Chinese) that must not be shared; 13 as in Brown et al. 2020."""
    action: Removal = "drop_chat"
    """Leave the conversation out, or take out the exchange."""
    code: bool = True
    """Search code too. Without a set that asks about code, false spares loops that everybody writes the same way."""
    roles: tuple[Role, ...] = Field(default=("user", "assistant"), min_length=1)
    """Whose turns are searched."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.files

    def prepare(self) -> None:
        self.texts()

    def texts(self) -> EvaluationTexts:
        """The sets, read once per process.

        Raises:
            DataError: a set that is not there, cannot be read or holds no rows, or a row with none of the fields.
        """
        return _evaluation(self.files, self.fields, self.ngram)

    def apply(self, chat: Chat) -> Chat | Drop:
        return refuse(chat, self.action, self._judged)

    def _judged(self, chat: Chat, at: int) -> tuple[str, str] | None:
        message = chat.messages[at]
        if message.role not in self.roles:
            return None
        found = self.texts().find(message.text if self.code else without_code(message.text))
        if found is None:
            return None
        reason = "in_evaluation_set" if found.exact else "overlaps_evaluation_set"
        return reason, f"{place(chat, at)} shares {shown(found.text)} with {found.where}"


@lru_cache(maxsize=8)
def _evaluation(names: tuple[str, ...], fields: tuple[str, ...], ngram: int) -> EvaluationTexts:
    files = [str(path) for name in names for path in resolve_files(Source(path=name))]
    for file in files:
        if next(read_rows(file), None) is None:
            raise DataError(f"{file}: an evaluation set without rows guards nothing; give the whole set, or take it out")
    return EvaluationTexts(files, fields, ngram)
