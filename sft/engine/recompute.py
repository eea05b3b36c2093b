"""Stands in the place of a decoder layer's ``forward`` and runs it again in the backward pass.

transformers recomputes layers as well: to 5.19 around a layer's ``__call__``, from 5.20 on inside of its ``forward``, where a layer that is
compiled holds the checkpoint in what is compiled; then a call that a compiler may not enter (attention of CPUs, say) leaves the whole layer
as it is, without a word. Here the checkpoint is around what is compiled, with any version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sft.engine.offload import Offload


class Recomputed:
    """A layer's forward, recomputed in the backward pass.

    Args:
        layer: whose ``forward`` it stands for.
        number: of the layer in ``memory``.
        memory: main memory in which the layer's input waits; None: it stays where it is.

    Attributes:
        inner: the layer's own forward; what is compiled, since neither checkpointing nor a copy can be.
    """

    def __init__(self, layer: nn.Module, number: int = 0, memory: Offload | None = None) -> None:
        self.layer, self.number, self.memory = layer, number, memory
        self.inner: Callable[..., Any] = layer.forward
        self._plain = self.inner

    def compile(self, backend: str | Callable[..., Any]) -> None:
        """Compile the layer's own forward, once."""
        if self.inner is self._plain:
            self.inner = torch.compile(self._plain, backend=backend, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.layer.training and torch.is_grad_enabled()):
            return self.inner(*args, **kwargs)
        with contextlib.nullcontext() if self.memory is None else self.memory.saving(self.number):
            return checkpoint(partial(self.inner, **kwargs), *args, use_reentrant=False)


def recompute(layers: Sequence[nn.Module], memory: Offload | None = None) -> None:
    """Recompute layers, in place. Before they are compiled."""
    for number, layer in enumerate(layers):
        layer._compiled_call_impl = None
        layer.forward = Recomputed(layer, number, memory)


def undo(layers: Sequence[nn.Module]) -> None:
    """Give layers their own forward back; those that have it stay as they are."""
    for layer in layers:
        layer.__dict__.pop("forward", None)
