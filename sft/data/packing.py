"""Which rows make which micro-batch, decided before the run and the same for every way of running it.

::

    epoch order     17 4 90 33 | 8 61 2 75 | ...          a seeded permutation; one group per optimiser step
    step 0          [17 33] [90 4]                        A x ranks flat rows of nearly equal length
                    rank 0  rank 1                        (A = micro-batches per step and rank, one number for the whole run)

A flat row takes any set of rows, so nothing is binned and nothing moves from one step to another: step k holds exactly the rows
that a padded run would draw, in the same order. Only the split of a step over micro-batches depends on memory and on the number of
ranks, and the loss does not depend on the split (see sft.engine.loss).

Steps that are counted in tokens are made of rows that fill them: the rows of an epoch are put into bins of ``max_length`` tokens or a
little more, and a step takes bins at random. That too depends on nothing but the rows, the seed and ``tokens_per_step``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sft.errors import DataError

IntArray = npt.NDArray[np.int64]
_PATIENCE = 10_000  # epochs without a single row before weights count as a mistake


def epoch_order(weights: Sequence[float], source_of: npt.NDArray[np.integer], seed: int, epoch: int) -> IntArray:
    """Row indices of one epoch, in draw order.

    A source of weight w is seen floor(w) times, and a further share w - floor(w) of it is drawn so that successive epochs take
    successive parts of one fixed shuffle: two epochs at weight 0.5 see every row once.

    Args:
        weights: per source.
        source_of: source index of each row, ``[rows]``.
        seed: of the recipe.
        epoch: from 0.
    """
    parts: list[IntArray] = []
    for source, weight in enumerate(weights):
        rows = np.flatnonzero(source_of == source).astype(np.int64)
        whole = math.floor(weight)
        parts += [rows] * whole
        share = weight - whole
        if share > 1e-9 and len(rows):
            fixed = np.random.Generator(np.random.PCG64([seed, 7, source])).permutation(rows)
            begin, end = (round(share * (epoch + i) * len(rows)) for i in (0, 1))
            parts.append(fixed[np.arange(begin, end) % len(rows)])
    rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    return np.random.Generator(np.random.PCG64([seed, 1, epoch])).permutation(rows)


def split_evenly(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Split items over bins so that the fullest bin is small: longest item first, always into the emptiest bin (Graham's LPT).

    Returns:
        ``bins`` lists of positions, fullest first, each in ascending order. Bins may be empty. Deterministic.
    """
    heap = [(0, b) for b in range(bins)]
    members: list[list[int]] = [[] for _ in range(bins)]
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, b = heapq.heappop(heap)
        members[b].append(position)
        heapq.heappush(heap, (load + lengths[position], b))
    loads = {b: load for load, b in heap}
    return [sorted(members[b]) for b in sorted(range(bins), key=lambda b: (-loads[b], b))]


def split_rectangles(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Split rows over padded rectangles so that padding is small: sorted by length, equal counts (the short rows take the rest).

    Returns:
        As :func:`split_evenly`: ``bins`` lists of positions, largest rectangle first, empty ones last. Deterministic.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    base, extra = divmod(len(order), bins)
    parts, at = [], 0
    for b in range(bins):
        size = base + (1 if b >= bins - extra else 0)
        parts.append(sorted(order[at : at + size]))
        at += size
    return sorted(parts, key=lambda part: -_area(lengths, part))  # stable, so ties stay longest first


def split_in_order(lengths: Sequence[int], bins: int, capacity: int) -> list[list[int]]:
    """Split items over bins without changing their order, as many into each as it holds: bins that were filled one by one come back.

    Returns:
        As :func:`split_evenly`. More than ``bins`` lists if that many do not do.
    """
    parts: list[list[int]] = []
    room = 0
    for position, length in enumerate(lengths):
        if length > room:
            parts.append([])
            room = capacity
        parts[-1].append(position)
        room -= length
    parts += [[] for _ in range(bins - len(parts))]
    return sorted(parts, key=lambda part: -sum(lengths[i] for i in part))


def _area(lengths: Sequence[int], part: Sequence[int]) -> int:
    """Tokens of a padded rectangle, padding included."""
    return len(part) * max((lengths[i] for i in part), default=0)


@dataclass(slots=True)
class StepPlan:
    """The whole run as steps of rows.

    Attributes:
        lengths: tokens of each row, ``[rows]``.
        trained: learnt tokens of each row, ``[rows]``.
        steps: row indices of each optimiser step, in draw order.
        epoch_ends: number of steps after which each epoch ends, were the run not cut; the same as before for one without rows.
        accumulation: A, micro-batches per step and rank.
        world: ranks.
        capacity: most tokens of a micro-batch; for padded batches, of its rectangle.
        padded: rectangles instead of flat rows.
    """

    lengths: IntArray
    trained: IntArray
    steps: list[IntArray]
    epoch_ends: list[int]
    accumulation: int
    world: int
    capacity: int
    padded: bool = False
    _split_cache: dict[int, list[list[int]]] = field(default_factory=dict, repr=False)

    def micro_batch(self, step: int, micro: int, rank: int) -> IntArray:
        """Row indices of one micro-batch, in draw order; empty if the step has fewer rows than micro-batches."""
        rows = self.steps[step]
        if step not in self._split_cache:
            self._split_cache.clear()  # steps are read in order; one is enough
            self._split_cache[step] = self._split(rows)
        # Parts are sorted by load, so the ranks of one micro-step carry nearly the same number of tokens.
        return rows[self._split_cache[step][micro * self.world + rank]]

    def _split(self, rows: IntArray) -> list[list[int]]:
        lengths = self.lengths[rows].tolist()
        bins = self.accumulation * self.world
        if self.padded:
            return split_rectangles(lengths, bins)
        parts = split_evenly(lengths, bins)
        if sum(lengths[i] for i in parts[0]) > self.capacity:
            in_order = split_in_order(lengths, bins, self.capacity)
            parts = in_order if len(in_order) == bins else parts
        return parts

    def trained_tokens(self, step: int) -> int:
        """Learnt tokens of a whole step, over all micro-batches and ranks: what its loss is divided by."""
        return int(self.trained[self.steps[step]].sum())

    def total_tokens(self, step: int) -> int:
        """Tokens of a whole step."""
        return int(self.lengths[self.steps[step]].sum())

    def epoch_at(self, step: int) -> float:
        """Epochs completed after ``step`` steps, a whole number exactly at the end of each; epochs without rows pass at once."""
        begin = 0
        for epoch, end in enumerate(self.epoch_ends):
            if step < end:
                return epoch + (step - begin) / (end - begin)
            begin = end
        return float(len(self.epoch_ends))

    def most_documents(self) -> int:
        """Most rows of any micro-batch: the fixed length of ``cu_seq_lens`` less one."""
        return max(max(len(part) for part in self._split(rows)) for rows in self.steps)

    def fill(self) -> float:
        """Tokens over capacity x micro-batches x ranks x steps: how full the planned micro-batches are."""
        tokens = sum(self.total_tokens(s) for s in range(len(self.steps)))
        return tokens / (self.capacity * self.accumulation * self.world * len(self.steps))

    def equation(self) -> str:
        """The batch as an equation, for the screen."""
        rows = len(self.steps[0])
        each = rows / (self.accumulation * self.world)
        return f"{rows} rows per step = {self.accumulation} micro-batches x {self.world} GPUs x {each:.1f} rows"


def smallest_accumulation(steps: Sequence[IntArray], lengths: IntArray, world: int, capacity: int, padded: bool) -> int:
    """Smallest number of micro-batches per step and rank with which none of any step holds more than ``capacity`` tokens.

    Args:
        steps: row indices of each step, in draw order.
        lengths: tokens of every row, none above ``capacity``.
        world: ranks.
        capacity: most tokens of a flat micro-batch, or of a padded rectangle.
        padded: rectangles instead of flat rows.
    """
    from sft.data.packing_kernels import accumulation  # here: numba takes a second to import

    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in steps])]).astype(np.int64)
    sizes = np.ascontiguousarray(lengths[np.concatenate(steps)], dtype=np.int64)
    return int(accumulation(sizes, offsets, world, capacity, padded))


def group_by_tokens(order: IntArray, lengths: IntArray, tokens: int, longest: int, seed: int, epoch: int) -> list[IntArray]:
    """Put an epoch's rows into steps of at most so many tokens, nearly all of them as full as that.

    Args:
        order: row indices in draw order.
        lengths: tokens of every row.
        tokens: most tokens of a step.
        longest: most tokens that a row may have; a longer one is a step by itself.
        seed: of the recipe.
        epoch: from 0.

    Returns:
        Row indices of each step: its bins, one behind the other. The last step takes the bins that are left.
    """
    from sft.data.packing_kernels import fill_bins  # here: numba takes a second to import

    if len(order) == 0:
        return []
    sizes = np.ascontiguousarray(lengths[order], dtype=np.int64)
    each = max(1, tokens // longest)  # bins of a step
    bins = fill_bins(sizes, max(tokens // each, int(sizes.max())))
    drawn = np.random.Generator(np.random.PCG64([seed, 3, epoch])).permutation(int(bins.max()) + 1)
    steps = drawn[bins] // each
    behind_one_another = np.argsort(drawn[bins], kind="stable")
    ends = np.cumsum(np.bincount(steps))
    return np.split(order[behind_one_another], ends[:-1])


def plan_steps(
    *,
    lengths: IntArray,
    trained: IntArray,
    source_of: npt.NDArray[np.integer],
    weights: Sequence[float],
    seed: int,
    epochs: float | None,
    max_steps: int | None,
    examples_per_step: int | None,
    tokens_per_step: int | None,
    tokens_per_device: int,
    max_length: int | None = None,
    world: int = 1,
    padded: bool = False,
) -> StepPlan:
    """Lay out every step of a run and fix the number of micro-batches per step.

    Exactly one of ``examples_per_step`` (the last step of an epoch takes what is left, as the padded recipe does) and
    ``tokens_per_step`` is given. ``max_length`` is the most tokens a row may have (None: the longest there is).

    Raises:
        DataError: no rows, weights that draw none, or a row longer than a micro-batch.
    """
    if len(lengths) == 0:
        raise DataError("no rows are left to train on")
    if int(lengths.max()) > tokens_per_device:
        raise DataError(
            f"a row of {int(lengths.max())} tokens does not fit train.tokens_per_device = {tokens_per_device}; "
            "lower data.max_length or raise it"
        )

    def groups_of(epoch: int) -> list[IntArray]:
        order = epoch_order(weights, source_of, seed, epoch)
        if examples_per_step is not None:
            return [order[i : i + examples_per_step] for i in range(0, len(order), examples_per_step)]
        assert tokens_per_step is not None
        return group_by_tokens(order, lengths, tokens_per_step, max_length or int(lengths.max()), seed, epoch)

    steps, ends = _lay_out(groups_of, epochs, max_steps)
    accumulation = smallest_accumulation(steps, lengths, world, tokens_per_device, padded)
    return StepPlan(lengths, trained, steps, ends, accumulation, world, tokens_per_device, padded)


def _lay_out(
    groups_of: Callable[[int], list[IntArray]], epochs: float | None, max_steps: int | None
) -> tuple[list[IntArray], list[int]]:
    """Steps of a run, and the step counts at which its epochs end.

    An epoch without rows (a source of two rows at weight 0.1 has nine in ten) is passed over. The share of a last, partial epoch
    is rounded up to whole steps, and a run has at least one.
    """
    steps: list[IntArray] = []
    ends: list[int] = []
    while True:
        steps += groups_of(len(ends))
        ends.append(len(steps))
        if epochs is not None and len(ends) >= epochs:
            break
        if max_steps is not None and len(steps) >= max_steps:
            break
        if not steps and len(ends) == _PATIENCE:
            break
    if not steps:
        raise DataError(f"the source weights leave no rows in any of {len(ends):,} epochs; raise data.sources[].weight")
    total = len(steps)
    if epochs is not None and len(ends) >= epochs:
        last = ends[-1] - (ends[-2] if len(ends) > 1 else 0)
        # 1e-9: the last 0.1 of 1.1 epochs of 30 steps is 3.0000000000000027 in floating point, and means 3.
        total -= last - math.ceil(last * (epochs - (len(ends) - 1)) - 1e-9)
    if max_steps is not None:
        total = min(total, max_steps)
    return steps[: max(total, 1)], ends
