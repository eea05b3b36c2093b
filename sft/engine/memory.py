"""Before the first step: what ``auto`` becomes, by measuring steps on the GPU. What the plan says fits was run, and is held to.

A measurement runs the fullest micro-batches of the run forward and backward with a setting, while stand-ins take the room of the optimiser's
states, and reads the most that torch's allocator held. Gradients are dropped and the random state is put back, so a run with ``auto``
is, bit for bit, the run with the values that were chosen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sft.data.packing import StepPlan
from sft.data.store import RowStore
from sft.engine import manifest, regional
from sft.engine.batches import PlannedBatches
from sft.engine.checkpointing import checkpoint_first
from sft.engine.evaluate import evaluate_rows, to_device
from sft.engine.loss import plain_head, step_loss
from sft.errors import InputError, ResumeError
from sft.model import adapters
from sft.model.load import DTYPES, compute_dtype, product_type
from sft.plan_choice import RESERVE, Found, Setting, fullest_micro_batches, near_fullest, parts_of, search, settings
from sft.plan_memory import MemoryPlan, memory_estimate, model_shape
from sft.recipe import Recipe

log = logging.getLogger(__name__)

_GIB = 2**30


def _run_evaluation(recipe: Recipe, model: nn.Module, store: RowStore, pad_id: int | None) -> None:
    """As many learnt tokens as an evaluation takes at once: its logits are whole, and held-out rows are like the others."""
    order, chosen, tokens = np.argsort(-store.trained, kind="stable"), list[int](), 0
    for row in order.tolist():
        tokens += int(store.lengths[row])
        if chosen and tokens > recipe.evaluation_tokens:
            break
        chosen.append(row)
    found = store.select(np.asarray(chosen, dtype=np.int64))
    evaluate_rows(model, found, capacity=recipe.evaluation_tokens, pad_id=pad_id, dtype=compute_dtype(recipe.model))


class Meter(Protocol):
    """What measures memory; tests put another one in its place."""

    def budget(self) -> int:
        """Bytes that the tensors of a run may take."""

    def measure(self, recipe: Recipe, plan: StepPlan, stand_ins: int) -> float:
        """Most bytes that tensors took in the fullest micro-batches beside ``stand_ins`` bytes; infinite if memory ran out."""


def meter_for(recipe: Recipe, model: nn.Module, store: RowStore, pad_id: int | None, world: int) -> Meter | None:
    """The meter of the GPU that the model lies on; None without a GPU."""
    device = next(model.parameters()).device
    return CudaMeter(recipe, model, store, pad_id, device, world) if device.type == "cuda" else None


class CudaMeter:
    """Measures with torch's allocator on one GPU; of several ranks the fullest decides."""

    def __init__(
        self, recipe: Recipe, model: nn.Module, store: RowStore, pad_id: int | None, device: torch.device, world: int
    ) -> None:
        self.model, self.store, self.device, self.world = model, store, device, world
        self.pad_id = pad_id if recipe.train.batching == "padded" else None
        if recipe.lora is not None:
            adapters.keep_float32(model)  # as the trainer will have them
        asked, (free, total) = recipe.memory.budget_bytes, torch.cuda.mem_get_info(device)
        there = free + torch.cuda.memory_reserved(device)
        if asked is not None and asked > there:
            raise InputError(
                f"memory.budget: {asked / _GIB:.1f} GiB, but this GPU has {there / _GIB:.1f} GiB free for it (of {total / _GIB:.1f}); lower it"
            )
        self._budget = self._of_all_ranks(float(there if asked is None else asked), least=True)
        if asked is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, asked / total), device)

    def budget(self) -> int:
        return int(self._budget)

    def measure(self, recipe: Recipe, plan: StepPlan, stand_ins: int) -> float:
        cuda, held = torch.cuda, None
        torch.cuda.empty_cache()
        cuda.reset_peak_memory_stats(self.device)
        peak = math.inf
        try:
            held = torch.empty(stand_ins, dtype=torch.uint8, device=self.device)
            run_fullest(recipe, plan, self.model, self.store, self.pad_id)
            cuda.synchronize(self.device)
            peak = float(cuda.max_memory_allocated(self.device))
        except torch.OutOfMemoryError:
            log.info("memory ran out with %s tokens per device", recipe.train.tokens_per_device)
        del held
        cuda.empty_cache()
        return self._of_all_ranks(peak, least=False)

    def _of_all_ranks(self, value: float, *, least: bool) -> float:
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN if least else torch.distributed.ReduceOp.MAX)
        return float(shared)


def run_fullest(recipe: Recipe, plan: StepPlan, model: nn.Module, store: RowStore, pad_id: int | None) -> None:
    """Run the micro-batches with the most positions and the most learnt tokens forward and backward, as the trainer will, and an evaluation.

    Where a step has several micro-batches, each is run with the gradients of another in place. Gradients and random state are left as they
    were: none, and untouched.
    """
    device = next(model.parameters()).device
    if recipe.train.float8:
        from sft.engine import float8_training  # brings torch's compiler along

        float8_training.convert(model)
    compiled = regional.wanted(recipe, len(plan.steps), device)
    if compiled:
        regional.compile_layers(model)
    head = None if pad_id is not None else plain_head(model, compute_dtype(recipe.model))
    batches = PlannedBatches(store, plan, pad_id, compiled=compiled)
    kind, training = product_type(recipe), model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for number in fullest_micro_batches(plan)[1]:
                model.zero_grad(set_to_none=True)
                for _ in range(min(plan.accumulation, 2)):
                    batch = to_device(batches[number], device)
                    with torch.autocast(device.type, dtype=DTYPES[kind], enabled=kind != "float32"):
                        loss = step_loss(model, batch, head)
                    loss.backward()
            model.zero_grad(set_to_none=True)
            _run_evaluation(recipe, model, store, pad_id)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def settle_run(
    recipe: Recipe,
    model: nn.Module,
    store: RowStore,
    pad_id: int | None,
    lay_out: Callable[[Recipe], StepPlan],
    start: Path | None,
    world: int,
) -> tuple[Recipe, dict[str, Any] | None]:
    """:func:`settle` with the GPU at hand, and with the record in the checkpoint ``start`` if a run is resumed from it."""
    if not recipe.automatic and recipe.memory.budget is None:
        return recipe, None
    recorded = None if start is None else manifest.recorded_memory(start)
    meter = meter_for(recipe, model, store, pad_id, world)
    if meter is None and recipe.memory.budget is not None:
        raise InputError("memory.budget: there is no GPU whose memory could be capped; remove it (--set memory.budget=null)")
    return settle(recipe, model, lay_out, meter, recorded, resumed=start is not None)


def settle(
    recipe: Recipe,
    model: nn.Module,
    lay_out: Callable[[Recipe], StepPlan],
    meter: Meter | None,
    recorded: Mapping[str, Any] | None = None,
    *,
    resumed: bool = False,
) -> tuple[Recipe, dict[str, Any] | None]:
    """What a recipe's ``auto`` becomes, and the record of it; the recipe as it is, and None, if there is nothing to choose or to hold to.

    Args:
        recipe: as written.
        model: with its adapters; left with the layers recomputed that were chosen.
        lay_out: the steps of a recipe.
        meter: None without a GPU: ``auto`` is then :attr:`sft.recipe.Recipe.row_tokens` and no recomputed layer.
        recorded: the record of the run that is resumed.
        resumed: whether a run is.

    Raises:
        InputError: the smallest setting does not fit: by how much, what is largest, what to change.
        ResumeError: a run is resumed that has no record of what was chosen.
    """
    if not recipe.automatic and (meter is None or recipe.memory.budget is None):
        return recipe, None
    if resumed and recipe.automatic and recorded is None:
        raise ResumeError(
            "this checkpoint has no record of what auto became; state train.tokens_per_device and train.gradient_checkpointing"
        )
    if recorded is not None:
        recipe = _as_recorded(recipe, recorded)
    shape = model_shape(_config(model))
    if meter is None:
        return _unmeasured(recipe, shape.layers)
    options = settings(recipe, shape, lay_out)
    loads = {setting.tokens: near_fullest(plan) for setting, plan in {s.tokens: (s, p) for s, p in options.items()}.values()}
    device = next(model.parameters()).device

    def estimate(setting: Setting) -> MemoryPlan:
        compiled = regional.wanted(recipe, len(options[setting].steps), device)
        return memory_estimate(setting.applied(recipe), shape, loads[setting.tokens], compiled=compiled)

    def measure(setting: Setting) -> float:
        stand_ins = [p.gib for p in estimate(setting).parts if p.name in ("optimiser states", "gradient buckets (DDP)")]
        checkpoint_first(model, setting.checkpointed, offload=setting.offload)
        return meter.measure(setting.applied(recipe), options[setting], int(sum(stand_ins) * _GIB))

    limit = meter.budget() * (1 - RESERVE)
    found = search(list(options), lambda setting: parts_of(estimate(setting)), measure, limit)
    if found.setting is None:
        least = min(options, key=lambda s: estimate(s).total_gib)
        raise InputError(_refusal(found, least, estimate(least), meter.budget(), limit))
    checkpoint_first(model, found.setting.checkpointed, offload=found.setting.offload)
    return found.setting.applied(recipe), _record(found, meter.budget())


def _config(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).config


def _unmeasured(recipe: Recipe, layers: int) -> tuple[Recipe, dict[str, Any]]:
    asked = recipe.train.gradient_checkpointing
    k = 0 if asked == "auto" else layers if asked is True else int(asked)
    setting = Setting(recipe.row_tokens, k, layers, 0.0, offload=recipe.train.activation_offload is True and k > 0)
    return setting.applied(recipe), {
        "setting": str(setting),
        "tokens_per_device": setting.tokens,
        "checkpointed_layers": k,
        "offload": setting.offload,
    }


def _as_recorded(recipe: Recipe, recorded: Mapping[str, Any]) -> Recipe:
    """The recipe with every ``auto`` as it was answered before; what is stated since stays."""
    layers = int(recorded["checkpointed_layers"])
    answers = {"tokens_per_device": recorded["tokens_per_device"], "gradient_checkpointing": layers or False}
    answers["activation_offload"] = bool(recorded.get("offload", False))
    values = {key: value for key, value in answers.items() if getattr(recipe.train, key) == "auto"}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=values)})


def _record(found: Found, budget: int) -> dict[str, Any]:
    assert found.setting is not None
    setting, tried = found.setting, dict(found.tried)
    return {
        "setting": str(setting),
        "tokens_per_device": setting.tokens,
        "checkpointed_layers": setting.checkpointed,
        "offload": setting.offload,
        "layers": setting.layers,
        "measured_gib": tried[setting] / _GIB,
        "budget_gib": budget / _GIB,
        "headroom_gib": (budget - tried[setting]) / _GIB,
        "tried": [
            {"setting": str(s), "measured_gib": round(size / _GIB, 3) if math.isfinite(size) else "ran out"}
            for s, size in tried.items()
        ],
    }


def _refusal(found: Found, least: Setting, estimate: MemoryPlan, budget: int, limit: float) -> str:
    """Why nothing fits: what the smallest setting takes, its largest parts, and what to change."""
    size = dict(found.tried).get(least, math.inf)
    how = "measured"
    if not math.isfinite(size):
        size, how = sum(parts_of(estimate)), "estimated; memory ran out when it was tried"
    parts = sorted(estimate.parts, key=lambda part: -part.gib)[:3]
    largest = ", ".join(f"{part.name} {part.gib:.1f} GiB" for part in parts)
    over = max(0.0, size - limit) / _GIB
    return (
        f"memory: even the smallest setting ({least}) takes {size / _GIB:.1f} GiB ({how}), {over:.1f} GiB more than the "
        f"{limit / _GIB:.1f} GiB that may be used ({budget / _GIB:.1f} less {RESERVE:.0%}). Largest parts (estimated): {largest}. "
        "Set what is stated of train.tokens_per_device and train.gradient_checkpointing to auto, lower data.max_length, take an optimizer with "
        "smaller states, 'lora:', or model.quantization; sft plan says what each brings"
    )
