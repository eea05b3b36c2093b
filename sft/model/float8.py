"""A frozen base in float8: one byte per weight, products at the float8 rate of the card.

::

    once        W [out, in]            -> e4m3 bytes and one float32 scale per output row
    forward     x [N, in]              -> e4m3 with one scale per token;   y  = (x8 @ W8^T) * scale of the token * scale of the row
    backward    g [N, out] * row scale -> e4m3 with one scale per token;   dx = (g8 @ W8)   * scale of the token

Scales per row and token (Micikevicius et al. 2022 describe e4m3; scales per row as in LLM.int8, Dettmers et al. 2022) follow outliers that
one scale for a whole tensor would lose small values to, and inductor makes them in the pass that makes ``x``. The base takes no gradient of
its own, so nothing else is needed; what is trained (adapters) stays as it was, and so does the head. Nothing of a bfloat16 base is kept:
torchao's float8 training casts bfloat16 weights anew for every product, which costs two more bytes per weight and the casts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
"""448."""
_MULTIPLE = 16
"""The kernels take matrices whose sides are multiples of this."""


def to_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values of each row over its scale, and the scales: ``[N, K]`` -> e4m3 ``[N, K]``, float32 ``[N, 1]``."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    # Divided in float32 the largest is 448 give or take a rounding, which e4m3 turns into NaN if it is more.
    return (rows.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def scaled_product(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor, dtype: torch.dtype) -> Tensor:
    """``(left @ right^T) * of_left * of_right^T``, summed in float32.

    Args:
        left: e4m3 ``[N, K]``.
        right: e4m3 ``[M, K]``.
        of_left: float32 ``[N, 1]``.
        of_right: float32 ``[M, 1]``.
        dtype: of the result ``[N, M]``; bfloat16 on a GPU.
    """
    if left.is_cuda:
        return torch._scaled_mm(left, right.t(), of_left, of_right.t(), out_dtype=torch.bfloat16, use_fast_accum=True).to(dtype)
    return ((left.float() @ right.float().t()) * of_left * of_right.t()).to(dtype)


# Taken whole: traced into by dynamo (torch 2.11) its backward pass came out wrong in compiled layers. A test compares both.
@torch._dynamo.allow_in_graph
class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        x8, of_token = to_float8(x)
        return scaled_product(x8, weight.view(E4M3), of_token, scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        weight, scale = ctx.saved_tensors
        (gradient,) = upstream
        g8, of_token = to_float8(gradient.float() * scale.t())
        turned = weight.t().contiguous().view(E4M3)  # both sides must lie along the summed dimension
        ones = torch.ones(turned.shape[0], 1, device=scale.device)
        return scaled_product(g8, turned, of_token, ones, gradient.dtype), None, None


class Float8Linear(nn.Linear):
    """A frozen linear layer whose weight is e4m3 with one scale per output row.

    The weight is held as ``uint8``: what looks at types (peft, trainers, autocast) must not take eight bits for a type to compute or to
    make adapters in.
    """

    weight_scale: Tensor

    def __init__(self, source: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        weight, scale = to_float8(source.weight.detach().to(device))
        self.weight = nn.Parameter(weight.view(torch.uint8), requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = None if source.bias is None else nn.Parameter(source.bias.detach().to(device), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the type of the products."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        rows = input.to(dtype).reshape(-1, self.in_features)
        out: Tensor = _FrozenProduct.apply(rows, self.weight, self.weight_scale)
        if self.bias is not None:
            out = out + self.bias.to(dtype)
        return out.reshape(*input.shape[:-1], self.out_features)

    def plain_weight(self, dtype: torch.dtype) -> Tensor:
        """``[out, in]`` as the products see it."""
        return (self.weight.view(E4M3).float() * self.weight_scale).to(dtype)


def freeze_in_float8(model: PreTrainedModel, device: torch.device) -> int:
    """Put every linear layer but the head into float8 on a device, one at a time, and move the rest there. In place.

    Returns:
        Layers in float8. One whose sides are no multiples of 16 stays as it is.

    Raises:
        ModelError: no layer could be put into float8.
    """
    head = model.get_output_embeddings()
    count = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            fits = type(module) is nn.Linear and not (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE)
            if fits and module is not head:
                setattr(parent, name, Float8Linear(module, device))
                module.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # freed at once
                count += 1
    if not count:
        raise ModelError(f"model.quantization: float8 found no linear layer in {type(model).__name__}; set none")
    model.to(device)
    return count
