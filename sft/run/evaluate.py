"""``sft eval``: held-out loss of a finished run, or of any folder, on the recipe's held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sft.data.dataset import prepare
from sft.data.tokenize import RowEncoder
from sft.engine.evaluate import HeldOut, evaluate_rows
from sft.errors import InputError, ModelError
from sft.model.load import DTYPES, compute_dtype, device_for_run
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe
from sft.run.finished import adapter_on_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODEL, _ADAPTER = "config.json", "adapter_config.json"


def evaluate_model(recipe: Recipe, folder: Path | None) -> HeldOut:
    """Evaluate a model on the held-out rows of a recipe, with padded batches and plain SDPA.

    Args:
        recipe: says which rows are held out, and what an adapter belongs on: the base as it was trained, quantised too.
        folder: a model, an adapter, or a run directory; None takes the run directory of the recipe.

    Raises:
        InputError: no held-out rows, no model, or a model of another vocabulary.
    """
    tokenizer, template, _ = tokenizer_for(recipe)
    prepared = prepare(recipe, tokenizer, RowEncoder(tokenizer, template, recipe.template.train_on))
    if len(prepared.holdout) == 0:
        raise InputError("this recipe holds no rows out; set data.holdout or data.holdout_sources")
    found = _find(Path(recipe.output.dir) if folder is None else folder)
    _check_vocabulary(found, tokenizer)
    return evaluate_rows(
        _load(recipe, found, tokenizer),
        prepared.holdout,
        capacity=recipe.evaluation_tokens,
        pad_id=tokenizer.pad_token_id,
        dtype=compute_dtype(recipe.model),
    )


def _find(folder: Path) -> Path:
    """The folder itself, or the model or adapter inside a run directory: merged, full, adapter."""
    if not (folder / "run.json").is_file() and any((folder / name).is_file() for name in (_MODEL, _ADAPTER)):
        return folder
    for name, file in (("merged", _MODEL), ("model", _MODEL), ("adapter", _ADAPTER)):
        if (folder / name / file).is_file():
            return folder / name
    raise InputError(f"{folder}: no merged/, model/ or adapter/ here, nor a model; train first, or name one with --model")


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A loss on another model's token ids would be a number without meaning."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        return  # bare weights; the number of their rows is checked
    theirs, ours = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        odd = sorted(set(theirs.items()) ^ set(ours.items()), key=lambda item: (item[1], item[0]))[0]
        raise InputError(
            f"{folder}: its tokenizer has {len(theirs):,} entries, the recipe's {len(ours):,}; they differ first at {odd[0]!r} "
            f"(id {odd[1]}). Evaluate it by the recipe that it was trained with"
        )


def _load(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from sft.model.native import AutoModelForCausalLM

    device = device_for_run()
    if (folder / _ADAPTER).is_file():
        return adapter_on_base(recipe, folder, tokenizer, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[recipe.model.dtype], attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}") from None
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise InputError(f"{folder}: {rows} embedding rows, but the recipe's tokenizer has {len(tokenizer)} entries")
    return model.to(device)
