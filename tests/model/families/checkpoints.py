"""Tiny random checkpoints in the legacy layouts, as their publishers' files lie: written by the tests, read by the converter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

CHATGLM: Config = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 700,
    "seq_length": 1024,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "torch_dtype": "float16",
}
CHATGLM2 = CHATGLM | {"_name_or_path": "THUDM/chatglm2-6b"}
CHATGLM3 = CHATGLM | {"_name_or_path": "THUDM/chatglm3-6b"}
MOSS: Config = {
    "model_type": "moss",
    "architectures": ["MossForCausalLM"],
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": None,
    "rotary_dim": 8,
    "n_positions": 1024,
    "n_ctx": 1024,
    "vocab_size": 700,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 650,
    "eos_token_id": 660,
    "wbits": 32,
    "tie_word_embeddings": False,
}
BAICHUAN: Config = {
    "model_type": "baichuan",
    "architectures": ["BaiChuanForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 700,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
BAICHUAN2 = BAICHUAN | {"vocab_size": 125_696, "model_max_length": 1024, "architectures": ["BaichuanForCausalLM"]}


def _chatglm_shapes(c: Config) -> Shapes:
    h, f, d = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
    heads, groups = c["num_attention_heads"], c["multi_query_group_num"]
    fused = (heads + 2 * groups) * d
    each = {
        "input_layernorm.weight": (h,),
        "self_attention.query_key_value.weight": (fused, h),
        "self_attention.query_key_value.bias": (fused,),
        "self_attention.dense.weight": (h, heads * d),
        "post_attention_layernorm.weight": (h,),
        "mlp.dense_h_to_4h.weight": (2 * f, h),
        "mlp.dense_4h_to_h.weight": (h, f),
    }
    ends = {
        "transformer.embedding.word_embeddings.weight": (c["padded_vocab_size"], h),
        "transformer.rotary_pos_emb.inv_freq": (d // 4,),
        "transformer.encoder.final_layernorm.weight": (h,),
        "transformer.output_layer.weight": (c["padded_vocab_size"], h),
    }
    return ends | {f"transformer.encoder.layers.{n}.{k}": s for n in range(c["num_layers"]) for k, s in each.items()}


def _moss_shapes(c: Config) -> Shapes:
    e = c["n_embd"]
    each = {
        "ln_1.weight": (e,),
        "ln_1.bias": (e,),
        "attn.causal_mask": (1, 1, 8, 8),
        "attn.qkv_proj.weight": (3 * e, e),
        "attn.out_proj.weight": (e, e),
        "mlp.fc_in.weight": (4 * e, e),
        "mlp.fc_in.bias": (4 * e,),
        "mlp.fc_out.weight": (e, 4 * e),
        "mlp.fc_out.bias": (e,),
    }
    ends: Shapes = {"transformer.wte.weight": (c["vocab_size"], e), "lm_head.weight": (c["vocab_size"], e)}
    ends |= {"lm_head.bias": (c["vocab_size"],), "transformer.ln_f.weight": (e,), "transformer.ln_f.bias": (e,)}
    return ends | {f"transformer.h.{n}.{k}": s for n in range(c["n_layer"]) for k, s in each.items()}


def _baichuan_shapes(c: Config) -> Shapes:
    h, f = c["hidden_size"], c["intermediate_size"]
    each = {
        "input_layernorm.weight": (h,),
        "self_attn.W_pack.weight": (3 * h, h),
        "self_attn.o_proj.weight": (h, h),
        "post_attention_layernorm.weight": (h,),
        "mlp.gate_proj.weight": (f, h),
        "mlp.up_proj.weight": (f, h),
        "mlp.down_proj.weight": (h, f),
    }
    if "max_position_embeddings" in c:
        each["self_attn.rotary_emb.inv_freq"] = (h // c["num_attention_heads"] // 2,)
    ends = {
        "model.embed_tokens.weight": (c["vocab_size"], h),
        "lm_head.weight": (c["vocab_size"], h),
        "model.norm.weight": (h,),
    }
    return ends | {f"model.layers.{n}.{k}": s for n in range(c["num_hidden_layers"]) for k, s in each.items()}


_SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "chatglm": _chatglm_shapes,
    "moss": _moss_shapes,
    "baichuan": _baichuan_shapes,
}


def random_weights(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Float32 tensors of a configuration, large enough that a mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in _SHAPES[config["model_type"]](config).items():
        values = torch.randn(shape, generator=generator)
        norm = "norm" in name or "ln_" in name
        found[name] = 1 + 0.2 * values if norm and name.endswith("weight") else values * (1.0 if "word_emb" in name else 0.15)
        if name.endswith("causal_mask"):
            found[name] = torch.ones(shape, dtype=torch.bool).tril()
    return found


def write_checkpoint(
    folder: Path, config: Config, weights: dict[str, Tensor], *, shards: int = 2, pickled: bool = True
) -> Path:
    """The folder, with a Python file beside, as such checkpoints have it; it must never be looked at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / f"modeling_{config['model_type']}.py").write_text("raise SystemExit('this file must not be run')\n")
    names, places = sorted(weights), {}
    ending, stem = ("bin", "pytorch_model") if pickled else ("safetensors", "model")
    for shard in range(shards):
        held = {name: weights[name].contiguous() for name in names[shard::shards]}
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{ending}" if shards > 1 else f"{stem}.{ending}"
        torch.save(held, folder / file) if pickled else save_file(held, folder / file)
        places |= dict.fromkeys(held, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder
