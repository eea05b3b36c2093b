"""Every knob of a training run, with its unit and default, and the refusals that span two of them.

A recipe is one flat YAML file::

    model:    what is tuned            template: how a conversation becomes text
    data:     which rows               train:    how it is tuned
    lora:     (optional) adapters      output:   what is kept
    tokenizer: (optional) a larger vocabulary
    memory:   (optional) what a GPU may hold
    plan:     (optional) prices and powers for ``sft plan``

A knob exists once, here; every verb reads this and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, JsonValue

from sft.config import Document, KeyedError, KeyedErrors, Section, dotted, flatten, load
from sft.recipe_plan import MemorySection, PlanSection
from sft.recipe_rules import disagreements

UNMEASURED = 4096
"""Tokens of a micro-batch under ``tokens_per_device: auto`` where no GPU is measured."""
Dtype = Literal["float32", "bfloat16", "float16"]
FormatName = Literal[
    "auto",
    "alpaca",
    "sharegpt",
    "messages",
    "prompt_completion",
    "parallel_lists",
    "history",
    "moss",
    "moss_plugin",
    "src_tgt",
    "seed_tasks",
]


class Scratch(Section):
    """A model built from a configuration, with random weights and a byte-level BPE tokenizer trained on the data."""

    config: dict[str, JsonValue]
    """Fields of the transformers configuration: ``model_type`` (such as ``llama``) is required, ``vocab_size`` refused."""
    vocab_size: int = Field(default=4096, ge=300)
    """Entries of the byte-level BPE vocabulary, special tokens included."""


class RopeScaling(Section):
    """Position scaling, written into the saved configuration."""

    type: Literal["linear", "yarn"] = "linear"
    """``linear`` divides every position by the factor, as Vicuna 16K does. (``dynamic`` depends on the longest row of a batch.)"""
    factor: float = Field(gt=1.0)
    """New context over the old one."""


class ModelSection(Section):
    name_or_path: str | None = None
    """A Hub name or a local folder that transformers loads natively."""
    revision: str | None = None
    """Commit, tag or branch of a Hub name. Recorded with the run; pin a commit for a repeatable one."""
    scratch: Scratch | None = None
    """Build a small model instead of loading one. Give this or ``name_or_path``."""
    dtype: Dtype = "float32"
    """Type of the weights while training. Full tuning in bfloat16 rounds small updates away: float32 with ``compute_dtype``."""
    compute_dtype: Dtype | None = None
    """Type of the matrix products (autocast); null computes in ``dtype``."""
    attention: Literal["auto", "cudnn", "flash", "varlen", "sdpa", "eager"] = "auto"
    """``auto``: cuDNN on Hopper or flash-attn if installed, else torch's varlen on CUDA, else SDPA per document. ``eager`` needs padding."""
    quantization: Literal["none", "float8", "int8", "nf4", "fp4"] = "none"
    """Storage of the frozen base under LoRA; ``float8`` is multiplied in as well (compute capability 8.9), others are bitsandbytes'."""
    double_quantization: bool = True
    """Quantise the 4-bit scales too (QLoRA)."""
    rope_scaling: RopeScaling | None = None
    """Stretch the positions of the base model."""
    pad_to_multiple_of: int = Field(default=8, ge=1)
    """If tokens must be added, the embedding grows to a multiple of this many rows."""

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.name_or_path is None) == (self.scratch is None):
            raise KeyedError("name_or_path", "give exactly one of model.name_or_path and model.scratch")
        if self.scratch is not None and "vocab_size" in self.scratch.config:
            raise KeyedError("scratch", "vocab_size belongs in model.scratch.vocab_size, not in its config")
        if self.scratch is not None and not isinstance(self.scratch.config.get("model_type"), str):
            raise KeyedError("scratch", "scratch.config needs model_type, such as 'model_type: llama'")
        return self


class TemplateSection(Section):
    name: str
    """A file of ``sft/data/templates`` without its ending, ``tokenizer`` for the tokenizer's own, or a path to a ``.jinja``."""
    system: str | None = None
    """System message for conversations that have none; null takes the template's own default."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Loss on every assistant turn with its stop token, on the last one only, or on the whole text."""
    end_label: Literal["token", "eos"] = "token"
    """What is learnt where an answer ends with the first token of the next turn (Baichuan, ChatGLM3): that token, or EOS in its place."""


class Source(Section):
    """Rows from one file, folder, glob or Hub data set."""

    path: str | None = None
    """File, folder or glob: .json, .jsonl, .parquet, also .gz and .zst."""
    hub: str | None = None
    """Name of a Hub data set. Give this or ``path``."""
    subset: str | None = None
    """Configuration name of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit of a Hub data set."""
    format: FormatName = "auto"
    """Shape of a row; ``auto`` reads it off the first row and says so."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names in your file for the format's own fields, such as ``{prompt: question, response: answer}``."""
    name: str | None = None
    """Label in reports; defaults to the file or data set name."""
    weight: float = Field(default=1.0, gt=0.0, le=100.0)
    """How often each row is seen per epoch: 2 is twice, 0.5 a different half each epoch."""
    limit: int | None = Field(default=None, ge=1)
    """Read only this many rows, for a trial."""

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise KeyedError("path", "give exactly one of path and hub")
        return self

    @property
    def label(self) -> str:
        """Name in reports."""
        return self.name or (Path(self.path).name if self.path else str(self.hub))


class DataSection(Section):
    sources: tuple[Source, ...] = Field(min_length=1)
    """Where rows come from."""
    max_length: int = Field(ge=8)
    """Longest row in tokens, template and special tokens included."""
    overflow: Literal["drop", "truncate", "split", "error"] = "truncate"
    """What happens to a longer row: left out, cut inside an answer, cut at turn boundaries, or refused. Each is counted."""
    max_drop_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Stop before training if more than this share of the rows is unusable (those left out by ``overflow: drop`` aside)."""
    holdout: int | float = 0
    """Rows kept for evaluation: a whole number, or a share below 1. Chosen by content, so equal rows stay on one side."""
    holdout_sources: tuple[Source, ...] = ()
    """Evaluation rows from files of their own, instead of ``holdout``."""
    cache_dir: str | None = None
    """Where tokenised data is kept between runs; null means ``~/.cache/vicugna`` (or ``VICUGNA_CACHE``)."""

    @pydantic.model_validator(mode="after")
    def _holdout_is_sane(self) -> DataSection:
        if self.holdout < 0 or (isinstance(self.holdout, float) and self.holdout >= 1.0):
            raise KeyedError("holdout", "must be a number of rows, or a share of at least 0 and below 1")
        if self.holdout and self.holdout_sources:
            raise KeyedError("holdout", "give data.holdout or data.holdout_sources, not both")
        return self


class ExtendSection(Section):
    size: int | None = Field(default=None, ge=1)
    """Most new entries, learnt from texts by going on with the tokenizer's own BPE. Give this or ``file``."""
    sources: tuple[Source, ...] = ()
    """Rows to learn from; without any those of ``data.sources``."""
    min_count: int = Field(default=5, ge=1)
    """Occurrences that an entry needs in them."""
    file: str | None = None
    """A text file with a token on each line; every one becomes one id. Write ``▁`` for the space before a word (LLaMA)."""
    train: Literal["all", "rows"] = "all"
    """Under adapters: tune the embedding and the head as a whole, or the new rows only. Full tuning tunes all."""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> ExtendSection:
        if (self.size is None) == (self.file is None):
            raise KeyedError("size", "give exactly one of size and file")
        if self.file is not None and self.sources:
            raise KeyedError("sources", "nothing is learnt where file lists the tokens; remove one of them")
        return self


class TokenizerSection(Section):
    extend: ExtendSection | None = None
    """Add entries to the base model's vocabulary, for a language that it spells badly. New rows start as the mean of what spelt them."""


class LoraSection(Section):
    rank: int = Field(ge=1)
    """Inner dimension r of the update B·A."""
    alpha: float = Field(gt=0)
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with ``rslora``)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout before A."""
    targets: Literal["all_linear"] | tuple[str, ...] = "all_linear"
    """Module names to adapt, or every linear layer but the head."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024)."""
    train_new_tokens: bool = True
    """Train the embedding rows of tokens that the template adds."""

    @pydantic.model_validator(mode="after")
    def _targets_named(self) -> LoraSection:
        if isinstance(self.targets, tuple) and not self.targets:
            raise KeyedError("targets", "name at least one module, or write all_linear")
        return self


class LossScaleSection(Section):
    start: float = Field(default=65536.0, gt=0.0)
    """Scale of the first step."""
    growth_interval: int = Field(default=2000, ge=1)
    """Steps without an overflow after which it is doubled. An overflow halves it, and the step is left out and counted."""
    floor: float = Field(default=1.0, gt=0.0)
    """The run stops when it falls below this."""

    @pydantic.model_validator(mode="after")
    def _above(self) -> LossScaleSection:
        if self.start < self.floor:
            raise KeyedError("start", f"must be at least floor ({self.floor:g}), got {self.start:g}")
        return self


class TrainSection(Section):
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; stops earlier than ``epochs`` if both are given."""
    examples_per_step: int | None = Field(default=None, ge=1)
    """Rows per optimiser step over all GPUs: exactly this many, as the padded recipe would draw."""
    tokens_per_step: int | None = Field(default=None, ge=1)
    """At most this many tokens per optimiser step, instead of ``examples_per_step``."""
    tokens_per_device: int | Literal["auto"]
    """Most tokens of one micro-batch on one GPU: this sets the memory, never the result. ``auto``: as many as is fastest in the memory there
    is, measured before the first step."""
    batching: Literal["flat", "padded"] = "flat"
    """One row of documents without padding, or a padded rectangle for backends that need it."""
    learning_rate: float = Field(gt=0.0, lt=1.0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_ratio: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Warm-up as a share of all steps."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up in steps."""
    optimizer: Literal["adamw", "adamw_stochastic", "adamw_8bit", "adamw_8bit_stochastic", "paged_adamw_8bit", "sgd"] = "adamw"
    """AdamW with states in the type of the weights; ``stochastic``: on bfloat16 weights, rounded stochastically; ``8bit``: states in 8 bits
    (bitsandbytes; with ``stochastic`` torchao); ``paged``: states in main memory where it is short; or plain SGD."""
    weight_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decoupled weight decay; norms and biases are left out."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Clip the gradient norm to this; 0 does not clip."""
    gradient_checkpointing: bool | int | Literal["auto"] = False
    """Recompute activations in the backward pass: less memory, about a quarter more time. A number: of the first so many layers only. ``auto``:
    of as few layers as the memory allows, measured before the first step."""
    activation_offload: bool | Literal["auto"] = False
    """Keep what ``gradient_checkpointing`` keeps, the inputs of recomputed layers, in main memory (one GPU). ``auto``: where that
    is faster than smaller micro-batches or more recomputed layers."""
    loss_scale: LossScaleSection | None = None
    """Of float16 products on GPUs: how losses are scaled so that gradients do not vanish. Null: the defaults."""
    neftune_alpha: float | None = Field(default=None, gt=0.0)
    """Noise on the embeddings while training (NEFTune, Jain et al. 2023)."""
    freeze_head: bool | Literal["auto"] = "auto"
    """Leave the output matrix as it is under full tuning; ``auto``: where its rows were normalised (Baichuan2)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Orders the rows and initialises adapters and scratch models."""
    sharding: Literal["none", "fsdp", "deepspeed"] = "none"
    """Over several GPUs: replicate (DDP), or shard weights, gradients and states: FSDP2, or ZeRO-3 (DeepSpeed; full tuning, no checkpoints)."""
    cpu_offload: bool = False
    """Keep sharded weights and states in main memory."""
    tf32: bool = True
    """Let float32 products on Ampere and newer use TF32; no effect elsewhere."""
    float8: bool = False
    """Full tuning: products of the layers in float8 (compute capability 8.9). Weights, updates and the head stay as they are."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each layer once for rows of any length; ``auto`` does for flat rows of 100 steps and more on one GPU, int8 bases apart."""

    @pydantic.field_validator("tokens_per_device", "gradient_checkpointing")
    @classmethod
    def _enough(cls, value: int | str, info: pydantic.ValidationInfo) -> int | str:
        least = 8 if info.field_name == "tokens_per_device" else 1
        if type(value) is int and value < least:
            other = "auto" if info.field_name == "tokens_per_device" else "false"
            raise ValueError(f"must be at least {least}, or {other}, got {value}")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.epochs is None and self.max_steps is None:
            raise KeyedError("epochs", "give train.epochs or train.max_steps")
        if (self.examples_per_step is None) == (self.tokens_per_step is None):
            raise KeyedError("examples_per_step", "give exactly one of examples_per_step and tokens_per_step")
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise KeyedError("warmup_ratio", "give warmup_ratio or warmup_steps, not both")
        if self.cpu_offload and self.sharding != "fsdp":
            raise KeyedError("cpu_offload", "cpu_offload needs sharding: fsdp")
        return self


class OutputSection(Section):
    dir: str
    """Run directory."""
    log_every: int = Field(default=1, ge=1)
    """Steps between lines of metrics.jsonl."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the held-out rows; null evaluates before the first step and after the last."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null saves at the end only."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are removed once the newer one is complete."""
    merge: bool = True
    """Write a verified, servable model to ``merged/`` at the end."""
    sample_prompts: tuple[str, ...] = ()
    """Answered before and after training, for the eye."""
    sample_tokens: int = Field(default=64, ge=1)
    """Longest sample answer in tokens."""
    drill: Literal["auto", "on", "off"] = "auto"
    """Save-and-reload drill before the first step; ``auto`` leaves it out for models under 50 million parameters."""
    report_to: tuple[Literal["wandb", "tensorboard", "mlflow", "trackio", "comet_ml", "swanlab"], ...] = ()
    """Trackers of the trainer, besides metrics.jsonl."""


class Recipe(Section):
    """A whole run. The order of the fields is the order of the file."""

    model: ModelSection
    template: TemplateSection
    data: DataSection
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
    lora: LoraSection | None = None
    train: TrainSection
    output: OutputSection
    memory: MemorySection = Field(default_factory=MemorySection)
    plan: PlanSection = Field(default_factory=PlanSection)

    @pydantic.model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        found = disagreements(self)
        if found:
            raise KeyedErrors(found)
        return self

    @property
    def row_tokens(self) -> int:
        """``train.tokens_per_device``, or what ``auto`` is where no GPU is measured: :data:`UNMEASURED`, or the longest row."""
        size = self.train.tokens_per_device
        return max(UNMEASURED, self.data.max_length) if isinstance(size, str) else size

    @property
    def evaluation_tokens(self) -> int:
        """Most tokens of an evaluation batch: no more than a micro-batch, nor than :data:`UNMEASURED` or a row, as its logits are whole."""
        return min(self.row_tokens, max(UNMEASURED, self.data.max_length))

    @property
    def automatic(self) -> bool:
        """Whether the memory planner has anything to choose."""
        train = self.train
        return "auto" in (train.tokens_per_device, train.gradient_checkpointing, train.activation_offload)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Document]:
    """Read, edit and check a recipe; see :func:`sft.config.load`."""
    return load(Recipe, path, overrides)


def resolved(recipe: Recipe, document: Document) -> list[tuple[str, Any, str]]:
    """Every value of a recipe as ``(key, value, origin)``; the origin is ``file:line``, ``--set`` or ``default``."""
    rows = []
    for key, value in flatten(recipe.model_dump(mode="json")):
        given = any(k == key[: len(k)] and k and _is_leaf(document, k) for k in document.where)
        rows.append((dotted(key), value, document.locate(key) if given else "default"))
    return rows


def _is_leaf(document: Document, key: tuple[str | int, ...]) -> bool:
    return not any(len(other) > len(key) and other[: len(key)] == key for other in document.where)
