"""MOSS as a formula in plain torch, on the tensors of the legacy checkpoint. Written for the tests, no cache.

Everything is computed in the type of the embeddings: float64 leaves only the rounding of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def _norm(x: Tensor, state: State, at: str, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + epsilon) * state[f"{at}.weight"] + state[f"{at}.bias"]
    )


def _gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _rotate(x: Tensor, rotary: int) -> Tensor:
    """``[T, d]`` of one head: neighbours (0, 1), (2, 3), ... of the first ``rotary`` numbers are turned, GPT-J's way."""
    angles = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(0, rotary, 2).to(x.dtype) / rotary)[None]
    even, odd = x[:, 0:rotary:2], x[:, 1:rotary:2]
    turned = torch.stack((even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()), dim=-1)
    return torch.cat((turned.flatten(-2), x[:, rotary:]), dim=-1)


def _attention(x: Tensor, state: State, at: str, config: Mapping[str, Any]) -> Tensor:
    """Head by head: its shard, then its place among the shard's queries, values and keys."""
    length, hidden = x.shape
    heads = config["n_head"]
    size, per_shard, shard_rows = hidden // heads, heads // 4, 3 * hidden // 4
    fused = x @ state[f"{at}qkv_proj.weight"].T
    out = []
    for head in range(heads):
        shard, place = divmod(head, per_shard)
        queries, values, keys = fused[:, shard * shard_rows : (shard + 1) * shard_rows].chunk(3, dim=-1)
        q, v, k = (part[:, place * size : (place + 1) * size] for part in (queries, values, keys))
        scores = _rotate(q, config["rotary_dim"]) @ _rotate(k, config["rotary_dim"]).T / size**0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, dim=-1) @ state[f"{at}out_proj.weight"].T


def logits(state: State, config: Mapping[str, Any], embedded: Tensor) -> Tensor:
    """Embeddings ``[T, H]`` of one document -> ``[T, V]``."""
    x = embedded
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        normed = _norm(x, state, f"{at}ln_1", config["layer_norm_epsilon"])
        inner = _gelu_new(normed @ state[f"{at}mlp.fc_in.weight"].T + state[f"{at}mlp.fc_in.bias"])
        mlp = inner @ state[f"{at}mlp.fc_out.weight"].T + state[f"{at}mlp.fc_out.bias"]
        x = x + mlp + _attention(normed, state, f"{at}attn.", config)
    x = _norm(x, state, "transformer.ln_f", config["layer_norm_epsilon"])
    return x @ state["lm_head.weight"].T + state["lm_head.bias"]


def embed(state: State, ids: Tensor) -> Tensor:
    """``[T]`` -> ``[T, H]``."""
    return state["transformer.wte.weight"][ids]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a legacy checkpoint."""
    hidden, vocabulary, inner = config["n_embd"], config["vocab_size"], 4 * config["n_embd"]
    found: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocabulary, hidden),
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
        "lm_head.bias": (vocabulary,),
    }
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        found |= {
            f"{at}ln_1.weight": (hidden,),
            f"{at}ln_1.bias": (hidden,),
            f"{at}attn.causal_mask": (1, 1, config["n_positions"], config["n_positions"]),
            f"{at}attn.qkv_proj.weight": (3 * hidden, hidden),
            f"{at}attn.out_proj.weight": (hidden, hidden),
            f"{at}mlp.fc_in.weight": (inner, hidden),
            f"{at}mlp.fc_in.bias": (inner,),
            f"{at}mlp.fc_out.weight": (hidden, inner),
            f"{at}mlp.fc_out.bias": (hidden,),
        }
    return found
