"""bitsandbytes' int8 layers, frozen, without what they keep for the backward pass.

bitsandbytes keeps a layer's input, its columns with outliers and where these are, for the gradient of a weight that is never trained, and keeps
them where checkpointing does not see them: an int8 base took as much memory with recomputed layers as without (bitsandbytes 0.50). The
gradient of the input needs the weight alone. Same numbers, to the bit. (LLM.int8: Dettmers et al. 2022.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


class Product(torch.autograd.Function):
    """``x W^T + b`` of a layer's state, in int8 with outlier columns in the type of x, or with the weight in the type of x (``whole``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, state: Any, whole: bool) -> Tensor:
        from bitsandbytes import functional

        ctx.state, ctx.dtype, ctx.shape = state, x.dtype, x.shape
        if whole:
            return nn.functional.linear(x, _weight(state, x.dtype), bias)
        rows = x.reshape(-1, x.shape[-1])
        quantised, scales, outliers = functional.int8_vectorwise_quant(rows.to(torch.float16), threshold=state.threshold)
        ours, theirs = (quantised, state.CB), (scales, state.SCB)
        if state.threshold > 0:
            out, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(rows, *ours, *theirs, outliers, bias)
        else:
            out = torch.ops.bitsandbytes.int8_scaled_mm.default(*ours, *theirs, bias=bias, dtype=rows.dtype)
        return out.reshape(*x.shape[:-1], state.CB.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1]).to(ctx.dtype)
        return torch.matmul(gradient, _weight(ctx.state, ctx.dtype)).view(ctx.shape), None, None, None


def _weight(state: Any, dtype: torch.dtype) -> Tensor:
    return state.CB.to(dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1.0 / 127.0))


@lru_cache
def _frozen_class() -> type[nn.Module]:
    from bitsandbytes.nn import Linear8bitLt

    class FrozenInt8(Linear8bitLt):
        """A linear layer whose int8 weight and bias are not trained. x: ``[..., in]``, float; out: ``[..., out]``, of its type."""

        def forward(self, x: Tensor) -> Tensor:
            if not self.training or not x.numel():
                return super().forward(x)
            if self.weight.CB is not None:
                self.init_8bit_state()
            whole = x.device.type in ("cpu", "xpu")  # as bitsandbytes does where it has no fast int8 kernels
            out: Tensor = Product.apply(x, None if self.bias is None else self.bias.to(x.dtype), self.state, whole)
            return out

    return FrozenInt8


def keep_nothing(model: nn.Module) -> int:
    """Make the int8 layers of a loaded model such layers, in place; returns how many there are. Biases are not trained from then on."""
    from bitsandbytes.nn import Linear8bitLt

    layers = [module for module in model.modules() if type(module) is Linear8bitLt]
    for layer in layers:
        layer.__class__ = _frozen_class()
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    return len(layers)
