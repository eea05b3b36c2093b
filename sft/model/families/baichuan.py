"""Baichuan and Baichuan2 are LLaMA with q, k and v in one matrix; the 13B ones have ALiBi for positions.

::

    W_pack.weight   [3 H, H]   rows of q, then k, then v, each H; no head is permuted
    lm_head.weight  [V, H]     Baichuan2: logits = h (W / |W| by row)^T, so W / |W| is what a plain head holds

====================  =========================  ===================================
                      rotary positions (7B)      ALiBi (13B): :mod:`sft.model.alibi`
64,000 entries        Baichuan-7B                Baichuan-13B
125,696, NormHead     Baichuan2-7B               Baichuan2-13B
====================  =========================  ===================================

A configuration with ``max_position_embeddings`` has rotary positions; the 13B ones have ``model_max_length`` alone. (baichuan-inc's modelling
files of all four.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sft.errors import ModelError
from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

NORM_HEAD_VOCABULARY = 125_696
_COMPUTED = ("rotary_emb.inv_freq", "future_mask")
_ROTARY_WIDTH, _ALIBI_WIDTH = 4096, 5120
_FACTS = Facts(
    lora=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    context="4,096",
    packing="flat",
    verified="",
)


def is_alibi(config: Config) -> bool:
    """Whether places are told by ALiBi.

    Raises:
        ModelError: the width says another thing than the keys.
    """
    alibi = "max_position_embeddings" not in config
    width = config.get("hidden_size")
    if width == (_ROTARY_WIDTH if alibi else _ALIBI_WIDTH):
        raise ModelError(
            f"config.json: hidden_size {width} is that of a Baichuan with {'rotary positions' if alibi else 'ALiBi'}, and "
            f"max_position_embeddings is {'missing' if alibi else 'there'}, as with the other kind: which it is cannot be known"
        )
    return alibi


def has_norm_head(config: Config) -> bool:
    """Baichuan2."""
    return int(config.get("vocab_size", 0)) == NORM_HEAD_VOCABULARY


def _recognises(config: Config, norm_head: bool) -> bool:
    return str(config.get("model_type", "")).lower() == "baichuan" and has_norm_head(config) is norm_head


def _config(config: Config) -> dict[str, Any]:
    expect(config, hidden_act="silu", tie_word_embeddings=False)
    hidden, inner, layers, heads, vocabulary = need(
        config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"
    )
    common = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if is_alibi(config):
        return {"model_type": "llama_alibi", "max_position_embeddings": config.get("model_max_length", 4096), **common}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return {
        "model_type": "llama",
        "max_position_embeddings": config["max_position_embeddings"],
        "rope_parameters": rope,
        **common,
    }


def _tensors(name: str, value: Tensor, config: Config) -> Renamed:
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


FAMILIES = tuple(
    Family(
        name=name,
        native="llama; llama_alibi (13B)",
        template=name,
        recognises=lambda config, norm_head=norm_head: _recognises(config, norm_head),  # type: ignore[misc]
        config=_config,
        tensors=_tensors,
        tokenizer=tokenizers.baichuan,
        facts=_FACTS,
    )
    for name, norm_head in (("baichuan", False), ("baichuan2", True))
)
