"""One step, however it is cut: packed, alone, padded, accumulated or spread over ranks, it has one loss and one gradient.

The reference is written out here: each row alone through the model as transformers loads it, labels shifted by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from sft.data.collate import Row, flat_batch, padded_batch
from sft.data.packing import StepPlan, plan_steps
from sft.engine.loss import plain_head, step_loss
from sft.errors import IsolationError
from sft.model.attention import check_isolation, register
from tests.builders import LLAMA, OPT, tiny_model
from tests.laws import record_law

VOCAB = 200
BOUND = 1e-5  # of the largest gradient, and of the loss
FAMILIES = {"llama": LLAMA, "opt": OPT}
# Micro-batches per rank, ranks; the last ones have more micro-batches than the short step has rows.
CUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (8, 1), (2, 1), (2, 2), (2, 4), (8, 2), (8, 4)]


def rows_of(count: int, seed: int) -> list[Row]:
    """Rows of 2 to 40 tokens; the first half of each is its prompt."""
    rng = np.random.Generator(np.random.PCG64(seed))
    lengths = rng.integers(2, 41, count)
    return [(rng.integers(0, VOCAB, n).astype(np.int32), np.arange(n) >= max(n // 2, 1)) for n in lengths]


STEPS = {"full": rows_of(13, 1), "short": rows_of(5, 2)}


def model_of(family: str, attention: str) -> PreTrainedModel:
    register()
    model = tiny_model(VOCAB, FAMILIES[family])
    model.set_attn_implementation(attention)
    model.train()
    return model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are slower on two threads, and much slower when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Result = tuple[float, dict[str, torch.Tensor]]


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@cache
def reference(family: str, step: str) -> Result:
    model, rows = model_of(family, "eager"), STEPS[step]
    count = sum(int(mask[1:].sum()) for _, mask in rows)
    total = 0.0
    for ids, mask in rows:
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(mask), tokens[0], -100)
        logits = model(input_ids=tokens, use_cache=False).logits[0]
        loss = F.cross_entropy(logits[:-1], labels[1:], reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def summed(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> Result:
    """Loss and gradient of a step: the sum over its micro-batches, whichever rank runs them."""
    total, head = 0.0, plain_head(model, torch.float32)
    assert head is not None
    for batch in batches:
        loss = step_loss(model, batch, head)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def learnt(rows: list[Row]) -> int:
    return sum(int(mask.sum()) for _, mask in rows)


def assert_alike(name: str, family: str, step: str, found: Result) -> None:
    loss, grads = reference(family, step)
    assert found[1].keys() == grads.keys()
    largest = max(float(g.abs().max()) for g in grads.values())
    assert largest > 1e-2
    by_gradient = max(float((found[1][key] - g).abs().max()) for key, g in grads.items()) / largest
    value = max(by_gradient, abs(found[0] - loss) / loss)
    print(f"{name}, {family}, {step} step: {value:.1e}")
    record_law(f"{name} ({family}, {step} step)", value, BOUND)
    assert value <= BOUND


def plan_of(rows: list[Row], accumulation: int, world: int, padded: bool = False) -> StepPlan:
    """One step of all rows, in an order that is not theirs."""
    lengths = np.asarray([len(ids) for ids, _ in rows])
    trained = np.asarray([int(mask.sum()) for _, mask in rows])
    order = np.random.Generator(np.random.PCG64(5)).permutation(len(rows))
    return StepPlan(lengths, trained, [order], [1], accumulation, world, 10_000, padded)


def planned_batches(plan: StepPlan, rows: list[Row]) -> Iterable[Mapping[str, Any]]:
    for micro in range(plan.accumulation):
        for rank in range(plan.world):
            some = [rows[i] for i in plan.micro_batch(0, micro, rank)]
            tokens = plan.trained_tokens(0)
            yield padded_batch(some, tokens, 3) if plan.padded else flat_batch(some, tokens, plan.most_documents())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("family", FAMILIES)
class TestOneStep:
    def test_flat_in_one_row(self, family: str, step: str) -> None:
        rows = STEPS[step]
        batch = flat_batch(rows, learnt(rows), documents=20)
        assert_alike("flat in one row", family, step, summed(model_of(family, "vicugna_sdpa"), [batch]))

    def test_each_row_alone(self, family: str, step: str) -> None:
        rows = STEPS[step]
        batches = [flat_batch([row], learnt(rows)) for row in rows]
        assert_alike("each row alone", family, step, summed(model_of(family, "vicugna_sdpa"), batches))

    @pytest.mark.parametrize(("accumulation", "world"), CUTS)
    def test_every_cut_of_a_plan(self, family: str, step: str, accumulation: int, world: int) -> None:
        rows = STEPS[step]
        batches = planned_batches(plan_of(rows, accumulation, world), rows)
        name = f"{accumulation} micro-batches x {world} ranks"
        assert_alike(name, family, step, summed(model_of(family, "vicugna_sdpa"), batches))

    @pytest.mark.parametrize("seed", range(3))
    def test_any_cut_in_any_order(self, family: str, step: str, seed: int) -> None:
        rows, rng = STEPS[step], np.random.Generator(np.random.PCG64(seed))
        part_of = rng.integers(0, 6, len(rows))
        orders = [rng.permutation(np.flatnonzero(part_of == part)) for part in range(6)]
        batches = [flat_batch([rows[i] for i in order], learnt(rows)) for order in orders]
        assert_alike(f"random cut {seed}", family, step, summed(model_of(family, "vicugna_sdpa"), batches))

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (8, 1), (2, 4)])
    def test_padded(self, family: str, step: str, attention: str, accumulation: int, world: int) -> None:
        rows = STEPS[step]
        batches = planned_batches(plan_of(rows, accumulation, world, padded=True), rows)
        name = f"padded {attention}, {accumulation} x {world}"
        assert_alike(name, family, step, summed(model_of(family, attention), batches))


@pytest.mark.parametrize("padded", [False, True])
def test_the_plan_that_a_run_makes_has_the_gradient_of_its_rows(padded: bool) -> None:
    """As above, with the accumulation that the capacity asks for instead of a given one."""
    rows = STEPS["full"]
    made = {}
    for world in (1, 2, 4):
        plan = plan_steps(
            lengths=np.asarray([len(ids) for ids, _ in rows]),
            trained=np.asarray([int(mask.sum()) for _, mask in rows]),
            source_of=np.zeros(len(rows), dtype=np.int32),
            weights=[1.0],
            seed=3,
            epochs=1.0,
            max_steps=None,
            examples_per_step=len(rows),
            tokens_per_step=None,
            tokens_per_device=80,
            world=world,
            padded=padded,
        )
        made[world] = plan.accumulation
        model = model_of("llama", "sdpa" if padded else "vicugna_sdpa")
        name = f"{'padded' if padded else 'flat'} plan of 80 tokens, {world} ranks"
        assert_alike(name, "llama", "full", summed(model, planned_batches(plan, rows)))
    assert made[1] > made[4] >= 1


# -- documents do not see each other


def embedding_gradients(model: PreTrainedModel, second_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest gradient of the loss at the embedded tokens of the first and of the second document of one flat row."""
    first, second = rows_of(2, 4)
    if second_only:
        first = (first[0], np.zeros_like(first[1]))
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    step_loss(model, flat_batch([first, second], 1)).backward()
    handle.remove()
    assert kept[0].grad is not None
    grads = kept[0].grad[0].abs()
    return grads[: len(first[0])].max(), grads[len(first[0]) :].max()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_crosses_into_another_document(family: str) -> None:
    before, own = embedding_gradients(model_of(family, "vicugna_sdpa"), second_only=True)
    record_law(f"gradient of document 2 at document 1 ({family})", float(before), 0.0)
    assert float(before) == 0.0
    assert float(own) > 1e-3
    both, _ = embedding_gradients(model_of(family, "vicugna_sdpa"), second_only=False)
    assert float(both) > 1e-3  # the zero above is not for want of a gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_isolation_is_proven_on_the_model(family: str) -> None:
    found = check_isolation(model_of(family, "vicugna_sdpa"), VOCAB, tolerance=1e-4)
    assert found["leak"] == 0.0
    record_law(f"isolation: a document in a flat row against alone ({family})", found["alone"], 1e-5)
    assert found["alone"] <= 1e-5


def test_a_backend_that_ignores_the_borders_is_caught() -> None:
    """The control: transformers' own SDPA takes one flat row of OPT for one document."""
    model = model_of("opt", "sdpa")
    before, _ = embedding_gradients(model, second_only=True)
    assert float(before) > 1e-3
    with pytest.raises(IsolationError, match="see each other"):
        check_isolation(model, VOCAB, tolerance=1e-4)
