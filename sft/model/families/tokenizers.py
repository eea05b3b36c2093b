"""Tokenizers of legacy checkpoints, built from their own files as plain ``tokenizer.json`` ones; special ids are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.errors import TokenizerError
from sft.model.families.legacy import Legacy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def baichuan(legacy: Legacy) -> PreTrainedTokenizerBase:
    raise TokenizerError("not built yet")


def chatglm2(legacy: Legacy) -> PreTrainedTokenizerBase:
    raise TokenizerError("not built yet")


def chatglm3(legacy: Legacy) -> PreTrainedTokenizerBase:
    raise TokenizerError("not built yet")


def moss(legacy: Legacy) -> PreTrainedTokenizerBase:
    raise TokenizerError("not built yet")
