"""Conversations cut at exchanges by their rendered length: the template's words and the system message are counted, too.

::

    system u1 a1 u2 a2 u3 a3      2,048 tokens hold the system message and two exchanges
    ->  id#0  system u1 a1 u2 a2
        id#2  system u3 a3        the system message again, as every training row has it

Greedy from the front. What is cut off is written nowhere else, so every exchange comes out in one row or is listed with its reason.
The cutting itself is that of training rows (:mod:`sft.data.overflow`): what is written here fits there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sft.config import Section
from sft.curate import statistics
from sft.curate.chat import Chat, Message, read_chat
from sft.curate.parts import Batch, PartReport, beginning, read_part
from sft.data.conversation import Conversation, Drop, Drops, Turn
from sft.data.fields import RowFault
from sft.data.formats import FORMATS
from sft.data.overflow import Fitted, exchanges, fit
from sft.errors import DataError
from sft.recipe import ModelSection, TemplateSection

if TYPE_CHECKING:
    from sft.data.tokenize import RowEncoder

_AT_ONCE = 256  # conversations encoded together


class SplitSection(Section):
    """How long a training row may be, and what is counted."""

    model: ModelSection
    """Whose tokenizer counts: ``name_or_path`` as in the training recipe, so that the same rows fit there. With ``scratch`` a tokenizer is
    trained on the rows, as the training will do on those that are left: lengths there differ a little."""
    template: TemplateSection
    """Of the training recipe."""
    max_length: int = Field(ge=8)
    """Most tokens of a row, template and special tokens included."""
    overflow: Literal["keep", "drop", "error"] = "keep"
    """An exchange that is too long alone: kept whole for the training to cut inside the answer, left out and listed, or refused."""


def make_split(settings: Mapping[str, Any]) -> Splitter:
    """The work of a worker: ``{"section": plain data, "fingerprints": of the tokenizer and the template that it names}``."""
    from sft.data.tokenize import RowEncoder
    from sft.model.tokenizer import row_tokenizer

    section = SplitSection.model_validate(settings["section"], strict=False)
    tokenizer, template, _ = row_tokenizer(section.model, section.template)
    return Splitter(RowEncoder(tokenizer, template, section.template.train_on), section)


class Splitter:
    """Splits the chats of a part."""

    def __init__(self, encoder: RowEncoder, section: SplitSection) -> None:
        self._encoder, self._section = encoder, section

    def __call__(self, batch: Batch, report: PartReport) -> Iterator[dict[str, Any]]:
        assert batch.path is not None
        chats = (read_chat(row, row["id"]) for row in read_part(batch.path))
        while some := list(islice(chats, _AT_ONCE)):
            report.rows_in += len(some)
            for chat in some:
                report.characters_in += statistics.size(chat)
                report.bytes_in += statistics.text_bytes(chat)
            for chat in self.split(some, report):
                yield chat.to_row()

    def split(self, chats: Sequence[Chat], report: PartReport) -> Iterator[Chat]:
        """Split some conversations; each exchange comes out in one of them or is listed in the report.

        Raises:
            DataError: an exchange that is too long alone under ``overflow: error``.
        """
        sound: list[tuple[Chat, Conversation]] = []
        for chat in chats:
            try:
                turns = FORMATS["sharegpt"](chat.to_row(), {}).conversations[0]
            except RowFault as fault:
                report.drop(chat.drop(fault.reason, fault.detail))
                continue
            sound.append((chat, Conversation(chat.id, turns, report.source)))
        conversations = [conversation for _, conversation in sound]
        drops = Drops(keep=len(sound))
        fitted = fit(self._encoder.trace(conversations), conversations, self._encoder, self._section.max_length, "split", drops)
        why = {drop.id: (drop.reason, drop.detail) for examples in drops.examples.values() for drop in examples}
        for (chat, conversation), parts in zip(sound, fitted, strict=True):
            yield from self._parts(chat, conversation, parts, why.get(conversation.place), report)

    def _parts(
        self, chat: Chat, conversation: Conversation, parts: Iterable[Fitted], why: tuple[str, str] | None, report: PartReport
    ) -> Iterator[Chat]:
        """The rows of one conversation; whatever is in none of them is listed."""
        head, pairs = exchanges(conversation)
        lost = set(range(len(pairs)))
        count = 0
        language = statistics.language(chat)
        for part in parts:
            _, own = exchanges(part.conversation)
            begin = int(part.conversation.id.rpartition("#")[2]) if len(own) < len(pairs) else 0
            length = len(part.whole.row.ids)
            if length > self._section.max_length and not self._keep(chat, begin, own[0], length, report):
                lost -= {begin}
                continue
            lost -= set(range(begin, begin + len(own)))
            count += 1
            row = self._row(chat, part, len(own) < len(pairs))
            traced = part.whole.row
            statistics.count_row(report, row, length, int(traced.mask.sum()))
            statistics.count_answers(report, language, row, sum(stop - start for start, stop in traced.turns))
            yield row
        if count > 1:
            report.changed["split"] += 1
        for number in sorted(lost):
            reason, detail = why or self._why(conversation, head + pairs[number])
            self._drop(chat, number, pairs[number], reason, detail, report)

    def _why(self, conversation: Conversation, turns: tuple[Turn, ...]) -> tuple[str, str]:
        """Why an exchange stands in no row, though others of its conversation do."""
        if not any(turn.role == "assistant" for turn in turns):
            return "exchange_without_answer", "nobody answers"
        alone = self._encoder.trace([replace(conversation, turns=turns)])[0]
        if isinstance(alone, Drop):
            return alone.reason, alone.detail
        if len(alone.row.ids) > self._section.max_length:
            return "nothing_trained", f"no answer begins within split.max_length = {self._section.max_length} tokens; raise it"
        return "nothing_learnt", "no answer of this exchange is learnt (template.train_on)"

    @staticmethod
    def _drop(chat: Chat, number: int, turns: Iterable[Turn], reason: str, detail: str, report: PartReport) -> None:
        found = replace(chat, id=f"{chat.id}#{number}", where="").drop(reason, detail)
        report.drop(found, beginning((turn.role, turn.content) for turn in turns))

    def _keep(self, chat: Chat, begin: int, turns: Iterable[Turn], length: int, report: PartReport) -> bool:
        """Whether an exchange that is too long alone is kept."""
        limit = self._section.max_length
        detail = f"{length} tokens alone; split.max_length is {limit}"
        if self._section.overflow == "error":
            raise DataError(f"{chat.id}#{begin}: {detail}; raise it, or set split.overflow to keep or drop")
        if self._section.overflow == "drop":
            self._drop(chat, begin, turns, "exchange_too_long", detail, report)
            return False
        report.changed["exchange_too_long_kept"] += 1
        return True

    @staticmethod
    def _row(chat: Chat, part: Fitted, cut: bool) -> Chat:
        if not cut:
            return chat
        return replace(
            chat, id=part.conversation.id, messages=tuple(Message(turn.role, turn.content) for turn in part.conversation.turns)
        )


def fingerprints(section: SplitSection) -> dict[str, str]:
    """sha256 of all that lengths depend on besides the section."""
    from sft.data.tokenize import fingerprint
    from sft.model.tokenizer import row_tokenizer

    tokenizer, template, _ = row_tokenizer(section.model, section.template)
    return {"tokenizer": fingerprint(tokenizer), "template": template.fingerprint}
