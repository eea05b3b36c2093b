"""Memory of one GPU, estimated part by part from the parameters of a model and the fullest micro-batch.

Parameters are exact (the model is built without memory on torch's ``meta`` device). Memory is **estimated**: every part comes with
the right-hand side of its equation. Units: GiB = 2^30 bytes, G = 10^9.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.errors import ModelError
from sft.recipe import LoraSection, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OVERHEAD_GIB = 1.5  # CUDA context and libraries about 0.6, the allocator's unused pieces about 0.9; not derived
STRETCH_BYTES = 640 << 20  # as in sft.engine.head_loss, which would bring torch along
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Parameters by kind, and the dimensions that memory and FLOP depend on.

    Attributes:
        embeddings: token and position tables. head: the output matrix, 0 if it is the embedding. linear: all other matrices with
            their biases. norms: everything else.
        head_matrix: entries of the output matrix, tied or not.
        head_dim: numbers of a head in the attention kernel, those that ALiBi adds among them.
        linears: ``(name, inputs, outputs)`` of every linear layer but the head.
    """

    embeddings: int
    head: int
    linear: int
    norms: int
    head_matrix: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    vocab: int
    linears: tuple[tuple[str, int, int], ...] = dataclasses.field(repr=False)

    @property
    def total(self) -> int:
        return self.embeddings + self.head + self.linear + self.norms

    @property
    def matmul(self) -> int:
        """Entries of matrices that multiply: all linear layers and the head, without the embedding look-up."""
        return self.linear + self.head_matrix


@dataclass(frozen=True, slots=True)
class Load:
    """The fullest micro-batch: positions computed (padding included), learnt tokens, tokens of the longest row, and A."""

    tokens: int
    trained: int
    longest: int
    accumulation: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the memory of a GPU: what it is, GiB, and the right-hand side of its equation."""

    name: str
    gib: float
    equation: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Estimated memory of one GPU at the fullest moment of a step; the parts add up to ``total_gib``."""

    parts: tuple[Part, ...]
    moment: str
    total_gib: float
    capacity_gib: float
    fits: bool


def model_shape(config: PreTrainedConfig) -> ModelShape:
    """Count the parameters of a configuration exactly, by building the model without memory.

    Raises:
        ModelError: not a causal language model, or without the dimensions of a decoder.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    from sft.model.alibi import COLUMNS, MODEL_TYPE
    from sft.model.native import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except ValueError as error:
        raise ModelError(f"sft plan cannot build a {config.model_type} model: {str(error).splitlines()[0]}") from None
    text = config.get_text_config()
    hidden, layers, heads = (getattr(text, n, None) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if not (hidden and layers and heads):
        raise ModelError(f"sft plan knows decoder models; {config.model_type} has no hidden_size, layers and attention heads")
    output = model.get_output_embeddings()
    head = output.weight if output is not None else None
    tables = {id(p): p.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not output]
    biases = {id(m.bias) for _, m in modules if m.bias is not None}
    rest = [p for p in model.parameters() if id(p) not in tables and (head is None or p is not head)]
    linear = sum(p.numel() for p in rest if p.dim() > 1 or id(p) in biases)  # stacked experts are matrices too
    shapes = [(n, m.weight.shape if isinstance(m, Conv1D) else m.weight.shape[::-1]) for n, m in modules]
    return ModelShape(
        embeddings=sum(tables.values()),
        head=head.numel() if head is not None and id(head) not in tables else 0,
        linear=linear,
        norms=sum(p.numel() for p in rest) - linear,
        head_matrix=head.numel() if head is not None else 0,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=(getattr(text, "head_dim", None) or hidden // heads) + (COLUMNS if config.model_type == MODEL_TYPE else 0),
        ffn=next((v for n in ("intermediate_size", "ffn_dim", "n_inner") if (v := getattr(text, n, None))), 4 * hidden),
        gated=any("gate" in name.rsplit(".", 1)[-1] for name, _ in modules),
        vocab=text.vocab_size,
        linears=tuple((name, int(shape[0]), int(shape[1])) for name, shape in shapes),
    )


def adapted(shape: ModelShape, lora: LoraSection) -> list[tuple[str, int, int]]:
    """The linear layers that get adapters.

    Raises:
        ModelError: a target that no layer is called by.
    """
    if lora.targets == "all_linear":
        return list(shape.linears)
    found = [item for item in shape.linears if item[0].endswith(tuple(f".{t}" for t in lora.targets))]
    missing = [t for t in lora.targets if not any(name.endswith(f".{t}") for name, _, _ in found)]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name, _, _ in shape.linears})
        raise ModelError(f"lora.targets: this model has no linear layer {missing[0]!r}; it has {', '.join(known)}")
    return found


def trainable_parameters(recipe: Recipe, shape: ModelShape) -> int:
    """All of them, or those of the adapters: r (inputs + outputs) per layer, and one magnitude per output with DoRA.

    ``tokenizer.extend`` adds copies of the embedding and the head to the adapters, or the rows that it asks for.
    """
    lora, extend = recipe.lora, recipe.tokenizer.extend
    if lora is None:
        return shape.total
    tables = 0
    if extend is not None:
        tables = shape.embeddings + shape.head if extend.train == "all" else 2 * (extend.size or 0) * shape.hidden
    return tables + sum(lora.rank * (i + o) + (o if lora.dora else 0) for _, i, o in adapted(shape, lora))


def _types(recipe: Recipe) -> tuple[int, int, bool]:
    """Bytes of the residual stream and of the products, and whether autocast runs (adapters always run under it)."""
    model = recipe.model
    residual = BYTES[model.dtype]
    compute = model.compute_dtype or model.dtype
    autocast = compute != "float32" and (compute != model.dtype or recipe.lora is not None)
    return residual, BYTES[compute] if autocast else residual, autocast


def activation_bytes(recipe: Recipe, shape: ModelShape, longest: int) -> float:
    """Bytes that autograd keeps per token and decoder layer of a Llama-like model with eager layers, without checkpointing.

    H hidden, F feed-forward width, D head size; r bytes of the residual stream, c of the products (r without autocast)::

        2 norms        2 (4 + r) H           float32 input, normalised input (only if the norm's weight is trained)
        attention      (2 h + 2 h_kv) D c    q, k, v and the output, which is also o_proj's input
        gate, act, up  3 F c                 one F without a gate; 4-bit layers of bitsandbytes return r, not c
        inputs, full   2 r H + F c           of q/k/v, of gate/up (one tensor each), and of down
                       5 c H + F c           under autocast to another type: a copy for each of q, k, v, gate, up
        inputs, LoRA   c x inputs            under autocast one tensor for all layers that share it (:mod:`sft.model.fast_lora`); o_proj's is
                                             there already. With dropout or DoRA a copy for every adapted layer (the adapters are float32)
                       4 x inputs            without autocast, if r < 4; if r = 4 nothing is copied: as full tuning

    In bfloat16 that is 24 H + 8 F bytes, in float32 under bfloat16 autocast 34 H + 8 F, with LoRA under bfloat16 autocast
    20 H + 8 F. Found by counting the storages that autograd saves (torch 2.13, transformers 5.23, peft 0.21); a test repeats it.
    ``eager`` attention also keeps float32 and c-typed probabilities, h x ``longest`` of them per token.
    """
    r, c, autocast = _types(recipe)
    lora, h, f, gate = recipe.lora, shape.hidden, shape.ffn, shape.gated
    mlp = r if recipe.model.quantization in ("nf4", "fp4") else c
    kept = 2 * (4 + (r if lora is None else 0)) * h
    kept += (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * c + (3 if gate else 1) * f * mlp
    if recipe.model.attention == "eager":
        kept += shape.heads * longest * (4 + (c if c < 4 else 0))
    if lora is None:
        return kept + ((5 if gate else 4) * c if autocast and c < r else 2 * r) * h + f * c
    layers = adapted(shape, lora)
    if autocast and not lora.dropout and not lora.dora:
        return kept + c * sum(i for _, i in {(name.rpartition(".")[0], i) for name, i, _ in layers}) / shape.layers
    inputs = sum(i for _, i, _ in layers) / shape.layers
    if autocast or r < 4 or lora.dropout:
        return kept + inputs * ((c if autocast else 4) + (1 if lora.dropout else 0))  # a CUDA dropout keeps a byte mask
    return kept + 2 * r * h + f * c


def _weights(recipe: Recipe, shape: ModelShape, shards: int) -> list[Part]:
    """Base weights on one GPU, the unsharded pieces of FSDP among them. Block sizes: Dettmers et al. 2023 (QLoRA), section 3."""
    model, rest = recipe.model, shape.total - shape.linear
    size = BYTES[model.dtype]
    if model.quantization == "none":
        parts = [_part("weights", shape.total * size / shards, f"{short(shape.total)} x {size} bytes / {shards}")]
    elif model.quantization in ("int8", "float8"):
        rows = 4 * sum(o for _, _, o in shape.linears)
        equation = (
            f"{short(shape.linear)} x 1 byte + {short(rows)} bytes of row scales + {short(rest)} unquantised x {size} bytes"
        )
        parts = [_part("weights", shape.linear + rows + rest * size, equation)]
    else:
        each = 0.5 + ((1 + 4 / 256) / 64 if model.double_quantization else 4 / 64)
        equation = f"{short(shape.linear)} x {each:.4f} bytes (scales in) + {short(rest)} unquantised x {size} bytes"
        parts = [_part("weights", shape.linear * each + rest * size, equation)]
    if recipe.train.cpu_offload:
        parts = [Part("weights", 0.0, "in main memory (cpu_offload)")]
    if shards > 1 or recipe.train.cpu_offload:
        whole = shape.linear // shape.layers + shape.embeddings + shape.head
        c = BYTES[model.compute_dtype or model.dtype]
        parts.append(_part("unsharded layer, embeddings, head", whole * c, f"{short(whole)} x {c} bytes"))
    return parts


def _states(recipe: Recipe, trainable: int, size: int, shards: int) -> Part:
    """Optimiser states: torch's AdamW keeps two in the type of the weights; 8-bit ones two bytes and a float32 per 256 each."""
    kind = recipe.train.optimizer
    if recipe.train.cpu_offload or kind in ("sgd", "paged_adamw_8bit"):
        why = {"sgd": "SGD has none", "paged_adamw_8bit": "paged out when memory is short"}.get(
            kind, "in main memory (cpu_offload)"
        )
        return Part("optimiser states", 0.0, why)
    each = 2 * size if "8bit" not in kind else 2 + 2 * 4 / 256
    return _part("optimiser states", trainable * each / shards, f"{short(trainable)} x {each:g} bytes / {shards}")


def compiled_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Bytes kept per token and decoder layer if layers are compiled: what elementwise kernels make is made again, not kept.

    r bytes of the residual stream, c of the products::

        c H + 2 r H + (2 h + 2 h_kv) D c + 3 F c      one norm's output, both residuals; q, k, v, output; gate, up, their product

    A LLaMA of 7B in bfloat16: 123 kB. Fitted to peaks measured on one H200 with torch 2.11 (70.9 GiB full, 8,192 tokens and A = 1; 46.1 and
    74.8 GiB under LoRA with 8,192 and 16,384), not derived; in other types not measured. ``train.float8`` keeps down's input in one byte,
    F less: 112 kB (95.0 GiB measured with 16,384 tokens, 93.4 estimated).
    """
    r, c, _ = _types(recipe)
    width = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    narrow = shape.ffn if recipe.train.float8 else 0
    return (c + 2 * r) * shape.hidden + (width + (3 if shape.gated else 2) * shape.ffn) * c - narrow


ON_GPU = 2
"""Inputs of recomputed layers that are on the GPU at once where the others wait in main memory (:mod:`sft.engine.offload`): the last two
in the forward pass, until their copies are made, this layer's and the next one's in the backward pass."""


def too_many_layers(asked: int, there: int) -> ModelError:
    """The refusal of more recomputed layers than a model has."""
    return ModelError(f"train.gradient_checkpointing: {asked} layers, but the model has {there}; lower it, or set true")


def checkpointed_layers(recipe: Recipe, shape: ModelShape) -> int:
    """Layers whose activations are recomputed, from the first on. An unanswered ``auto`` counts as false.

    Raises:
        ModelError: more than the model has.
    """
    asked = recipe.train.gradient_checkpointing
    if not isinstance(asked, str) and int(asked) > shape.layers:
        raise too_many_layers(asked, shape.layers)
    return 0 if isinstance(asked, str) else shape.layers if asked is True else int(asked)


def memory_estimate(recipe: Recipe, shape: ModelShape, load: Load, *, compiled: bool = False) -> MemoryPlan:
    """Estimate the memory of one GPU, part by part. An estimate: kernels, fusion and the allocator move it by some percent.

    Three moments compete, and the fullest one is reported. A gradient is made when its layer's activations are freed, so with one
    micro-batch per step (A = 1) gradients and activations hardly ever stand side by side; with A > 1 the earlier micro-batches' do::

        at the loss                    activations of all layers + logits   (+ gradients if A > 1)
        backward, first layer          activations of all layers            (+ gradients if A > 1)
        backward, last layer           activations of one layer + gradients

    With checkpointing "of all layers" is one hidden state each of those recomputed, and from the backward pass on one layer recomputed.
    Logits exist for learnt positions and a stretch of the vocabulary at a time: 4 + c bytes each (float32, and their gradient), and where there
    are several stretches a float32 sum of the hidden states' gradient (:mod:`sft.engine.head_loss`).
    A padded batch projects every position onto all of V, c + 4 + 4 bytes each for the learnt ones (product, its float32 log-softmax, gradient).
    ``compiled``: layers are compiled (:func:`compiled_bytes`).
    Autocast keeps a c-typed copy of float32 matrices until the backward pass is over them. DDP keeps gradient buckets.
    """
    train, gpus = recipe.train, recipe.plan.gpus
    shards = 1 if train.sharding == "none" else gpus
    trainable = trainable_parameters(recipe, shape)
    size = 4 if recipe.lora is not None else BYTES[recipe.model.dtype]
    fixed = _weights(recipe, shape, shards)
    if recipe.lora is not None:
        fixed.append(_part("adapters", trainable * 4 / shards, f"{short(trainable)} x 4 bytes / {shards}"))
    fixed.append(_states(recipe, trainable, size, shards))
    if gpus > 1 and train.sharding == "none":
        fixed.append(_part("gradient buckets (DDP)", trainable * size, f"{short(trainable)} x {size} bytes"))
    gradients = _part("gradients", trainable * size / shards, f"{short(trainable)} x {size} bytes / {shards}")
    if train.cpu_offload:
        gradients = Part("gradients", 0.0, "in main memory (cpu_offload)")
    early = gradients if load.accumulation > 1 else Part("gradients", 0.0, "made while activations are freed (A = 1)")
    moments: dict[str, list[Part]] = {
        "at the loss": [
            *(early, *_activations(recipe, shape, load, "loss", compiled), _logits(recipe, shape, load)),
            *_cast_head(recipe, shape),
        ],
        "in the backward pass, at its first layer": [early, *_activations(recipe, shape, load, "first", compiled)],
        "in the backward pass, at its last layer": [gradients, *_activations(recipe, shape, load, "last", compiled)],
    }
    moment = max(moments, key=lambda name: sum(part.gib for part in moments[name]))
    parts = (*fixed, *moments[moment], Part("CUDA context, fragmentation", OVERHEAD_GIB, "a constant, not derived"))
    total = sum(part.gib for part in parts)
    capacity, budget = recipe.plan.gpu_memory_gib, recipe.memory.budget_bytes
    if budget is not None:
        capacity = min(capacity, budget / _GIB + OVERHEAD_GIB)
    return MemoryPlan(parts, moment, total, capacity, total <= capacity)


def _activations(recipe: Recipe, shape: ModelShape, load: Load, moment: str, compiled: bool) -> list[Part]:
    """What autograd keeps, and autocast's copies of float32 matrices, at one of the three moments."""
    r, c, autocast = _types(recipe)
    each = compiled_bytes(recipe, shape) if compiled else activation_bytes(recipe, shape, load.longest)
    n, layers, recomputed = load.tokens, shape.layers, checkpointed_layers(recipe, shape)
    if recomputed:
        held = 1 if moment == "last" else recomputed
        if recipe.train.activation_offload is True:
            held = min(held, ON_GPU)
        kept = 0 if moment == "last" else layers - recomputed
        now = 0.0 if moment == "loss" or kept else each  # what the kept layers held makes room for the one that is recomputed
        equation = f"{n:,} tokens x ({held} x {r * shape.hidden:,} bytes kept + {now:,.0f} recomputed)"
        if kept:
            equation = f"{n:,} tokens x ({held} layers x {r * shape.hidden:,} bytes + {kept} layers x {each:,.0f})"
        parts = [_part("activations", n * (held * r * shape.hidden + kept * each + now), equation)]
        cached = moment == "loss" and recipe.lora is None  # autocast caches copies of trainable weights until the forward ends
    else:
        held = 1 if moment == "last" else layers
        parts = [_part("activations", held * n * each, f"{held} layers x {n:,} tokens x {each:,.0f} bytes")]
        cached = moment != "last"
    if autocast and recipe.model.dtype == "float32" and recipe.model.quantization == "none" and recipe.train.sharding == "none":
        entries = shape.matmul if cached else shape.linear // layers
        parts.append(_part("autocast copies", entries * c, f"{short(entries)} x {c} bytes"))
    return parts


def _logits(recipe: Recipe, shape: ModelShape, load: Load) -> Part:
    c = _types(recipe)[1]
    if recipe.train.batching == "padded":
        size, equation = load.trained * shape.vocab * (c + 8), f"{load.trained:,} trained x {shape.vocab:,} x {c + 8} bytes"
        size += load.tokens * shape.vocab * c
        return _part("logits", size, f"{equation} + {load.tokens:,} positions x {shape.vocab:,} x {c} bytes")
    stretches = math.ceil(4 * load.trained * shape.vocab / STRETCH_BYTES)
    width = math.ceil(shape.vocab / max(1, stretches))
    size, equation = load.trained * width * (4 + c), f"{load.trained:,} trained x {width:,} of {shape.vocab:,} x {4 + c} bytes"
    if stretches > 1:
        size += load.trained * shape.hidden * 4
        equation += f" + {load.trained:,} x {shape.hidden:,} x 4 bytes"
    return _part("logits", size, equation)


def _cast_head(recipe: Recipe, shape: ModelShape) -> list[Part]:
    """What a float32 head beside adapters (``tokenizer.extend``) is multiplied as, and the gradient of that."""
    extend, (_, c, _) = recipe.tokenizer.extend, _types(recipe)
    if recipe.lora is None or extend is None or extend.train != "all" or c == BYTES["float32"]:
        return []
    return [_part("head as multiplied", 2 * shape.head_matrix * c, f"2 x {short(shape.head_matrix)} x {c} bytes")]


def _part(name: str, size: float, equation: str) -> Part:
    return Part(name, size / _GIB, equation)


def short(count: float) -> str:
    """``6.74 G``, ``40.0 M``, ``1,536``."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"
