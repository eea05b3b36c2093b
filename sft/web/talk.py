"""A dialogue with one model, or the same one with two, as the server of the page holds it: what the browser shows is drawn from here.

::

    Talk        ask, regenerate, edit, undo, stop, new
    exchanges   [question, [answer]]                       a chat
                [question, [answer left, answer right]]    side by side

Text is kept as it was typed and streamed; nothing is read back from what a browser displays.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from sft.web.servers import Fault, Piece

State = Literal["writing", "whole", "length", "stopped", "broken"]
_BEAT = 0.1  # seconds between two drawings of an answer that is being written
_MOST_UNDONE = 50


class Refused(Exception):
    """Something that cannot be done now. ``key`` names the words that say why, ``values`` go into them."""

    def __init__(self, key: str, **values: object) -> None:
        self.key, self.values = key, values
        super().__init__(key)


@dataclass(slots=True)
class Answer:
    """One answer.

    Attributes:
        model: who writes it.
        system: the system prompt that it was written under.
        text: what there is of it.
        state: ``whole`` came to its own end, ``length`` was cut at the longest answer, ``stopped`` by the user, ``broken`` by a fault.
        fault: what went wrong, for ``broken``.
    """

    model: str
    system: str
    text: str = ""
    state: State = "writing"
    fault: Fault | None = None

    @property
    def finished(self) -> bool:
        return self.state in ("whole", "length")


@dataclass(slots=True)
class Exchange:
    """A question and the answer of each side."""

    question: str
    answers: list[Answer]


@dataclass(slots=True)
class _Before:
    """What an undo brings back: the dialogue as it was, and a question that goes back to where it was typed."""

    id: str
    models: tuple[str, ...]
    exchanges: list[Exchange]
    question: str = ""


Streams = Callable[[Answer, list[dict[str, str]]], AsyncIterator[Piece]]


@dataclass(slots=True)
class Talk:
    """A dialogue of one page.

    Attributes:
        strict: an answer counts only if it is finished (side by side); else any text does.
        models: who writes, one for each side.
    """

    strict: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)
    models: tuple[str, ...] = ()
    exchanges: list[Exchange] = field(default_factory=list)
    _past: list[_Before] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    busy: bool = False

    @property
    def unanswered(self) -> bool:
        """Whether the last question has no answer that the dialogue could go on from."""
        last = self.exchanges[-1].answers if self.exchanges else []
        return any(not answer.finished and (self.strict or not answer.text) for answer in last)

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    def ask(self, question: str, system: str) -> None:
        """Put a question; its answers are empty yet.

        Raises:
            Refused: there is nothing to ask, nobody to ask, or the last question has no answer.
        """
        self.refuse_while_busy()
        if not question.strip():
            raise Refused("nothing_typed")
        if not self.models:
            raise Refused("no_model")
        if self.unanswered:
            raise Refused("unanswered")
        self._remember(question)
        self.exchanges.append(Exchange(question, self._blank(system)))

    def regenerate(self, system: str) -> None:
        """Empty the last answers, to be written again."""
        self.refuse_while_busy()
        if not self.exchanges:
            raise Refused("no_question")
        self._remember()
        self.exchanges[-1].answers = self._blank(system)

    def edit_question(self, index: int, text: str, system: str) -> None:
        """Put another question in the place of one; what came after it is gone until undone, and its answer is to be written."""
        self.refuse_while_busy()
        if not text.strip():
            raise Refused("nothing_typed")
        if not self.models:
            raise Refused("no_model")
        self._remember()
        self.exchanges[index:] = [Exchange(text, self._blank(system))]

    def edit_answer(self, index: int, text: str) -> None:
        """Put words of the user in the place of an answer, which is whole then."""
        self.refuse_while_busy()
        if not text.strip():
            raise Refused("nothing_typed")
        self._remember()
        answer = self.exchanges[index].answers[0]
        answer.text, answer.state, answer.fault = text, "whole", None

    def new(self) -> None:
        """Start over; undone by :meth:`undo`."""
        self.refuse_while_busy()
        if self.exchanges:
            self._remember()
        self.id, self.exchanges = uuid4().hex, []

    def undo(self, typed: str) -> str:
        """Take the last step back. Returns what the place to type into holds then: what is ``typed``, behind a question taken back."""
        self.refuse_while_busy()
        if not self._past:
            raise Refused("nothing_to_undo")
        before = self._past.pop()
        self.id, self.models, self.exchanges = before.id, before.models, before.exchanges
        return "\n".join(text for text in (before.question, typed) if text)

    def messages(self, side: int, exchange: int | None = None) -> list[dict[str, str]]:
        """The dialogue of one side as the API has it: to the last question without its answer, or to the end of an exchange."""
        told = self.exchanges if exchange is None else self.exchanges[: exchange + 1]
        found = []
        if told and told[-1].answers[side].system.strip():
            found.append({"role": "system", "content": told[-1].answers[side].system})
        for number, one in enumerate(told, 1):
            found.append({"role": "user", "content": one.question})
            if number < len(told) or exchange is not None:
                found.append({"role": "assistant", "content": one.answers[side].text})
        return found

    async def write(self, streams: Streams) -> AsyncIterator[None]:
        """Write the last answers, all sides at the same time. Yields whenever there is something new to draw, and at the end.

        Closing it, or :meth:`stop`, ends the requests; answers keep what came until then.
        """
        answers = self.exchanges[-1].answers
        told = [self.messages(side) for side in range(len(answers))]
        self.busy = True
        self._tasks = [asyncio.create_task(_fill(answer, streams(answer, told[side]))) for side, answer in enumerate(answers)]
        try:
            yield
            pending: set[asyncio.Task[None]] = set(self._tasks)
            drawn = 0
            while pending:
                _, pending = await asyncio.wait(pending, timeout=_BEAT, return_when=asyncio.FIRST_COMPLETED)
                written = sum(len(answer.text) for answer in answers)
                if pending and written != drawn:
                    drawn = written
                    yield
        finally:
            self.stop()
            ends = await asyncio.gather(*self._tasks, return_exceptions=True)
            for answer in answers:
                if answer.state == "writing":
                    answer.state = "stopped"
            self._tasks, self.busy = [], False
        yield
        for end in ends:
            if isinstance(end, Exception):  # no fault of a server: a bug
                raise end

    def stop(self) -> None:
        """End the answers that are being written."""
        for task in self._tasks:
            task.cancel()

    def refuse_while_busy(self) -> None:
        if self.busy:
            raise Refused("busy")

    def _blank(self, system: str) -> list[Answer]:
        return [Answer(model, system) for model in self.models]

    def _remember(self, question: str = "") -> None:
        self._past.append(_Before(self.id, self.models, copy.deepcopy(self.exchanges), question))
        del self._past[:-_MOST_UNDONE]


async def _fill(answer: Answer, pieces: AsyncIterator[Piece]) -> None:
    """Write an answer to its end, or to what ended it."""
    finish = None
    try:
        async for piece in pieces:
            answer.text += piece.text
            finish = piece.finish or finish
        answer.state = "length" if finish == "length" else "whole"
    except Fault as fault:
        answer.state, answer.fault = "broken", fault
