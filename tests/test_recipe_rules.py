"""Refusals that span sections or need a word on what to change, each by its words; and what is not refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.errors import RecipeError
from sft.recipe import load_recipe
from tests.recipe_text import SMALL

LORA = ("lora.rank=8", "lora.alpha=16")
NO_MODEL = ("model.name_or_path=null", "model.scratch.config={model_type: llama}")


def refusals(tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (
            ["data.max_length=65"],
            "train.tokens_per_device: 64 tokens cannot hold one row of data.max_length = 65; "
            "raise tokens_per_device or lower max_length",
        ),
        (
            ["train.examples_per_step=null", "train.tokens_per_step=63"],
            "train.tokens_per_step: a step must hold at least one row of data.max_length tokens; raise it",
        ),
        (
            ["model.quantization=int8"],
            "model.quantization: a quantised base can only be tuned with adapters: add a 'lora:' section, or set none",
        ),
        (
            ["model.quantization=nf4", "train.sharding=fsdp", *LORA],
            "train.sharding: a quantised base cannot be sharded here; set sharding: none or quantization: none",
        ),
        (["memory.budget=2GB"], "memory.budget: must be GiB above 0, written as 15GiB or 7.5GiB, got 2GB"),
        (["memory.budget=2"], "memory.budget: must be GiB above 0, written as 15GiB or 7.5GiB, got 2"),
        (
            ["train.activation_offload=true"],
            "train.activation_offload: only the inputs of recomputed layers are moved; set gradient_checkpointing: true or auto, or remove it",
        ),
        (
            ["train.activation_offload=true", "train.gradient_checkpointing=true", "train.sharding=fsdp"],
            "train.activation_offload: not shown to be right under fsdp; set sharding: none, or remove it",
        ),
        (["train.gradient_checkpointing=0"], "train.gradient_checkpointing: must be at least 1, or false, got 0"),
        (["train.tokens_per_device=4"], "train.tokens_per_device: must be at least 8, or auto, got 4"),
        (
            ["train.optimizer=adamw_stochastic", "model.dtype=bfloat16", *LORA],
            "train.optimizer: adamw_stochastic is for full tuning; adapters are float32: set adamw or adamw_8bit",
        ),
        (
            ["model.dtype=bfloat16", "model.compute_dtype=float16"],
            "model.compute_dtype: float16 does not hold what bfloat16 weights may be; set compute_dtype: bfloat16, or dtype: float32",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "model.quantization=float8", *LORA],
            "train.float8: float8 is for full tuning; a frozen base has model.quantization: float8; set float8: false",
        ),
        (
            ["train.optimizer=adamw_8bit_stochastic"],
            "train.optimizer: adamw_8bit_stochastic is for full tuning of bfloat16 weights; set model.dtype: bfloat16, or adamw",
        ),
        (
            ["train.optimizer=adamw_8bit", "train.sharding=fsdp"],
            "train.optimizer: 8-bit states were not shown to be right over shards (FSDP2); "
            "set adamw or adamw_stochastic, or sharding: none",
        ),
        (
            ["train.sharding=deepspeed", *LORA],
            "train.sharding: deepspeed is for full tuning here; set sharding: none or fsdp for adapters",
        ),
        (
            ["train.sharding=deepspeed", "model.dtype=bfloat16"],
            "model.dtype: deepspeed moves float32 weights here; "
            "set dtype: float32 with compute_dtype: bfloat16, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "train.optimizer=sgd"],
            "train.optimizer: sgd is not for sharding: deepspeed; set adamw, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "train.compile=on"],
            "train.compile: ZeRO-3 fetches weights inside the layers; set compile: off, or sharding: fsdp",
        ),
        (
            ["train.sharding=deepspeed", "output.save_every=5"],
            "output.save_every: DeepSpeed's checkpoints are pickles, which are neither written nor read here; "
            "set save_every: null, or sharding: fsdp",
        ),
        (
            ["model.attention=eager"],
            "model.attention: eager attention cannot separate the documents of a flat row; set train.batching: padded",
        ),
        (
            ["model.attention=varlen", "train.batching=padded", "model.compute_dtype=bfloat16"],
            "model.attention: varlen is for flat rows; set attention: sdpa or train.batching: flat",
        ),
        (
            ["model.attention=flash", "train.batching=padded", "model.compute_dtype=bfloat16"],
            "model.attention: flash is for flat rows; set attention: sdpa or train.batching: flat",
        ),
        (
            ["model.attention=flash"],
            "model.attention: flash kernels need bfloat16 or float16; set model.compute_dtype",
        ),
        (
            ["model.attention=varlen", "model.dtype=bfloat16", "model.compute_dtype=float32"],
            "model.attention: varlen kernels need bfloat16 or float16; set model.compute_dtype",
        ),
        (
            ["model.dtype=float16"],
            "model.dtype: full tuning of float16 weights overflows; use float32 with compute_dtype: bfloat16",
        ),
        (
            ["model.quantization=int8", "lora.dora=true", *LORA],
            "lora.dora: DoRA needs the base's weights, which peft cannot read from int8; use nf4, or set dora: false",
        ),
        (
            ["model.quantization=float8", "model.dtype=bfloat16", "lora.dora=true", *LORA],
            "lora.dora: DoRA needs the base's weights, which peft cannot read from float8; use nf4, or set dora: false",
        ),
        (
            ["model.quantization=float8", *LORA],
            "model.quantization: products that are not in float8 must be in bfloat16; set model.compute_dtype: bfloat16",
        ),
        (
            ["train.float8=true"],
            "train.float8: products that are not in float8 must be in bfloat16; set model.compute_dtype: bfloat16",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", *LORA],
            "train.float8: float8 is for full tuning; a frozen base has model.quantization: float8; "
            "set that and float8: false, or remove 'lora:'",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "train.compile=off"],
            "train.float8: float8 casts only pay in compiled layers over flat rows; set compile: on and batching: flat",
        ),
        (
            ["train.float8=true", "model.compute_dtype=bfloat16", "train.sharding=fsdp"],
            "train.float8: float8 products under FSDP were never measured; set train.sharding: none, or float8: false",
        ),
        (
            [*NO_MODEL, *LORA],
            "lora: adapters on random weights learn nothing useful; remove 'lora:' or load a trained model",
        ),
        # within one section
        (
            ["model.scratch.config={model_type: llama}"],
            "model.name_or_path: give exactly one of model.name_or_path and model.scratch",
        ),
        (["model.name_or_path=null"], "model.name_or_path: give exactly one of model.name_or_path and model.scratch"),
        (
            [*NO_MODEL, "model.scratch.config.vocab_size=400"],
            "model.scratch: vocab_size belongs in model.scratch.vocab_size, not in its config",
        ),
        (
            ["model.name_or_path=null", "model.scratch.config={hidden_size: 8}"],
            "model.scratch: scratch.config needs model_type, such as 'model_type: llama'",
        ),
        (["data.sources[0].hub=x"], "data.sources[0].path: give exactly one of path and hub"),
        (["data.holdout=1.5"], "data.holdout: must be a number of rows, or a share of at least 0 and below 1"),
        (["data.holdout=-1"], "data.holdout: must be a number of rows, or a share of at least 0 and below 1"),
        (
            ["data.holdout=2", "data.holdout_sources=[{path: x}]"],
            "data.holdout: give data.holdout or data.holdout_sources, not both",
        ),
        (["lora.targets=[]", *LORA], "lora.targets: name at least one module, or write all_linear"),
        (["train.epochs=null"], "train.epochs: give train.epochs or train.max_steps"),
        (
            ["train.tokens_per_step=64"],
            "train.examples_per_step: give exactly one of examples_per_step and tokens_per_step",
        ),
        (
            ["train.warmup_ratio=0.1", "train.warmup_steps=1"],
            "train.warmup_ratio: give warmup_ratio or warmup_steps, not both",
        ),
        (["train.cpu_offload=true"], "train.cpu_offload: cpu_offload needs sharding: fsdp"),
    ],
)
def test_refusals_say_what_to_change(tmp_path: Path, overrides: list[str], refusal: str) -> None:
    assert refusals(tmp_path, *overrides) == [refusal]


def test_several_refusals_come_together(tmp_path: Path) -> None:
    found = refusals(tmp_path, "model.quantization=int8", "train.sharding=fsdp", "model.attention=eager", "data.max_length=65")
    assert [line.split(":")[0] for line in sorted(found)] == [
        "model.attention",
        "model.quantization",
        "train.sharding",
        "train.tokens_per_device",
    ]


def test_a_refusal_points_at_the_line_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("max_length: 64", "max_length: 65"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [fault.where for fault in caught.value.faults] == [f"{path}:4"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.attention=eager", "train.batching=padded"],
        ["model.attention=flash", "model.compute_dtype=bfloat16"],
        ["model.dtype=float16", *LORA],
        ["model.quantization=nf4", "lora.dora=true", *LORA],
        ["model.quantization=float8", "model.dtype=bfloat16", *LORA],
        ["train.float8=true", "model.compute_dtype=bfloat16"],
        ["train.cpu_offload=true", "train.sharding=fsdp"],
        ["train.optimizer=adamw_stochastic", "model.dtype=bfloat16", "train.sharding=fsdp"],
        ["train.sharding=deepspeed", "model.compute_dtype=bfloat16"],
        ["train.epochs=null", "train.max_steps=5"],
        ["train.examples_per_step=null", "train.tokens_per_step=64"],
        NO_MODEL,
    ],
)
def test_what_is_not_refused(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    load_recipe(path, overrides)
