"""Summed cross-entropy of the learnt positions from hidden states and the head's weight, without the logits of a whole row.

::

    hidden [M, H]   weight [V, H]             logits are made for one stretch of the vocabulary at a time
    pass 1          for each stretch:         logits -> running maximum and sum of exponentials -> log-sum-exp [M]
    pass 2          for each stretch:         logits again -> probabilities - targets = gradient of the logits
                                              -> its part of the gradient of hidden; all of the gradient of its weights

Both gradients are made in the forward pass, where the logits are; the backward pass only scales them. The gradient of a stretch of the
weights is one product over all positions, so nothing is added up in a narrow type; that of the hidden states is summed in float32. Extra
memory is the logits of one stretch (:data:`STRETCH_BYTES`) and a float32 copy of the hidden states' gradient, whatever V is. Where all
logits fit into one stretch they are made once. A head that is not trained gets no product for its weights.

The ideas are those of Liger's fused linear cross-entropy (gradients in the forward pass) and of cut cross-entropy (Wijmans et al. 2024:
along the vocabulary); written here with torch's own products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

STRETCH_BYTES = 640 << 20
"""Most memory of the float32 logits of one stretch of the vocabulary."""


def head_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies, a float32 scalar.

    Args:
        hidden: ``[M, H]``, what the head is given.
        weight: ``[V, H]`` of the head, in the type of ``hidden``.
        bias: ``[V]`` or None.
        targets: int64 ``[M]``; negative ones cost nothing and teach nothing.
    """
    if not torch.is_grad_enabled():
        total, picked, _ = _pass_over(hidden, weight, bias, targets, _stretches(weight.shape[0], hidden.shape[0]))
        return _summed(total, picked, targets)
    out: Tensor = _HeadLoss.apply(hidden, weight, bias, targets)
    return out


def _summed(total: Tensor, picked: Tensor, targets: Tensor) -> Tensor:
    return torch.where(targets >= 0, total - picked, 0.0).sum()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        stretches = _stretches(weight.shape[0], hidden.shape[0])
        total, picked, logits = _pass_over(hidden, weight, bias, targets, stretches)
        ctx.made = _gradients(hidden, weight, bias, targets, total, stretches, logits, ctx.needs_input_grad[:3])
        return _summed(total, picked, targets)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        made = tuple(None if gradient is None else gradient.mul_(upstream[0]) for gradient in ctx.made)
        ctx.made = None
        return (*made, None)


def _stretches(vocabulary: int, positions: int) -> list[tuple[int, int]]:
    """Equal stretches of the vocabulary whose logits fit; multiples of 128 suit the kernels."""
    count = max(1, math.ceil(4 * vocabulary * positions / STRETCH_BYTES))
    width = 128 * math.ceil(vocabulary / count / 128)
    return [(start, min(vocabulary, start + width)) for start in range(0, vocabulary, width)]


def _pass_over(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, stretches: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exp and the target's logit of each position, float32 ``[M]``; and all logits, if they are one stretch."""
    most = torch.full_like(targets, -math.inf, dtype=torch.float32)
    summed, picked = torch.zeros_like(most), torch.zeros_like(most)
    logits = None
    for start, end in stretches:
        logits = _logits(hidden, weight, bias, start, end)
        most, summed = _fused(_add_up, logits.is_cuda)(logits, most, summed)
        at = (targets - start).clamp(0, end - start - 1)[:, None]
        picked = torch.where((targets >= start) & (targets < end), logits.gather(1, at)[:, 0], picked)
    return most + summed.log(), picked, logits if len(stretches) == 1 else None


def _gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    total: Tensor,
    stretches: list[tuple[int, int]],
    logits: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the sum for hidden states, weight and bias, in their types; None where not wanted."""
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted[0] and len(stretches) > 1 else None
    of_weight = torch.empty_like(weight) if wanted[1] else None
    of_bias = torch.empty_like(bias) if bias is not None and wanted[2] else None
    narrow = None
    for start, end in stretches:
        if logits is None:
            logits = _logits(hidden, weight, bias, start, end)
        slope = _fused(_slope, logits.is_cuda)(logits, total, targets, start, hidden.dtype)
        logits = None
        if wanted[0]:
            part = slope @ weight[start:end] if of_hidden is None else _product(slope, weight[start:end])
            narrow = part if of_hidden is None else None
            if of_hidden is not None:
                of_hidden += part
        if of_weight is not None:
            torch.mm(slope.t(), hidden, out=of_weight[start:end])
        if of_bias is not None:
            of_bias[start:end] = slope.sum(0, dtype=torch.float32).to(of_bias.dtype)
    if of_hidden is not None:
        narrow = of_hidden.to(hidden.dtype)
    return narrow, of_weight, of_bias


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, start: int, end: int) -> Tensor:
    """Float32 ``[M, end - start]``."""
    out = _product(hidden, weight[start:end].t())
    return out if bias is None else out.add_(bias[start:end].float())


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, summed and handed out in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _add_up(logits: Tensor, most: Tensor, summed: Tensor) -> tuple[Tensor, Tensor]:
    """The running maximum and the sum of exponentials below it, with one more stretch."""
    new = torch.maximum(most, logits.amax(1))
    return new, summed * torch.exp(most - new) + torch.exp(logits - new[:, None]).sum(1)


def _slope(logits: Tensor, total: Tensor, targets: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """Gradient of the summed loss for the logits of a stretch."""
    numbers = torch.arange(logits.shape[1], device=logits.device) + start
    right = numbers[None] == targets[:, None]
    slope = torch.exp(logits - total[:, None]) - right.float()
    return torch.where(targets[:, None] >= 0, slope, 0.0).to(dtype)


@lru_cache
def _fused(function: Callable[..., Any], on_gpu: bool) -> Callable[..., Any]:
    """One kernel on a GPU; as it stands elsewhere."""
    return torch.compile(function, dynamic=True) if on_gpu else function
