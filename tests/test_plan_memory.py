"""Parameters and memory: against arithmetic done here, what autograd really keeps, and measured peaks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from sft import plan_memory
from sft.engine import head_loss
from sft.errors import ModelError
from sft.model.attention import register
from sft.model.native import AutoConfig
from sft.plan_memory import Load, activation_bytes, memory_estimate, model_shape, trainable_parameters
from sft.recipe import ExtendSection, LoraSection, TokenizerSection
from tests.plans import GIB, LINEAR, NORMS, TINY, TOTAL, F, H, L, V, llama_7b, part, recipe

# -- parameters


def test_parameters_by_kind_of_a_two_layer_llama() -> None:
    shape = model_shape(TINY)
    assert (shape.embeddings, shape.head, shape.linear, shape.norms) == (3200, 3200, 18432, 160)
    assert (shape.embeddings, shape.head, shape.linear, shape.norms) == (V * H, V * H, LINEAR, NORMS)
    assert shape.total == TOTAL == sum(p.numel() for p in AutoModelForCausalLM.from_config(TINY).parameters())
    assert shape.matmul == LINEAR + V * H
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn) == (2, 32, 4, 2, 8, 64)
    assert shape.gated
    assert len(shape.linears) == 7 * L
    assert ("model.layers.0.self_attn.k_proj", 32, 16) in shape.linears


def test_a_tied_head_is_counted_once_but_multiplies() -> None:
    config = LlamaConfig.from_dict({**TINY.to_dict(), "tie_word_embeddings": True})
    shape = model_shape(config)
    assert (shape.embeddings, shape.head, shape.head_matrix) == (V * H, 0, V * H)
    assert shape.total == TOTAL - V * H
    assert shape.matmul == LINEAR + V * H


def test_opt_has_position_tables_biases_and_no_gate() -> None:
    config = OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
        max_position_embeddings=50,
    )  # fmt: skip
    shape = model_shape(config)
    assert shape.embeddings == 100 * 32 + (50 + 2) * 32
    assert shape.linear == 2 * (4 * (32 * 32 + 32) + (32 * 96 + 96) + (96 * 32 + 32))
    assert shape.norms == (2 * 2 + 1) * 2 * 32
    assert shape.ffn == 96
    assert not shape.gated


def test_llama_7b_has_the_known_number_of_parameters() -> None:
    shape = model_shape(llama_7b())
    assert shape.total == 6_738_415_616
    assert shape.matmul == 6_607_077_376


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ({}, L * 2 * (2 * (H + H) + 2 * (H + H // 2) + 3 * (H + F))),
        ({"targets": ("q_proj", "down_proj")}, L * 2 * ((H + H) + (F + H))),
        ({"targets": ("k_proj",), "dora": True}, L * (2 * (H + H // 2) + H // 2)),
    ],
)
def test_trainable_parameters_of_adapters(section: dict[str, Any], count: int) -> None:
    assert trainable_parameters(recipe(lora=section), model_shape(TINY)) == count


def test_heads_with_alibi_are_wider() -> None:
    plain = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    shapes = [model_shape(AutoConfig.for_model(kind, **plain)) for kind in ("llama", "vicugna_alibi")]
    assert [shape.head_dim for shape in shapes] == [8, 16]
    assert shapes[0].total == shapes[1].total


def test_an_extended_vocabulary_is_trained_too() -> None:
    shape, rec = model_shape(TINY), recipe(lora={})
    alone = trainable_parameters(rec, shape)

    def with_(**extend: Any) -> int:
        section = TokenizerSection(extend=ExtendSection(**extend))
        return trainable_parameters(rec.model_copy(update={"tokenizer": section}), shape) - alone

    assert with_(size=10) == with_(file="tokens.txt") == shape.embeddings + shape.head
    assert with_(size=10, train="rows") == 2 * 10 * H
    half = recipe(lora={}, model__dtype="bfloat16").model_copy(
        update={"tokenizer": TokenizerSection(extend=ExtendSection(size=10))}
    )
    memory = memory_estimate(half, shape, Load(4096, 4096, 64, 1))
    assert memory.moment == "at the loss"
    assert {part.name: part.gib * 2**30 for part in memory.parts}["head as multiplied"] == 2 * 2 * shape.head_matrix


# -- activations: the formula against autograd


def saved_bytes(layers: int, dtype: torch.dtype, autocast: bool, lora: LoraSection | None) -> int:
    """Bytes of all storages that autograd keeps for one row of 64 tokens, parameters left out."""
    from sft.model.adapters import attach

    register()
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=layers, num_attention_heads=4, vocab_size=64
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="vicugna_sdpa")
    if lora is not None:
        model = attach(model, lora, (), seed=0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.arange(64)[None]
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=1)
    return sum(seen.values())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("dtype", "compute", "lora", "in_h", "in_f"),
    [
        ("bfloat16", None, None, 24, 8),
        ("float32", None, None, 40, 16),
        ("float32", "bfloat16", None, 34, 8),
        ("bfloat16", "bfloat16", {"rank": 1}, 20, 8),
        ("bfloat16", None, {"rank": 1}, 20, 8),
        ("float32", "bfloat16", {"rank": 1}, 20, 8),
        ("float32", None, {"rank": 1}, 32, 16),
    ],
)
def test_activation_formula_is_what_autograd_keeps(
    dtype: str, compute: str | None, lora: dict[str, Any] | None, in_h: int, in_f: int
) -> None:
    rec = recipe(lora=lora, model__dtype=dtype, model__compute_dtype=compute)
    config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    each = activation_bytes(rec, model_shape(config), 64)
    assert each == in_h * 256 + in_f * 704
    autocast = compute == "bfloat16" or (dtype == "bfloat16" and lora is not None)
    kept = [saved_bytes(n, getattr(torch, dtype), autocast, rec.lora) for n in (2, 3)]
    # Under autocast the copies of float32 matrices are kept too; the plan counts them apart.
    copies = 2 * (4 * 256 * 256 + 3 * 256 * 704) if autocast and dtype == "float32" else 0
    assert (kept[1] - kept[0] - copies) / 64 == pytest.approx(each, rel=0.02)


def test_eager_attention_keeps_its_probabilities() -> None:
    shape = model_shape(TINY)
    plain, eager = (
        activation_bytes(recipe(train__batching="padded", model__attention=name), shape, 8) for name in ("sdpa", "eager")
    )
    assert eager - plain == 4 * 8 * 4  # heads x longest x float32


# -- memory


LOAD = Load(tokens=10, trained=3, longest=8, accumulation=1)
TWO = Load(tokens=10, trained=3, longest=8, accumulation=2)  # gradients stand beside activations


def test_full_float32_tuning_by_hand() -> None:
    memory = memory_estimate(recipe(), model_shape(TINY), LOAD)
    assert part(memory, "weights") == TOTAL * 4
    assert part(memory, "optimiser states") == TOTAL * 8
    # At the last layer of the backward pass all gradients and one layer's activations stand: more than both layers' activations.
    each = 24 * H + (2 * 4 + 2 * 2) * 8 * 4 + 16 * F
    assert each == 24 * 32 + 12 * 8 * 4 + 1024
    assert "last layer" in memory.moment
    assert part(memory, "gradients") == TOTAL * 4
    assert part(memory, "activations") == 10 * each
    assert memory.total_gib == pytest.approx((TOTAL * 16 + 10 * each) / GIB + plan_memory.OVERHEAD_GIB)
    assert memory.total_gib == pytest.approx(sum(p.gib for p in memory.parts))
    assert memory.fits


def test_many_tokens_make_the_loss_the_fullest_moment() -> None:
    shape, load = model_shape(TINY), Load(1000, 300, 8, 1)
    memory = memory_estimate(recipe(), shape, load)
    each = 24 * H + 12 * 8 * 4 + 16 * F
    assert memory.moment == "at the loss"
    assert part(memory, "gradients") == 0
    assert part(memory, "activations") == L * 1000 * each
    assert part(memory, "logits") == 300 * V * (4 + 4)
    several = memory_estimate(recipe(), shape, Load(1000, 300, 8, 2))
    assert part(several, "gradients") == TOTAL * 4
    padded = memory_estimate(recipe(train__batching="padded"), shape, load)
    assert part(padded, "logits") == 300 * V * 12 + 1000 * V * 4


def test_logits_are_those_of_one_stretch_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_memory.STRETCH_BYTES == head_loss.STRETCH_BYTES
    monkeypatch.setattr(plan_memory, "STRETCH_BYTES", 4 * 300 * V // 3)
    memory = memory_estimate(recipe(model__dtype="bfloat16"), model_shape(TINY), Load(1000, 300, 8, 1))
    assert part(memory, "logits") == 300 * math.ceil(V / 3) * (4 + 2) + 300 * H * 4


def test_bfloat16_weights_have_bfloat16_moments_and_logits_of_six_bytes() -> None:
    memory = memory_estimate(recipe(model__dtype="bfloat16"), model_shape(TINY), Load(1000, 300, 8, 2))
    assert part(memory, "weights") == part(memory, "gradients") == TOTAL * 2
    assert part(memory, "optimiser states") == TOTAL * 4
    assert part(memory, "logits") == 300 * V * 6


def test_autocast_copies_stand_beside_float32_weights_until_checkpointing_frees_them() -> None:
    shape, load = model_shape(TINY), Load(1000, 300, 8, 1)
    rec = recipe(model__compute_dtype="bfloat16")
    assert part(memory_estimate(rec, shape, load), "autocast copies") == (LINEAR + V * H) * 2
    saving = recipe(model__compute_dtype="bfloat16", train__gradient_checkpointing=True)
    memory = memory_estimate(saving, shape, load)
    assert "backward" in memory.moment
    assert part(memory, "autocast copies") == LINEAR // L * 2


def test_checkpointing_keeps_one_hidden_state_per_layer_and_recomputes_one_layer() -> None:
    shape, load = model_shape(TINY), Load(1000, 10, 8, 1)
    memory = memory_estimate(recipe(train__gradient_checkpointing=True), shape, load)
    each = 24 * H + 12 * 8 * 4 + 16 * F
    assert memory.moment == "in the backward pass, at its first layer"
    assert part(memory, "activations") == 1000 * (L * 4 * H + each)


@pytest.mark.parametrize(
    ("kind", "double", "linear_bytes"),
    [
        ("nf4", False, LINEAR * (0.5 + 4 / 64)),
        ("fp4", True, LINEAR * (0.5 + (1 + 4 / 256) / 64)),
        ("int8", True, LINEAR + 4 * L * (2 * H + 2 * (H // 2) + 2 * F + H)),
        ("float8", True, LINEAR + 4 * L * (2 * H + 2 * (H // 2) + 2 * F + H)),
    ],
)
def test_quantised_weights(kind: str, double: bool, linear_bytes: float) -> None:
    rec = recipe(lora={}, model__quantization=kind, model__double_quantization=double, model__dtype="bfloat16")
    memory = memory_estimate(rec, model_shape(TINY), TWO)
    assert part(memory, "weights") == pytest.approx(linear_bytes + (2 * V * H + NORMS) * 2)
    adapters = trainable_parameters(rec, model_shape(TINY))
    assert part(memory, "adapters") == part(memory, "gradients") == adapters * 4
    assert part(memory, "optimiser states") == adapters * 8


@pytest.mark.parametrize(
    ("kind", "each"), [("adamw", 8.0), ("adamw_8bit", 2 + 8 / 256), ("paged_adamw_8bit", 0.0), ("sgd", 0.0)]
)
def test_optimiser_states(kind: str, each: float) -> None:
    assert part(memory_estimate(recipe(train__optimizer=kind), model_shape(TINY), LOAD), "optimiser states") == TOTAL * each


@pytest.mark.parametrize(("kind", "each"), [("adamw_stochastic", 4.0), ("adamw_8bit_stochastic", 2 + 8 / 256)])
def test_states_of_bfloat16_weights(kind: str, each: float) -> None:
    rec = recipe(train__optimizer=kind, model__dtype="bfloat16")
    assert part(memory_estimate(rec, model_shape(TINY), LOAD), "optimiser states") == TOTAL * each


def test_sharding_divides_and_adds_one_whole_layer() -> None:
    shape = model_shape(TINY)
    memory = memory_estimate(recipe(train__sharding="fsdp", plan__gpus=4), shape, TWO)
    assert part(memory, "weights") == part(memory, "gradients") == TOTAL * 4 / 4
    assert part(memory, "optimiser states") == TOTAL * 8 / 4
    assert part(memory, "unsharded layer, embeddings, head") == (LINEAR // L + 2 * V * H) * 4
    away = memory_estimate(recipe(train__sharding="fsdp", train__cpu_offload=True, plan__gpus=4), shape, TWO)
    assert [part(away, n) for n in ("weights", "gradients", "optimiser states")] == [0, 0, 0]
    replicated = memory_estimate(recipe(plan__gpus=4), shape, TWO)
    assert part(replicated, "gradient buckets (DDP)") == part(replicated, "weights") == TOTAL * 4


@pytest.mark.parametrize(
    ("changes", "load", "peak"),
    [
        ({}, Load(8192, 1024, 2048, 1), 84.3),
        ({"train__gradient_checkpointing": True, "train__optimizer": "adamw_8bit"}, Load(16384, 1024, 2048, 1), 40.1),
        ({"lora": {"rank": 16}}, Load(8192, 1024, 2048, 1), 55.4),
        ({"lora": {"rank": 16}, "train__gradient_checkpointing": True}, Load(8192, 1024, 2048, 1), 16.9),
        (
            {"model__dtype": "float32", "model__compute_dtype": "bfloat16", "train__batching": "padded"},
            Load(4 * 512, 1024, 512, 32),
            125.6,
        ),
    ],
)
def test_measured_peaks_of_a_7b_model_are_met_within_fifteen_percent(changes: dict[str, Any], load: Load, peak: float) -> None:
    """Peaks of torch's allocator on one H200 (2026-11-24), so without the constant for what is outside of it."""
    options = {"model__dtype": "bfloat16", **changes}
    memory = memory_estimate(recipe(**options), model_shape(llama_7b()), load)
    assert memory.total_gib - plan_memory.OVERHEAD_GIB == pytest.approx(peak, rel=0.15)


def test_more_layers_than_there_are_cannot_be_recomputed() -> None:
    rec = recipe(train__gradient_checkpointing=TINY.num_hidden_layers + 1)
    with pytest.raises(
        ModelError, match=rf"gradient_checkpointing: {TINY.num_hidden_layers + 1} layers, but the model has \d+; lower it"
    ):
        memory_estimate(rec, model_shape(TINY), LOAD)
