"""Which micro-batches and how many recomputed layers are fastest in the memory there is.

Two knobs trade time for memory and leave the result alone: tokens of a micro-batch (n), and how many of the L layers are recomputed (k).
Speeds are compared by a model of the work, in tokens' worth of it::

    cost = tokens of the run x (1 + s k / L) + micro-batches x 256

s is what a forward pass is of forward and backward: 1/3 of full tuning's 2 + 4 FLOP per parameter and token, 1/2 of LoRA's 2 + 2. 256 tokens'
work is about what a micro-batch costs however short it is: weights read three times, gradients added up. It ranks settings, no more.

What is taken in the end was measured. Estimates say where to measure: the part of them that moves with n and k is fitted to what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sft.data.packing import StepPlan
from sft.plan_memory import OVERHEAD_GIB, Load, MemoryPlan, ModelShape, checkpointed_layers, memory_estimate
from sft.recipe import Recipe

RESERVE = 0.03
"""Share of the memory that a setting must leave: the allocator cannot use every piece."""
_PER_MICRO_BATCH = 256
_COPYING = 0.03
"""What copies of all layers' inputs cost, of a forward and backward pass."""
_MOST_MEASURED = 7
_WORTH = 0.01
"""A setting that is faster by less is not worth another measurement."""
_LONGEST_ROW = 131_072
_STEPS_LOOKED_AT = 16
_MOVING = ("activations", "logits", "autocast copies")


@dataclass(frozen=True, slots=True)
class Setting:
    """One answer to ``auto``: most tokens of a micro-batch, recomputed layers of all, and its cost in tokens' worth of work."""

    tokens: int
    checkpointed: int
    layers: int
    cost: float
    offload: bool = False

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe as if the user had written these values."""
        checkpointing = True if self.checkpointed == self.layers else self.checkpointed or False
        values = {"tokens_per_device": self.tokens, "gradient_checkpointing": checkpointing}
        values["activation_offload"] = self.offload
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=values)})

    def __str__(self) -> str:
        which = {0: "no layer", self.layers: f"all {self.layers} layers"}
        named = which.get(self.checkpointed, f"{self.checkpointed} of {self.layers} layers")
        offloaded = ", their inputs in main memory" if self.offload else ""
        return f"{self.tokens:,} tokens per device, {named} checkpointed{offloaded}"


def fullest(steps: StepPlan) -> Load:
    """The largest micro-batch of a run; see :func:`fullest_micro_batches`."""
    return fullest_micro_batches(steps)[0]


def fullest_micro_batches(steps: StepPlan, only: Iterable[int] | None = None) -> tuple[Load, tuple[int, ...]]:
    """The largest micro-batch of a run in positions, in learnt tokens and in its longest row (not always the same one).

    Args:
        steps: the plan.
        only: steps to look at; None looks at all.

    Returns:
        Its load, and the running numbers of the micro-batches with the most positions and with the most learnt tokens.
    """
    tokens = trained = longest = 1
    at = [0, 0]
    each = steps.accumulation * steps.world
    for step in range(len(steps.steps)) if only is None else only:
        for part in range(each):
            rows = steps.micro_batch(step, *divmod(part, steps.world))
            if not len(rows):
                continue
            lengths = steps.lengths[rows]
            widest = int(lengths.max())
            size, learnt = widest * len(rows) if steps.padded else int(lengths.sum()), int(steps.trained[rows].sum())
            if size > tokens:
                tokens, at[0] = size, step * each + part
            if learnt > trained:
                trained, at[1] = learnt, step * each + part
            longest = max(longest, widest)
    return Load(tokens, trained, longest, steps.accumulation), tuple(sorted(set(at)))


def near_fullest(steps: StepPlan) -> Load:
    """As :func:`fullest`, of the steps with the most tokens only: an estimate needs no more, and the fullest is nearly always there."""
    totals = np.array([steps.total_tokens(step) for step in range(len(steps.steps))])
    return fullest_micro_batches(steps, np.argsort(-totals, kind="stable")[:_STEPS_LOOKED_AT].tolist())[0]


def settings(recipe: Recipe, shape: ModelShape, lay_out: Callable[[Recipe], StepPlan]) -> dict[Setting, StepPlan]:
    """Every setting that ``auto`` may become, the fastest first, with its steps; of values that the recipe states only these.

    Of sizes that cut a step into equally many micro-batches the smallest stands for all: their micro-batches are the same.
    """
    by_cut: dict[int, tuple[int, StepPlan]] = {}
    sizes = _sizes(recipe) if recipe.train.tokens_per_device == "auto" else [recipe.row_tokens]
    for size in sizes:
        plan = lay_out(recipe.model_copy(update={"train": recipe.train.model_copy(update={"tokens_per_device": size})}))
        by_cut.setdefault(plan.accumulation, (size, plan))
        if plan.accumulation == 1:
            break
    asked = recipe.train.gradient_checkpointing
    layers = range(shape.layers + 1) if asked == "auto" else [checkpointed_layers(recipe, shape)]
    again = 1 / 3 if recipe.lora is None else 1 / 2
    found = {}
    for size, plan in by_cut.values():
        tokens = sum(plan.total_tokens(step) for step in range(len(plan.steps))) / plan.world
        micro = len(plan.steps) * plan.accumulation
        for k in layers:
            for offload in _offloads(recipe, k):
                slower = again * k / shape.layers + (_COPYING * k / shape.layers if offload else 0.0)
                cost = tokens * (1 + slower) + micro * _PER_MICRO_BATCH
                found[Setting(size, k, shape.layers, cost, offload)] = plan
    return dict(sorted(found.items(), key=lambda item: (item[0].cost, item[0].tokens, item[0].checkpointed)))


def _offloads(recipe: Recipe, recomputed: int) -> tuple[bool, ...]:
    """Whether inputs of recomputed layers may stay on the GPU, or leave it."""
    asked = recipe.train.activation_offload
    return (False,) if not recomputed else (False, True) if asked == "auto" else (asked,)


def _sizes(recipe: Recipe) -> list[int]:
    """Row lengths to choose from, ascending: the longest row, then half as much again each time, in multiples of 128."""
    sizes, size = [], float(recipe.data.max_length)
    while True:
        sizes.append(128 * math.ceil(size / 128))
        if size >= _LONGEST_ROW:
            return sizes
        size *= math.sqrt(2)


@dataclass(slots=True)
class Fit:
    """Bytes of a setting, from its estimate, corrected by what was measured of others."""

    estimate: Callable[[Setting], tuple[float, float]]
    points: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, setting: Setting, measured: float) -> None:
        """Take a measurement, in bytes, into account."""
        fixed, moving = self.estimate(setting)
        self.points.append((fixed, moving, measured))

    def __call__(self, setting: Setting) -> float:
        """Bytes that a setting is expected to take."""
        fixed, moving = self.estimate(setting)
        if not self.points:
            return fixed + moving
        last = self.points[-1]
        others = [point for point in self.points[:-1] if abs(point[1] - last[1]) > 0.05 * last[1]]
        if not others:  # all of the error is put on what moves
            return fixed + moving * min(3.0, max(0.2, (last[2] - last[0]) / last[1]))
        other = others[-1]
        slope = ((last[2] - last[0]) - (other[2] - other[0])) / (last[1] - other[1])
        return fixed + (last[2] - last[0]) + min(3.0, max(0.2, slope)) * (moving - last[1])


@dataclass(frozen=True, slots=True)
class Found:
    """What a search took and measured, in bytes; ``setting`` is None if nothing fits. ``tried`` is in the order of measuring."""

    setting: Setting | None
    tried: tuple[tuple[Setting, float], ...]


def search(
    ordered: Sequence[Setting],
    estimate: Callable[[Setting], tuple[float, float]],
    measure: Callable[[Setting], float],
    limit: float,
) -> Found:
    """The fastest setting that was measured to fit.

    Args:
        ordered: settings, the fastest first.
        estimate: bytes of a setting: what is the same for all, and what moves with it.
        measure: bytes that a step took; infinite if memory ran out.
        limit: bytes that may be taken.
    """
    fit, tried, best = Fit(estimate), dict[Setting, float](), None
    too_much = math.inf  # estimate of the least setting that did not fit
    least = min(ordered, key=lambda s: sum(estimate(s)))
    while len(tried) < _MOST_MEASURED:
        faster = ordered if best is None else [s for s in ordered if s.cost < best.cost * (1 - _WORTH)]
        open_ = [s for s in faster if s not in tried and sum(estimate(s)) < too_much and fit(s) <= limit]
        if not open_ and (best is not None or least in tried):
            break
        last_chance = best is None and least not in tried and len(tried) == _MOST_MEASURED - 1
        setting = least if not open_ or last_chance else open_[0]
        tried[setting] = bytes_ = measure(setting)
        if math.isfinite(bytes_):
            fit.add(setting, bytes_)
        if bytes_ <= limit:
            best = setting if best is None or setting.cost < best.cost else best
        else:
            too_much = min(too_much, sum(estimate(setting)))
    return Found(best, tuple(tried.items()))


def parts_of(memory: MemoryPlan) -> tuple[float, float]:
    """Bytes of an estimate without what is outside the allocator: what stays whatever n and k are, and what moves with them."""
    moving = sum(part.gib for part in memory.parts if part.name in _MOVING)
    return (memory.total_gib - OVERHEAD_GIB - moving) * 2**30, moving * 2**30


def by_estimate(
    recipe: Recipe, shape: ModelShape, lay_out: Callable[[Recipe], StepPlan], compiled: Callable[[int], bool]
) -> Setting:
    """The fastest setting whose estimate fits, or the smallest one if none does.

    Args:
        recipe: with ``auto`` in it.
        shape: of the model.
        lay_out: the steps of a recipe without ``auto`` in its row length.
        compiled: whether a run of so many steps compiles its layers.
    """
    sized: list[tuple[float, Setting]] = []
    loads: dict[int, Load] = {}
    for setting, plan in settings(recipe, shape, lay_out).items():
        if setting.tokens not in loads:
            loads[setting.tokens] = near_fullest(plan)
        memory = memory_estimate(setting.applied(recipe), shape, loads[setting.tokens], compiled=compiled(len(plan.steps)))
        if memory.total_gib <= memory.capacity_gib * (1 - RESERVE):
            return setting
        sized.append((memory.total_gib, setting))
    return min(sized, key=lambda item: item[0])[1]
