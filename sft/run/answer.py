"""Answers of one model to a file of questions, in FastChat's format: batched, resumable, sampled alike however rows are batched.

::

    {"question_id": 81, "answer_id": "3f...", "model_id": "my-7b", "choices": [{"index": 0, "turns": ["...", "..."],
     "finish": ["stop", "length"]}], "category": "writing", "sampling": {...}, "tstamp": 1764250000.0}

``answer_id`` is a fingerprint of model name, weights, question, template and sampling, so a file that was begun under other settings is known.
Lines are written batch by batch and synced; a line that a stop cut off is answered again. When all are there, the file is put in the order
of the questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sft.data.conversation import Conversation, Turn
from sft.data.jsonl import write_jsonl_atomic
from sft.data.questions import Question
from sft.errors import InputError

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
    """An answer. ``finish`` is ``stop``, or ``length`` where the model had not come to an end."""

    text: str
    finish: str


class Answerer(Protocol):
    """What answers: the model itself, or a server."""

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What answers depend on besides model and questions.

    Attributes:
        model_id: the name in the file.
        template: fingerprint of the chat template, or what a server is called.
        weights: fingerprint of the weights: a model that was trained again under its old name has answered nothing yet.
        max_tokens: longest answer of a turn.
        temperature: for all questions; None takes that of the category.
    """

    model_id: str
    template: str
    max_tokens: int = 1024
    temperature: float | None = None
    weights: str = ""

    def of(self, question: Question) -> dict[str, Any]:
        """The sampling of a question, as it is recorded."""
        warm = self.temperature if self.temperature is not None else TEMPERATURES.get(question.category, OTHERWISE)
        return {"temperature": warm, "max_tokens": self.max_tokens, "template": self.template, "weights": self.weights}

    def answer_id(self, question: Question) -> str:
        """Fingerprint of an answer before it is given."""
        parts = [self.model_id, question.id, question.fingerprint(), self.of(question)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:22]


def answer_file(answerer: Answerer, questions: Sequence[Question], settings: Settings, out: Path, *, batch: int = 16) -> int:
    """Answer what ``out`` does not hold yet.

    Args:
        answerer: what answers.
        questions: in the order of the finished file.
        settings: recorded with each answer.
        out: JSONL; begun anew, or gone on with.
        batch: questions that are asked at once.

    Returns:
        How many were answered now.

    Raises:
        InputError: the file holds answers of another model, to other questions or under other settings; or a question that the
            template cannot write.
    """
    from tqdm import tqdm

    wanted = {settings.answer_id(question): question for question in questions}
    done = _begun(out, settings, wanted)
    left = [question for name, question in wanted.items() if name not in done]
    left.sort(key=lambda question: sum(map(len, question.turns)))  # alike in length, so that a batch holds little padding
    with tqdm(total=len(questions), initial=len(done), desc="answering", unit=" questions", leave=False) as bar:
        for begin in range(0, len(left), batch):
            some = left[begin : begin + batch]
            records = list(_records(answerer, some, settings))
            _append(out, records)
            done |= {record["answer_id"]: record for record in records}
            bar.update(len(some))
    write_jsonl_atomic(out, (done[name] for name in wanted))
    return len(left)


def _records(answerer: Answerer, questions: Sequence[Question], settings: Settings) -> Iterator[dict[str, Any]]:
    """Answer some questions turn by turn, each turn with the answers before it."""
    turns: dict[int, tuple[Turn, ...]] = dict.fromkeys(range(len(questions)), ())
    finish: dict[int, list[str]] = {i: [] for i in range(len(questions))}
    for number in range(max(len(question.turns) for question in questions)):
        asking = [i for i, question in enumerate(questions) if number < len(question.turns)]
        asked = []
        for i in asking:
            turns[i] = (*turns[i], Turn("user", questions[i].turns[number]))
            sampling = settings.of(questions[i])
            seed = int(settings.answer_id(questions[i])[:8], 16) + number
            conversation = Conversation(f"question {questions[i].id}", turns[i], "questions")
            asked.append(Asked(conversation, sampling["temperature"], settings.max_tokens, seed))
        for i, said in zip(asking, answerer.answer(asked), strict=True):
            turns[i] = (*turns[i], Turn("assistant", said.text))
            finish[i].append(said.finish)
    for i, question in enumerate(questions):
        said_turns = [turn.content for turn in turns[i] if turn.role == "assistant"]
        yield {
            "question_id": question.id,
            "answer_id": settings.answer_id(question),
            "model_id": settings.model_id,
            "choices": [{"index": 0, "turns": said_turns, "finish": finish[i]}],
            "category": question.category,
            "sampling": settings.of(question),
            "tstamp": time.time(),
        }


def _append(out: Path, records: Sequence[dict[str, Any]]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


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
