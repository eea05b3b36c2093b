"""A converted model against the formula of the original: logits, greedy text, gradients, adapters. Every figure is a largest difference."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft.data.collate import flat_batch
from sft.model.adapters import attach
from sft.model.attention import register
from sft.recipe import LoraSection
from tests.model.families.tiny import VOCABULARY, Case, loaded


def documents(*lengths: int, seed: int = 5) -> list[Tensor]:
    """Random ids, one tensor for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def alone(case: Case, folder: Path, lengths: tuple[int, ...], attention: str) -> float:
    """Documents one by one."""
    model = loaded(folder, attention)
    return max(
        float((model(ids[None], use_cache=False).logits[0] - case.reference(ids)).abs().max()) for ids in documents(*lengths)
    )


@torch.no_grad()
def padded(case: Case, folder: Path, side: str, attention: str) -> float:
    """Two documents in a rectangle; only their own tokens are compared."""
    model, rows = loaded(folder, attention), documents(41, 23)
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, width, dtype=torch.int64), torch.zeros(2, width, dtype=torch.int64)
    for row, document in enumerate(rows):
        at = slice(0, len(document)) if side == "right" else slice(width - len(document), width)
        ids[row, at], mask[row, at] = document, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return max(float((found[row][mask[row] == 1] - case.reference(document)).abs().max()) for row, document in enumerate(rows))


@torch.no_grad()
def flat(case: Case, folder: Path, lengths: tuple[int, ...] = (41, 1, 23, 300)) -> float:
    """Documents in one flat row, as training lays them out, under our attention."""
    register()
    model, rows = loaded(folder, "vicugna_sdpa"), documents(*lengths)
    batch: dict[str, Any] = dict(flat_batch([(ids.numpy().astype(np.int32), np.ones(len(ids), np.bool_)) for ids in rows], 1))
    for key in ("predict_at", "targets", "step_tokens"):
        batch.pop(key)
    found = model(**batch, use_cache=False).logits[0]
    ends = np.cumsum([0, *map(len, rows)]).tolist()
    return max(float((found[a:b] - case.reference(ids)).abs().max()) for (a, b), ids in zip(pairwise(ends), rows, strict=True))


@torch.no_grad()
def greedy(case: Case, folder: Path, attention: str, tokens: int = 24) -> tuple[list[int], list[int]]:
    """Ids of the converted model with its cache, and of the formula without one."""
    model, (prompt,) = loaded(folder, attention), documents(17)
    step, cache, found = prompt[None], None, []
    for _ in range(tokens):
        out = model(step, past_key_values=cache, use_cache=True)
        step, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        found.append(int(step))
    ids = prompt
    for _ in range(tokens):
        ids = torch.cat((ids, case.reference(ids)[-1].argmax(keepdim=True)))
    return found, ids[len(prompt) :].tolist()


def gradient(case: Case, folder: Path) -> float:
    """Of the mean loss at the embeddings, layers recomputed; relative to the largest entry of the formula's own gradient."""
    model, (ids,) = loaded(folder), documents(41)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    state = case.exact()
    own = case.embed(state, ids).requires_grad_()
    theirs = own.detach().float()[None].requires_grad_()
    for logits, start in ((case.logits(state, case.config, own), own), (model(inputs_embeds=theirs).logits[0], theirs)):
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
        assert start.grad is not None
    assert own.grad is not None
    assert theirs.grad is not None
    return float((theirs.grad[0] - own.grad).abs().max() / own.grad.abs().max())


def adapted(folder: Path) -> tuple[set[str], list[str], float]:
    """LoRA on all linear layers.

    Returns:
        Names of the adapted layers, adapter tensors without a gradient, difference that merging makes to the logits.
    """
    model, (ids,) = loaded(folder), documents(41)
    lora = attach(model, LoraSection(rank=4, alpha=8), (), seed=0)
    torch.manual_seed(1)
    adapters = {name: parameter for name, parameter in lora.named_parameters() if parameter.requires_grad}
    for name, parameter in adapters.items():
        if "lora_B" in name:  # zeros at the start: nothing would be merged
            torch.nn.init.normal_(parameter, std=0.05)
    lora(ids[None], labels=ids[None]).loss.backward()
    untouched = [name for name, parameter in adapters.items() if parameter.grad is None or not parameter.grad.abs().max() > 0]
    targets = {name.split(".lora_")[0].split(".")[-1] for name in adapters}
    with torch.no_grad():
        plain = loaded(folder)(ids[None]).logits
        before = lora(ids[None]).logits
        merged: Any = lora
        after = merged.merge_and_unload()(ids[None]).logits
    assert float((before - plain).abs().max()) > 0.05, "the adapter does nothing: merging it proves nothing"
    return targets, untouched, float((before - after).abs().max())
