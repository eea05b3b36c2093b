"""MOSS (moss-moon-003) is Phi with other names: one norm a block, attention and MLP side by side on it.

::

    qkv_proj.weight [3 E, E]   four shards, each  [ q E/4 | v E/4 | k E/4 ]  with a quarter of the heads: CodeGen's order
    rotary positions           neighbouring pairs (0,1), (2,3) ... of the first r numbers of a head; Phi turns (0, r/2), (1, r/2 + 1) ...
                               so these rows of q and k are sorted: 0, 2, 4 ... 1, 3, 5 ...; the others stay
    biases of q, k, v, dense   none in MOSS, zero in Phi

The dot products of q and k do not change when both are sorted alike. (OpenLMLab's modelling file; CodeGen: Nijkamp et al. 2023.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

SHARDS = 4
_NAMES = (
    ("transformer.wte.", "model.embed_tokens."),
    ("transformer.h.", "model.layers."),
    ("transformer.ln_f.", "model.final_layernorm."),
    (".ln_1.", ".input_layernorm."),
    (".mlp.fc_in.", ".mlp.fc1."),
    (".mlp.fc_out.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.dense."),
)


def _config(config: Config) -> dict[str, Any]:
    expect(config, activation_function="gelu_new", tie_word_embeddings=False, add_cross_attention=False)
    width, layers, heads, rotary, positions, vocabulary = need(
        config, "n_embd", "n_layer", "n_head", "rotary_dim", "n_positions", "vocab_size"
    )
    return {
        "model_type": "phi",
        "hidden_size": width,
        "intermediate_size": config.get("n_inner") or 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": rotary / (width // heads),
        },
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": None,
    }


def _tensors(name: str, value: Tensor, config: Config) -> Renamed:
    if name.endswith(("attn.causal_mask", "attn.masked_bias", "attn.bias")):
        return
    for old, new in _NAMES:
        name = name.replace(old, new)
    if name.endswith(".attn.qkv_proj.weight"):
        yield from _attention(name.removesuffix("attn.qkv_proj.weight"), value, config)
        return
    yield name, value
    if name.endswith(".self_attn.dense.weight"):
        yield name.replace("weight", "bias"), value.new_zeros(len(value))


def _attention(layer: str, value: Tensor, config: Config) -> Renamed:
    width, heads, rotary = int(config["n_embd"]), int(config["n_head"]), int(config["rotary_dim"])
    q, v, k = value.view(SHARDS, 3, width // SHARDS, width).unbind(1)
    for part, shards in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
        rows = shards.reshape(width, width)
        if part != "v_proj":
            rows = sort_pairs(rows, heads, rotary)
        yield f"{layer}self_attn.{part}.weight", rows
        yield f"{layer}self_attn.{part}.bias", value.new_zeros(width)


def sort_pairs(rows: Tensor, heads: int, rotary: int) -> Tensor:
    """Rows of each head, the first ``rotary`` in the order 0, 2, 4 ... 1, 3, 5 ...

    Args:
        rows: ``[heads x d, n]``.
    """
    size = len(rows) // heads
    order = torch.arange(size)
    order[:rotary] = torch.cat([torch.arange(0, rotary, 2), torch.arange(1, rotary, 2)])
    return rows.view(heads, size, -1)[:, order].reshape(rows.shape)


FAMILIES = (
    Family(
        name="moss",
        native="phi",
        template="moss",
        recognises=lambda config: str(config.get("model_type", "")).lower() == "moss",
        config=_config,
        tensors=_tensors,
        tokenizer=tokenizers.moss,
        facts=Facts(
            lora=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
            context="2,048",
            packing="flat",
            verified="",
        ),
    ),
)
