"""Full tuning with float8 products: forward, backward for the input, backward for the weight.

::

    scale of a matrix = its largest absolute value / largest value of the type: one number, made anew every time (dynamic, per tensor)
    y  = x8 @ W8^T          x and W in e4m3
    dx = g8 @ W8            g in e5m2
    dW = g8^T @ x8          into the weight's type; weights, updates and everything between the products stay as they were

The numbers are those of torchao's float8 training (its tensorwise recipe; formats after Micikevicius et al. 2022), which a test compares
with. Own are the casts (:mod:`sft.engine.float8_casts`), and that an activation is kept for the backward pass in float8, turned as the
backward pass needs it: half the memory, and no second cast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sft.engine.float8_casts import cast_both
from sft.errors import ModelError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_MULTIPLE = 16
"""The kernels take matrices whose sides are multiples of this; rows are made so by their padding to 128."""


def scale_for(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 scalar that brings the largest absolute value to that of the type."""
    return matrix.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max


def _narrow(matrix: Tensor, scale: Tensor) -> Tensor:
    most = torch.finfo(E4M3).max
    return (matrix.float() / scale).clamp(-most, most).to(E4M3)


def _product(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """``left [M, K] @ right [N, K]^T`` times both scales. ``fast`` sums in fewer bits, as torchao does forward only."""
    if left.is_cuda:
        return torch._scaled_mm(left, right.t(), of_left, of_right, out_dtype=dtype, use_fast_accum=fast)
    return ((left.float() @ right.float().t()) * (of_left * of_right)).to(dtype)


# Taken whole, as in sft.model.float8.
@torch._dynamo.allow_in_graph
class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        of_x, of_weight = scale_for(x, E4M3), scale_for(weight, E4M3)
        x8, turned = cast_both(x, of_x, E4M3, True)
        ctx.save_for_backward(turned, of_x, weight, of_weight)
        return _product(x8, _narrow(weight, of_weight), of_x, of_weight, x.dtype, True)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x_turned, of_x, weight, of_weight = ctx.saved_tensors
        (gradient,) = upstream
        of_gradient = scale_for(gradient, E5M2)
        g8, g_turned = cast_both(gradient, of_gradient, E5M2, True)
        of_input = None
        if ctx.needs_input_grad[0]:
            _, w_turned = cast_both(weight, of_weight, E4M3, False)
            of_input = _product(g8, w_turned, of_gradient, of_weight, gradient.dtype, False)
        return of_input, _product(g_turned, x_turned, of_gradient, of_x, weight.dtype, False)


class Float8TrainedLinear(nn.Linear):
    """A linear layer whose three products are in float8. Its parameters are those that it had."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the type of the products; the rows, all leading sides together, are a multiple of 16."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        out: Tensor = _Product.apply(input.to(dtype).reshape(-1, self.in_features), self.weight.to(dtype))
        if self.bias is not None:
            out = out + self.bias.to(dtype)
        return out.reshape(*input.shape[:-1], self.out_features)


def convert(model: nn.Module) -> int:
    """Let the linear layers of a model, the head apart, multiply in float8 from now on. In place.

    Returns:
        Layers that do now. One whose sides are no multiples of 16 stays as it is.

    Raises:
        ModelError: there are none.
    """
    base: Any = model
    head, count = base.get_output_embeddings(), 0
    for module in model.modules():
        if type(module) is Float8TrainedLinear:  # the memory planner may have done it
            count += 1
        fits = type(module) is nn.Linear and not (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE)
        if fits and module is not head:
            module.__class__ = Float8TrainedLinear
            count += 1
    if not count:
        raise ModelError(f"train.float8 found no linear layer in {type(model).__name__}; set it to false")
    return count
