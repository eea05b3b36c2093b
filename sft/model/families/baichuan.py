"""Baichuan is LLaMA with q, k and v in one matrix; its 13B models have ALiBi for RoPE; Baichuan2 scales the rows of its head to length 1.

::

    W_pack.weight   [3 H, H]   rows of q, then k, then v, each H; no head is permuted
    lm_head.weight  [V, H]     Baichuan2: logits = h (W / |W| by row)^T, so W / |W| is what LLaMA's head holds
    positions                  rotary where config.json has max_position_embeddings (hidden size 4,096), ALiBi where it has
                               model_max_length only (5,120)

Folding the norm of the head is exact for inference and LoRA. A head that is trained afterwards is free: a valid model, but none that the old
code can hold, for it would scale the rows again (:func:`legacy_tensors` refuses it).

(baichuan-inc's modelling files for 7B, 13B, 2-7B and 2-13B.)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sft.errors import ModelError
from sft.model.families import tokenizers
from sft.model.families.family import Config, Facts, Family, Renamed, expect, need

VOCABULARY, NORM_HEAD_VOCABULARY = 64_000, 125_696
ALIBI = "vicugna_alibi"
_ROTARY_HIDDEN, _ALIBI_HIDDEN = 4096, 5120
_COMPUTED = ("rotary_emb.inv_freq", "future_mask")
_PARTS = ("q_proj", "k_proj", "v_proj")


def recognises(config: Config, *, norm_head: bool) -> bool:
    """Baichuan by its model type; 1 or 2 by its vocabulary. One that was enlarged may be both: the caller must say."""
    other = VOCABULARY if norm_head else NORM_HEAD_VOCABULARY
    return str(config.get("model_type", "")).lower() == "baichuan" and config.get("vocab_size") != other


def is_rotary(config: Config) -> bool:
    """Rotary positions, or ALiBi.

    Raises:
        ModelError: the positions that the configuration speaks of are not those that models of this width were trained with.
    """
    rotary, hidden = "max_position_embeddings" in config, config.get("hidden_size")
    if hidden in (_ROTARY_HIDDEN, _ALIBI_HIDDEN) and rotary != (hidden == _ROTARY_HIDDEN):
        known = (
            "rotary positions and max_position_embeddings"
            if hidden == _ROTARY_HIDDEN
            else "ALiBi and no max_position_embeddings"
        )
        raise ModelError(
            f"config.json: hidden_size = {hidden}, but Baichuan models of this width have {known}: which positions the weights were "
            "trained with cannot be known; take config.json from the original checkpoint"
        )
    return rotary


def config_of(config: Config, *, norm_head: bool = False) -> dict[str, Any]:
    """LLaMA's configuration, or that of :mod:`sft.model.alibi`.

    Raises:
        ModelError: a variant that is not known.
    """
    expect(config, hidden_act="silu", tie_word_embeddings=False, rope_scaling=None, rope_theta=10000.0)
    hidden, inner, layers, heads, vocabulary = need(
        config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"
    )
    expect(config, num_key_value_heads=heads)
    rotary = is_rotary(config)
    positions = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}} if rotary else {}
    return {
        "model_type": "llama" if rotary else ALIBI,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": config.get("max_position_embeddings") or config.get("model_max_length") or 4096,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        **positions,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_id": config.get("eos_token_id", 2),
        "pad_token_id": config.get("pad_token_id", 0),
        **({"norm_head": True} if norm_head else {}),  # full tuning leaves such a head alone (sft.model.load.freeze_head)
    }


def tensors_of(name: str, value: Tensor, config: Config, *, norm_head: bool) -> Renamed:
    """See the module.

    Raises:
        ModelError: a ``W_pack`` of another shape.
    """
    if name.endswith(_COMPUTED):
        return
    if name.endswith("self_attn.W_pack.weight"):
        size = int(config["hidden_size"])
        if tuple(value.shape) != (3 * size, size):
            raise ModelError(f"{name} has the shape {tuple(value.shape)}, and only q, k and v of {size} rows each are known")
        for place, part in enumerate(_PARTS):
            yield name.replace("W_pack", part), value[place * size : (place + 1) * size]
    elif name == "lm_head.weight" and norm_head:
        lengths = torch.linalg.vector_norm(value, dim=-1, keepdim=True, dtype=torch.float64).float()
        # a row of zeros stays one, as in the original
        yield name, (value.float() / lengths.clamp_min(1e-12)).to(value.dtype)
    else:
        yield name, value


def legacy_config(config: Config, *, norm_head: bool) -> dict[str, Any]:
    """The ``config.json`` of the old layout, for tools that know only that (vLLM has the classes of its own; no code is named in it).

    Args:
        config: native configuration, as :func:`config_of` gives it.
        norm_head: whether it is a Baichuan2.

    Raises:
        ModelError: something that the old classes cannot express.
    """
    rotary = config.get("model_type") == "llama"
    if not rotary and config.get("model_type") != ALIBI:
        raise ModelError(
            f"model_type {config.get('model_type')!r}: only a converted Baichuan can be written in Baichuan's layout"
        )
    expect(config, hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=False)
    expect(config, num_key_value_heads=config["num_attention_heads"])
    rope = config.get("rope_parameters") or {}
    if rotary and (rope.get("rope_type", "default"), rope.get("rope_theta", 10000.0)) != ("default", 10000.0):
        raise ModelError(
            f"rope_parameters = {dict(rope)}: Baichuan's own code has unscaled positions of base 10000 only; keep the native layout"
        )
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps")
    length = int(config["max_position_embeddings"])
    return {
        "architectures": ["BaiChuanForCausalLM" if rotary and not norm_head else "BaichuanForCausalLM"],
        "model_type": "baichuan",
        **{key: config[key] for key in kept},
        **({"max_position_embeddings": length} if rotary else {}),
        "model_max_length": length,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **{f"{key}_token_id": config.get(f"{key}_token_id") for key in ("bos", "eos", "pad")},
    }


def legacy_tensors(tensors: Iterable[tuple[str, Tensor]], *, norm_head: bool) -> Renamed:
    """Native tensors to the old ones. q, k and v of a layer are held until all three were there.

    Raises:
        ModelError: a head that the old code would change, or a part of ``W_pack`` that is missing.
    """
    held: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors:
        before, _, rest = name.partition(".self_attn.")
        part = rest.removesuffix(".weight")
        if part not in _PARTS:
            if name == "lm_head.weight" and norm_head:
                _refuse_free_head(value)
            yield name, value
            continue
        parts = held.setdefault(before, {})
        parts[part] = value
        if len(parts) == len(_PARTS):
            del held[before]
            yield f"{before}.self_attn.W_pack.weight", torch.cat([parts[name] for name in _PARTS])
    if held:
        before, parts = next(iter(held.items()))
        raise ModelError(
            f"{before}.self_attn: only {', '.join(sorted(parts))} are there; W_pack needs all of {', '.join(_PARTS)}"
        )


def _refuse_free_head(value: Tensor) -> None:
    norms = value.double().norm(dim=-1)
    # a unit vector whose entries are rounded is off by at most half an eps; a row of zeros is none in either code
    off = float(torch.where(norms > 0, norms - 1, 0.0).abs().max())
    if off > torch.finfo(value.dtype).eps:
        raise ModelError(
            f"lm_head.weight: rows of other lengths than 1 (off by up to {off:.1e}): the head was trained freely, and Baichuan2's own code "
            "would scale its rows again, which makes another model. Keep the native layout, or train with the head frozen"
        )


_LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _family(name: str, *, norm_head: bool, verified: str) -> Family:
    return Family(
        name=name,
        native=f"llama (7B), {ALIBI} (13B)",
        template=name,
        recognises=partial(recognises, norm_head=norm_head),
        config=partial(config_of, norm_head=norm_head),
        tensors=partial(tensors_of, norm_head=norm_head),
        tokenizer=tokenizers.baichuan,
        facts=Facts(lora=_LORA, context="4,096", packing="flat", verified=verified),
    )


FAMILIES: tuple[Family, ...] = (
    _family("baichuan", norm_head=False, verified="2.4e-5"),
    _family("baichuan2", norm_head=True, verified="1.5e-5"),
)
