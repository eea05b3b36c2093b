"""What a recipe will do, before it does it: steps, memory, hours, money, energy. Every derived number comes with its equation.

Steps and tokens are exact (they are the steps that the run will take). Parameters and memory come from :mod:`sft.plan_memory`, the
tables on the screen from :mod:`sft.plan_report`. Units: G = 10^9, FLOP with a multiply-add counted as two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from sft.config import require
from sft.data.packing import StepPlan, plan_steps
from sft.plan_choice import by_estimate, fullest
from sft.plan_languages import LanguageTokens
from sft.plan_memory import Load, MemoryPlan, ModelShape, memory_estimate, model_shape, short, trainable_parameters
from sft.recipe import Recipe
from sft.recipe_plan import PlanSection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from sft.data.dataset import Prepared


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
    """All that is known about a run before it starts. ``trainable`` counts parameters; ``inputs`` are the recipe's prices; ``choice``
    says what ``auto`` is estimated to become; ``languages`` is what :func:`sft.plan_languages.tokens_by_language` counted."""

    data: DataPlan
    model: ModelShape
    trainable: int
    memory: MemoryPlan
    suggestions: tuple[Suggestion, ...]
    time: TimePlan
    inputs: PlanSection
    warnings: tuple[str, ...]
    choice: str | None = None
    languages: tuple[LanguageTokens, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; the names of the linear layers are left out."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out = {
            k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) and not isinstance(v, type) else v for k, v in out.items()
        }
        del out["model"]["linears"]
        out["model"] |= {"total": self.model.total, "matmul": self.model.matmul}
        out |= {"suggestions": [dataclasses.asdict(s) for s in self.suggestions], "warnings": list(self.warnings)}
        out["languages"] = [
            dataclasses.asdict(one) | {"tokens_per_character": one.tokens_per_character} for one in self.languages
        ]
        out["memory"]["estimated"] = True
        return out | {"inputs": self.inputs.model_dump(mode="json")}


# -- data and steps -----------------------------------------------------------------------------------------------


def lay_out(recipe: Recipe, prepared: Prepared) -> StepPlan:
    """The steps that the run will take, on ``plan.gpus`` ranks.

    Raises:
        DataError: no rows, weights that draw none, or a row that no micro-batch holds.
    """
    train, store = recipe.train, prepared.train
    return plan_steps(
        lengths=store.lengths,
        trained=store.trained,
        source_of=store.source_of,
        weights=[source.weight for source in recipe.data.sources],
        seed=train.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        examples_per_step=train.examples_per_step,
        tokens_per_step=train.tokens_per_step,
        tokens_per_device=recipe.row_tokens,
        max_length=recipe.data.max_length,
        world=recipe.plan.gpus,
        padded=train.batching == "padded",
    )


def _compiled(recipe: Recipe, steps: int) -> bool:
    """Whether the planned GPU will compile the layers."""
    import torch

    from sft.engine.regional import wanted

    return wanted(recipe, steps, torch.device("cuda"))


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
    sizes, size = [], recipe.row_tokens
    while size > recipe.data.max_length:
        size = max(size // 2, recipe.data.max_length)
        sizes.append(size)
    adapters: Settings = {"lora.rank": 16, "lora.alpha": 32.0}
    if "stochastic" in recipe.train.optimizer:  # not for adapters, whose weights are float32
        adapters["train.optimizer"] = "adamw_8bit" if "8bit" in recipe.train.optimizer else "adamw"
    half: Settings = {"model.dtype": "bfloat16", "model.compute_dtype": "bfloat16"}
    unsharded: Settings = {"train.cpu_offload": False, "train.sharding": "none"} if recipe.train.sharding != "none" else {}
    frozen = recipe.lora is not None
    checks: list[tuple[bool, str, list[Settings]]] = [
        (bool(sizes), "the same result in smaller micro-batches", [{"train.tokens_per_device": s} for s in sizes]),
        (not recipe.train.gradient_checkpointing, "about a quarter more time", [{"train.gradient_checkpointing": True}]),
        (recipe.plan.gpus > 1 and recipe.train.sharding == "none", "share it among the GPUs", [{"train.sharding": "fsdp"}]),
        (
            recipe.train.optimizer == "adamw" and recipe.train.sharding == "none",  # its states are not sharded
            "optimiser states in 8 bits",
            [{"train.optimizer": "adamw_8bit"}],
        ),
        (
            not frozen and recipe.train.sharding == "none",
            "weights in bfloat16, rounded stochastically: another arithmetic, as good where it was measured",
            [{**half, "train.optimizer": name} for name in ("adamw_stochastic", "adamw_8bit_stochastic")],
        ),
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
    steps = len(lay_out(recipe, prepared).steps)

    def estimate(changed: Recipe) -> MemoryPlan:
        size = changed.row_tokens
        if size not in loads:
            loads[size] = fullest(lay_out(changed, prepared))
        return memory_estimate(changed, shape, loads[size], compiled=_compiled(changed, steps))

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
        f"{k} x ({short(shape.linear)} + {share:.3f} learnt x {short(shape.head_matrix)} head)"
        f" + 6 x {shape.layers} layers x {width:,} x {context:,.1f} tokens"
    )
    rate = plan.tokens_per_second or probed
    times = f", {plan.gpus} times one GPU" if plan.gpus > 1 else ""
    source = "plan.tokens_per_second" if plan.tokens_per_second else f"probed{times}" if probed else "unknown"
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
        sizes = {len(steps.steps[end - 1]) for end in steps.epoch_ends if 0 < end <= total} - {train.examples_per_step}
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
        probed_tokens_per_second: over all GPUs, as measured on one; the recipe's own figure wins.

    Raises:
        InputError: a rate that is not positive; a model that is no decoder; targets that it lacks; rows that do not fit.
    """
    probed = probed_tokens_per_second
    require(probed is None or probed > 0, f"probed tokens per second must be positive, got {probed}")
    shape, choice = model_shape(config), None
    if recipe.automatic:
        choice = by_estimate(recipe, shape, lambda edited: lay_out(edited, prepared), lambda steps: _compiled(recipe, steps))
        recipe = choice.applied(recipe)
    steps = lay_out(recipe, prepared)
    data = _data_plan(prepared, steps, bool(recipe.data.holdout_sources))
    memory = memory_estimate(recipe, shape, fullest(steps), compiled=_compiled(recipe, len(steps.steps)))
    return Plan(
        data=data,
        model=shape,
        trainable=trainable_parameters(recipe, shape),
        memory=memory,
        suggestions=() if memory.fits else suggest(recipe, prepared, shape),
        time=_time_plan(recipe, shape, steps, data, probed),
        inputs=recipe.plan,
        warnings=_warnings(recipe, steps, prepared, config),
        choice=None if choice is None else str(choice),
    )
