"""The model itself as what answers: loaded once, asked in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft.data.cache import digest
from sft.data.questions import Question, read_questions
from sft.errors import InputError
from sft.run.answer import Asked, Said, Settings, answer_file
from sft.run.chat import find_model, load_to_talk
from sft.run.generate import answer_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalAnswerer:
    """A run directory, an exported folder or a Hub name, with the template and the stops of its training.

    Args:
        name: as of ``sft chat``.

    Raises:
        InputError: nothing there, or no chat template.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.tokenizer, self.encoder, self.about = load_to_talk(name)

    @property
    def template(self) -> str:
        """Fingerprint of the chat template."""
        return self.encoder.template.fingerprint

    def weights(self) -> str:
        """Fingerprint of the files of the weights (of the adapter, where there is one), or the commit of a Hub name."""
        return fingerprint_of(self.name, self.model)

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""
        return answer_batch(self.model, self.tokenizer, self.encoder, asked)


def fingerprint_of(name: str, model: PreTrainedModel) -> str:
    """Fingerprint of the files of the weights (of the adapter, where there is one), or the commit of a Hub name."""
    where, adapter = find_model(name)
    files = sorted((adapter or Path(where)).glob("*.safetensors"))
    if not files:
        return str(getattr(model.config, "_commit_hash", None))
    return hashlib.sha256("".join(f"{file.name} {digest(file)}\n" for file in files).encode()).hexdigest()


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
    refuse_turns(asked, questions, multi_turn=bool(answerer.about.get("multi_turn", True)))
    model_id = name or (Path(model).resolve() if Path(model).exists() else Path(model)).name
    out = out or Path("answers") / f"{model_id}.jsonl"
    settings = Settings(model_id, answerer.template, max_tokens, temperature, answerer.weights())
    return out, len(asked), answer_file(answerer, asked, settings, out)


def refuse_turns(questions: Sequence[Question], path: Path, *, multi_turn: bool) -> None:
    """Refuse questions of several turns where the template holds one exchange.

    Raises:
        InputError: the first of them is named.
    """
    several = [question for question in questions if len(question.turns) > 1]
    if several and not multi_turn:
        raise InputError(
            f"{path}: question {several[0].id!r} has {len(several[0].turns)} turns, but the template of this model holds one exchange; give a "
            "file of single questions"
        )
