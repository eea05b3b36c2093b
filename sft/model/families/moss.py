"""MOSS (moss-moon-003) is Phi with q, v and k sharded in one matrix, rotary rows in pairs, and no attention biases.

::

    attn.qkv_proj.weight   [3 H, H]: four shards, each with a quarter of the heads, q before v before k

        shard 0          shard 1          shard 2          shard 3            H/4 rows a part: n/4 heads of d rows,
        q    v    k      q    v    k      q    v    k      q    v    k        head = shard * n/4 + place in the part

    rows of a head of q and k
        MOSS   (0, 1) (2, 3) ... (r-2, r-1)  r ... d-1     pairs of neighbours are rotated
        Phi    0 2 4 ... r-2  1 3 5 ... r-1  r ... d-1     row i is rotated with row i + r/2

Written with the even rows first, Phi's angles fall on MOSS's pairs; q and k move alike, so that their products stay. Both run attention
and MLP on one LayerNorm's output and add both to what came in. Phi's attention has biases: zeros, which change nothing (full tuning moves
them; LoRA with ``bias: none``, as here, does not).

Source: OpenMOSS's modelling files and CodeGen's, whose blocks they are; Phi's in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sft.errors import ModelError
from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

SHARDS = 4
# CodeGen's own releases hold the mask under other names
_COMPUTED = (".attn.causal_mask", ".attn.masked_bias", ".attn.bias")
_ORDER = ("q_proj", "v_proj", "k_proj")
_NAMES = (
    ("transformer.wte.", "model.embed_tokens."),
    ("transformer.ln_f.", "model.final_layernorm."),
    ("transformer.h.", "model.layers."),
)
_INNER = (
    (".ln_1.", ".input_layernorm."),
    (".mlp.fc_in.", ".mlp.fc1."),
    (".mlp.fc_out.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.dense."),
    (".attn.qkv_proj.", ".self_attn.qkv_proj."),
)


def recognises(config: Config) -> bool:
    """Any MOSS, its quantised releases too (they are refused by their ``wbits``)."""
    return str(config.get("model_type", "")).lower() == "moss"


def config_of(config: Config) -> dict[str, Any]:
    """Phi's configuration of a MOSS."""
    expect(config, activation_function="gelu_new", scale_attn_weights=True, tie_word_embeddings=False)
    hidden, layers, heads, rotary, vocabulary = need(config, "n_embd", "n_layer", "n_head", "rotary_dim", "vocab_size")
    if heads % SHARDS or hidden % heads:
        raise ModelError(
            f"config.json: n_head = {heads}, n_embd = {hidden}: MOSS writes its heads in {SHARDS} shards of equal size, and these cannot be"
        )
    size = hidden // heads
    if rotary is None or rotary % 2 or not 0 < rotary <= size:
        raise ModelError(f"config.json: rotary_dim = {rotary!r}: an even number up to {size}, the size of a head, was expected")
    return {
        "model_type": "phi",
        "hidden_size": hidden,
        "intermediate_size": config.get("n_inner") or 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": config.get("n_positions", 2048),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": rotary / size},
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        # dropout is a matter of training, and no weight's
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": config.get("bos_token_id", 106_028),
        "eos_token_id": config.get("eos_token_id", 106_068),
        # a pad id would take its row of the embedding out of training
        "pad_token_id": None,
    }


def tensors_of(name: str, value: Tensor, config: Config) -> Renamed:
    """See the module."""
    if name.endswith(_COMPUTED):
        return
    new = _renamed(name)
    if new.endswith(".qkv_proj.weight"):
        heads, rotary = need(config, "n_head", "rotary_dim")
        for part, rows in unshard(value, name).items():
            kept = rows if part == "v_proj" else sort_pairs(rows, heads, rotary)
            yield new.replace("qkv_proj", part), kept
            yield new.replace("qkv_proj.weight", f"{part}.bias"), value.new_zeros(rows.shape[0])
        return
    yield new, value
    if new.endswith(".self_attn.dense.weight"):
        yield new.removesuffix("weight") + "bias", value.new_zeros(value.shape[0])


def unshard(fused: Tensor, name: str) -> dict[str, Tensor]:
    """``[3 H, H]`` in four shards of q, v, k -> ``q_proj``, ``v_proj`` and ``k_proj``, ``[H, H]`` each, heads in their order.

    Raises:
        ModelError: another number of rows.
    """
    rows, width = fused.shape
    if rows != 3 * width:
        raise ModelError(f"{name} has {rows} rows of {width}; {3 * width} were expected: q, v and k")
    parts = fused.view(SHARDS, len(_ORDER), width // SHARDS, width)
    return {part: parts[:, place].reshape(width, width) for place, part in enumerate(_ORDER)}


def sort_pairs(rows: Tensor, heads: int, rotary: int) -> Tensor:
    """``[H, H]`` with the first ``rotary`` rows of every head reordered ``0, 2, 4, ..., 1, 3, 5, ...``."""
    size = rows.shape[0] // heads
    order = torch.cat((torch.arange(0, rotary, 2), torch.arange(1, rotary, 2), torch.arange(rotary, size)))
    return rows.view(heads, size, -1)[:, order].reshape(rows.shape)


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _INNER:
        name = name.replace(old, new)
    return name


FAMILIES: tuple[Family, ...] = (
    Family(
        name="moss",
        native="phi",
        template="moss",
        recognises=recognises,
        config=config_of,
        tensors=tensors_of,
        tokenizer=tokenizers.moss,
        facts=Facts(
            ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
            "2,048",
            "flat",
            "5e-6",
        ),
    ),
)
