"""What a recipe will do, before it does it: steps, memory, hours, money, energy. Every derived number comes with its equation.

Steps and tokens are exact (they are the steps that the run will take). Parameters are exact (the model is built without memory on
torch's ``meta`` device). Memory is **estimated**: a sum of the parts that :func:`memory_estimate` derives. Units: GiB = 2^30 bytes,
G = 10^9, FLOP with a multiply-add counted as two.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from sft.config import require
from sft.data.packing import StepPlan, plan_steps
from sft.errors import ModelError
from sft.recipe import LoraSection, PlanSection, Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedConfig

    from sft.data.dataset import Prepared

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OVERHEAD_GIB = 1.5  # CUDA context and libraries about 0.6, the allocator's unused pieces about 0.9; not derived
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, mean and most of something over the steps of a run."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True, slots=True)
class DataPlan:
    """Rows and steps. Shares are between 0 and 1; ``tokens`` and ``trained_tokens`` are of one pass over the training rows.

    Attributes:
        split_gain: rows more than were kept, because long rows became several.
        run_tokens: tokens of all steps together.
        fill: tokens over the capacity of all micro-batches.
        padding_waste: share of a padded run that would be padding: each step's rows in draw order, cut into as many batches as
            there are micro-batches, each padded to its longest row.
    """

    rows_in: int
    rows_kept: int
    dropped: dict[str, int]
    truncated: int
    split: int
    split_gain: int
    rows_train: int
    rows_holdout: int
    tokens: int
    trained_tokens: int
    trained_share: float
    rows_per_step: Spread
    tokens_per_step: Spread
    epochs: float
    steps_per_epoch: float
    steps: int
    accumulation: int
    gpus: int
    batch: str
    run_tokens: int
    capacity: int
    fill: float
    padding_waste: float


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Parameters by kind, and the dimensions that memory and FLOP depend on.

    Attributes:
        embeddings: token and position tables. head: the output matrix, 0 if it is the embedding. linear: all other matrices with
            their biases. norms: everything else.
        head_matrix: entries of the output matrix, tied or not.
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


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Edits to make on top of those before, and the estimated memory with all of them."""

    settings: tuple[str, ...]
    why: str
    total_gib: float
    fits: bool


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Work and its price; None where tokens per second (or the price) are not known. ``rate_from`` says who gave the rate."""

    flop_per_token: float
    flop_equation: str
    tokens_per_second: float | None
    rate_from: str
    hours: float | None
    gpu_hours: float | None
    money: float | None
    kwh: float | None
    co2_kg: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known about a run before it starts. ``trainable`` counts parameters; ``inputs`` are the recipe's prices."""

    data: DataPlan
    model: ModelShape
    trainable: int
    memory: MemoryPlan
    suggestions: tuple[Suggestion, ...]
    time: TimePlan
    inputs: PlanSection
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; the names of the linear layers are left out."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out = {
            k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) and not isinstance(v, type) else v for k, v in out.items()
        }
        del out["model"]["linears"]
        out["model"] |= {"total": self.model.total, "matmul": self.model.matmul}
        out |= {"suggestions": [dataclasses.asdict(s) for s in self.suggestions], "warnings": list(self.warnings)}
        out["memory"]["estimated"] = True
        return out | {"inputs": self.inputs.model_dump(mode="json")}


def model_shape(config: PreTrainedConfig) -> ModelShape:
    """Count the parameters of a configuration exactly, by building the model without memory.

    Raises:
        ModelError: not a causal language model, or without the dimensions of a decoder.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

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
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
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
    """All of them, or those of the adapters: r (inputs + outputs) per layer, and one magnitude per output with DoRA."""
    lora = recipe.lora
    if lora is None:
        return shape.total
    return sum(lora.rank * (i + o) + (o if lora.dora else 0) for _, i, o in adapted(shape, lora))


def _types(recipe: Recipe) -> tuple[int, int, bool]:
    """Bytes of the residual stream and of the products, and whether autocast runs (adapters always run under it)."""
    model = recipe.model
    # peft's preparation of a quantised base casts what stays unquantised to float32.
    residual = 4 if model.quantization != "none" else BYTES[model.dtype]
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
        inputs, LoRA   c x inputs            under autocast a copy for every adapted layer (the adapters are float32);
                       4 x inputs            without autocast, if r < 4; if r = 4 nothing is copied: as full tuning

    In bfloat16 that is 24 H + 8 F bytes, in float32 under bfloat16 autocast 34 H + 8 F, with LoRA on a bfloat16 base under autocast
    28 H + 8 F. Found by counting the storages that autograd saves (torch 2.13, transformers 5.23, peft 0.21); a test repeats it.
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
    inputs = sum(i for _, i, _ in adapted(shape, lora)) / shape.layers
    if autocast or r < 4 or lora.dropout:
        return kept + inputs * ((c if autocast else 4) + (1 if lora.dropout else 0))  # a CUDA dropout keeps a byte mask
    return kept + 2 * r * h + f * c


def _weights(recipe: Recipe, shape: ModelShape, shards: int) -> list[Part]:
    """Base weights on one GPU, the unsharded pieces of FSDP among them. Block sizes: Dettmers et al. 2023 (QLoRA), section 3."""
    model, rest = recipe.model, shape.total - shape.linear
    size = BYTES[model.dtype]
    if model.quantization == "none":
        parts = [_part("weights", shape.total * size / shards, f"{_g(shape.total)} x {size} bytes / {shards}")]
    elif model.quantization == "int8":
        rows = 4 * sum(o for _, _, o in shape.linears)
        equation = f"{_g(shape.linear)} x 1 byte + {_g(rows)} bytes of row scales + {_g(rest)} unquantised x 4 bytes"
        parts = [_part("weights", shape.linear + rows + rest * 4, equation)]
    else:
        each = 0.5 + ((1 + 4 / 256) / 64 if model.double_quantization else 4 / 64)
        equation = f"{_g(shape.linear)} x {each:.4f} bytes (scales in) + {_g(rest)} unquantised x 4 bytes"
        parts = [_part("weights", shape.linear * each + rest * 4, equation)]
    if recipe.train.cpu_offload:
        parts = [Part("weights", 0.0, "in main memory (cpu_offload)")]
    if shards > 1 or recipe.train.cpu_offload:
        whole = shape.linear // shape.layers + shape.embeddings + shape.head
        c = BYTES[model.compute_dtype or model.dtype]
        parts.append(_part("unsharded layer, embeddings, head", whole * c, f"{_g(whole)} x {c} bytes"))
    return parts


def _states(recipe: Recipe, trainable: int, size: int, shards: int) -> Part:
    """Optimiser states: torch's AdamW keeps two in the type of the weights; bitsandbytes two bytes and a float32 per 256 each."""
    kind = recipe.train.optimizer
    if recipe.train.cpu_offload or kind in ("sgd", "paged_adamw_8bit"):
        why = {"sgd": "SGD has none", "paged_adamw_8bit": "paged out when memory is short"}.get(
            kind, "in main memory (cpu_offload)"
        )
        return Part("optimiser states", 0.0, why)
    each = 2 * size if kind == "adamw" else 2 + 2 * 4 / 256
    return _part("optimiser states", trainable * each / shards, f"{_g(trainable)} x {each:g} bytes / {shards}")


def memory_estimate(recipe: Recipe, shape: ModelShape, load: Load) -> MemoryPlan:
    """Estimate the memory of one GPU, part by part. An estimate: kernels, fusion and the allocator move it by some percent.

    Three moments compete, and the fullest one is reported. A gradient is made when its layer's activations are freed, so with one
    micro-batch per step (A = 1) gradients and activations hardly ever stand side by side; with A > 1 the earlier micro-batches' do::

        at the loss                    activations of all layers + logits   (+ gradients if A > 1)
        backward, first layer          activations of all layers            (+ gradients if A > 1)
        backward, last layer           activations of one layer + gradients

    With checkpointing "of all layers" is one hidden state each, and from the backward pass on one layer recomputed. Logits exist for
    learnt positions: V x (c + 4 + 4) bytes each (product, its float32 log-softmax, gradient); a padded batch projects every position.
    Autocast keeps a c-typed copy of float32 matrices until the backward pass is over them. DDP keeps gradient buckets.
    """
    train, gpus = recipe.train, recipe.plan.gpus
    shards = gpus if train.sharding == "fsdp" else 1
    trainable = trainable_parameters(recipe, shape)
    size = 4 if recipe.lora is not None else BYTES[recipe.model.dtype]
    fixed = _weights(recipe, shape, shards)
    if recipe.lora is not None:
        fixed.append(_part("adapters", trainable * 4 / shards, f"{_g(trainable)} x 4 bytes / {shards}"))
    fixed.append(_states(recipe, trainable, size, shards))
    if gpus > 1 and train.sharding == "none":
        fixed.append(_part("gradient buckets (DDP)", trainable * size, f"{_g(trainable)} x {size} bytes"))
    gradients = _part("gradients", trainable * size / shards, f"{_g(trainable)} x {size} bytes / {shards}")
    if train.cpu_offload:
        gradients = Part("gradients", 0.0, "in main memory (cpu_offload)")
    early = gradients if load.accumulation > 1 else Part("gradients", 0.0, "made while activations are freed (A = 1)")
    moments: dict[str, list[Part]] = {
        "at the loss": [early, *_activations(recipe, shape, load, "loss"), _logits(recipe, shape, load)],
        "in the backward pass, at its first layer": [early, *_activations(recipe, shape, load, "first")],
        "in the backward pass, at its last layer": [gradients, *_activations(recipe, shape, load, "last")],
    }
    moment = max(moments, key=lambda name: sum(part.gib for part in moments[name]))
    parts = (*fixed, *moments[moment], Part("CUDA context, fragmentation", OVERHEAD_GIB, "a constant, not derived"))
    total = sum(part.gib for part in parts)
    return MemoryPlan(parts, moment, total, recipe.plan.gpu_memory_gib, total <= recipe.plan.gpu_memory_gib)


def _activations(recipe: Recipe, shape: ModelShape, load: Load, moment: str) -> list[Part]:
    """What autograd keeps, and autocast's copies of float32 matrices, at one of the three moments."""
    r, c, autocast = _types(recipe)
    each, n, layers = activation_bytes(recipe, shape, load.longest), load.tokens, shape.layers
    if recipe.train.gradient_checkpointing:
        held = 1 if moment == "last" else layers
        now = 0.0 if moment == "loss" else each
        equation = f"{n:,} tokens x ({held} x {r * shape.hidden:,} bytes kept + {now:,.0f} recomputed)"
        parts = [_part("activations", n * (held * r * shape.hidden + now), equation)]
        cached = moment == "loss" and recipe.lora is None  # autocast caches copies of trainable weights until the forward ends
    else:
        held = 1 if moment == "last" else layers
        parts = [_part("activations", held * n * each, f"{held} layers x {n:,} tokens x {each:,.0f} bytes")]
        cached = moment != "last"
    if autocast and recipe.model.dtype == "float32" and recipe.model.quantization == "none" and recipe.train.sharding == "none":
        entries = shape.matmul if cached else shape.linear // layers
        parts.append(_part("autocast copies", entries * c, f"{_g(entries)} x {c} bytes"))
    return parts


def _logits(recipe: Recipe, shape: ModelShape, load: Load) -> Part:
    c = _types(recipe)[1]
    size, equation = load.trained * shape.vocab * (c + 8), f"{load.trained:,} trained x {shape.vocab:,} x {c + 8} bytes"
    if recipe.train.batching == "padded":
        size += load.tokens * shape.vocab * c
        equation += f" + {load.tokens:,} positions x {shape.vocab:,} x {c} bytes"
    return _part("logits", size, equation)


def _part(name: str, size: float, equation: str) -> Part:
    return Part(name, size / _GIB, equation)


def _g(count: float) -> str:
    """``6.74 G``, ``40.0 M``, ``1,536``."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


# -- data and steps -----------------------------------------------------------------------------------------------


def lay_out(recipe: Recipe, prepared: Prepared) -> StepPlan:
    """The steps that the run will take, on ``plan.gpus`` ranks.

    Raises:
        DataError: no rows, or a row that no micro-batch holds.
        InputError: an epoch's share that is no step at all.
    """
    train, store = recipe.train, prepared.train
    steps = plan_steps(
        lengths=store.lengths,
        trained=store.trained,
        source_of=store.source_of,
        weights=[source.weight for source in recipe.data.sources],
        seed=train.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        examples_per_step=train.examples_per_step,
        tokens_per_step=train.tokens_per_step,
        tokens_per_device=train.tokens_per_device,
        world=recipe.plan.gpus,
        padded=train.batching == "padded",
    )
    require(bool(steps.steps), f"train.epochs = {train.epochs} is less than one step; raise it")
    return steps


def fullest(steps: StepPlan) -> Load:
    """The largest micro-batch of a run in positions, in learnt tokens and in its longest row (not always the same one)."""
    tokens = trained = longest = 1
    for step in range(len(steps.steps)):
        for part in range(steps.accumulation * steps.world):
            rows = steps.micro_batch(step, *divmod(part, steps.world))
            if not len(rows):
                continue
            lengths = steps.lengths[rows]
            widest = int(lengths.max())
            tokens = max(tokens, widest * len(rows) if steps.padded else int(lengths.sum()))
            trained, longest = max(trained, int(steps.trained[rows].sum())), max(longest, widest)
    return Load(tokens, trained, longest, steps.accumulation)


def _padding_waste(steps: StepPlan) -> float:
    """Share of padding if each step's rows, in draw order, were cut into equal batches padded to their longest rows."""
    real = rectangles = 0
    for rows in steps.steps:
        lengths = steps.lengths[rows]
        real += int(lengths.sum())
        batches = np.array_split(lengths, min(len(lengths), steps.accumulation * steps.world))
        rectangles += sum(len(batch) * int(batch.max()) for batch in batches)
    return 1 - real / rectangles


def _spread(values: Sequence[int]) -> Spread:
    return Spread(min(values), sum(values) / len(values), max(values))


def _data_plan(prepared: Prepared, steps: StepPlan, own_holdout: bool) -> DataPlan:
    store, report, count = prepared.train, prepared.report, len(steps.steps)
    dropped, changed = dict(report["drops"]["counts"]), report["drops"]["changed"]
    kept = int(report["rows_in"]) - sum(dropped.values())
    tokens, trained = int(steps.lengths.sum()), int(steps.trained.sum())
    per_step, epochs = [steps.total_tokens(s) for s in range(count)], steps.epoch_at(count)
    return DataPlan(
        rows_in=int(report["rows_in"]),
        rows_kept=kept,
        dropped=dropped,
        truncated=changed.get("truncated", 0),
        split=changed.get("split", 0),
        split_gain=len(store) + (0 if own_holdout else len(prepared.holdout)) - kept,
        rows_train=len(store),
        rows_holdout=len(prepared.holdout),
        tokens=tokens,
        trained_tokens=trained,
        trained_share=trained / tokens,
        rows_per_step=_spread([len(rows) for rows in steps.steps]),
        tokens_per_step=_spread(per_step),
        epochs=epochs,
        steps_per_epoch=count / epochs,
        steps=count,
        accumulation=steps.accumulation,
        gpus=steps.world,
        batch=steps.equation(),
        run_tokens=sum(per_step),
        capacity=steps.capacity,
        fill=steps.fill(),
        padding_waste=_padding_waste(steps),
    )


# -- what to change -----------------------------------------------------------------------------------------------

Settings = dict[str, Any]


def _edited(recipe: Recipe, settings: Settings) -> Recipe | None:
    """The recipe with some keys changed, through the same checks as ``--set``; None if it would be refused."""
    data = recipe.model_dump()
    for key, value in settings.items():
        section, name = key.split(".")
        data[section] = {**(data[section] or {}), name: value}
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError:
        return None


def _candidates(recipe: Recipe) -> list[tuple[str, list[Settings]]]:
    """What helps, least costly first: why, and the alternatives of which the first that fits (else the last) is taken."""
    sizes, size = [], recipe.train.tokens_per_device
    while size > recipe.data.max_length:
        size = max(size // 2, recipe.data.max_length)
        sizes.append(size)
    adapters: Settings = {"lora.rank": 16, "lora.alpha": 32.0}
    half: Settings = {"model.dtype": "bfloat16", "model.compute_dtype": "bfloat16"}
    unsharded: Settings = {"train.cpu_offload": False, "train.sharding": "none"} if recipe.train.sharding == "fsdp" else {}
    frozen = recipe.lora is not None
    checks: list[tuple[bool, str, list[Settings]]] = [
        (bool(sizes), "the same result in smaller micro-batches", [{"train.tokens_per_device": s} for s in sizes]),
        (not recipe.train.gradient_checkpointing, "about a quarter more time", [{"train.gradient_checkpointing": True}]),
        (recipe.train.optimizer == "adamw", "optimiser states in 8 bits", [{"train.optimizer": "adamw_8bit"}]),
        (recipe.plan.gpus > 1 and recipe.train.sharding == "none", "share it among the GPUs", [{"train.sharding": "fsdp"}]),
        (not frozen, "adapters instead of all weights; they want a learning rate about ten times higher", [adapters]),
        (frozen and recipe.model.dtype == "float32", "the frozen base in half the bytes", [half]),
        (
            frozen and recipe.model.quantization == "none",
            "the frozen base in 4 bits",
            [{"model.quantization": "nf4", **unsharded}],
        ),
        (recipe.train.sharding == "fsdp" and not recipe.train.cpu_offload, "much slower", [{"train.cpu_offload": True}]),
    ]
    return [(why, options) for useful, why, options in checks if useful]


def suggest(recipe: Recipe, prepared: Prepared, shape: ModelShape) -> tuple[Suggestion, ...]:
    """Edits that make the run fit, each re-planned on top of those before; the last one fits, or nothing here does."""
    loads: dict[int, Load] = {}

    def estimate(changed: Recipe) -> MemoryPlan:
        size = changed.train.tokens_per_device
        if size not in loads:
            loads[size] = fullest(lay_out(changed, prepared))
        return memory_estimate(changed, shape, loads[size])

    out: list[Suggestion] = []
    current = estimate(recipe)
    tried: set[str] = set()
    while not current.fits:
        # Asked anew after each edit: adapters make quantisation possible, sharding makes offloading possible.
        why, options = next(((w, o) for w, o in _candidates(recipe) if w not in tried), ("", []))
        if not options:
            break
        tried.add(why)
        valid = [(settings, edited) for settings in options if (edited := _edited(recipe, settings)) is not None]
        for i, (settings, edited) in enumerate(valid):
            memory = estimate(edited)
            if memory.total_gib < current.total_gib and (memory.fits or i == len(valid) - 1):
                texts = tuple(f"--set {key}={str(value).lower()}" for key, value in settings.items())
                out.append(Suggestion(texts, why, memory.total_gib, memory.fits))
                recipe, current = edited, memory
                tried.clear()  # what did not help before may help now that another moment is the fullest
                break
    return tuple(out)


# -- time, money, energy ------------------------------------------------------------------------------------------


def energy(gpu_hours: float, watts: float, pue: float, kg_per_kwh: float) -> tuple[float, float]:
    """``(kWh, kg CO2e)`` = GPU-hours x W x PUE / 1000, and that times the grid's factor (Touvron et al. 2023, section 6)."""
    kwh = gpu_hours * watts * pue / 1000
    return kwh, kwh * kg_per_kwh


def _time_plan(recipe: Recipe, shape: ModelShape, steps: StepPlan, data: DataPlan, probed: float | None) -> TimePlan:
    """FLOP per token = k (body + head x learnt share) + 6 L W T.

    k is 6 for full tuning: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1); 4 with LoRA, whose frozen base takes no weight
    gradient. Attention over T tokens costs 12 L W T per token forward and backward (W = heads x head size), halved because it is
    causal. T = sum of squared row lengths / sum of row lengths: the row in which a token stands on average. Recomputation is not counted.
    """
    plan, k = recipe.plan, 6 if recipe.lora is None else 4
    lengths = steps.lengths[np.concatenate(steps.steps)].astype(float)
    context, width = float((lengths**2).sum() / lengths.sum()), shape.heads * shape.head_dim
    share = sum(steps.trained_tokens(s) for s in range(data.steps)) / data.run_tokens
    flop = k * (shape.linear + shape.head_matrix * share) + 6.0 * shape.layers * width * context
    equation = (
        f"{k} x ({_g(shape.linear)} + {share:.3f} learnt x {_g(shape.head_matrix)} head)"
        f" + 6 x {shape.layers} layers x {width:,} x {context:,.1f} tokens"
    )
    rate = plan.tokens_per_second or probed
    source = "plan.tokens_per_second" if plan.tokens_per_second else "probed" if probed else "unknown"
    if rate is None:
        return TimePlan(flop, equation, None, source, None, None, None, None, None)
    hours = data.run_tokens / rate / 3600
    gpu_hours = hours * plan.gpus
    money = None if plan.price_per_gpu_hour is None else gpu_hours * plan.price_per_gpu_hour
    kwh, co2 = energy(gpu_hours, plan.watts_per_gpu, plan.pue, plan.grid_kg_per_kwh)
    return TimePlan(flop, equation, rate, source, hours, gpu_hours, money, kwh, co2)


# -- the whole ----------------------------------------------------------------------------------------------------


def _warnings(recipe: Recipe, steps: StepPlan, prepared: Prepared, config: PreTrainedConfig) -> tuple[str, ...]:
    """What is allowed but probably not meant."""
    train, output, total, found = recipe.train, recipe.output, len(steps.steps), []
    if output.save_every is not None and output.save_every > total:
        found.append(f"output.save_every = {output.save_every} is more than the {total:,} steps: no checkpoint before the end")
    if train.examples_per_step is not None:
        sizes = {len(steps.steps[end - 1]) for end in steps.epoch_ends if end <= total} - {train.examples_per_step}
        if sizes:
            rows = " or ".join(f"{size:,}" for size in sorted(sizes))
            found.append(
                f"the last step of an epoch holds {rows} rows instead of {train.examples_per_step:,}, each weighing more"
            )
    if train.warmup_steps is not None and train.warmup_steps >= total:
        found.append(f"train.warmup_steps = {train.warmup_steps} of {total:,} steps: the learning rate never comes down again")
    if output.eval_every is not None and len(prepared.holdout) == 0:
        found.append("output.eval_every is set, but no rows are held out: set data.holdout or data.holdout_sources")
    if any(getattr(config.get_text_config(), name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        found.append("a mixture of experts: memory of activations and FLOP are estimated as if it were dense, and are wrong")
    return tuple(found)


def make_plan(
    recipe: Recipe, prepared: Prepared, config: PreTrainedConfig, *, probed_tokens_per_second: float | None = None
) -> Plan:
    """Plan a run on ``recipe.plan.gpus`` GPUs.

    Args:
        recipe: the whole recipe.
        prepared: its rows.
        config: of the base model; only its dimensions are used.
        probed_tokens_per_second: over all GPUs, measured; the recipe's own figure wins.

    Raises:
        InputError: a rate that is not positive; a model that is no decoder; targets that it lacks; rows that do not fit.
    """
    probed = probed_tokens_per_second
    require(probed is None or probed > 0, f"probed tokens per second must be positive, got {probed}")
    shape, steps = model_shape(config), lay_out(recipe, prepared)
    data = _data_plan(prepared, steps, bool(recipe.data.holdout_sources))
    memory = memory_estimate(recipe, shape, fullest(steps))
    return Plan(
        data=data,
        model=shape,
        trainable=trainable_parameters(recipe, shape),
        memory=memory,
        suggestions=() if memory.fits else suggest(recipe, prepared, shape),
        time=_time_plan(recipe, shape, steps, data, probed),
        inputs=recipe.plan,
        warnings=_warnings(recipe, steps, prepared, config),
    )


def _data_lines(d: DataPlan) -> list[tuple[str, str]]:
    dropped = " - ".join(f"{count:,} {reason}" for reason, count in d.dropped.items()) or "0 dropped"
    micro = d.steps * d.accumulation * d.gpus
    return [
        ("rows kept", f"{d.rows_kept:,} = {d.rows_in:,} in - {dropped}"),
        ("rows changed", f"{d.truncated:,} truncated, {d.split:,} split: {d.split_gain:+,} rows"),
        ("rows to train on", f"{d.rows_train:,}, and {d.rows_holdout:,} held out"),
        ("trained tokens", f"{d.trained_share:.1%} = {d.trained_tokens:,} / {d.tokens:,} tokens"),
        (
            "step",
            f"{d.batch} (least {d.rows_per_step.least:,}, mean {d.rows_per_step.mean:,.1f}, most {d.rows_per_step.most:,})",
        ),
        (
            "tokens per step",
            f"{d.tokens_per_step.mean:,.0f} = {d.run_tokens:,} / {d.steps:,} steps "
            f"(least {d.tokens_per_step.least:,}, most {d.tokens_per_step.most:,})",
        ),
        ("steps", f"{d.steps:,} steps = {d.epochs:.4g} epochs x {d.steps_per_epoch:,.1f}"),
        ("fill", f"{d.fill:.1%} = {d.run_tokens:,} tokens / ({micro:,} micro-batches x {d.capacity:,})"),
        ("padding instead", f"{d.padding_waste:.1%} of every batch if each were padded to its longest row"),
    ]


def _time_lines(plan: Plan) -> list[tuple[str, str]]:
    t, p, tokens = plan.time, plan.inputs, plan.data.run_tokens
    lines = [
        ("FLOP per token", f"{t.flop_per_token / 1e9:,.4g} GFLOP = {t.flop_equation}"),
        ("FLOP", f"{t.flop_per_token * tokens:.3g} = {tokens:,} tokens x {t.flop_per_token:.4g}"),
    ]
    if t.tokens_per_second is None or t.hours is None or t.gpu_hours is None or t.kwh is None or t.co2_kg is None:
        return [*lines, ("hours", "unknown: set plan.tokens_per_second, or probe")]
    lines.append(
        ("hours", f"{t.hours:,.3g} h = {tokens:,} tokens / {t.tokens_per_second:,.0f} per second ({t.rate_from}) / 3600")
    )
    lines.append(("GPU-hours", f"{t.gpu_hours:,.4g} = {t.hours:,.3g} h x {p.gpus} GPUs"))
    if t.money is not None:
        lines.append(("money", f"{t.money:,.2f} = {t.gpu_hours:,.4g} GPU-hours x {p.price_per_gpu_hour:g}"))
    lines.append(("energy", f"{t.kwh:,.4g} kWh = {t.gpu_hours:,.4g} GPU-hours x {p.watts_per_gpu:g} W x {p.pue:g} PUE / 1000"))
    return [*lines, ("CO2", f"{t.co2_kg:,.4g} kg = {t.kwh:,.4g} kWh x {p.grid_kg_per_kwh:g} kg")]


def print_plan(console: Console, plan: Plan) -> None:
    """Show a plan as tables, every derived number with its equation."""
    from rich.table import Table
    from rich.text import Text

    def table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
        grid = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            grid.add_row(*(Text(cell) for cell in row))
        console.print(grid)

    m, memory = plan.model, plan.memory
    table("Data", _data_lines(plan.data))
    head = "tied head" if m.head == 0 else f"{_g(m.head)} head"
    kinds = f"{_g(m.embeddings)} embeddings + {head} + {_g(m.linear)} linear + {_g(m.norms)} norms"
    share = f"{plan.trainable / m.total:.3%} = {plan.trainable:,} / {m.total:,}"
    table("Parameters", [("all", f"{m.total:,} = {kinds}"), ("trainable", share)])
    parts = [(part.name, f"{part.gib:,.1f} GiB", part.equation) for part in memory.parts]
    verdict = f"{'fits' if memory.fits else 'does NOT fit'} in {memory.capacity_gib:g} GiB; fullest {memory.moment}"
    table("Memory of one GPU (estimated)", [*parts, ("total", f"{memory.total_gib:,.1f} GiB", verdict)])
    if not memory.fits:
        rows = [
            (" ".join(s.settings), f"{s.total_gib:,.1f} GiB", f"{'fits' if s.fits else 'not yet'}; {s.why}")
            for s in plan.suggestions
        ]
        if not plan.suggestions or not plan.suggestions[-1].fits:
            rows.append(
                ("still too large", "", "more GPUs, GPUs with more memory, a shorter data.max_length, or a smaller model")
            )
        table("To make it fit, one on top of the other (estimated)", rows)
    table("Time", _time_lines(plan))
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}"))
