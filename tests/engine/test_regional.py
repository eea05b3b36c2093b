"""Compiled layers give the same losses and gradients, and are compiled for the first row only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from sft.data.collate import Batch
from sft.data.packing import plan_steps
from sft.data.store import RowStore
from sft.engine import regional
from sft.engine.batches import PlannedBatches
from sft.engine.loss import step_loss
from sft.model.attention import register
from sft.recipe import TrainSection
from tests.builders import LLAMA, OPT, tiny_model

VOCAB = 200


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def planned(compiled: bool) -> list[Batch]:
    """Micro-batches of 24 rows of 2 to 90 tokens, of very different lengths."""
    dice = np.random.Generator(np.random.PCG64(0))
    lengths = dice.integers(2, 91, 24)
    rows = [(dice.integers(0, VOCAB, n).astype(np.int32), np.arange(n) >= n // 2) for n in lengths]
    ids, mask = (np.concatenate(part) for part in zip(*rows, strict=True))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    store = RowStore.of(ids, mask, offsets, np.zeros(24, np.int32), ("rows",), [str(i) for i in range(24)])
    plan = plan_steps(
        lengths=store.lengths,
        trained=store.trained,
        source_of=store.source_of,
        weights=[1.0],
        seed=0,
        epochs=1.0,
        max_steps=None,
        examples_per_step=5,
        tokens_per_step=None,
        tokens_per_device=300,
    )
    batches = PlannedBatches(store, plan, None, compiled=compiled)
    return [batches[i] for i in range(len(batches))]


def model_of(family: dict[str, object]) -> PreTrainedModel:
    register()
    model = tiny_model(VOCAB, family)
    model.set_attn_implementation("vicugna_sdpa")
    return model.train()


def losses_and_gradients(model: nn.Module, batches: list[Batch]) -> list[tuple[float, dict[str, torch.Tensor]]]:
    found = []
    for batch in batches:
        model.zero_grad()
        loss = step_loss(model, batch)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    return found


# dynamo looks at the inputs of a layer that goes on behind a call it may not enter
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("family", [LLAMA, OPT], ids=["llama", "opt"])
def test_compiled_layers_are_the_same_and_compiled_once(family: dict[str, object]) -> None:
    plain = losses_and_gradients(model_of(family), planned(False))
    model, batches = model_of(family), planned(True)
    names = [name for name, _ in model.named_parameters()]
    assert regional.compile_layers(model, "eager") == family["num_hidden_layers"]
    assert [name for name, _ in model.named_parameters()] == names
    first = losses_and_gradients(model, batches[:1])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    compiled = first + losses_and_gradients(model, batches[1:])
    assert counters["stats"]["unique_graphs"] == graphs
    for (a, mine), (b, other) in zip(compiled, plain, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-7)


def test_rows_are_of_a_multiple_with_a_last_document_of_which_nothing_is_learnt() -> None:
    plain, padded = planned(False), planned(True)
    assert {batch["input_ids"].shape[1] % 128 for batch in padded} == {0}
    assert len({batch["input_ids"].shape[1] for batch in padded}) > 1
    assert len({(len(batch["cu_seq_lens_q"]), batch["max_length_q"]) for batch in padded}) == 1
    for mine, other in zip(padded, plain, strict=True):
        size = other["input_ids"].shape[1]
        assert torch.equal(mine["input_ids"][0, :size], other["input_ids"][0])
        assert torch.equal(mine["position_ids"][0, :size], other["position_ids"][0])
        assert not mine["input_ids"][0, size:].any()
        assert mine["position_ids"][0, size:].tolist() == list(range(mine["input_ids"].shape[1] - size))
        assert torch.equal(mine["predict_at"], other["predict_at"])
        ends = [end for end in other["cu_seq_lens_q"].tolist() if end <= size]
        assert mine["cu_seq_lens_q"].tolist()[: len(set(ends))] == sorted(set(ends))
        assert mine["cu_seq_lens_q"][-1] == mine["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("compile_", "batching", "steps", "device", "wanted"),
    [
        ("auto", "flat", 100, "cuda", True),
        ("auto", "flat", 99, "cuda", False),
        ("auto", "padded", 100, "cuda", False),
        ("auto", "flat", 100, "cpu", False),
        ("on", "flat", 1, "cpu", True),
        ("off", "flat", 999, "cuda", False),
    ],
)
def test_when_layers_are_compiled(compile_: str, batching: str, steps: int, device: str, wanted: bool) -> None:
    train = TrainSection.model_validate(
        {
            "epochs": 1,
            "examples_per_step": 1,
            "tokens_per_device": 8,
            "learning_rate": 0.1,
            "compile": compile_,
            "batching": batching,
        }
    )
    assert regional.wanted(train, steps, torch.device(device)) is wanted
