"""What a finished run left behind, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sft.model.adapters import open_adapter
from sft.model.load import load_model
from sft.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def adapter_on_base(recipe: Recipe, adapter: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """An adapter on the base that it was trained on, in eval mode: the recipe's revision, position scaling, types and quantisation.

    Padded batches and plain SDPA, so that it can generate.
    """
    plain = {
        "model": recipe.model.model_copy(update={"attention": "sdpa"}),
        "train": recipe.train.model_copy(update={"batching": "padded"}),
    }
    return open_adapter(load_model(recipe.model_copy(update=plain), tokenizer, device).model, tokenizer, adapter).eval()
