"""Recomputing the first k layers changes no bit of the gradients, and recomputes these layers and no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft.engine import regional
from sft.engine.checkpointing import checkpoint_first, decoder_layers
from sft.engine.loss import step_loss
from sft.errors import ModelError
from sft.model.adapters import attach
from sft.recipe import LoraSection
from tests.builders import LLAMA, OPT
from tests.engine.test_regional import assert_compiled_like_plain, model_of, planned

LAYERS = int(str(LLAMA["num_hidden_layers"]))


def forward_counts(model: nn.Module) -> list[int]:
    """Calls of the MLP inside each layer, which is called twice where the layer is recomputed (to its last saved tensor, not to its end)."""
    counts = [0] * len(decoder_layers(model))
    for i, layer in enumerate(decoder_layers(model)):

        def count(*_: object, i: int = i) -> None:
            counts[i] += 1

        next(m for n, m in layer.named_modules() if n in ("mlp", "fc1")).register_forward_pre_hook(count)
    return counts


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", [LLAMA, OPT], ids=["llama", "opt"])
def test_gradients_are_the_same_bits_and_only_the_first_layers_are_recomputed(family: dict[str, object], adapted: bool) -> None:
    def made() -> nn.Module:
        model = model_of(family)
        return attach(model, LoraSection(rank=2, alpha=4.0), (), seed=1).train() if adapted else model

    def run(count: int) -> tuple[list[tuple[float, dict[str, torch.Tensor]]], list[int]]:
        model = made()
        checkpoint_first(model, LAYERS)  # what was set before must not stay
        checkpoint_first(model, count)
        counts = forward_counts(model)
        base = model.get_base_model() if adapted else model  # type: ignore[operator]
        found = []
        for batch in planned(False)[:1]:
            loss = step_loss(model, batch, base.get_output_embeddings())  # type: ignore[operator]
            loss.backward()
            found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
        return found, counts

    ((loss, gradients),), plain = run(0)
    assert plain == [1] * LAYERS
    assert gradients
    for count in range(1, LAYERS + 1):
        ((mine, made_again),), counts = run(count)
        assert counts == [2] * count + [1] * (LAYERS - count)
        assert mine == loss
        assert made_again.keys() == gradients.keys()
        assert all(torch.equal(made_again[name], gradients[name]) for name in gradients)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_of_which_some_are_recomputed() -> None:
    torch.compiler.reset()
    model = model_of(LLAMA)
    checkpoint_first(model, 1)
    regional.compile_layers(model, "eager")
    assert_compiled_like_plain(model)
    torch.compiler.reset()


def test_more_layers_than_there_are_and_models_without_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=rf"train\.gradient_checkpointing: 99 layers, but the model has {LAYERS}; lower it"):
        checkpoint_first(model_of(LLAMA), 99)
    with pytest.raises(ModelError, match="Linear has no layers that can be recomputed one by one"):
        checkpoint_first(nn.Linear(2, 2), 1)
