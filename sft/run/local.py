"""The model itself as what answers: loaded once, asked in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.data.cache import digest
from sft.run.answer import Asked, Said
from sft.run.chat import find_model, load_to_talk
from sft.run.generate import answer_batch


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
        """Fingerprint of the weights: see :func:`weights_of`."""
        return weights_of(self.name, self.model.config)

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """Answer some turns, in order."""
        return answer_batch(self.model, self.tokenizer, self.encoder, asked)


def weights_of(name: str, config: Any) -> str:
    """Fingerprint of the files of a model's weights (of its adapter, where there is one), or the commit of a Hub name."""
    where, adapter = find_model(name)
    files = sorted((adapter or Path(where)).glob("*.safetensors"))
    if not files:
        return str(getattr(config, "_commit_hash", None))
    return hashlib.sha256("".join(f"{file.name} {digest(file)}\n" for file in files).encode()).hexdigest()
