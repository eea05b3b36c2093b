"""Compiled layers give the same losses and gradients, and are compiled for the first row only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from benchmarks.counters import WARM_UP, Watch, compilations
from sft.data.collate import Batch
from sft.engine import regional
from sft.engine.batches import PlannedBatches
from sft.engine.checkpointing import checkpoint_first, decoder_layers
from sft.engine.loss import step_loss
from sft.errors import ModelError
from sft.model.adapters import attach
from sft.model.attention import register
from sft.recipe import LoraSection, load_recipe
from tests.builders import LLAMA, OPT, tiny_model
from tests.laws.ranks import VOCABULARY, random_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def planned(compiled: bool) -> list[Batch]:
    """Micro-batches of 24 rows of 2 to 90 tokens, of very different lengths."""
    store, plan = random_rows(range(2, 91), seed=0, epochs=1, examples_per_step=5, tokens_per_device=300)
    batches = PlannedBatches(store, plan, None, compiled=compiled)
    return [batches[i] for i in range(len(batches))]


def model_of(family: dict[str, object]) -> PreTrainedModel:
    register()
    model = tiny_model(VOCABULARY, family)
    model.set_attn_implementation("vicugna_sdpa")
    return model.train()


def losses_and_gradients(model: PreTrainedModel, batches: list[Batch]) -> list[tuple[float, dict[str, torch.Tensor]]]:
    found, head = [], model.get_output_embeddings()
    for batch in batches:
        model.zero_grad()
        loss = step_loss(model, batch, head)
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    return found


def assert_compiled_like_plain(model: PreTrainedModel) -> None:
    """A model of LLaMA's family whose layers are compiled has the losses and gradients of one whose layers are not."""
    plain = losses_and_gradients(model_of(LLAMA), planned(False))
    for (a, mine), (b, other) in zip(losses_and_gradients(model, planned(True)), plain, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-7)


# dynamo looks at the inputs of a layer that goes on behind a call it may not enter
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [LLAMA, OPT], ids=["llama", "opt"])
def test_compiled_layers_are_the_same_and_compiled_once(family: dict[str, object], checkpointing: bool) -> None:
    plain = losses_and_gradients(model_of(family), planned(False))
    model, batches = model_of(family), planned(True)
    if checkpointing:
        checkpoint_first(model, len(decoder_layers(model)))
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


# dynamo looks at the inputs of a layer that goes on behind a call it may not enter
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_counter_sees_no_compilation_of_rows_after_the_first_and_sees_one_of_another_model(checkpointing: bool) -> None:
    counters.clear()
    watch, model, batches = Watch(), model_of(LLAMA), planned(True)
    if checkpointing:
        checkpoint_first(model, len(decoder_layers(model)))
    regional.compile_layers(model, "aot_eager")
    losses_and_gradients(model, batches[:1])
    watch.after_step(WARM_UP)
    assert compilations() > 0
    losses_and_gradients(model, batches[1:])
    watch.after_step(WARM_UP + 1)
    assert (watch.compiled, watch.steps) == (0, 1)
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    watch.after_step(WARM_UP + 2)
    assert watch.compiled == 1
    assert watch.line() == "1 compilations, 0 host syncs in 2 steps"


def graphs_of(tuning: str, layers: int, rows: list[int]) -> int:
    torch.compiler.reset()
    counters.clear()
    model: Any = model_of(LLAMA | {"num_hidden_layers": layers})
    if tuning == "lora":
        model = attach(model, LoraSection.model_validate({"rank": 4, "alpha": 8}), (), seed=0)
    regional.compile_layers(model, "eager")
    for tokens in rows:
        ids = torch.arange(tokens)[None] % VOCABULARY
        borders = torch.tensor([0, 8, tokens], dtype=torch.int32)
        model(input_ids=ids, position_ids=ids, use_cache=False, cu_seq_lens_q=borders).logits.sum().backward()
    return int(counters["stats"]["unique_graphs"])


# dynamo looks at the inputs of a layer that goes on behind a call it may not enter
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_one_compilation_does_for_all_layers_whatever_the_first_row(tuning: str) -> None:
    once = graphs_of(tuning, 1, [24])
    assert once > 0
    as_long_as_wide = LLAMA["hidden_size"]
    assert graphs_of(tuning, 2, [as_long_as_wide, 40, 72]) == once


# dynamo looks at the inputs of a layer that goes on behind a call it may not enter
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_no_number_of_a_layer_becomes_a_tensor_on_the_cpu(tuning: str) -> None:
    given: list[torch.Tensor] = []

    def look(graph: Any, inputs: list[Any]) -> Any:
        given.extend(x for x in inputs if isinstance(x, torch.Tensor))
        return graph.forward

    model: Any = model_of(LLAMA)
    if tuning == "lora":
        model = attach(model, LoraSection.model_validate({"rank": 4, "alpha": 7}), (), seed=0)
    regional.compile_layers(model, look)
    model(input_ids=torch.arange(8)[None], use_cache=False)
    assert given
    assert [x for x in given if x.dtype == torch.float64 or (x.ndim == 0 and x.is_floating_point())] == []


def test_compilations_are_kept_where_the_user_s_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VICUGNA_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    regional.keep_compilations()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    regional.keep_compilations()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"train\.compile: Linear does not say which its layers are; set train\.compile: off"):
        regional.compile_layers(torch.nn.Linear(2, 2))


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
    ("changes", "steps", "device", "wanted"),
    [
        ({}, 100, "cuda", True),
        ({}, 99, "cuda", False),
        ({"train.batching": "padded"}, 100, "cuda", False),
        ({"train.sharding": "fsdp"}, 100, "cuda", False),
        ({"model.quantization": "int8", "lora": "{rank: 4, alpha: 8}"}, 100, "cuda", False),
        ({"model.quantization": "nf4", "lora": "{rank: 4, alpha: 8}"}, 100, "cuda", True),
        ({"train.float8": "true"}, 1, "cuda", True),
        ({}, 100, "cpu", False),
        ({"train.compile": "on"}, 1, "cpu", True),
        ({"train.compile": "off"}, 999, "cuda", False),
    ],
)
def test_when_layers_are_compiled(changes: dict[str, str], steps: int, device: str, wanted: bool) -> None:
    sets = [f"{key}={value}" for key, value in changes.items()]
    recipe, _ = load_recipe(ROOT / "recipes" / "alpaca.yaml", ["train.sharding=none", *sets])
    assert regional.wanted(recipe, steps, torch.device(device)) is wanted
