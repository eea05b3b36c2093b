"""Frozen int8 layers compute what bitsandbytes' compute, and keep nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn

from sft.model.int8 import Product, keep_nothing

IN, OUT = 64, 48


def layer(*, bias: bool, threshold: float) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(IN, OUT, bias=bias)
    quantised = Linear8bitLt(IN, OUT, bias=bias, has_fp16_weights=False, threshold=threshold)
    quantised.load_state_dict(plain.state_dict())
    return quantised.to("cpu").train()


def inputs(dtype: torch.dtype) -> Tensor:
    """Two rows of five tokens; columns 3 and 40 hold outliers."""
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(1))
    x[:, :, 3] *= 20
    x[0, 1, 40] = 9.5
    return x.to(dtype)


def out_and_gradient(x: Tensor, module: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype))
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_give_the_same_bits(dtype: torch.dtype, training: bool, bias: bool) -> None:
    plain, ours = (layer(bias=bias, threshold=6.0).train(training) for _ in range(2))
    assert keep_nothing(nn.Sequential(ours)) == 1
    expected, gradient = out_and_gradient(inputs(dtype), plain)
    out, mine = out_and_gradient(inputs(dtype), ours)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(mine, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_products_as_on_a_gpu_give_the_same_bits(dtype: torch.dtype, threshold: float, bias: bool) -> None:
    module: Any = layer(bias=bias, threshold=threshold)
    module(inputs(dtype))  # moves weight and scales to where products look for them
    added = module.bias.detach().to(dtype) if bias else None
    expected, gradient = out_and_gradient(
        inputs(dtype), lambda x: MatMul8bitLt.apply(x, module.weight, None, added, module.state)
    )
    out, mine = out_and_gradient(inputs(dtype), lambda x: Product.apply(x, added, module.state, False))
    assert torch.equal(out, expected)
    assert torch.equal(mine, gradient)


@pytest.mark.parametrize("ours", [False, True])
def test_an_input_lives_no_longer_than_its_layer_needs_it(ours: bool) -> None:
    """The first case is the control: bitsandbytes holds it until the backward pass, where no checkpointing sees it."""
    module: Any = layer(bias=False, threshold=6.0)
    if ours:
        keep_nothing(nn.Sequential(module))
    given = inputs(torch.float16).requires_grad_() * 1
    kept = weakref.ref(given)
    out = module(given)
    del given
    gc.collect()
    assert (kept() is None) is ours
    out.sum().backward()


def test_no_tokens_give_no_tokens() -> None:
    module: Any = layer(bias=True, threshold=6.0)
    keep_nothing(nn.Sequential(module))
    assert module(torch.zeros(1, 0, IN)).shape == (1, 0, OUT)
