"""AdamW on bfloat16 weights whose small updates are not lost: stochastic rounding.

::

    weight 1.0, update 0.0005            bfloat16 near 1 has steps of 0.0078
    to the nearest:  1.0, every time     nothing is ever learnt
    stochastic:      1.0078 in 6 of 100 steps, else 1.0: the update, on average

A float32 becomes a bfloat16 by adding 16 random bits below its last kept bit and cutting off: up with the probability of the part that
is cut (Gupta et al. 2015; for bfloat16 training Zamirai et al. 2020; torchao's optimisers do the same). Moments are kept in bfloat16. The
second one is rounded likewise: it moves by a thousandth a step, which rounding to the nearest would lose as well; the first one by a tenth.

The random bits of an entry are a hash of seed, step, parameter and the place of the entry in it. They are the same on one GPU and in the
shards of many, whatever the order, and a run that goes on needs no generator's state for them.

Bytes per parameter: 2 weight, 2 gradient, 2 + 2 moments = 8; with float32 weights, gradients and moments it is 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sft.errors import ModelError


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) in float32 arithmetic over bfloat16 weights and moments, rounded stochastically.

    Parameters of other types (float32) are updated exactly, with float32 moments. Of sharded ones each process moves its own rows.

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: as in :class:`torch.optim.AdamW`.
        seed: of the rounding.

    Attributes:
        found_inf: while this float32 scalar is not 0, a step leaves weights and moments alone; None: it is never asked. As of torch's fused
            optimisers.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self._places: dict[Tensor, Tensor] = {}
        self._clip: Tensor | None = None

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """Take gradients times ``most`` over their norm in the next step, if they are longer. They themselves stay as they are.

        As :func:`torch.nn.utils.clip_grad_norm_`, without a pass that reads and writes all of them. The product is not rounded to bfloat16.

        Returns:
            Their norm over all parameters, float32 scalar on the device.
        """
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(isinstance(gradient, DTensor) for gradient in gradients):
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()
        else:  # each in float32; get_total_norm rounds those of bfloat16 to bfloat16
            norm = torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)).norm()
        self._clip = (most / (norm + 1e-6)).clamp(max=1.0)  # torch's own 1e-6
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter with a gradient."""
        out = None if closure is None else closure()
        for group in self.param_groups:
            numbers: dict[int, tuple[Tensor, Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of(weight, weight.grad, group, numbers)
        self._clip = None
        return out

    def _step_of(
        self, weight: Tensor, gradient: Tensor, group: dict[str, Any], numbers: dict[int, tuple[Tensor, Tensor]]
    ) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        step = state["step"]
        if step not in numbers:  # a tensor, so that one kernel does for all steps
            (beta1, beta2), rate = group["betas"], float(group["lr"])
            first, second = 1 - beta1**step, math.sqrt(1 - beta2**step)
            given = (beta1, beta2, rate / first, second, group["eps"], 1 - rate * group["weight_decay"])
            key = _int32(_mixed_number(self._seed * 0x9E3779B1 + step))
            device = _local(weight).device
            fixed = torch.tensor(given, dtype=torch.float32).to(device, non_blocking=True)
            clip = fixed.new_ones(()) if self._clip is None else self._clip.to(device)
            skip = fixed.new_zeros(()) if self.found_inf is None else self.found_inf.to(device)
            numbers[step] = (
                torch.cat([fixed, torch.stack([clip, skip])]),
                torch.tensor(key, dtype=torch.int32).to(device, non_blocking=True),
            )
        if weight not in self._places:
            self._find_places()
        flat = (_local(t).view(-1) for t in (weight, state["exp_avg"], state["exp_avg_sq"]))  # so it does for all shapes
        if _local(weight).numel():
            _compiled(_local(weight).is_cuda)(*flat, _local(gradient).reshape(-1), *numbers[step], self._places[weight])

    def _find_places(self) -> None:
        """Of each parameter: the place of its first entry here (a shard has rows ahead) and a number of its own, int32 on its device."""
        parameters = [weight for group in self.param_groups for weight in group["params"]]
        for number, weight in enumerate(parameters):
            place = (_int32(_entries_ahead(weight)), _int32(_mixed_number(number + 1)))
            self._places[weight] = torch.tensor(place, dtype=torch.int32, device=_local(weight).device)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _entries_ahead(tensor: Tensor) -> int:
    """Entries of a sharded tensor before those of this process.

    Raises:
        ModelError: sharded otherwise than by rows.
    """
    if not isinstance(tensor, DTensor):
        return 0
    if tuple(tensor.placements) != (Shard(0),):
        raise ModelError(
            f"train.optimizer: adamw_stochastic takes weights whose rows are shared out among all processes, not {tensor.placements}; "
            "set adamw"
        )
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0]) * math.prod(tensor.shape[1:])


def _mixed_number(number: int) -> int:
    """An integer with its bits mixed, 0 to 2^32 - 1 (the finaliser of MurmurHash3)."""
    number &= 0xFFFFFFFF
    number = ((number ^ (number >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    number = ((number ^ (number >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return number ^ (number >> 16)


def _int32(number: int) -> int:
    """The signed 32-bit integer with the same lowest bits."""
    return ((number + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _noise(count: int, key: Tensor, place: Tensor) -> Tensor:
    """Random int32 of ``count`` entries from ``place`` on: the same mixing, over them all, with the step's key and the parameter's in it."""
    begin, own = place.unbind()
    bits = (
        torch.arange(count, dtype=torch.int32, device=place.device) + begin
    ) * -1640531527 + key  # 2^32 over the golden ratio
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * -2048144789 + (own ^ key)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * -1028477387
    return bits ^ ((bits >> 16) & 0xFFFF)


def _update(
    weight: Tensor, first: Tensor, second: Tensor, gradient: Tensor, scalars: Tensor, key: Tensor, place: Tensor
) -> None:
    beta1, beta2, rate, correction, epsilon, decay, clip, skip = scalars.unbind()
    slope = gradient.float() * clip
    mean = first.float() * beta1 + slope * (1 - beta1)
    square = second.float() * beta2 + slope * slope * (1 - beta2)
    value = weight.float() * decay - rate * mean / (square.sqrt() / correction + epsilon)
    mean = mean.to(first.dtype)
    if weight.dtype == torch.bfloat16:
        noise = _noise(weight.numel(), key, place)  # one draw for both
        value, square = rounded(value, noise & 65535), rounded(square, (noise >> 16) & 65535)
    keep = skip != 0
    for old, new in ((weight, value), (first, mean), (second, square)):
        old.copy_(torch.where(keep, old, new))


def rounded(exact: Tensor, noise: Tensor) -> Tensor:
    """Float32 to bfloat16, up or down with the probability of the distance to the other one. Infinities and NaN stay.

    Args:
        exact: float32.
        noise: int32 of the same shape, drawn from 0 to 65535.
    """
    bits = (exact.view(torch.int32) + noise) & -65536
    return torch.where(exact.isfinite(), bits.view(torch.float32), exact).to(torch.bfloat16)


@lru_cache
def _compiled(on_gpu: bool) -> Callable[..., None]:
    return torch.compile(_update, dynamic=True) if on_gpu else _update
