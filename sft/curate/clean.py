"""The rules of a recipe over the rows of a part, each change and each drop counted.

A conversation goes through the rules in their order, and again as long as any of them changes it: an answer may be empty only after a
rule has taken something out of it. What comes out is changed by no rule any more, so cleaning it again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from sft.curate import statistics
from sft.curate.chat import Chat, Rule
from sft.curate.parts import Batch, PartReport, beginning
from sft.curate.recipe import rules_of
from sft.curate.rules.fields import FieldRule, has_field
from sft.curate.shapes import read_row
from sft.data.conversation import Drop
from sft.data.fields import RowFault

FIELDS_SEEN = "fields"
"""Histogram of the rows that have a key which a rule asks for."""
_MOST_ROUNDS = 8


def make_clean(settings: Mapping[str, Any]) -> Cleaner:
    """The work of a worker: ``{"rules": [...], "formats": {source label: [format, columns]}}``."""
    return Cleaner(rules_of(settings["rules"]), settings["formats"])


class Cleaner:
    """Cleans the rows of a part."""

    def __init__(self, rules: Sequence[Rule], formats: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
        self._rules, self._formats = rules, formats
        self._fields = tuple({rule.field for rule in rules if isinstance(rule, FieldRule) and rule.required})

    def __call__(self, batch: Batch, report: PartReport) -> Iterator[dict[str, Any]]:
        for raw in batch.rows:
            report.rows_in += 1
            try:
                chats = read_row(*self._formats[batch.source], raw, batch.source)
            except RowFault as fault:
                report.drop(Drop(raw.where, fault.reason, fault.detail))
                continue
            for chat in chats:
                statistics.count_read(report, chat)
                self._count_fields(chat, report)
                cleaned = self.clean(chat, report)
                if cleaned is not None:
                    statistics.count_kept(report, cleaned)
                    yield cleaned.to_row()

    def _count_fields(self, chat: Chat, report: PartReport) -> None:
        """Rows with the keys that some row must have."""
        for field in self._fields:
            if has_field(chat.extra, field):
                report.count(FIELDS_SEEN, field)

    def clean(self, chat: Chat, report: PartReport) -> Chat | None:
        """Apply the rules until none changes anything; None if one of them leaves the conversation out."""
        counted: set[str] = set()
        for _ in range(_MOST_ROUNDS):
            before = chat
            for rule in self._rules:
                found = rule.apply(chat)
                if isinstance(found, Drop):
                    report.drop(found, beginning((m.role, m.text) for m in chat.messages))
                    return None
                if found is not chat and rule.kind not in counted:
                    counted.add(rule.kind)
                    report.change(rule.kind, chat.where or chat.id, *_difference(chat, found))
                chat = found
            if chat is before:
                return chat
        report.drop(
            chat.drop("unstable", f"the rules still change it after {_MOST_ROUNDS} rounds; two of them undo each other")
        )
        return None


def _difference(before: Chat, after: Chat) -> tuple[str, str]:
    """The first message that a rule changed, as it was and as it is; or those that came or went, with their roles."""
    for tag, a, b, c, d in SequenceMatcher(None, before.messages, after.messages, autojunk=False).get_opcodes():
        olds, news = before.messages[a:b], after.messages[c:d]
        if tag == "replace" and len(olds) == len(news) and olds[0].role == news[0].role:
            return olds[0].text, news[0].text
        if tag != "equal":
            old, new = ("\n\n".join(f"{m.role}: {m.text}" for m in some) for some in (olds, news))
            return old, new
    return str(before.model), str(after.model)
