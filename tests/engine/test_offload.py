"""Inputs of recomputed layers that wait in main memory come back to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft.engine import offload, regional
from sft.engine.checkpointing import checkpoint_first, decoder_layers
from sft.engine.recompute import Recomputed
from sft.errors import InputError, RunError
from sft.train import run
from tests.builders import LLAMA
from tests.engine.test_regional import assert_compiled_like_plain, losses_and_gradients, model_of, planned
from tests.runs import tiny_recipe

CPU = torch.device("cpu")
LAYERS = int(str(LLAMA["num_hidden_layers"]))


@pytest.fixture(autouse=True)
def everything_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_LEAST_BYTES", 1)


def equal(found: list[tuple[float, dict[str, Tensor]]], others: list[tuple[float, dict[str, Tensor]]]) -> bool:
    return all(
        a == b and mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
        for (a, mine), (b, theirs) in zip(found, others, strict=True)
    )


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_gradients_are_the_same_bits_and_what_waits_is_one_input_a_layer(count: int) -> None:
    plain = losses_and_gradients(model_of(LLAMA), planned(False))
    model = model_of(LLAMA)
    checkpoint_first(model, count, offload=True)
    assert equal(losses_and_gradients(model, planned(False)), plain)
    layers: list[Any] = list(decoder_layers(model))
    recomputed = [isinstance(layer.forward, Recomputed) for layer in layers]
    assert recomputed == [True] * count + [False] * (LAYERS - count)
    widest = max(batch["input_ids"].numel() for batch in planned(False))
    assert layers[0].forward.memory.host_bytes == count * widest * int(str(LLAMA["hidden_size"])) * 4
    checkpoint_first(model, 0)
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert equal(losses_and_gradients(model, planned(False)), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_layer_is_compiled_inside_of_what_moves_its_input() -> None:
    torch.compiler.reset()
    model = model_of(LLAMA)
    checkpoint_first(model, LAYERS, offload=True)
    assert regional.compile_layers(model, "eager") == LAYERS
    assert_compiled_like_plain(model)
    torch.compiler.reset()


def test_an_input_whose_memory_was_used_again_is_an_error() -> None:
    layer = nn.Linear(4, 4)
    layer.forward = Recomputed(layer, 0, offload.Offload(1, CPU))  # type: ignore[method-assign]  # as called
    first, second = (layer(torch.ones(2, 4, requires_grad=True)).sum() for _ in range(2))
    second.backward()
    with pytest.raises(
        RunError, match=r"layer 0 was asked for after the next forward pass .* train\.activation_offload: false"
    ):
        first.backward()


def test_no_gpu_no_offload(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", train__gradient_checkpointing=True, train__activation_offload=True)
    with pytest.raises(
        InputError, match=r"train\.activation_offload: there is no GPU whose memory it would free; set false or auto"
    ):
        run(recipe)
