"""Recomputed layers whose inputs wait in main memory: what checkpointing keeps on the GPU, one hidden state a layer, goes as well.

A layer's input is copied to pinned memory on a side stream while the next layers run forward; in the backward pass the input of the layer
before is fetched while this one is recomputed. Copies are waited for by the GPU alone, never by the host. The idea is that of torchtune's
activation offloading (also in trl), which offloads every saved tensor, fetches each when it is wanted, and waits on the host at every step.

Values come back to the bit. A handle that is asked for after its memory was used again is an error, not another layer's input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sft.errors import InputError, RunError
from sft.plan_memory import ON_GPU
from sft.recipe import TrainSection

_LEAST_BYTES = 1 << 16
"""Smaller tensors stay: their copies would cost more than they free."""


@dataclass(frozen=True, slots=True)
class _Handle:
    """What autograd keeps in the place of a tensor: its layer, its use of that layer's memory, and how it lay."""

    layer: int
    use: int
    shape: torch.Size
    dtype: torch.dtype


class Offload:
    """Main memory for one tensor of each of so many layers; used again by every micro-batch.

    Args:
        layers: how many.
        device: where the tensors come from. On the CPU copies are made in place of transfers, for tests.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: list[Tensor | None] = [None] * layers
        self._uses = [0] * layers
        self._latest: dict[int, tuple[_Handle, Tensor, Any]] = {}  # by layer: still on the GPU, with the event of its copy
        self._fetched: dict[int, tuple[_Handle, Tensor, Any]] = {}
        self._kept: dict[int, _Handle] = {}  # of this forward pass, to know what is wanted next

    @property
    def host_bytes(self) -> int:
        """Main memory that is taken."""
        return sum(memory.numel() for memory in self._host if memory is not None)

    @contextlib.contextmanager
    def saving(self, layer: int) -> Iterator[None]:
        """Tensors that autograd saves inside are those of a layer; checkpointing sees to what the layer itself saves."""
        with saved_tensors_hooks(partial(self._pack, layer), self._unpack):
            yield

    def _pack(self, layer: int, tensor: Tensor) -> Any:
        if tensor.device != self.device or not tensor.is_contiguous() or tensor.numel() * tensor.element_size() < _LEAST_BYTES:
            return tensor
        if layer in self._latest or layer in self._kept:  # a new micro-batch, or what an interrupted one left behind
            self._forget()
        self._uses[layer] += 1
        handle = _Handle(layer, self._uses[layer], tensor.shape, tensor.dtype)
        room = self._room(layer, tensor.numel() * tensor.element_size())
        detached = tensor.detach()
        self._after_compute()
        with self._on_side():
            room.copy_(detached.reshape(-1).view(torch.uint8), non_blocking=True)
        self._latest[layer] = (handle, detached, self._event())
        self._kept[layer] = handle
        while len(self._latest) > ON_GPU:
            self._wait(self._latest.pop(next(iter(self._latest)))[2])  # before its memory may be used again
        return handle

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.use != self._uses[kept.layer]:
            raise RunError(
                f"the input of layer {kept.layer} was asked for after the next forward pass had taken its place; set "
                "train.activation_offload: false"
            )
        self._kept.pop(kept.layer, None)
        if kept.layer in self._latest:
            _, found, event = self._latest.pop(kept.layer)
            self._wait(event)  # else the copy may read what a later kernel has written over it
        else:
            _, found, event = self._fetched.pop(kept.layer) if kept.layer in self._fetched else self._fetch(kept)
            self._wait(event)
        before = max((layer for layer in self._kept if layer < kept.layer), default=None)
        if before is not None and before not in self._latest and before not in self._fetched:
            self._fetched[before] = self._fetch(self._kept[before])
        return found

    def _fetch(self, handle: _Handle) -> tuple[_Handle, Tensor, Any]:
        found = torch.empty(handle.shape, dtype=handle.dtype, device=self.device)
        flat = found.reshape(-1).view(torch.uint8)
        host = self._host[handle.layer]
        assert host is not None
        self._after_compute()  # kernels that still read what lay here
        with self._on_side():
            flat.copy_(host[: flat.numel()], non_blocking=True)
        return handle, found, self._event()

    def _room(self, layer: int, size: int) -> Tensor:
        memory = self._host[layer]
        if memory is None or memory.numel() < size:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self.side is not None)
            self._host[layer] = memory
        return memory[:size]

    def _forget(self) -> None:
        for held in (self._latest, self._fetched):
            for _, _, event in held.values():
                self._wait(event)
            held.clear()
        self._kept.clear()

    # -- streams; nothing to do on the CPU --------------------------------------------------------------------------------

    def _after_compute(self) -> None:
        if self.side is not None:
            self.side.wait_stream(torch.cuda.current_stream(self.device))

    def _on_side(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.side is None else torch.cuda.stream(self.side)

    def _event(self) -> Any:
        return None if self.side is None else self.side.record_event()

    def _wait(self, event: Any) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)


def refuse_without_gpu(train: TrainSection, device: torch.device) -> None:
    """Raises:
    InputError: there is no GPU whose memory it would free.
    """
    if train.activation_offload is True and device.type != "cuda":
        raise InputError("train.activation_offload: there is no GPU whose memory it would free; set false or auto")
