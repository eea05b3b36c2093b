"""Step plans: every row as often as its weight says, in the padded recipe's order, and as few micro-batches as can hold them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.packing import (
    IntArray,
    StepPlan,
    epoch_order,
    group_by_tokens,
    plan_steps,
    smallest_accumulation,
    split_evenly,
    split_in_order,
    split_rectangles,
)
from sft.data.packing_kernels import fill_bins
from sft.errors import DataError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
WEIGHTS = st.floats(0.01, 3.5) | st.sampled_from([0.5, 1.0, 2.0, 1 / 3])


def lay_out(lengths: list[int], **changes: Any) -> StepPlan:
    """One source of weight 1, four rows per step, one epoch."""
    options: dict[str, Any] = {
        "lengths": np.asarray(lengths, dtype=np.int64),
        "trained": np.asarray(lengths, dtype=np.int64) // 2,
        "source_of": np.zeros(len(lengths), dtype=np.int32),
        "weights": [1.0],
        "seed": 7,
        "epochs": 1.0,
        "max_steps": None,
        "examples_per_step": 4,
        "tokens_per_step": None,
        "tokens_per_device": 40,
    }
    return plan_steps(**{**options, **changes})


def load_of(plan: StepPlan, rows: IntArray) -> int:
    lengths = plan.lengths[rows]
    return int(len(rows) * lengths.max(initial=0) if plan.padded else lengths.sum())


def micro_batches(plan: StepPlan, step: int) -> list[list[IntArray]]:
    """By micro-step, then by rank."""
    return [[plan.micro_batch(step, m, r) for r in range(plan.world)] for m in range(plan.accumulation)]


# -- epochs


@given(st.lists(st.tuples(st.integers(0, 12), WEIGHTS), min_size=1, max_size=3), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_each_row_of_an_epoch_comes_as_often_as_its_weight_rounded(
    sources: list[tuple[int, float]], epoch: int, seed: int
) -> None:
    source_of = np.repeat(np.arange(len(sources)), [rows for rows, _ in sources])
    weights = [weight for _, weight in sources]
    order = epoch_order(weights, source_of, seed, epoch)
    counts = np.bincount(order, minlength=len(source_of))
    for source, (rows, weight) in enumerate(sources):
        times = counts[source_of == source]
        assert all(n in (int(weight), int(weight) + 1) for n in times)
        assert abs(int(times.sum()) - rows * weight) <= 1 + 1e-6
    assert np.array_equal(order, epoch_order(weights, source_of, seed, epoch))


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_weight_one_half_shows_each_row_once_in_two_epochs(rows: int, epoch: int, seed: int) -> None:
    zeros = np.zeros(rows, dtype=np.int32)
    pair = [epoch_order([0.5], zeros, seed, 2 * epoch + i) for i in (0, 1)]
    assert sorted(np.concatenate(pair).tolist()) == list(range(rows))


def test_epochs_and_seeds_differ_in_order() -> None:
    zeros = np.zeros(20, dtype=np.int32)
    orders = {tuple(epoch_order([1.0], zeros, seed, epoch).tolist()) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


# -- steps


@given(LENGTHS, st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans())
def test_a_step_holds_the_rows_that_the_padded_recipe_draws(
    lengths: list[int], examples: int, epochs: int, world: int, padded: bool
) -> None:
    plan = lay_out(lengths, epochs=float(epochs), examples_per_step=examples, world=world, padded=padded)
    drawn = []
    for epoch in range(epochs):
        order = epoch_order([1.0], np.zeros(len(lengths), dtype=np.int32), 7, epoch).tolist()
        drawn += [order[i : i + examples] for i in range(0, len(order), examples)]
    assert [rows.tolist() for rows in plan.steps] == drawn
    assert Counter(np.concatenate(plan.steps).tolist()) == dict.fromkeys(range(len(lengths)), epochs)
    for step, rows in enumerate(plan.steps):
        parts = list(itertools.chain(*micro_batches(plan, step)))
        assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
        places = {row: place for place, row in enumerate(rows.tolist())}
        for part in parts:
            assert load_of(plan, part) <= plan.capacity
            assert [places[row] for row in part.tolist()] == sorted(places[row] for row in part.tolist())


@given(LENGTHS, st.integers(1, 9), st.booleans())
def test_steps_do_not_depend_on_the_number_of_ranks_or_their_memory(lengths: list[int], examples: int, padded: bool) -> None:
    plans = [
        lay_out(lengths, examples_per_step=examples, world=world, tokens_per_device=capacity, padded=padded)
        for world in (1, 2, 8)
        for capacity in (40, 200)
    ]
    for plan in plans:
        assert [rows.tolist() for rows in plan.steps] == [rows.tolist() for rows in plans[0].steps]
        assert [plan.trained_tokens(s) for s in range(len(plan.steps))] == [
            int(plan.trained[rows].sum()) for rows in plan.steps
        ]


@given(LENGTHS, st.sampled_from([1, 2, 4]), st.integers(40, 90), st.booleans())
def test_accumulation_is_the_smallest_that_holds_every_step(
    lengths: list[int], world: int, capacity: int, padded: bool
) -> None:
    plan = lay_out(lengths, examples_per_step=20, world=world, tokens_per_device=capacity, padded=padded)

    def holds(accumulation: int) -> bool:
        other = StepPlan(plan.lengths, plan.trained, plan.steps, plan.epoch_ends, accumulation, world, capacity, padded)
        loads = (load_of(plan, part) for s in range(len(plan.steps)) for part in itertools.chain(*micro_batches(other, s)))
        return max(loads) <= capacity

    assert [holds(a) for a in range(1, plan.accumulation + 1)] == [False] * (plan.accumulation - 1) + [True]


@given(LENGTHS, st.sampled_from([1, 2, 3, 4]), st.integers(40, 120), st.booleans())
def test_smallest_accumulation_against_counting_up(lengths: list[int], world: int, capacity: int, padded: bool) -> None:
    def load(accumulation: int) -> int:
        if padded:
            parts = split_rectangles(lengths, accumulation * world)
            return max(len(p) * max(lengths[i] for i in p) for p in parts if p)
        return max(sum(lengths[i] for i in p) for p in split_evenly(lengths, accumulation * world))

    found = smallest_accumulation([np.arange(len(lengths))], np.asarray(lengths), world, capacity, padded)
    tried = range(1, max(found, len(lengths)) + 2)
    loads = [load(a) for a in tried]
    assert loads == sorted(loads, reverse=True)  # more bins never hold more, which is why bisecting is right
    in_order = [not padded and len(split_in_order(lengths, a * world, capacity)) == a * world for a in tried]
    assert found == next(a for a, most, stands in zip(tried, loads, in_order, strict=True) if most <= capacity or stands)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 3), st.integers(40, 90), st.booleans())
def test_all_steps_together_need_as_many_micro_batches_as_the_one_that_needs_most(
    lengths: list[int], examples: int, world: int, capacity: int, padded: bool
) -> None:
    sizes, rows = np.asarray(lengths), np.arange(len(lengths))
    steps = [rows[i : i + examples] for i in range(0, len(rows), examples)]
    each = [smallest_accumulation([step], sizes, world, capacity, padded) for step in steps]
    assert smallest_accumulation(steps, sizes, world, capacity, padded) == max(each)


def test_a_large_padded_step() -> None:
    lengths = np.random.Generator(np.random.PCG64(0)).integers(10, 2049, 4096).tolist()
    plan = lay_out(lengths, examples_per_step=4096, tokens_per_device=2048, padded=True)
    assert plan.accumulation > 1000
    assert max(load_of(plan, part) for (part,) in micro_batches(plan, 0)) <= 2048
    fewer = split_rectangles([lengths[i] for i in plan.steps[0].tolist()], plan.accumulation - 1)
    assert any(len(part) * max(lengths[plan.steps[0][i]] for i in part) > 2048 for part in fewer)


@given(LENGTHS, st.integers(1, 9), st.booleans())
def test_parts_are_whole_fullest_first_and_empty_last(lengths: list[int], bins: int, padded: bool) -> None:
    parts = (split_rectangles if padded else split_evenly)(lengths, bins)
    assert len(parts) == bins
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    loads = [len(p) * max((lengths[i] for i in p), default=0) if padded else sum(lengths[i] for i in p) for p in parts]
    assert loads == sorted(loads, reverse=True)
    assert sum(not p for p in parts) == max(0, bins - len(lengths))
    if not padded:
        assert loads[0] - loads[-1] <= max(lengths)


@given(st.lists(st.integers(1, 40), min_size=8, max_size=60), st.sampled_from([2, 4]), st.booleans())
def test_the_ranks_of_a_micro_step_are_neighbours_in_load(lengths: list[int], world: int, padded: bool) -> None:
    plan = lay_out(lengths, examples_per_step=len(lengths), world=world, padded=padded)
    loads = [[load_of(plan, rows) for rows in ranks] for ranks in micro_batches(plan, 0)]
    assert list(itertools.chain(*loads)) == sorted(itertools.chain(*loads), reverse=True)
    if not padded:
        assert all(max(ranks) - min(ranks) <= max(lengths) for ranks in loads)


def test_splits_by_hand() -> None:
    assert split_evenly([5, 4, 3, 3, 3], 2) == [[1, 2, 4], [0, 3]]
    assert split_evenly([2], 3) == [[0], [], []]
    assert split_rectangles([8, 1, 7, 1, 1], 2) == [[0, 2], [1, 3, 4]]
    assert split_rectangles([3, 4], 4) == [[1], [0], [], []]
    assert split_rectangles([4, 4, 4], 2) == [[1, 2], [0]]


def test_rows_asked_for_in_any_order_of_steps() -> None:
    plan = lay_out([9, 8, 7, 6, 5, 4, 3, 2], tokens_per_device=20)
    there = {(s, m): plan.micro_batch(s, m, 0).tolist() for s in (0, 1) for m in range(plan.accumulation)}
    back = {(s, m): plan.micro_batch(s, m, 0).tolist() for m in range(plan.accumulation) for s in (1, 0)}
    assert there == back
    assert plan.most_documents() == max(len(rows) for rows in there.values())


@given(LENGTHS, st.integers(40, 100), st.integers(1, 3), st.integers(40, 90))
def test_steps_by_tokens_hold_every_row_once_and_no_more_tokens_than_asked_for(
    lengths: list[int], tokens: int, world: int, capacity: int
) -> None:
    plan = lay_out(
        lengths, examples_per_step=None, tokens_per_step=tokens, tokens_per_device=capacity, max_length=40, world=world
    )
    assert sorted(np.concatenate(plan.steps).tolist()) == list(range(len(lengths)))
    assert all(plan.total_tokens(s) <= tokens for s in range(len(plan.steps)))
    parts = [[*itertools.chain(*micro_batches(plan, s))] for s in range(len(plan.steps))]
    assert [sorted(np.concatenate(p).tolist()) for p in parts] == [sorted(step.tolist()) for step in plan.steps]
    assert all(load_of(plan, part) <= capacity for step in parts for part in step)
    other = lay_out(lengths, examples_per_step=None, tokens_per_step=tokens, tokens_per_device=40, max_length=40)
    assert [s.tolist() for s in other.steps] == [s.tolist() for s in plan.steps]  # whatever the ranks and their memory


@given(LENGTHS, st.integers(40, 90))
def test_every_item_is_in_one_bin_and_the_first_of_two_bins_has_no_room_for_the_second(
    lengths: list[int], capacity: int
) -> None:
    bins = fill_bins(np.asarray(lengths), capacity)
    loads = np.bincount(bins, weights=lengths)
    assert len(bins) == len(lengths)
    assert loads.max() <= capacity
    smallest = [min(np.asarray(lengths)[bins > number], default=capacity + 1) for number in range(len(loads))]
    assert all(load + size > capacity for load, size in zip(loads, smallest, strict=True))


def test_bins_by_hand() -> None:
    # 9 and the 1 that fills it; 7 and 3; 6 and 4; the two 2 are left over
    assert fill_bins(np.asarray([2, 9, 3, 4, 7, 6, 1, 2]), 10).tolist() == [3, 0, 1, 2, 1, 2, 0, 3]
    # none is more than half, no two make 10: the 5, then 2 as drawn with its complement 3; 4, then 4 with its complement 2
    assert fill_bins(np.asarray([2, 3, 4, 5, 4, 2]), 10).tolist() == [0, 0, 1, 0, 1, 1]
    assert fill_bins(np.asarray([7, 7]), 10).tolist() == [0, 1]


def test_short_rows_fill_their_micro_batches() -> None:
    lengths = (np.random.Generator(np.random.PCG64(3)).lognormal(5, 0.6, 20_000).astype(int) % 1000 + 10).tolist()
    plan = lay_out(lengths, examples_per_step=None, tokens_per_step=32_768, tokens_per_device=4096, max_length=2048, world=2)
    assert plan.accumulation == 4  # 16 bins of 2,048 tokens in 4 x 2 micro-batches of 4,096
    assert sum(lengths) / (2048 * math.ceil(sum(lengths) / 2048)) > 0.999  # what is possible
    full = plan.steps[:-1]
    assert sum(plan.total_tokens(s) for s in range(len(full))) / (32_768 * len(full)) > 0.999


def test_epochs_of_steps_by_tokens_differ() -> None:
    plan = lay_out([*range(1, 41)] * 4, examples_per_step=None, tokens_per_step=400, epochs=2.0)
    first, second = plan.steps[: plan.epoch_ends[0]], plan.steps[plan.epoch_ends[0] :]
    assert sorted(np.concatenate(first).tolist()) == sorted(np.concatenate(second).tolist())
    assert [s.tolist() for s in first] != [s.tolist() for s in second]


def test_a_row_longer_than_a_step_of_tokens_is_a_step() -> None:
    order, sizes = np.arange(3), np.asarray([2, 9, 2])
    assert [sizes[g].tolist() for g in group_by_tokens(order, sizes, 4, 9, 0, 0)] in ([[9], [2, 2]], [[2, 2], [9]])


# -- how long a run is


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps", "ends"),
    [
        (1.0, None, 3, [3]),
        (2.0, None, 6, [3, 6]),
        (1e-12, None, 1, [3]),
        (0.5, None, 2, [3]),
        (1.1, None, 4, [3, 6]),
        (4 / 3, None, 4, [3, 6]),
        (1 + 1e-12, None, 3, [3, 6]),
        (None, 4, 4, [3, 6]),
        (5.0, 4, 4, [3, 6]),
        (1.0, 99, 3, [3]),
    ],
)
def test_number_of_steps(epochs: float | None, max_steps: int | None, steps: int, ends: list[int]) -> None:
    plan = lay_out([4] * 10, epochs=epochs, max_steps=max_steps)
    assert (len(plan.steps), plan.epoch_ends) == (steps, ends)


def test_epochs_done_are_exact_at_every_step_and_after_a_cut() -> None:
    whole = lay_out([4] * 16, epochs=2.0)
    assert [whole.epoch_at(s) for s in range(9)] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    cut = lay_out([4] * 16, epochs=2.0, max_steps=5)
    assert [cut.epoch_at(s) for s in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert lay_out([4] * 16, epochs=1e-12).epoch_at(1) == 0.25
    # Steps by tokens: epochs of different numbers of steps.
    plan = StepPlan(cut.lengths, cut.trained, cut.steps, [2, 5], 1, 1, 40)
    assert [plan.epoch_at(s) for s in range(6)] == [0, 0.5, 1, 1 + 1 / 3, 1 + 2 / 3, 2]


def test_an_epoch_without_rows_is_passed_over() -> None:
    plan = lay_out([4, 4], weights=[0.25], epochs=8.0)  # half a row per epoch
    assert len(plan.steps) == 4
    assert len(plan.epoch_ends) == 8
    assert Counter(np.concatenate(plan.steps).tolist()) == {0: 2, 1: 2}
    assert plan.epoch_at(len(plan.steps)) == 8.0
    values = [plan.epoch_at(s) for s in range(5)]
    assert values == sorted(values)
    assert all(value == int(value) for value in values)
    assert len(lay_out([4, 4], weights=[0.25], epochs=None, max_steps=3).steps) == 3


def test_weights_that_draw_nothing_at_all_are_refused() -> None:
    with pytest.raises(DataError, match=r"leave no rows in any of 2 epochs; raise data\.sources\[\]\.weight"):
        lay_out([4, 4], weights=[0.01], epochs=2.0)
    with pytest.raises(DataError, match="leave no rows in any of 10,000 epochs"):
        lay_out([4, 4], weights=[1e-8], epochs=None, max_steps=1)


def test_refusals() -> None:
    with pytest.raises(DataError, match="no rows are left to train on"):
        lay_out([])
    with pytest.raises(DataError, match=r"a row of 41 tokens does not fit train\.tokens_per_device = 40"):
        lay_out([41])


def test_figures_of_a_plan_by_hand() -> None:
    plan = lay_out([10, 20, 30, 40], world=2)
    assert plan.equation() == "4 rows per step = 2 micro-batches x 2 GPUs x 1.0 rows"
    assert (plan.total_tokens(0), plan.trained_tokens(0)) == (100, 50)
    assert plan.fill() == 100 / (40 * 4)
    assert plan.most_documents() == 1
