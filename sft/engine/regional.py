"""Layers are compiled one by one, not the model: all of them are the same code, so one compilation does for all.

torch.compile joins what stands between the matrix products of a layer (norms, rotary positions, activations, sums) into few kernels,
which eager runs one by one over memory. The length of a row is left open; the number of documents and the longest of them are fixed for
a run (:class:`sft.engine.batches.PlannedBatches`), so nothing is compiled again after the first step. Two things would have it compiled
twice: an embedding that is not trained, whose output, unlike that of a layer, needs no gradient; and a first row that happens to be as long
as another side of its tensors (4,096 tokens of 4,096 numbers), which dynamo takes for the same symbol.

Numbers of a layer (an epsilon, the scale of an adapter) are constants of the code. With lengths left open dynamo would make them inputs
too, float64 tensors on the CPU: each layer then runs a kernel there before its own, for which a C++ compiler is called, 20 s in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch.fx.experimental._config as shapes
from torch import Tensor, nn

from sft import files
from sft.engine.recompute import Recomputed
from sft.errors import ModelError
from sft.recipe import Recipe

_WORTH = 100
"""Steps from which on a compilation (half a minute) pays by itself."""


def keep_compilations() -> None:
    """Let what is compiled be found by the next run: in the user's cache, not in the machine's temporary files, which do not stay and which
    others may write. ``TORCHINDUCTOR_CACHE_DIR`` is kept to if it is set."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(files.user_cache() / "compiled"))


def wanted(recipe: Recipe, steps: int, device: torch.device) -> bool:
    """Whether a run of so many steps on a device compiles its layers. By itself only where that was measured: not under FSDP or on an
    int8 base."""
    train = recipe.train
    if train.compile != "auto" or train.float8:
        return train.compile == "on" or train.float8
    flat = train.batching == "flat" and train.sharding == "none"
    measured = device.type == "cuda" and flat and recipe.model.quantization != "int8"
    return measured and steps >= _WORTH


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile every decoder layer in place; returns how many there are. Names of weights stay as they are.

    Raises:
        ModelError: a model that does not say which its layers are.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # of peft
    names = set(getattr(base, "_no_split_modules", None) or ())
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(f"train.compile: {type(base).__name__} does not say which its layers are; set train.compile: off")
    shapes.use_duck_shape, dynamo.specialize_float = False, True
    _give_gradient(base.get_input_embeddings())
    for layer in layers:
        recomputed = layer.forward
        if isinstance(recomputed, Recomputed):  # what it does around the layer cannot be compiled
            recomputed.compile(backend)
        elif layer._compiled_call_impl is None:  # the memory planner may have done it
            layer.compile(backend=backend, dynamic=True)
    return len(layers)


def _give_gradient(embedding: nn.Module) -> None:
    """Let the first layer be given what the others are: a tensor that needs a gradient. Its cost is a part of one layer's backward pass."""
    if any(parameter.requires_grad for parameter in embedding.parameters()) or hasattr(embedding, "vicugna_gives_gradient"):
        return

    def give(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_() if torch.is_grad_enabled() else output

    embedding.register_forward_hook(give)
    embedding.vicugna_gives_gradient = True  # type: ignore[assignment]  # the memory planner may have done it
