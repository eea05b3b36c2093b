"""ChatGLM2-6B and ChatGLM3-6B are GLM with q, k and v in one matrix and other names; no row is permuted.

::

    query_key_value      [H + 2 G d, H] and bias   rows of q (n heads of d), then k, then v (G groups of d each)
    dense_h_to_4h        [2 I, H]                  rows of the gate, then of what it gates: GLM's gate_up_proj as it is
    rotary positions     pairs (0, 1), (2, 3), ... of the first d/2 rows of a head, theta 10,000: GLM's with partial_rotary_factor 0.5

``rope_ratio`` of the releases for 32k tokens means two things. ChatGLM2 divides positions by it (linear interpolation), ChatGLM3
multiplies theta. Both call themselves ``chatglm``; which one a checkpoint is stands in no other number of its configuration, so only a
name in it (where it was loaded from) or the user can say.

Source: zai-org's modelling files of both, GLM's in transformers.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sft.errors import ModelError
from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

_FIRST = ("position_encoding_2d", "inner_hidden_size")
_GLM4_LAYERS, _GLM4_VOCABULARY = 40, 151_552
_PARTS = ("q_proj", "k_proj", "v_proj")
_NAMES = (
    ("transformer.embedding.word_embeddings.", "model.embed_tokens."),
    ("transformer.encoder.final_layernorm.", "model.norm."),
    ("transformer.encoder.layers.", "model.layers."),
    ("transformer.output_layer.", "lm_head."),
)
_INNER = (
    (".self_attention.dense.", ".self_attn.o_proj."),
    (".self_attention.query_key_value.", ".self_attn.query_key_value."),
    (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)


def _named(config: Config) -> set[str]:
    """Versions that names in the configuration speak of: where it was loaded from, and where its classes are."""
    classes = config.get("auto_map")
    names = [config.get("_name_or_path"), *(classes.values() if isinstance(classes, dict) else ())]
    return {version for name in names for version in re.findall(r"chatglm-?([23])", str(name).lower())}


def _may_be(version: str, config: Config) -> bool:
    if str(config.get("model_type", "")).lower() != "chatglm":
        return False
    _refuse_relatives(config)
    named = _named(config)
    return len(named) != 1 or version in named


def recognises_2(config: Config) -> bool:
    """ChatGLM2, unless a name says that it is ChatGLM3. Raises ModelError for a relative that cannot be converted."""
    return _may_be("2", config)


def recognises_3(config: Config) -> bool:
    """ChatGLM3, unless a name says that it is ChatGLM2. Raises ModelError for a relative that cannot be converted."""
    return _may_be("3", config)


def _refuse_relatives(config: Config) -> None:
    if found := [key for key in _FIRST if key in config]:
        raise ModelError(
            f"config.json: {found[0]} is a key of ChatGLM-6B, the first version: its blocks and its two-dimensional positions are those of "
            "no class in transformers; convert ChatGLM2-6B or ChatGLM3-6B"
        )
    layers, vocabulary = config.get("num_layers"), config.get("padded_vocab_size", config.get("vocab_size"))
    if layers == _GLM4_LAYERS or vocabulary == _GLM4_VOCABULARY:
        raise ModelError(
            f"config.json: {layers} layers and {vocabulary} tokens are GLM-4's: take its release for transformers, whose name ends in -hf; "
            "that one needs no conversion"
        )


def _expect_known(config: Config) -> None:
    """The variant that the formula above is about; every other value changes what a block computes."""
    _refuse_relatives(config)
    if config.get("pre_seq_len") is not None:
        raise ModelError(
            f"config.json: pre_seq_len = {config['pre_seq_len']!r}: a prefix of P-tuning belongs to this checkpoint, and no LoRA or weight of "
            "the native model can hold it; take the base model"
        )
    if config.get("multi_query_attention") is not True:
        raise ModelError(
            "config.json: multi_query_attention is not true: the rows of query_key_value are then ordered head by head, which is not known "
            "here; take ChatGLM2-6B or ChatGLM3-6B"
        )
    if config.get("add_qkv_bias") is not True:
        raise ModelError("config.json: add_qkv_bias is not true: this variant of the family cannot be converted")
    expect(
        config,
        rmsnorm=True,
        post_layer_norm=True,
        interleaved_qkv=False,
        add_bias_linear=False,
        apply_residual_connection_post_layernorm=False,
        fp32_residual_connection=False,
        original_rope=True,
        tie_word_embeddings=False,
    )


def _config(config: Config, rope: dict[str, Any]) -> dict[str, Any]:
    hidden, inner, layers, heads, groups, size, vocabulary, length = need(
        config,
        *("hidden_size", "ffn_hidden_size", "num_layers", "num_attention_heads", "multi_query_group_num", "kv_channels"),
        *("padded_vocab_size", "seq_length"),
    )
    # every field is set: GlmConfig's own values are those of GLM-4
    return {
        "model_type": "glm",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "rope_parameters": {**rope, "partial_rotary_factor": 0.5},
        "hidden_act": "silu",
        "attention_bias": True,
        # dropout is a matter of training, and no weight's
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _ratio(config: Config) -> float:
    value = config.get("rope_ratio")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise ModelError(f"config.json: rope_ratio = {value!r}; a number of at least 1 was expected")
    return float(value)


def config_of_2(config: Config) -> dict[str, Any]:
    """GLM's configuration of a ChatGLM2: ``rope_ratio`` divides positions."""
    _expect_known(config)
    ratio = _ratio(config)
    rope: dict[str, Any] = {"rope_type": "default"} if ratio == 1 else {"rope_type": "linear", "factor": ratio}
    return _config(config, {**rope, "rope_theta": 10_000.0})


def config_of_3(config: Config) -> dict[str, Any]:
    """GLM's configuration of a ChatGLM3: ``rope_ratio`` multiplies theta."""
    _expect_known(config)
    return _config(config, {"rope_type": "default", "rope_theta": 10_000.0 * _ratio(config)})


def tensors_of(name: str, value: Tensor, config: Config) -> Renamed:
    """See the module."""
    if name.endswith("rotary_pos_emb.inv_freq"):
        return
    new = _renamed(name)
    if ".query_key_value." not in new:
        yield new, value
        return
    heads, groups, size = need(config, "num_attention_heads", "multi_query_group_num", "kv_channels")
    rows = (heads * size, groups * size, groups * size)
    if value.shape[0] != sum(rows):
        raise ModelError(
            f"{name} has {value.shape[0]} rows, and the configuration asks for {rows[0]} of q, {rows[1]} of k and of v"
        )
    for part, piece in zip(_PARTS, value.split(rows), strict=True):
        yield new.replace("query_key_value", part), piece


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _INNER:
        name = name.replace(old, new)
    return name


_LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
_PACKING = "flat"
_VERIFIED = "5e-6"

FAMILIES: tuple[Family, ...] = (
    Family(
        name="chatglm2",
        native="glm",
        template="chatglm2",
        recognises=recognises_2,
        config=config_of_2,
        tensors=tensors_of,
        tokenizer=tokenizers.chatglm2,
        facts=Facts(_LORA, "32,768", _PACKING, _VERIFIED),
    ),
    Family(
        name="chatglm3",
        native="glm",
        template="chatglm3",
        recognises=recognises_3,
        config=config_of_3,
        tensors=tensors_of,
        tokenizer=tokenizers.chatglm3,
        facts=Facts(_LORA, "8,192; 32,768 of -32k", _PACKING, _VERIFIED),
    ),
)
