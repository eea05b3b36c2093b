"""AdamW on bfloat16 weights whose small updates are not lost: stochastic rounding.

::

    weight 1.0, update 0.0005            bfloat16 near 1 has steps of 0.0078
    to the nearest:  1.0, every time     nothing is ever learnt
    stochastic:      1.0078 in 6 of 100 steps, else 1.0: the update, on average

A float32 becomes a bfloat16 by adding 16 random bits below its last kept bit and cutting off: up with the probability of the part that
is cut (Gupta et al. 2015; for bfloat16 training Zamirai et al. 2020; torchao's optimisers do the same). Moments are kept in bfloat16. The
second one is rounded likewise: it moves by a thousandth a step, which rounding to the nearest would lose as well; the first one by a tenth.

Bytes per parameter: 2 weight, 2 gradient, 2 + 2 moments = 8; with float32 weights, gradients and moments it is 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) in float32 arithmetic over bfloat16 weights and moments, rounded stochastically.

    Random bits come from the generator of the device, which a checkpoint holds: a resumed run takes the same steps. Parameters of other
    types (float32) are updated exactly, with float32 moments.

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: as in :class:`torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter with a gradient."""
        out = None if closure is None else closure()
        for group in self.param_groups:
            numbers: dict[int, Tensor] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of(weight, weight.grad, group, numbers)
        return out

    def _step_of(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], numbers: dict[int, Tensor]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        step = state["step"]
        if step not in numbers:  # a tensor, so that one kernel does for all steps
            (beta1, beta2), rate = group["betas"], float(group["lr"])
            first, second = 1 - beta1**step, math.sqrt(1 - beta2**step)
            given = (beta1, beta2, rate / first, second, group["eps"], 1 - rate * group["weight_decay"])
            numbers[step] = torch.tensor(given, dtype=torch.float32).to(weight.device, non_blocking=True)
        flat = (tensor.view(-1) for tensor in (weight, state["exp_avg"], state["exp_avg_sq"]))  # so it does for all shapes
        _compiled(weight.is_cuda)(*flat, gradient.reshape(-1), numbers[step])


def _update(weight: Tensor, first: Tensor, second: Tensor, gradient: Tensor, scalars: Tensor) -> None:
    beta1, beta2, rate, correction, epsilon, decay = scalars.unbind()
    slope = gradient.float()
    mean = first.float() * beta1 + slope * (1 - beta1)
    square = second.float() * beta2 + slope * slope * (1 - beta2)
    value = weight.float() * decay - rate * mean / (square.sqrt() / correction + epsilon)
    first.copy_(mean)
    if weight.dtype != torch.bfloat16:
        weight.copy_(value)
        second.copy_(square)
        return
    noise = torch.randint(-(1 << 31), 1 << 31, weight.shape, dtype=torch.int32, device=weight.device)  # one draw for both
    weight.copy_(rounded(value, noise & 65535))
    second.copy_(rounded(square, (noise >> 16) & 65535))


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
