"""Baichuan-7B and Baichuan2-7B are LLaMA with q, k and v in one matrix; Baichuan2 scales the rows of its head to length 1.

::

    W_pack.weight   [3 H, H]   rows of q, then k, then v, each H; no head is permuted
    lm_head.weight  [V, H]     Baichuan2 (V = 125,696): logits = h (W / |W| by row)^T, so W / |W| is what LLaMA's head holds

(baichuan-inc's modelling files; which size has which positions: hidden size 4,096 rotary, 5,120 ALiBi.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft.model.families.family import Config, Renamed, expect, need

if TYPE_CHECKING:
    pass

NORM_HEAD_VOCABULARY = 125_696
_COMPUTED = ("rotary_emb.inv_freq", "future_mask")


def recognises(config: Config) -> bool:
    """Any Baichuan; ``BaiChuanForCausalLM`` in the first releases."""
    return str(config.get("model_type", "")).lower() == "baichuan"


def has_norm_head(config: Config) -> bool:
    """Baichuan2."""
    return int(config.get("vocab_size", 0)) == NORM_HEAD_VOCABULARY


def config_of(config: Config) -> dict[str, Any]:
    """LLaMA's configuration of a Baichuan with rotary positions."""
    expect(config, hidden_act="silu", tie_word_embeddings=False)
    hidden, inner, layers, heads, vocabulary = need(
        config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"
    )
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": config.get("max_position_embeddings") or config.get("model_max_length") or 4096,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def tensors_of(name: str, value: Tensor, config: Config) -> Renamed:
    """See the module."""
    if name.endswith(_COMPUTED):
        return
    if name.endswith("self_attn.W_pack.weight"):
        size = int(config["hidden_size"])
        for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
            yield name.replace("W_pack", part), value[place * size : (place + 1) * size]
    elif name == "lm_head.weight" and has_norm_head(config):
        exact = value.float()
        yield name, (exact / exact.norm(dim=-1, keepdim=True)).to(value.dtype)
    else:
        yield name, value


FAMILIES: tuple[Family, ...] = ()
