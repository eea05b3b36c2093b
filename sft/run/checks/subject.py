"""A loaded model that is measured: with its own tokenizer and template, or, a base, with those of the model that is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft.data.conversation import Conversation, Turn
from sft.data.questions import Question
from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder
from sft.engine.evaluate import RowLosses, row_losses
from sft.errors import InputError
from sft.model.load import device_for_run
from sft.recipe import Recipe
from sft.run.answer import Asked, Said
from sft.run.chat import adapter_to_talk, open_model, talking_encoder
from sft.run.checks.sets import Rows
from sft.run.evaluate import padding_id, refuse_other_ids, used_ids
from sft.run.generate import answer_batch
from sft.run.local import weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CAPACITY = 4_096  # tokens of a batch


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model, and how it is asked.

    Attributes:
        name: as it was given.
        model: on its device.
        tokenizer: writes rows and prompts.
        own_tokenizer: the model's own: the same but for a base.
        encoder: the chat template; None if the model has none.
        multi_turn: whether the template holds several exchanges.
        weights: fingerprint.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    own_tokenizer: PreTrainedTokenizerBase
    encoder: RowEncoder | None
    multi_turn: bool
    weights: str

    @property
    def model_id(self) -> str:
        """The name in a file of answers."""
        folder = Path(self.name)
        return (folder.resolve() if folder.exists() else folder).name

    @property
    def positions(self) -> int | None:
        """Longest row that the model knows."""
        known = getattr(self.model.config, "max_position_embeddings", None)
        return known if isinstance(known, int) else None

    def talking(self) -> RowEncoder:
        """The encoder.

        Raises:
            TemplateError: the model has no chat template.
        """
        return self.encoder if self.encoder is not None else talking_encoder(self.name, self.tokenizer, {})

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""
        return answer_batch(self.model, self.tokenizer, self.talking(), asked)

    def losses(self, rows: Rows) -> RowLosses:
        """The loss of each row of a set, in the types that the model was loaded in.

        Raises:
            InputError: the rows hold tokens that are others to this model.
        """
        self._refuse(used_ids(rows.store))
        pad = padding_id(self.model, self.tokenizer)
        name = f"loss on {rows.store.labels[0]}"
        return row_losses(self.model, rows.store, capacity=_CAPACITY, pad_id=pad, dtype=torch.float32, progress=name)

    def refuse_questions(self, questions: Sequence[Question]) -> None:
        """Refuse questions whose prompts hold tokens that are others to this model."""
        ids: set[int] = set()
        for question in questions:
            asked = Conversation(f"question {question.id}", (Turn("user", question.turns[0]),), "questions")
            try:
                ids.update(self.talking().prompt_ids(asked))
            except RenderRefused as refusal:
                raise InputError(f"question {question.id}: {refusal.detail}") from None
        self._refuse(np.asarray(sorted(ids), dtype=np.int64))

    def _refuse(self, used: Any) -> None:
        if self.own_tokenizer is not self.tokenizer:
            refuse_other_ids(self.name, self.own_tokenizer, self.tokenizer, used)
        known = self.model.get_input_embeddings().weight.shape[0]
        if int(used.max()) >= known:
            raise InputError(f"{self.name}: {known} embedding rows, but id {int(used.max())} occurs in what it is asked")


def open_subject(name: str, recipe: Recipe | None = None) -> Subject:
    """Load a model as ``sft chat`` does; an adapter alone goes on the base of the recipe.

    Raises:
        InputError: nothing there.
    """
    folder = Path(name)
    about: dict[str, Any] = {}
    if recipe is not None and (folder / "adapter_config.json").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = adapter_to_talk(recipe, folder, tokenizer, device_for_run())
    else:
        model, tokenizer, about = open_model(name)
    encoder = talking_encoder(name, tokenizer, about) if isinstance(tokenizer.chat_template, str) else None
    multi_turn = bool(about.get("multi_turn", True))
    return Subject(name, model, tokenizer, tokenizer, encoder, multi_turn, weights_of(name, model.config))


def open_base(name: str, tuned: Subject) -> Subject:
    """Load a base, to be asked what the tuned model is asked, token by token.

    Raises:
        InputError: nothing there.
    """
    model, own, _ = open_model(name)
    weights = weights_of(name, model.config)
    return Subject(name, model, tuned.tokenizer, own, tuned.encoder, tuned.multi_turn, weights)
