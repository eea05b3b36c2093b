"""LLaMA's body with ALiBi in the place of RoPE: what Baichuan-13B and Baichuan2-13B are. transformers has no class of that kind.

ALiBi (Press et al. 2021) adds ``m_h (j - i)`` to the score of query i and key j of head h. A bias of the shape ``[H, N, N]`` would shut
out the fast kernels, and costs 2.5 GiB per layer at 4,096 tokens, 40 heads and float32. Here it is part of the dot product: 8 more columns::

    key    [ hi  -64   hi  -64   hi   lo   lo   lo  ; k ]     j = hi + lo, hi a multiple of 128
    query  [ s1   t1   s2   t2   s3   s1   s2   s3  ; q ]     s1 + s2 + s3 = m_h / scale,  64 (t1 + t2) = m_h i / scale

    scale (query . key) = scale (q . k) + m_h (j - i)

so every kernel works with its plain causal mask, and packed rows, left padding and the KV cache need nothing but position ids.

All columns are numbers of bfloat16 (8 bits), whatever the model computes in: they are exact in float32, TF32, bfloat16 and (but for
what is below 6e-8) float16, autocast or not, up to position 32,767. s is the sum of three such numbers, 24 bits. The terms of i shift all
scores of a query alike and fall out of the softmax, so two parts do; without them the scores of late keys are large, and eager attention
rounds them to bfloat16. 64 keeps t below 65,504 in float16.

The columns come first, and large terms next to those that cancel them: sums of so few bits are exact in float32, and q . k is added to
what is left, which is small for the keys that matter. At 1,500 tokens in float32 that is 3 to 27 times nearer to float64 than columns
behind k. Kernels that sum in lanes still round (1e-6 of the output); in float64 all of them agree with the added bias to 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    eager_attention_forward,
)

MODEL_TYPE = "vicugna_alibi"
COLUMNS = 8
POSITIONS = 32_768
_STEP, _SHIFT = 128, 64


def slopes(heads: int) -> list[float]:
    """``m_h`` of every head: powers of ``2^(-8/P)``, P the largest power of two that is not above the number of heads.

    What is left over takes every second slope of 2 P heads (Press et al. 2021, as in their code). 40 heads: ``2^(-8i/32)`` for i = 1 to
    32, then ``2^(-8i/64)`` for i = 1, 3 to 15.
    """
    whole = 2 ** int(math.log2(heads))
    first = [2.0 ** (-8 * i / whole) for i in range(1, whole + 1)]
    return first + [2.0 ** (-8 * i / (2 * whole)) for i in range(1, 2 * (heads - whole), 2)]


@strict
class AlibiConfig(LlamaConfig):
    """LLaMA's fields without rotary positions."""

    model_type = MODEL_TYPE

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.rope_parameters = None

    def validate_alibi(self) -> None:
        """Raises:
        ValueError: positions beyond those that are exact in half precision; fewer key than query heads.
        """
        if self.max_position_embeddings > POSITIONS:
            raise ValueError(
                f"max_position_embeddings = {self.max_position_embeddings}: ALiBi is exact up to {POSITIONS} positions here"
            )
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError("num_key_value_heads: every head has its own slope and its own keys here; leave it out")


def _parts(exact: Tensor, count: int) -> list[Tensor]:
    """float64 -> ``count`` tensors of bfloat16 that add up to it, each the rounding of what is still missing."""
    parts = []
    for _ in range(count):
        parts.append(exact.to(torch.bfloat16))
        exact = exact - parts[-1].double()
    return parts


class AlibiColumns(nn.Module):
    """The columns, once per forward pass. No parameters, and no buffer either: ``model.to(bfloat16)`` would round it."""

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__()
        self.heads = int(config.num_attention_heads)
        self.scale = float(config.head_dim) ** -0.5

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions ``[B or 1, N]`` -> columns of queries and of keys, both ``[B, H, N, 8]`` in bfloat16; ``hidden`` is ``[B, N, hidden]``."""
        with torch.autocast(hidden.device.type, enabled=False):  # it knows no mixing of bfloat16 and float16
            at = position_ids.to(hidden.device)[:, None, :]  # [B, 1, N]
            s = (self._slopes(hidden.device) / self.scale)[None, :, None]  # [1, H, 1]
            t1, t2 = _parts(s * at / _SHIFT, 2)
            s1, s2, s3 = (part.expand_as(t1) for part in _parts(s, 3))
            low = at.remainder(_STEP)
            hi, lo = (at - low).to(t1.dtype), low.to(t1.dtype)
            less = torch.full_like(hi, -_SHIFT)
            query = torch.stack((s1, t1, s2, t2, s3, s1, s2, s3), dim=-1)
            key = torch.stack((hi, less, hi, less, hi, lo, lo, lo), dim=-1)
        shape = (hidden.shape[0], *query.shape[1:])
        return query.expand(shape), key.expand(shape)

    def _slopes(self, device: torch.device) -> Tensor:
        """:func:`slopes` as a float64 tensor, reckoned on the device: a list would have to be copied there, and waited for."""
        whole = 2 ** int(math.log2(self.heads))
        first = torch.arange(1, whole + 1, device=device, dtype=torch.float64) * (-8 / whole)
        rest = (2 * torch.arange(self.heads - whole, device=device, dtype=torch.float64) + 1) * (-4 / whole)
        return torch.exp2(torch.cat((first, rest)))


class AlibiAttention(LlamaAttention):
    """Multi-head attention whose queries and keys carry the columns."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, N, hidden]`` -> ``[B, N, hidden]``, and the weights where the implementation has them."""
        assert position_embeddings is not None
        rows = hidden_states.shape[:-1]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (layer(hidden_states).view(*rows, -1, self.head_dim).transpose(1, 2) for layer in projections)
        query, key = (
            torch.cat((columns.to(x.dtype), x), dim=-1) for x, columns in zip((query, key), position_embeddings, strict=True)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # the fused kernels of CUDA want one head size for all three
        value = nn.functional.pad(value, (0, COLUMNS))
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed[..., : self.head_dim].reshape(*rows, -1)), weights


class AlibiDecoderLayer(LlamaDecoderLayer):
    """LLaMA's layer around :class:`AlibiAttention`."""

    def __init__(self, config: AlibiConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = AlibiAttention(config, layer_idx)


class AlibiPreTrainedModel(LlamaPreTrainedModel):
    """What transformers needs to know of the class."""

    config_class = AlibiConfig
    config: AlibiConfig
    _no_split_modules = ["AlibiDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": AlibiDecoderLayer, "attentions": AlibiAttention}  # noqa: RUF012


class AlibiModel(AlibiPreTrainedModel, LlamaModel):
    """LLaMA's decoder; its forward pass hands what ``rotary_emb`` returns to every layer, which are the columns here."""

    def __init__(self, config: AlibiConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaModel's own would build the rotary tables
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(AlibiDecoderLayer(config, place) for place in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = AlibiColumns(config)
        self.gradient_checkpointing = False
        self.post_init()


class AlibiForCausalLM(AlibiPreTrainedModel, LlamaForCausalLM):
    """The decoder with a head of its own or a tied one."""

    def __init__(self, config: AlibiConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = AlibiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(MODEL_TYPE, AlibiConfig)
AutoModel.register(AlibiConfig, AlibiModel)
AutoModelForCausalLM.register(AlibiConfig, AlibiForCausalLM)
