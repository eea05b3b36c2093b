"""ChatGLM2-6B and ChatGLM3-6B are Glm with other names, q, k and v in one matrix.

::

    query_key_value.{weight,bias}   rows of q (heads x d), then k, then v (groups x d each)
    dense_h_to_4h.weight            rows of gate, then up: Glm keeps them together, in this order
    rotary positions                neighbouring pairs of the first half of each head, as in Glm: nothing is permuted

A longer context is told by ``rope_ratio`` in both: ChatGLM2-6B-32k divides positions by it, ChatGLM3-6B-32k multiplies the base. (THUDM's
modelling files of both.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sft.errors import ModelError
from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

_NAMES = (
    ("transformer.embedding.word_embeddings.", "model.embed_tokens."),
    ("transformer.encoder.layers.", "model.layers."),
    ("transformer.encoder.final_layernorm.", "model.norm."),
    ("transformer.output_layer.", "lm_head."),
    (".self_attention.dense.", ".self_attn.o_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)
_FACTS = Facts(
    lora=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
    context="8,192 (32,768 in the -32k releases)",
    packing="flat",
    verified="",
)


def _is_chatglm(config: Config, version: int) -> bool:
    """Both versions have the same keys; what a checkpoint calls itself tells them apart, where it does."""
    if str(config.get("model_type", "")).lower() != "chatglm":
        return False
    named = str(config.get("_name_or_path", "")).lower()
    other = 3 if version == 2 else 2
    return f"chatglm{other}" not in named


def _config(config: Config, version: int) -> dict[str, Any]:
    """Glm's configuration; its own defaults are those of GLM-4."""
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        raise ModelError(
            "config.json: this is ChatGLM-6B, the first version, whose positions and mask no class of transformers knows"
        )
    if config.get("pre_seq_len") is not None:
        raise ModelError(
            "config.json: pre_seq_len is set: a P-Tuning checkpoint holds prefixes only; convert its base and tune adapters"
        )
    expect(
        config,
        rmsnorm=True,
        post_layer_norm=True,
        add_qkv_bias=True,
        multi_query_attention=True,
        add_bias_linear=False,
        apply_residual_connection_post_layernorm=False,
        fp32_residual_connection=False,
        tie_word_embeddings=False,
        original_rope=True,
    )
    hidden, inner, layers, heads, width, groups, vocabulary = need(
        config,
        *("hidden_size", "ffn_hidden_size", "num_layers", "num_attention_heads", "kv_channels", "multi_query_group_num"),
        "padded_vocab_size",
    )
    ratio, rope = (
        float(config.get("rope_ratio", 1) or 1),
        {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    length = int(config.get("seq_length", 8192))
    if ratio != 1 and version == 2:
        rope |= {"rope_type": "linear", "factor": ratio}
    elif ratio != 1:
        rope["rope_theta"] = 10000.0 * ratio
    return {
        "model_type": "glm",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": width,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _tensors(name: str, value: Tensor, config: Config) -> Renamed:
    if name.endswith("rotary_pos_emb.inv_freq"):
        return
    for old, new in _NAMES:
        name = name.replace(old, new)
    if ".self_attention.query_key_value." not in name:
        yield name, value
        return
    width = int(config["kv_channels"])
    q, kv = int(config["num_attention_heads"]) * width, int(config["multi_query_group_num"]) * width
    for part, rows in zip(("q_proj", "k_proj", "v_proj"), value.split([q, kv, kv]), strict=True):
        yield name.replace("self_attention.query_key_value", f"self_attn.{part}"), rows


FAMILIES = (
    Family(
        name="chatglm2",
        native="glm",
        template="chatglm2",
        recognises=lambda config: _is_chatglm(config, 2),
        config=lambda config: _config(config, 2),
        tensors=_tensors,
        tokenizer=tokenizers.chatglm2,
        facts=_FACTS,
    ),
    Family(
        name="chatglm3",
        native="glm",
        template="chatglm3",
        recognises=lambda config: _is_chatglm(config, 3),
        config=lambda config: _config(config, 3),
        tensors=_tensors,
        tokenizer=tokenizers.chatglm3,
        facts=_FACTS,
    ),
)
