"""LLaMA as a formula in plain torch, on the tensors of the legacy checkpoint. Written for the tests, no cache.

Everything is computed in the type of the embeddings: float64 leaves only the rounding of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def _rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def _rotate(x: Tensor) -> Tensor:
    """``[T, d]`` of one head: number i is turned with number i + d/2."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(half).to(x.dtype) / half)[None]
    first, second = x[:, :half], x[:, half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1)


def _attention(x: Tensor, state: State, at: str, heads: int) -> Tensor:
    length, hidden = x.shape
    size, out = hidden // heads, []
    q, k, v = (x @ state[f"{at}{part}_proj.weight"].T for part in "qkv")
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = _rotate(q[:, own]) @ _rotate(k[:, own]).T / size**0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        out.append(scores.softmax(-1) @ v[:, own])
    return torch.cat(out, dim=-1) @ state[f"{at}o_proj.weight"].T


def logits(state: State, config: Mapping[str, Any], embedded: Tensor) -> Tensor:
    """Embeddings ``[T, H]`` of one document -> ``[T, V]``."""
    x, epsilon = embedded, config["rms_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = _rms(x, state[f"{at}input_layernorm.weight"], epsilon)
        x = x + _attention(normed, state, f"{at}self_attn.", config["num_attention_heads"])
        normed = _rms(x, state[f"{at}post_attention_layernorm.weight"], epsilon)
        gate, up = (normed @ state[f"{at}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ state[f"{at}mlp.down_proj.weight"].T
    return _rms(x, state["model.norm.weight"], epsilon) @ state["lm_head.weight"].T


def embed(state: State, ids: Tensor) -> Tensor:
    """``[T]`` -> ``[T, H]``."""
    return state["model.embed_tokens.weight"][ids]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a legacy checkpoint."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        found |= {f"{at}mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        found |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.rotary_emb.inv_freq": (hidden // config["num_attention_heads"] // 2,),
            f"{at}mlp.down_proj.weight": (hidden, inner),
        }
    return found
