"""ChatGLM2 and ChatGLM3 as formulas in plain torch, on the tensors of the legacy checkpoint. Written for the tests, no cache.

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


def _rotate(x: Tensor, rotary: int, positions: Tensor, theta: float) -> Tensor:
    """``[n, T, d]``: the pairs (0, 1), (2, 3), ... of the first ``rotary`` numbers, as complex ones, times ``exp(i position theta_k)``."""
    angles = positions[:, None] * theta ** (-torch.arange(0, rotary, 2).to(x.dtype) / rotary)[None]
    turned = torch.view_as_complex(x[..., :rotary].reshape(*x.shape[:-1], rotary // 2, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat((torch.view_as_real(turned).flatten(-2), x[..., rotary:]), dim=-1)


def _attention(x: Tensor, state: State, at: str, config: Mapping[str, Any], turn: Any) -> Tensor:
    length, heads, groups, size = len(x), config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    fused = x @ state[f"{at}query_key_value.weight"].T + state[f"{at}query_key_value.bias"]
    q, k, v = fused.split([heads * size, groups * size, groups * size], dim=-1)
    q = turn(q.view(length, heads, size).transpose(0, 1))
    k = turn(k.view(length, groups, size).transpose(0, 1))
    v = v.view(length, groups, size).transpose(0, 1)
    out = []
    for head in range(heads):
        group = head // (heads // groups)
        scores = q[head] @ k[group].T / size**0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        out.append(scores.softmax(-1) @ v[group])
    return torch.cat(out, dim=-1) @ state[f"{at}dense.weight"].T


def logits(state: State, config: Mapping[str, Any], embedded: Tensor, *, version: int, rotary: int | None = None) -> Tensor:
    """Embeddings ``[T, H]`` of one document -> ``[T, V]``. ``version`` decides what ``rope_ratio`` means."""
    size, ratio = config["kv_channels"], config.get("rope_ratio", 1)
    positions = torch.arange(len(embedded)).to(embedded.dtype) / (ratio if version == 2 else 1)
    theta = 10_000.0 * (ratio if version == 3 else 1)
    x = embedded
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        normed = _rms(x, state[f"{at}input_layernorm.weight"], config["layernorm_epsilon"])
        x = x + _attention(
            normed, state, f"{at}self_attention.", config, lambda y: _rotate(y, rotary or size // 2, positions, theta)
        )
        normed = _rms(x, state[f"{at}post_attention_layernorm.weight"], config["layernorm_epsilon"])
        gate, up = (normed @ state[f"{at}mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ state[f"{at}mlp.dense_4h_to_h.weight"].T
    x = _rms(x, state["transformer.encoder.final_layernorm.weight"], config["layernorm_epsilon"])
    return x @ state["transformer.output_layer.weight"].T


def embed(state: State, ids: Tensor) -> Tensor:
    """``[T]`` -> ``[T, H]``."""
    return state["transformer.embedding.word_embeddings.weight"][ids]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a legacy checkpoint."""
    hidden, inner, vocabulary = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    size = config["kv_channels"]
    fused = size * (config["num_attention_heads"] + 2 * config["multi_query_group_num"])
    found: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (vocabulary, hidden),
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (vocabulary, hidden),
        "transformer.rotary_pos_emb.inv_freq": (size // 4,),
    }
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attention.query_key_value.weight": (fused, hidden),
            f"{at}self_attention.query_key_value.bias": (fused,),
            f"{at}self_attention.dense.weight": (hidden, size * config["num_attention_heads"]),
            f"{at}mlp.dense_h_to_4h.weight": (2 * inner, hidden),
            f"{at}mlp.dense_4h_to_h.weight": (hidden, inner),
        }
    return found
