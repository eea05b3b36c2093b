"""Merging and exporting, each proven on the written files: reload from disk, compare the logits, only then rename into place."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sft.data.template import RenderRefused
from sft.data.tokenize import RowEncoder
from sft.errors import ModelError, VerificationError
from sft.files import PARTIAL, free_bytes, publish, write_json
from sft.model.load import DTYPES, load_model
from sft.model.servable import PROBES, check_served_ids, write_servable
from sft.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Largest allowed ||difference|| / ||reference|| of the logits, by the type of the written weights: a few times what rounding gives.
BOUNDS = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the written model is from the one that was trained, over the probe texts.

    Attributes:
        relative: norm of the logit difference over norm of the logits.
        largest: largest absolute logit difference.
        kl: mean KL divergence in nats per token.
        top1: share of positions with the same most likely token.
        positions: positions compared.
    """

    relative: float
    largest: float
    kl: float
    top1: float
    positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by {self.relative:.2e} of their norm (largest {self.largest:.2e}), KL {self.kl:.2e}, "
            f"same top token at {self.top1:.1%} of {self.positions} positions"
        )


def probe_ids(encoder: RowEncoder, vocab_size: int, max_length: int) -> list[Tensor]:
    """Token sequences to compare on: the probe prompts, and random tokens that reach every part of the vocabulary."""
    out = []
    for probe in PROBES:
        try:
            out.append(torch.tensor(encoder.prompt_ids(probe)[:max_length]))
        except RenderRefused:
            continue
    generator = torch.Generator().manual_seed(0)
    out += [torch.randint(0, vocab_size, (min(64, max_length),), generator=generator) for _ in range(4)]
    return out


@torch.no_grad()
def logits_on(model: nn.Module, probes: list[Tensor]) -> list[Tensor]:
    """Float32 logits of each probe on the CPU, ``[T, V]``, in eval mode."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return [model(input_ids=ids[None].to(device), use_cache=False).logits[0].float().cpu() for ids in probes]
    finally:
        model.train(training)


def compare(reference: list[Tensor], written: list[Tensor]) -> Difference:
    """Compare two lists of logits."""
    left, right = torch.cat(reference).double(), torch.cat(written).double()
    p, q = left.log_softmax(-1), right.log_softmax(-1)
    return Difference(
        relative=float((left - right).norm() / left.norm()),
        largest=float((left - right).abs().max()),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        top1=float((left.argmax(-1) == right.argmax(-1)).double().mean()),
        positions=len(left),
    )


def check_difference(found: Difference, dtype: str, what: str) -> None:
    """Refuse a written model that differs by more than rounding.

    Raises:
        VerificationError: with all figures.
    """
    if not found.relative <= BOUNDS[dtype]:
        raise VerificationError(f"{what}: {found}; at most {BOUNDS[dtype]:.0e} is allowed in {dtype}. Nothing was put in place")


def serving_dtype(recipe: Recipe) -> str:
    """Type of exported weights: that of the products in training."""
    return recipe.model.compute_dtype or recipe.model.dtype


def _publish_checked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    out: Path,
    about: Mapping[str, Any],
    reference: list[Tensor],
    probes: list[Tensor],
    dtype: str,
) -> Difference:
    """Write beside ``out``, reload from disk, compare, rename. ``model`` is given up."""
    from sft.model.native import AutoModelForCausalLM

    partial = out.with_name(f"{PARTIAL}{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if free_bytes(out.parent) < needed * 1.05:
        raise ModelError(f"{out}: {needed / 2**30:.1f} GiB are needed, {free_bytes(out.parent) / 2**30:.1f} GiB are free")
    device = next(model.parameters()).device
    try:
        write_servable(model, tokenizer, encoder, partial, about)
        del model
        _release()
        written = AutoModelForCausalLM.from_pretrained(partial, dtype=DTYPES[dtype], attn_implementation="sdpa").to(device)
        found = compare(reference, logits_on(written, probes))
        check_difference(found, dtype, str(out))
        served = check_served_ids(partial, encoder)
        record = json.loads((partial / "vicugna.json").read_text(encoding="utf-8"))
        record |= {"difference": asdict(found), "served_prompts_checked": served}
        write_json(partial / "vicugna.json", record)
        publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def merge_adapter(
    recipe: Recipe,
    adapter: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    out: Path,
    about: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: str | None = None,
) -> Difference:
    """Merge an adapter into its base and write a servable model.

    The base is loaded unquantised in ``dtype``: merging into a quantised base would change every weight. The reference is the
    adapter on that base, before merging.

    Raises:
        VerificationError: the adapter changes nothing, or the merged model differs from adapter-on-base by more than rounding.
    """
    from peft import PeftModel

    dtype = dtype or serving_dtype(recipe)
    plain = recipe.model.model_copy(update={"quantization": "none", "dtype": dtype, "compute_dtype": None, "attention": "sdpa"})
    padded = recipe.train.model_copy(update={"batching": "padded"})
    base = load_model(recipe.model_copy(update={"model": plain, "train": padded}), tokenizer, device).model
    probes = probe_ids(encoder, len(tokenizer), recipe.data.max_length)
    before = logits_on(base, probes)
    adapted = PeftModel.from_pretrained(base, str(adapter))
    reference = logits_on(adapted, probes)
    moved = compare(before, reference)
    if moved.relative == 0.0:
        raise VerificationError(f"{adapter}: the adapter changes no logit of its base; it is empty or was not loaded")
    merged = adapted.merge_and_unload(safe_merge=True)
    del adapted, base
    about = {**about, "merged_from": str(recipe.model.quantization), "dtype": dtype, "adapter_moved": moved.relative}
    return _publish_checked(merged, tokenizer, encoder, out, about, reference, probes, dtype)


def export_full(
    recipe: Recipe,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    out: Path,
    about: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: str | None = None,
) -> Difference:
    """Write a fully tuned model as a servable one, in the serving type; compared with the trained weights."""
    from sft.model.native import AutoModelForCausalLM

    dtype = dtype or serving_dtype(recipe)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[recipe.model.dtype], attn_implementation="sdpa").to(
        device
    )
    probes = probe_ids(encoder, len(tokenizer), recipe.data.max_length)
    reference = logits_on(model, probes)
    about = {**about, "dtype": dtype}
    return _publish_checked(model.to(DTYPES[dtype]), tokenizer, encoder, out, about, reference, probes, dtype)
