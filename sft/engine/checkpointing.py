"""Activations of the first k of L decoder layers are recomputed in the backward pass, those of the others kept.

The first layers, not every so many: all are equally large, and while the backward pass reaches the checkpointed ones, what the others kept
is free already, so the layer that is recomputed finds room. Checkpointing as a trade of time for memory: Chen et al. 2016.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sft.engine.offload import Offload
from sft.engine.recompute import recompute, undo
from sft.errors import ModelError
from sft.plan_memory import too_many_layers
from sft.recipe import TrainSection


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that can be recomputed one by one, first to last.

    Raises:
        ModelError: a model without such layers.
    """
    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise ModelError(
            f"train.gradient_checkpointing: {type(model).__name__} has no layers that can be recomputed one by one; set true or false"
        )
    return found


def checkpoint_first(model: nn.Module, count: int, *, offload: bool = False) -> None:
    """Recompute the first ``count`` layers and no other, in place; 0 recomputes none. What was set before is forgotten.

    ``offload``: their inputs wait in main memory (:mod:`sft.engine.offload`). Before the layers are compiled.

    Raises:
        ModelError: a model without such layers, or fewer of them.
    """
    layers = decoder_layers(model)
    if count > len(layers):
        raise too_many_layers(count, len(layers))
    undo(layers)
    recompute(layers[:count], Offload(count, next(model.parameters()).device) if offload else None)


def checkpoint_as_asked(model: nn.Module, train: TrainSection) -> None:
    """Recompute what a recipe says. Where it is all layers and the model does not say which they are, transformers' own way is taken.

    Raises:
        ModelError: as :func:`checkpoint_first`.
    """
    asked, offload = train.gradient_checkpointing, train.activation_offload is True
    if asked == "auto" or asked is False:
        return
    try:
        layers = decoder_layers(model)
    except ModelError:
        if asked is not True or offload:
            raise
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # of peft
        new = hasattr(base, "activation_checkpointing_enable")  # transformers 5.20 renamed it
        enable = base.activation_checkpointing_enable if new else base.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # needs no input that has a gradient, so a frozen embedding (LoRA) stays as it is
        return
    checkpoint_first(model, len(layers) if asked is True else asked, offload=offload)
