"""Baichuan's formulas restated in plain torch from the legacy tensors; and legacy checkpoints of random weights, written as files.

Nothing of ``sft`` or of transformers is used: whatever they get wrong together would be seen here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "model_type": "baichuan",
    "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
}
VOCABULARY = 150
# name -> what its config.json has besides, whether the head is normalised
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "7B": ({"max_position_embeddings": 1024, "architectures": ["BaiChuanForCausalLM"]}, False),
    "13B": ({"model_max_length": 1024, "architectures": ["BaichuanForCausalLM"]}, False),
    "2-7B": ({"max_position_embeddings": 1024, "model_max_length": 1024, "architectures": ["BaichuanForCausalLM"]}, True),
    "2-13B": ({"model_max_length": 1024, "architectures": ["BaichuanForCausalLM"]}, True),
}


def legacy_config(variant: str, **changes: Any) -> dict[str, Any]:
    """``config.json`` of a tiny model."""
    return {**SIZES, "vocab_size": VOCABULARY, **VARIANTS[variant][0], **changes}


def legacy_weights(variant: str, seed: int = 0, rows: int | None = None) -> dict[str, Tensor]:
    """Random tensors under the old names, buffers among them; large enough that every mistake moves the logits."""
    draw, rows = torch.Generator().manual_seed(seed), rows or VOCABULARY
    hidden, inner, layers = (SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=draw) * scale

    found = {
        "model.embed_tokens.weight": normal(rows, hidden, scale=1.0),
        "model.norm.weight": 1 + normal(hidden, scale=0.2),
        # rows of very different lengths: a head that is not normalised cannot be mistaken for one that is
        "lm_head.weight": normal(rows, hidden, scale=0.2) * torch.rand(rows, 1, generator=draw).add(0.3),
    }
    if VARIANTS[variant][1]:
        found["lm_head.weight"] *= 4.0
    for layer in range(layers):
        before = f"model.layers.{layer}."
        found |= {
            f"{before}self_attn.W_pack.weight": normal(3 * hidden, hidden, scale=0.25),
            f"{before}self_attn.o_proj.weight": normal(hidden, hidden, scale=0.25),
            f"{before}mlp.gate_proj.weight": normal(inner, hidden, scale=0.25),
            f"{before}mlp.up_proj.weight": normal(inner, hidden, scale=0.25),
            f"{before}mlp.down_proj.weight": normal(hidden, inner, scale=0.25),
            f"{before}input_layernorm.weight": 1 + normal(hidden, scale=0.2),
            f"{before}post_attention_layernorm.weight": 1 + normal(hidden, scale=0.2),
        }
        if variant == "7B":
            found[f"{before}self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    if variant == "13B":
        found["model.future_mask"] = torch.rand(5, 8, 8)
    return found


def write_legacy(folder: Path, variant: str, layout: str, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Write a checkpoint as the releases are: ``bin`` is two pickles and an index, ``safetensors`` one file. Returns its tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(legacy_config(variant, **changes)), encoding="utf-8")
    weights = legacy_weights(variant, seed)
    if layout == "safetensors":
        save_file(weights, folder / "model.safetensors")
        return weights
    names = sorted(weights)
    places: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weights


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + float(SIZES["rms_norm_eps"]))


def _rotate(x: Tensor) -> Tensor:
    """Dimension d of a head turns with d + size/2 by the angle position / 10000^(2 d / size), float32. ``[T, heads, size]``."""
    length, _, size = x.shape
    half = size // 2
    angle = torch.arange(length).float()[:, None] * (1.0 / 10000.0 ** (torch.arange(half).float() * 2 / size))
    cos, sin = (f(angle)[:, None].to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def slopes_by_the_paper(heads: int) -> list[float]:
    """A geometric series for a power of two; else that of the next lower one, filled up with every second of the next higher."""
    if math.log2(heads).is_integer():
        start = 2.0 ** (-(2.0 ** -(math.log2(heads) - 3)))
        return [start ** (i + 1) for i in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return slopes_by_the_paper(lower) + slopes_by_the_paper(2 * lower)[0::2][: heads - lower]


def additive_bias(heads: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``m_h (j - i)``, minus infinity where j > i. ``[H, N, N]``."""
    at = torch.arange(length, dtype=torch.float64)
    slope = torch.tensor(slopes_by_the_paper(heads), dtype=torch.float64)
    bias = slope[:, None, None] * (at[None, None, :] - at[None, :, None])
    return bias.masked_fill(at[None, None, :] > at[None, :, None], -math.inf).to(dtype)


def logits(weights: dict[str, Tensor], variant: str, embedded: Tensor) -> Tensor:
    """One document: embeddings ``[T, H]`` -> logits ``[T, V]``, in the type of the weights."""
    length, hidden = embedded.shape
    heads = int(SIZES["num_attention_heads"])
    size = hidden // heads
    rotary = variant.endswith("7B")
    future = torch.full((length, length), -math.inf, dtype=embedded.dtype).triu(1)
    bias = future[None] if rotary else additive_bias(heads, length, embedded.dtype)
    x = embedded
    for layer in range(int(SIZES["num_hidden_layers"])):
        w = {name.split(f"layers.{layer}.")[1]: value for name, value in weights.items() if f"layers.{layer}." in name}
        packed = _norm(x, w["input_layernorm.weight"]) @ w["self_attn.W_pack.weight"].T
        q, k, v = (part.reshape(length, heads, size) for part in packed.chunk(3, dim=-1))
        if rotary:
            q, k = _rotate(q), _rotate(k)
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(size) + bias
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(length, hidden)
        x = x + mixed @ w["self_attn.o_proj.weight"].T
        h = _norm(x, w["post_attention_layernorm.weight"])
        x = x + (F.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if VARIANTS[variant][1]:
        head = head / head.norm(dim=-1, keepdim=True)
    return _norm(x, weights["model.norm.weight"]) @ head.T


def of_ids(weights: dict[str, Tensor], variant: str, ids: Tensor) -> Tensor:
    """Token ids ``[T]`` -> logits ``[T, V]``."""
    return logits(weights, variant, weights["model.embed_tokens.weight"][ids])


def greedy(weights: dict[str, Tensor], variant: str, ids: Tensor, count: int) -> list[int]:
    """``count`` most likely tokens, the whole text anew for each."""
    for _ in range(count):
        ids = torch.cat((ids, of_ids(weights, variant, ids)[-1].argmax()[None]))
    return [int(x) for x in ids[-count:]]
