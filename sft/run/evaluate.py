"""``sft eval``: held-out loss of a finished run, or of any folder, on the recipe's held-out rows."""

from __future__ import annotations

from pathlib import Path

from sft.data.dataset import prepare
from sft.data.tokenize import RowEncoder
from sft.engine.evaluate import HeldOut, evaluate_rows
from sft.errors import InputError
from sft.model.load import DTYPES, compute_dtype, device_for_run
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe


def evaluate_model(recipe: Recipe, folder: Path | None) -> HeldOut:
    """Evaluate a model folder on the held-out rows of a recipe, with padded batches and plain SDPA.

    Args:
        recipe: says which rows are held out.
        folder: servable or full model; None takes what the recipe's run wrote.

    Raises:
        InputError: no held-out rows, or no model.
    """
    from transformers import AutoModelForCausalLM

    tokenizer, template, _ = tokenizer_for(recipe)
    prepared = prepare(recipe, tokenizer, RowEncoder(tokenizer, template, recipe.template.train_on))
    if len(prepared.holdout) == 0:
        raise InputError("this recipe holds no rows out; set data.holdout or data.holdout_sources")
    run_dir = Path(recipe.output.dir)
    candidates = [folder] if folder else [run_dir / "merged", run_dir / "model"]
    found = next((path for path in candidates if (path / "config.json").is_file()), None)
    if found is None:
        raise InputError(f"no model in {' or '.join(str(path) for path in candidates)}; train first, or name one with --model")
    dtype = compute_dtype(recipe.model)
    model = AutoModelForCausalLM.from_pretrained(found, dtype=DTYPES[recipe.model.dtype], attn_implementation="sdpa")
    return evaluate_rows(
        model.to(device_for_run()),
        prepared.holdout,
        capacity=recipe.train.tokens_per_device,
        pad_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
