"""``sft eval``: held-out loss of a finished run, or of any folder, on the recipe's held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sft.data.dataset import prepare
from sft.data.store import RowStore
from sft.data.tokenize import RowEncoder
from sft.engine.evaluate import HeldOut, RowLosses, row_losses, summed
from sft.errors import InputError, ModelError
from sft.model.load import DTYPES, compute_dtype, device_for_run
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe
from sft.run.finished import adapter_on_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODEL, _ADAPTER = "config.json", "adapter_config.json"


def evaluate_model(recipe: Recipe, folder: Path | None) -> HeldOut:
    """Evaluate a model on the held-out rows of a recipe; see :func:`held_out`."""
    store, losses, _ = held_out(recipe, folder)
    return summed(store, losses)


def held_out(recipe: Recipe, folder: Path | None, base: str | None = None) -> tuple[RowStore, RowLosses, RowLosses | None]:
    """Losses on the held-out rows of a recipe, with padded batches and plain SDPA.

    Args:
        recipe: says which rows are held out, and what an adapter belongs on: the base as it was trained, quantised too.
        folder: a model, an adapter, or a run directory; None takes the run directory of the recipe.
        base: another model, folder or Hub name, that is asked the same rows; it need not know tokens that do not occur in them.

    Returns:
        The rows, the model's losses on them, and the base's.

    Raises:
        InputError: no held-out rows, no model, or a model of another vocabulary.
    """
    tokenizer, template, _ = tokenizer_for(recipe)
    prepared = prepare(recipe, tokenizer, RowEncoder(tokenizer, template, recipe.template.train_on))
    store = prepared.holdout
    if len(store) == 0:
        raise InputError("this recipe holds no rows out; set data.holdout or data.holdout_sources")
    found = find_folder(Path(recipe.output.dir) if folder is None else folder)
    _check_vocabulary(found, tokenizer)

    def losses(model: PreTrainedModel) -> RowLosses:
        pad, dtype = padding_id(model, tokenizer), compute_dtype(recipe.model)
        return row_losses(model, store, capacity=recipe.evaluation_tokens, pad_id=pad, dtype=dtype, progress="held-out rows")

    ours = losses(_load(recipe, found, tokenizer, len(tokenizer)))
    if base is None:
        return store, ours, None
    under = find_folder(Path(base)) if Path(base).is_dir() else Path(base)
    used = used_ids(store)
    refuse_other_ids(base, _tokenizer_of(under), tokenizer, used)
    return store, ours, losses(_load(recipe, under, tokenizer, int(used.max()) + 1))


def padding_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills rectangles; it is masked, so any id does where a base has no row for the padding token of the tuned model."""
    pad = tokenizer.pad_token_id
    return pad if pad is not None and pad < model.get_input_embeddings().weight.shape[0] else 0


def used_ids(store: RowStore) -> npt.NDArray[np.int64]:
    """The token ids that occur in some rows, sorted."""
    return np.unique(np.concatenate([np.zeros(0, np.int32), *(np.unique(store.row(i)[0]) for i in range(len(store)))])).astype(
        np.int64
    )


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerBase | None:
    """A model's own tokenizer; None for bare weights."""
    from transformers import AutoTokenizer

    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}") from None


def refuse_other_ids(
    base: str, theirs: PreTrainedTokenizerBase | None, ours: PreTrainedTokenizerBase, used: npt.NDArray[np.int64]
) -> None:
    """Two losses per token can be compared where the tokens are the same.

    Args:
        base: name of the other model.
        theirs: its tokenizer; None for bare weights.
        ours: the tokenizer that made the rows.
        used: ids that occur in them.

    Raises:
        InputError: an id stands for another token there, or for none.
    """
    if theirs is None:
        return
    names = ours.convert_ids_to_tokens(used.tolist())
    others = theirs.get_vocab()
    for token, name in zip(used.tolist(), names, strict=True):
        if others.get(name) != token:
            place = f"has it as {others[name]}" if name in others else "does not know it"
            raise InputError(
                f"--base {base}: the rows hold the token {name!r} (id {token}), and its tokenizer {place}; losses per token of different "
                "tokens cannot be compared. Give the model that this one was tuned from"
            )


def find_folder(folder: Path) -> Path:
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


def _load(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerBase, least: int) -> PreTrainedModel:
    """``least``: entries of the tokenizer that the embedding must have."""
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
    if rows < least:
        raise InputError(f"{folder}: {rows} embedding rows, but the recipe's tokenizer has {len(tokenizer)} entries")
    return model.to(device)
