"""Refusals that need two sections of a training recipe, each with the key to change and what to change it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft.recipe import Recipe


def disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    """Refusals that need two sections, each with the key to change."""
    model, train, data, lora = recipe.model, recipe.train, recipe.data, recipe.lora
    found: list[tuple[str, str]] = []
    if data.max_length > recipe.row_tokens:
        found.append(
            (
                "train.tokens_per_device",
                f"{train.tokens_per_device} tokens cannot hold one row of data.max_length = {data.max_length}; "
                "raise tokens_per_device or lower max_length",
            )
        )
    if train.tokens_per_step is not None and train.tokens_per_step < data.max_length:
        found.append(("train.tokens_per_step", "a step must hold at least one row of data.max_length tokens; raise it"))
    if model.quantization != "none" and lora is None:
        found.append(
            ("model.quantization", "a quantised base can only be tuned with adapters: add a 'lora:' section, or set none")
        )
    if model.quantization != "none" and train.sharding != "none":
        found.append(("train.sharding", "a quantised base cannot be sharded here; set sharding: none or quantization: none"))
    if model.attention == "eager" and train.batching == "flat":
        found.append(
            ("model.attention", "eager attention cannot separate the documents of a flat row; set train.batching: padded")
        )
    if model.attention in ("varlen", "flash", "cudnn") and train.batching == "padded":
        found.append(("model.attention", f"{model.attention} is for flat rows; set attention: sdpa or train.batching: flat"))
    if model.attention in ("varlen", "flash", "cudnn") and (model.compute_dtype or model.dtype) == "float32":
        found.append(("model.attention", f"{model.attention} kernels need bfloat16 or float16; set model.compute_dtype"))
    if "8bit" in train.optimizer and train.sharding == "fsdp":
        said = "8-bit states were not shown to be right over shards (FSDP2); set adamw or adamw_stochastic, or sharding: none"
        found.append(("train.optimizer", said))
    if recipe.template.end_label == "eos" and recipe.template.train_on == "all":
        said = "under train_on: all the first token of a turn is learnt as itself; set end_label: token, or train_on: assistant"
        found.append(("template.end_label", said))
    if train.sharding == "deepspeed":
        found += _deepspeed_disagreements(recipe)
    if train.compile == "on" and train.batching == "padded":
        found.append(
            ("train.compile", "padded rows change their shape with every batch; set train.batching: flat, or compile: off")
        )
    if train.sharding == "fsdp" and recipe.automatic:
        found.append(
            (
                "train.sharding",
                "memory is measured before the weights are sharded, so auto cannot be answered under fsdp; give tokens_per_device and "
                "gradient_checkpointing, or set sharding: none",
            )
        )
    if train.activation_offload is not False and train.gradient_checkpointing is False:
        said = "only the inputs of recomputed layers are moved; set gradient_checkpointing: true or auto, or remove it"
        found.append(("train.activation_offload", said))
    if train.activation_offload is not False and train.sharding != "none":
        found.append(
            ("train.activation_offload", f"not shown to be right under {train.sharding}; set sharding: none, or remove it")
        )
    if train.sharding == "fsdp" and type(train.gradient_checkpointing) is int:
        found.append(("train.gradient_checkpointing", "a number of layers is for sharding: none; set true or false under fsdp"))
    if model.scratch is not None and lora is not None:
        found.append(("lora", "adapters on random weights learn nothing useful; remove 'lora:' or load a trained model"))
    return found + _extension_disagreements(recipe) + _type_disagreements(recipe) + _float8_disagreements(recipe)


def _extension_disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    extend, lora, train = recipe.tokenizer.extend, recipe.lora, recipe.train
    found: list[tuple[str, str]] = []
    if extend is None:
        return found
    if recipe.model.scratch is not None:
        found.append(("tokenizer.extend", "a scratch model's vocabulary is made of the data already; remove it"))
    if lora is None and extend.train == "rows":
        found.append(("tokenizer.extend.train", "full tuning tunes every row; remove it, or add a 'lora:' section"))
    if lora is not None and not lora.train_new_tokens:
        found.append(("lora.train_new_tokens", "tokenizer.extend adds tokens that would stay untrained; set true"))
    if extend.train == "all" and lora is not None and train.sharding != "none":
        said = (
            f"a whole embedding beside adapters was not shown to be right under {train.sharding}; set rows, or sharding: none"
        )
        found.append(("tokenizer.extend.train", said))
    return found


def _type_disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    model, train, lora = recipe.model, recipe.train, recipe.lora
    found: list[tuple[str, str]] = []
    if "stochastic" in train.optimizer and lora is not None:
        found.append(
            ("train.optimizer", f"{train.optimizer} is for full tuning; adapters are float32: set adamw or adamw_8bit")
        )
    elif "stochastic" in train.optimizer and model.dtype != "bfloat16":
        said = f"{train.optimizer} is for full tuning of bfloat16 weights; set model.dtype: bfloat16, or adamw"
        found.append(("train.optimizer", said))
    if lora is None and model.dtype == "bfloat16" and model.compute_dtype == "float16":
        said = "float16 does not hold what bfloat16 weights may be; set compute_dtype: bfloat16, or dtype: float32"
        found.append(("model.compute_dtype", said))
    if model.dtype == "float16" and lora is None:
        found.append(("model.dtype", "full tuning of float16 weights overflows; use float32 with compute_dtype: bfloat16"))
    if train.loss_scale is not None and (model.compute_dtype or model.dtype) != "float16":
        found.append(("train.loss_scale", "only float16 products are scaled; remove it, or set model.compute_dtype: float16"))
    return found


def _float8_disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    model, train, lora = recipe.model, recipe.train, recipe.lora
    found: list[tuple[str, str]] = []
    if train.float8 and lora is not None:
        mend = "set float8: false" if model.quantization == "float8" else "set that and float8: false, or remove 'lora:'"
        found.append(("train.float8", f"float8 is for full tuning; a frozen base has model.quantization: float8; {mend}"))
    if train.float8 and (train.compile == "off" or train.batching == "padded"):
        found.append(
            ("train.float8", "float8 casts only pay in compiled layers over flat rows; set compile: on and batching: flat")
        )
    if train.float8 and train.sharding == "fsdp":
        found.append(
            ("train.float8", "float8 products under FSDP were never measured; set train.sharding: none, or float8: false")
        )
    if (train.float8 or model.quantization == "float8") and (model.compute_dtype or model.dtype) != "bfloat16":
        key = "train.float8" if train.float8 else "model.quantization"
        found.append((key, "products that are not in float8 must be in bfloat16; set model.compute_dtype: bfloat16"))
    if lora is not None and lora.dora and model.quantization in ("int8", "float8"):
        said = f"DoRA needs the base's weights, which peft cannot read from {model.quantization}; use nf4, or set dora: false"
        found.append(("lora.dora", said))
    return found


def _deepspeed_disagreements(recipe: Recipe) -> list[tuple[str, str]]:
    """What ZeRO-3 is not shown to do right here, each with the key to change."""
    model, train = recipe.model, recipe.train
    found: list[tuple[str, str]] = []
    if recipe.lora is not None:
        found.append(("train.sharding", "deepspeed is for full tuning here; set sharding: none or fsdp for adapters"))
    if model.dtype != "float32" or model.compute_dtype == "float16":
        found.append(
            (
                "model.dtype",
                "deepspeed moves float32 weights here; set dtype: float32 with compute_dtype: bfloat16, or sharding: fsdp",
            )
        )
    if train.optimizer != "adamw":
        found.append(("train.optimizer", f"{train.optimizer} is not for sharding: deepspeed; set adamw, or sharding: fsdp"))
    if train.compile == "on":
        found.append(("train.compile", "ZeRO-3 fetches weights inside the layers; set compile: off, or sharding: fsdp"))
    if recipe.output.save_every is not None:
        found.append(
            (
                "output.save_every",
                "DeepSpeed's checkpoints are pickles, which are neither written nor read here; set save_every: null, or sharding: fsdp",
            )
        )
    return found
