"""Answers of one model to a file of questions, in FastChat's format: batched, resumable, sampled alike however rows are batched.

::

    {"question_id": 81, "answer_id": "3f...", "model_id": "my-7b", "choices": [{"index": 0, "turns": ["...", "..."],
     "finish": ["stop", "length"]}], "category": "writing", "sampling": {...}, "tstamp": 1764250000.0}

``answer_id`` is a fingerprint of model name, weights, question, template and sampling, so a file that was begun under other settings is known.
Lines are written as they come and synced; a line that a stop cut off is answered again. When all are there, the file is put in the order
of the questions. Turns of questions that are not answered whole yet lie beside it, where each was paid for (:class:`Turns`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sft.data.conversation import Conversation, Turn
from sft.data.jsonl import write_jsonl_atomic
from sft.data.questions import Question
from sft.errors import InputError, RunError
from sft.files import append_lines

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""By category, as FastChat has them; all others :data:`OTHERWISE`."""
OTHERWISE = 0.7


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn that is to be answered.

    Attributes:
        conversation: ends with a user turn.
        temperature: 0 is greedy.
        max_tokens: longest answer.
        seed: of the sampling; the same for a question, whatever stands beside it in a batch.
    """

    conversation: Conversation
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Said:
    """An answer. ``finish`` is ``stop``, or ``length`` where the model had not come to an end; of a server, what it says."""

    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A question that got no answer for good: the code of the fault, and what the server said (never a key)."""

    question: Question
    code: str
    detail: str = ""


class Answerer(Protocol):
    """What answers in batches: the model itself. An attribute ``batch`` says how many questions it wants at once."""

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""


@runtime_checkable
class Concurrent(Protocol):
    """What answers many questions side by side, each turn by turn: a server."""

    def answer_each(self, talks: Sequence[Talk], done: Callable[[Talk, list[Said]], None]) -> list[Failed]:
        """Answer each question, and call ``done`` with the answers to all of its turns as soon as they are there.

        Returns:
            The questions that failed.
        """


@dataclass(frozen=True, slots=True)
class Settings:
    """What answers depend on besides model and questions.

    Attributes:
        model_id: the name in the file.
        template: fingerprint of the chat template, or what a server is called.
        weights: fingerprint of the weights: a model that was trained again under its old name has answered nothing yet.
        max_tokens: longest answer of a turn.
        temperature: for all questions; None takes that of the category.
        engine: what answers, where it is not the model itself: it draws otherwise.
    """

    model_id: str
    template: str
    max_tokens: int = 1024
    temperature: float | None = None
    weights: str = ""
    engine: str = ""

    def of(self, question: Question) -> dict[str, Any]:
        """The sampling of a question, as it is recorded."""
        warm = self.temperature if self.temperature is not None else TEMPERATURES.get(question.category, OTHERWISE)
        asked = {"temperature": warm, "max_tokens": self.max_tokens, "template": self.template, "weights": self.weights}
        return {**asked, "engine": self.engine} if self.engine else asked

    def answer_id(self, question: Question) -> str:
        """Fingerprint of an answer before it is given."""
        parts = [self.model_id, question.id, question.fingerprint(), self.of(question)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:22]


@dataclass(frozen=True, slots=True)
class Talk:
    """One question on its way to a line of the file.

    Attributes:
        question: what is asked.
        settings: how.
        kept: answers to its first turns that an earlier call got.
        keep: called with each answer that another turn follows.
    """

    question: Question
    settings: Settings
    kept: tuple[Said, ...] = ()
    keep: Callable[[Said], None] = lambda said: None

    def asked(self, said: Sequence[Said]) -> Asked:
        """The turn that comes after these answers, with all before it."""
        turns: list[Turn] = []
        for text, answered in zip(self.question.turns, said, strict=False):
            turns += [Turn("user", text), Turn("assistant", answered.text)]
        turns.append(Turn("user", self.question.turns[len(said)]))
        conversation = Conversation(f"question {self.question.id}", tuple(turns), "questions")
        seed = int(self.settings.answer_id(self.question)[:8], 16) + len(said)
        return Asked(conversation, self.settings.of(self.question)["temperature"], self.settings.max_tokens, seed)

    def record(self, said: Sequence[Said]) -> dict[str, Any]:
        """The line of the file."""
        choice = {"index": 0, "turns": [one.text for one in said], "finish": [one.finish for one in said]}
        return {
            "question_id": self.question.id,
            "answer_id": self.settings.answer_id(self.question),
            "model_id": self.settings.model_id,
            "choices": [choice],
            "category": self.question.category,
            "sampling": self.settings.of(self.question),
            "tstamp": time.time(),
        }


def answer_file(
    answerer: Answerer | Concurrent, questions: Sequence[Question], settings: Settings, out: Path, *, batch: int = 16
) -> int:
    """Answer what ``out`` does not hold yet.

    Args:
        answerer: what answers.
        questions: in the order of the finished file.
        settings: recorded with each answer.
        out: JSONL; begun anew, or gone on with.
        batch: questions that are asked at once, of an answerer that does not say.

    Returns:
        How many were answered now.

    Raises:
        InputError: the file holds answers of another model, to other questions or under other settings; or a question that the
            template cannot write.
        RunError: questions that failed for good. All other answers are in the file, and stay there for the next call.
    """
    from tqdm import tqdm

    wanted = {settings.answer_id(question): question for question in questions}
    done = _begun(out, settings, wanted)
    left = [question for name, question in wanted.items() if name not in done]
    failed: list[Failed] = []
    with tqdm(total=len(questions), initial=len(done), desc="answering", unit=" questions", leave=False) as bar:

        def keep(records: Sequence[dict[str, Any]]) -> None:
            append_lines(out, records)
            done.update((record["answer_id"], record) for record in records)
            bar.update(len(records))

        if isinstance(answerer, Concurrent):
            turns = Turns(out)
            talks = [turns.talk(question, settings) for question in left]
            failed = answerer.answer_each(talks, lambda talk, said: keep([talk.record(said)]))
            if not failed:
                turns.remove()
        else:
            size = getattr(answerer, "batch", batch)
            left.sort(key=lambda question: sum(map(len, question.turns)))  # alike in length: a batch holds little padding
            for begin in range(0, len(left), size):
                keep(_records(answerer, [Talk(question, settings) for question in left[begin : begin + size]]))
    write_jsonl_atomic(out, (done[name] for name in wanted if name in done))
    if failed:
        raise RunError(_failures(failed, len(questions), len(done), out))
    return len(left)


def _records(answerer: Answerer, talks: Sequence[Talk]) -> list[dict[str, Any]]:
    """Answer some questions turn by turn, each turn with the answers before it."""
    said: list[list[Said]] = [[] for _ in talks]
    for number in range(max(len(talk.question.turns) for talk in talks)):
        asking = [i for i, talk in enumerate(talks) if number < len(talk.question.turns)]
        for i, one in zip(asking, answerer.answer([talks[i].asked(said[i]) for i in asking]), strict=True):
            said[i].append(one)
    return [talk.record(answers) for talk, answers in zip(talks, said, strict=True)]


def _failures(failed: Sequence[Failed], questions: int, answered: int, out: Path) -> str:
    by_code: dict[str, list[Failed]] = {}
    for one in failed:
        by_code.setdefault(one.code, []).append(one)
    lines = [f"{len(failed)} of {questions} questions got no answer:"]
    for code, some in by_code.items():
        detail = f": {some[0].detail}" if some[0].detail else ""
        lines.append(f"  {code}: {len(some)}, such as question {some[0].question.id!r}{detail}")
    lines.append(f"The {answered} answers that came are in {out}; the same command asks the others again.")
    return "\n".join(lines)


class Turns:
    """Answers to first turns of questions that are not answered whole yet, beside the file of answers: each was paid for.

    ::

        .NAME.jsonl.turns    {"answer_id": "3f...", "text": "...", "finish": "stop"}     in order of the turns

    Args:
        out: the file of answers.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f".{out.name}.turns")
        self.said: dict[str, list[Said]] = {}
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            record = json.loads(line)
            self.said.setdefault(record["answer_id"], []).append(Said(record["text"], record["finish"]))
        if len(whole) < len(data):  # a stop cut the last line off
            os.truncate(self.path, len(whole))

    def talk(self, question: Question, settings: Settings) -> Talk:
        """A question that goes on where an earlier call stood."""
        name = settings.answer_id(question)

        def keep(said: Said) -> None:
            append_lines(self.path, [{"answer_id": name, "text": said.text, "finish": said.finish}])

        return Talk(question, settings, tuple(self.said.get(name, ())), keep)

    def remove(self) -> None:
        """All are answered."""
        self.path.unlink(missing_ok=True)


def _begun(out: Path, settings: Settings, wanted: dict[str, Question]) -> dict[str, dict[str, Any]]:
    """The answers that a file holds, by ``answer_id``; a last line that was cut off is removed."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return {}
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            name = record["answer_id"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{out}:{number}: this is no answer of ours; choose another file with --out") from None
        if name not in wanted:
            raise InputError(
                f"{out}:{number}: question {record.get('question_id')!r} was answered by {record.get('model_id')!r} under other settings, "
                "or is not asked here; choose another file with --out, or remove this one"
            )
        found[name] = record
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return found
