"""A LLaMA body with ALiBi in place of rotary positions: what Baichuan-13B and Baichuan2-13B are. Registered with transformers on import.

A score is ``q . k / sqrt(d) + m (j - i)``, m a slope of the head, i and j the places of query and key (Press et al. 2022). Here the addend is a
part of the dot product: eight columns are put behind each query and key, so that every kernel with a plain causal mask computes it (eager,
SDPA, varlen, flash, flat rows, a cache) and no ``[heads, T, T]`` mask is made. With ``j = hi + lo``, hi a multiple of 128, and c = sqrt(d)::

    key     [ hi  hi  hi  lo  lo  -1  -1  -1 ]
    query   [ s1  s2  s3  s1  s2  t1  t2  t3 ]       s1 + s2 + s3 = m c,   t1 + t2 + t3 = m c i

Slopes and places are split into three roundings each, so the sum holds in half types too: hi and lo are whole numbers that all types
hold exactly. Values get eight columns of zeros, for kernels that want one width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    eager_attention_forward,
)

COLUMNS = 8
_STEP = 128
Columns = tuple[Tensor, Tensor]


class AlibiConfig(LlamaConfig):
    """LLaMA's configuration without rotary positions. ``max_position_embeddings`` is the length that was trained; longer rows work."""

    model_type = "llama_alibi"


def slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """Float64 ``[heads]``: powers of 2^(-8/n) for the power of two n at or below ``heads``, then every other power of 2^(-4/n)."""
    lower = 2 ** math.floor(math.log2(heads))
    index = torch.arange(heads, device=device, dtype=torch.float64)
    beyond = 2 * (index - lower) + 1
    return torch.exp2(-torch.where(index < lower, 8 * (index + 1), 4 * beyond) / lower)


def split(exact: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Three tensors of a type whose sum is a float64 tensor, as near as three roundings come."""
    parts = []
    for _ in range(3):
        parts.append(exact.to(dtype))
        exact = exact - parts[-1].double()
    return parts


def columns(places: Tensor, heads: int, head_dim: int, dtype: torch.dtype) -> Columns:
    """What is put behind queries ``[B, heads, T, 8]`` and keys ``[B, 1, T, 8]``.

    Args:
        places: ``[B, T]``, whole numbers; those of a document begin at 0.
        heads, head_dim: of the model.
        dtype: of the products.
    """
    exact = places.double()
    low = exact % _STEP
    hi, lo, one = ((part[:, None]).to(dtype) for part in (exact - low, low, torch.ones_like(exact)))
    keys = torch.stack([hi, hi, hi, lo, lo, -one, -one, -one], dim=-1)
    steep = (slopes(heads, places.device) * math.sqrt(head_dim))[None, :, None].expand(len(places), -1, places.shape[1])
    s, t = split(steep, dtype), split(steep * exact[:, None], dtype)
    return torch.stack([*s, s[0], s[1], *t], dim=-1), keys


class Places(nn.Module):
    """Stands where LLaMA has its rotary positions: makes the columns once for all layers, in the type of the products."""

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__()
        self.heads = int(config.num_attention_heads)
        self.head_dim = int(config.hidden_size) // self.heads

    def forward(self, x: Tensor, position_ids: Tensor) -> Columns:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return columns(position_ids, self.heads, self.head_dim, dtype)


class AlibiAttention(LlamaAttention):
    """LLaMA's attention over queries and keys with their columns."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Columns | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        assert position_embeddings is not None
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        behind_q, behind_k = (part.to(q.dtype) for part in position_embeddings)  # the same, or a wider type
        q = torch.cat([q, behind_q.expand(len(q), -1, -1, -1)], dim=-1)
        k = torch.cat([k, behind_k.expand(len(k), k.shape[1], -1, -1)], dim=-1)
        v = F.pad(v, (0, COLUMNS))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        out = out[..., : self.head_dim].reshape(*hidden_states.shape[:-1], -1)
        return self.o_proj(out), weights


class AlibiDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: AlibiConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = AlibiAttention(config, layer_idx)


class AlibiModel(LlamaModel):
    """The decoder. Its forward is LLaMA's."""

    config_class = AlibiConfig
    _no_split_modules = ["AlibiDecoderLayer"]  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: AlibiConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not LLaMA's own, which would build its layers first
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(AlibiDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Places(config)
        self.gradient_checkpointing = False
        self.post_init()


class AlibiForCausalLM(LlamaForCausalLM):
    """The decoder with its output matrix."""

    config_class = AlibiConfig
    _no_split_modules = ["AlibiDecoderLayer"]  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: AlibiConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = AlibiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def register() -> None:
    """Let transformers' Auto classes find the model. Once is enough, more do no harm."""
    AutoConfig.register(AlibiConfig.model_type, AlibiConfig, exist_ok=True)
    AutoModelForCausalLM.register(AlibiConfig, AlibiForCausalLM, exist_ok=True)


register()
