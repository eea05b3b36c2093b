"""The model itself as what answers: loaded once, asked in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sft.data.questions import Question, read_questions
from sft.errors import InputError
from sft.run.answer import Asked, Said, Settings, answer_file
from sft.run.chat import load_to_talk
from sft.run.generate import answer_batch


class LocalAnswerer:
    """A run directory, an exported folder or a Hub name, with the template and the stops of its training.

    Args:
        name: as of ``sft chat``.

    Raises:
        InputError: nothing there, or no chat template.
    """

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer, self.encoder, self.about = load_to_talk(name)

    @property
    def template(self) -> str:
        """Fingerprint of the chat template."""
        return self.encoder.template.fingerprint

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""
        return answer_batch(self.model, self.tokenizer, self.encoder, asked)


def run_answer(
    model: str, questions: Path, *, out: Path | None, name: str | None, max_tokens: int, temperature: float | None
) -> tuple[Path, int, int]:
    """Answer a file of questions with a model; see :func:`sft.run.answer.answer_file`.

    Returns:
        The file, the questions, and how many were answered now.

    Raises:
        InputError: a model, a question or an answer file that cannot be used.
    """
    asked = read_questions(questions)
    answerer = LocalAnswerer(model)
    _refuse_turns(asked, questions, multi_turn=bool(answerer.about.get("multi_turn", True)))
    model_id = name or Path(model).resolve().name if Path(model).exists() else name or model.rsplit("/", 1)[-1]
    out = out or Path("answers") / f"{model_id}.jsonl"
    settings = Settings(model_id, answerer.template, max_tokens, temperature)
    return out, len(asked), answer_file(answerer, asked, settings, out)


def _refuse_turns(questions: Sequence[Question], path: Path, *, multi_turn: bool) -> None:
    several = [question for question in questions if len(question.turns) > 1]
    if several and not multi_turn:
        raise InputError(
            f"{path}: question {several[0].id!r} has {len(several[0].turns)} turns, but the template of this model holds one exchange; give a "
            "file of single questions"
        )
