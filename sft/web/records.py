"""What people leave behind: votes in the arena's format of FastChat, and dialogues as ShareGPT rows, one line each.

::

    votes.jsonl   {"question_id", "turn", "model_a", "model_b", "winner": "model_a" | "model_b" | "tie" | "tie (bothbad)", "judge",
                   "conversation_a", "conversation_b", "anony", "language", "tstamp"}
    saved.jsonl   {"id", "model", "conversations": [{"from": "system" | "human" | "gpt", "value"}, ...]}
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft.data.fields import RowFault
from sft.data.formats import FORMATS
from sft.files import append_lines
from sft.web.talk import Refused, Talk

Winner = Literal["model_a", "model_b", "tie", "tie (bothbad)"]
WINNERS: tuple[Winner, ...] = ("model_a", "model_b", "tie", "tie (bothbad)")
# as FastChat's logs write them; of the languages that we tell apart, those that have many speakers
_LANGUAGES = {
    "ar": "Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
_CERTAIN = 0.9


@dataclass(slots=True)
class Battle:
    """Two models side by side without their names, and the one vote that they may get.

    Attributes:
        talk: the dialogue with both; its models are the left and the right one.
        voted: the dialogues that were voted on -> the vote.
    """

    talk: Talk = field(default_factory=lambda: Talk(strict=True))
    voted: dict[str, Winner] = field(default_factory=dict)

    @property
    def vote(self) -> Winner | None:
        return self.voted.get(self.talk.id)

    @property
    def open(self) -> bool:
        """Whether a vote can be cast: both answers to the last question are finished, and nobody voted yet."""
        talk = self.talk
        return bool(talk.exchanges) and not talk.busy and self.vote is None and not talk.unanswered

    def draw(self, names: list[str], chance: random.Random) -> None:
        """Choose two different models for a dialogue that begins, and who stands left.

        Raises:
            Refused: there are not two.
        """
        if not self.talk.exchanges:
            if len(names) < 2:
                raise Refused("two_models")
            self.talk.models = tuple(chance.sample(names, 2))

    def cast(self, winner: Winner, voter: str, path: Path) -> None:
        """Write a vote down; it is on the disk when this returns.

        Raises:
            Refused: there was a vote, an answer is not finished, or the file cannot be written; then there is no vote.
        """
        if self.vote is not None:
            raise Refused("voted")
        if not self.open:
            raise Refused("not_finished")
        talk = self.talk
        last = len(talk.exchanges) - 1
        row: dict[str, Any] = {
            "question_id": talk.id,
            "turn": last + 1,
            "model_a": talk.models[0],
            "model_b": talk.models[1],
            "winner": winner,
            "judge": voter,
            "conversation_a": talk.messages(0, last),
            "conversation_b": talk.messages(1, last),
            "anony": True,
            "language": language_of("\n".join(exchange.question for exchange in talk.exchanges)),
            "tstamp": time.time(),
        }
        _append(path, row)
        self.voted[talk.id] = winner


@dataclass(slots=True)
class Keeper:
    """Dialogues that were saved, so that none is saved twice as it is.

    Attributes:
        rows: dialogue -> its texts as they were last saved.
        counts: dialogue -> how often it was saved.
    """

    rows: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def save(self, talk: Talk, path: Path) -> int:
        """Append a dialogue as a training row. Returns how many answers it has.

        Raises:
            Refused: nothing to save, an answer that has no end of its own, answers under different system prompts, a row that
                training could not read, one that is saved already, or a file that cannot be written.
        """
        row = row_of(talk)
        texts = json.dumps(row["conversations"])
        if self.rows.get(talk.id) == texts:
            raise Refused("saved_already", path=path)
        count = self.counts.get(talk.id, 0) + 1
        _append(path, {"id": f"{talk.id}_{count}", **row})
        self.rows[talk.id], self.counts[talk.id] = texts, count
        return len(talk.exchanges)


def row_of(talk: Talk) -> dict[str, Any]:
    """A dialogue as a ShareGPT row, without an id.

    Raises:
        Refused: see :meth:`Keeper.save`.
    """
    talk.refuse_while_busy()
    if not talk.exchanges:
        raise Refused("nothing_to_save")
    answers = [exchange.answers[0] for exchange in talk.exchanges]
    for number, answer in enumerate(answers, 1):
        if answer.state != "whole":  # trained on, it would teach to stop there
            raise Refused("cut_answer", number=number)
    if len({answer.system for answer in answers}) > 1:
        raise Refused("two_systems")
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    told = talk.messages(0, len(talk.exchanges) - 1)
    models = sorted({answer.model for answer in answers})
    row = {"model": ", ".join(models), "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in told]}
    try:
        FORMATS["sharegpt"](row, {})
    except RowFault as fault:
        raise Refused("unreadable_row", why=fault.detail) from None
    return row


def language_of(text: str) -> str:
    """The language of a text by its English name, or ``unknown``."""
    from sft.curate.rules.language import languages_of

    code, share = max(languages_of([text]).items(), key=lambda one: one[1], default=("", 0.0))
    return _LANGUAGES.get(code, "unknown") if share >= _CERTAIN else "unknown"


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        append_lines(path, [row])
    except OSError as error:
        raise Refused("cannot_write", path=path, why=error.strerror or str(error)) from None
