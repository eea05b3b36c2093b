"""What a judge is asked: each turn of each question, each pair in both orders; the answers fenced by marks that they cannot know.

::

    games     question x turn x pair        first order: A = model_1, B = model_2     second order: A = model_2, B = model_1
    marks     ===== ANSWER A 3f9c2d =====   a hash of what stands between them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from selfinstruct.judge.recipe import JudgeRecipe
from selfinstruct.prompts import Prompt
from selfinstruct.records import Message, Request, canonical
from sft.data.jsonl import read_rows
from sft.data.questions import Question
from sft.errors import DataError, InputError

Answers = Mapping[str, tuple[str, ...]]
"""Question id -> what one model said to each turn."""
_SCHEMA = {
    "type": "object",
    "properties": {"reasons": {"type": "string"}, "verdict": {"type": "string"}},
    "required": ["reasons", "verdict"],
    "additionalProperties": False,
}
_ATTEMPTS = 11
"""Room for the attempts of a repeat (``judge.retries`` is 10 at most): raising ``retries`` pays for nothing twice."""
_VERDICTS = {"pair": [f"[[{letter}]]" for letter in "ABC"], "single": [f"[[{n}]]" for n in range(1, 11)]}


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to judge.

    Attributes:
        question, turn: what was asked; turns count from 1.
        models: in the order of the prompt, A first; one for a rating.
        prompt: of the judge.
        reference: what is right, turn by turn; empty if none is shown.
        answers: of each model, up to this turn.
        repeat: from 1; every repeat asks the same.
    """

    question: Question
    turn: int
    models: tuple[str, ...]
    prompt: Prompt
    reference: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    repeat: int = 1

    @property
    def kind(self) -> str:
        """``pair`` or ``single``."""
        return "pair" if len(self.models) == 2 else "single"

    def text(self) -> str:
        """The prompt, filled in."""
        said = json.dumps([self.question.turns[: self.turn], self.answers, self.reference], ensure_ascii=False)
        mark = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        turns = [
            {"asked": asked, "answers": [answers[i] for answers in self.answers], "reference": _at(self.reference, i)}
            for i, asked in enumerate(self.question.turns[: self.turn])
        ]
        return self.prompt.render(turns=turns, mark=mark, category=self.question.category)

    def request(self, recipe: JudgeRecipe, index: int, attempt: int) -> Request:
        """The request of an attempt, counted from 0; each repeat has draws, and where the recipe sets one a seed, of its own."""
        sampling = recipe.teacher.sampling.to_sampling()
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self.repeat - 1)
        schema = json.loads(json.dumps(_SCHEMA))
        schema["properties"]["verdict"]["enum"] = _VERDICTS[self.kind]
        return Request(
            model=recipe.teacher.model,
            messages=(Message("user", self.text()),),
            sampling=sampling,
            kind=recipe.teacher.kind,
            schema=canonical(schema) if recipe.judge.structured and recipe.teacher.kind == "chat" else None,
            draw=(self.repeat - 1) * _ATTEMPTS + attempt,
            purpose=f"judge:{self.kind}",
            round=attempt,
            index=index,
            prompt_fingerprint=self.prompt.fingerprint,
        )


def _at(texts: Sequence[str], i: int) -> str:
    return texts[i] if i < len(texts) else ""


def read_answers(path: str | Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """A model's name and what it said, by question id: FastChat's answers, or Vicuna's (``text``).

    Raises:
        DataError: a line that is no answer, answers of several models, or a question that is answered twice, with ``file:line``.
    """
    models, found = dict[str, str](), dict[str, tuple[str, ...]]()
    for row in read_rows(path):
        if row.error is not None:
            raise DataError(f"{row.where}: {row.error}")
        value = row.value
        if not isinstance(value, Mapping) or "question_id" not in value or not isinstance(value.get("model_id"), str):
            raise DataError(f"{row.where}: an answer has question_id, model_id, and choices or text")
        models.setdefault(value["model_id"], row.where)
        if len(models) > 1:
            raise DataError(
                f"{row.where}: this file holds answers of {' and '.join(models)}; give each model a file of its own"
            )
        name = str(value["question_id"])
        if name in found:
            raise DataError(f"{row.where}: question {name} is answered twice in this file; remove one of the lines")
        found[name] = _said(value, row.where)
    if not models:
        raise DataError(f"{path}: there is no answer in this file")
    return next(iter(models)), found


def _said(value: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if isinstance(value.get("text"), str):
        return (value["text"],)
    try:
        turns = value["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        turns = None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"{where}: choices must begin with an object whose turns are texts")
    return tuple(turns)


def refuse_missing(questions: Sequence[Question], answers: Mapping[str, Answers]) -> None:
    """Refuse answer files that leave a question out: a comparison of different questions says nothing.

    Raises:
        InputError: the model and the first questions.
    """
    for model, said in answers.items():
        missing = [question.id for question in questions if len(said.get(str(question.id), ())) < len(question.turns)]
        if missing:
            raise InputError(
                f"{model} has no answer to {len(missing)} of {len(questions)} questions (such as {missing[0]!r}); go on with sft answer, or "
                "take these questions out"
            )


def asks(
    recipe: JudgeRecipe,
    questions: Sequence[Question],
    answers: Mapping[str, Answers],
    references: Answers,
    prompts: Mapping[str, Prompt],
) -> Iterator[Ask]:
    """Everything that is to be judged, in the order of the judgment file; of a pair one order right behind the other, then its repeats."""
    models = list(answers)
    judge = recipe.judge
    if judge.mode == "single":
        sides: list[tuple[str, ...]] = [(model,) for model in models]
    elif judge.mode == "baseline":
        sides = [(model, str(judge.baseline)) for model in models if model != judge.baseline]
    else:
        sides = list(combinations(models, 2))
    for question in questions:
        shown = references.get(str(question.id), question.reference) if question.category in judge.reference_categories else ()
        for turn in range(1, len(question.turns) + 1):
            for side, repeat in product(sides, range(1, judge.repeats + 1)):
                for order in (side, side[::-1]) if len(side) == 2 else (side,):
                    given = tuple(answers[model][str(question.id)][:turn] for model in order)
                    prompt = prompts["pair" if len(side) == 2 else "single"]
                    yield Ask(question, turn, order, prompt, tuple(shown[:turn]), given, repeat)
