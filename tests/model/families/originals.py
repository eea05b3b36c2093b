"""The formulas of the original models over their own tensors, restated without any converter: what a conversion is held to.

Every function takes ids ``[B, T]``, the legacy tensors by name and the legacy configuration, and gives float32 logits ``[B, T, V]``.
Causal, without padding, without a cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal softmax attention, ``[B, T, heads, d]`` each; ``bias`` ``[heads, T, T]`` is added to the scores."""
    length = q.shape[1]
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(later, float("-inf")).softmax(-1), v).flatten(2)


def rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def angles(length: int, size: int, base: float = 10000.0, divide: float = 1.0) -> Tensor:
    """``[T, size / 2]``."""
    frequency = base ** (-torch.arange(0, size, 2).float() / size)
    return torch.arange(length).float()[:, None] / divide * frequency


def turn_halves(x: Tensor, by: Tensor) -> Tensor:
    """Pairs (0, d/2), (1, d/2 + 1) ... of ``[B, T, heads, d]``."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = by.cos()[None, :, None], by.sin()[None, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def turn_neighbours(x: Tensor, by: Tensor) -> Tensor:
    """Pairs (0, 1), (2, 3) ... of ``[B, T, heads, d]``."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = by.cos()[None, :, None], by.sin()[None, :, None]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def chatglm(ids: Tensor, w: Weights, c: dict[str, Any], version: int) -> Tensor:
    ratio = float(c.get("rope_ratio", 1))
    heads, d, groups = c["num_attention_heads"], c["kv_channels"], c["multi_query_group_num"]
    by = angles(ids.shape[1], d // 2, 10000.0 * (ratio if version == 3 else 1), ratio if version == 2 else 1)
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for n in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{n}."
        h = rms(x, w[at + "input_layernorm.weight"], c["layernorm_epsilon"])
        mixed = F.linear(h, w[at + "self_attention.query_key_value.weight"], w[at + "self_attention.query_key_value.bias"])
        q = mixed[..., : heads * d].unflatten(-1, (heads, d))
        k, v = (part.unflatten(-1, (groups, d)) for part in mixed[..., heads * d :].chunk(2, dim=-1))
        q, k = (torch.cat([turn_neighbours(p[..., : d // 2], by), p[..., d // 2 :]], dim=-1) for p in (q, k))
        k, v = (p.repeat_interleave(heads // groups, dim=2) for p in (k, v))
        x = x + F.linear(attend(q, k, v), w[at + "self_attention.dense.weight"])
        h = rms(x, w[at + "post_attention_layernorm.weight"], c["layernorm_epsilon"])
        gate, up = F.linear(h, w[at + "mlp.dense_h_to_4h.weight"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, w[at + "mlp.dense_4h_to_h.weight"])
    x = rms(x, w["transformer.encoder.final_layernorm.weight"], c["layernorm_epsilon"])
    return F.linear(x, w["transformer.output_layer.weight"])


def moss(ids: Tensor, w: Weights, c: dict[str, Any]) -> Tensor:
    heads, width, rotary = c["n_head"], c["n_embd"], c["rotary_dim"]
    by = angles(ids.shape[1], rotary)
    x = w["transformer.wte.weight"][ids]
    for n in range(c["n_layer"]):
        at = f"transformer.h.{n}."
        h = F.layer_norm(x, (width,), w[at + "ln_1.weight"], w[at + "ln_1.bias"], c["layer_norm_epsilon"])
        split = F.linear(h, w[at + "attn.qkv_proj.weight"]).unflatten(-1, (4, -1))  # four shards
        q, v, k = (part.unflatten(-1, (heads // 4, width // heads)).flatten(2, 3) for part in split.chunk(3, dim=-1))
        q, k = (torch.cat([turn_neighbours(p[..., :rotary], by), p[..., rotary:]], dim=-1) for p in (q, k))
        attended = F.linear(attend(q, k, v), w[at + "attn.out_proj.weight"])
        inner = F.linear(h, w[at + "mlp.fc_in.weight"], w[at + "mlp.fc_in.bias"])
        x = x + attended + F.linear(F.gelu(inner, approximate="tanh"), w[at + "mlp.fc_out.weight"], w[at + "mlp.fc_out.bias"])
    x = F.layer_norm(x, (width,), w["transformer.ln_f.weight"], w["transformer.ln_f.bias"], c["layer_norm_epsilon"])
    return F.linear(x, w["lm_head.weight"], w["lm_head.bias"])


def alibi_slopes(heads: int) -> Tensor:
    """Press et al. 2022: powers of 2^(-8/n) for the next lower power of two n, then every other one of 2n."""
    lower = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * i / lower) for i in range(1, lower + 1)]
    rest = [2 ** (-4 * i / lower) for i in range(1, 2 * (heads - lower), 2)]
    return torch.tensor(first + rest)


def baichuan(ids: Tensor, w: Weights, c: dict[str, Any], *, alibi: bool, norm_head: bool) -> Tensor:
    heads, width, length = c["num_attention_heads"], c["hidden_size"], ids.shape[1]
    d = width // heads
    by = angles(length, d)
    bias = None
    if alibi:
        places = torch.arange(length).float()
        bias = alibi_slopes(heads)[:, None, None] * (places[None, :] - places[:, None])
    x = w["model.embed_tokens.weight"][ids]
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}."
        h = rms(x, w[at + "input_layernorm.weight"], c["rms_norm_eps"])
        packed = F.linear(h, w[at + "self_attn.W_pack.weight"]).unflatten(-1, (3, heads, d))
        q, k, v = packed.unbind(-3)
        if not alibi:
            q, k = turn_halves(q, by), turn_halves(k, by)
        x = x + F.linear(attend(q, k, v, bias), w[at + "self_attn.o_proj.weight"])
        h = rms(x, w[at + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate, up = F.linear(h, w[at + "mlp.gate_proj.weight"]), F.linear(h, w[at + "mlp.up_proj.weight"])
        x = x + F.linear(F.silu(gate) * up, w[at + "mlp.down_proj.weight"])
    x = rms(x, w["model.norm.weight"], c["rms_norm_eps"])
    head = w["lm_head.weight"]
    return F.linear(x, F.normalize(head, dim=-1) if norm_head else head)
