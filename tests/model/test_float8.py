"""A frozen float8 layer is the product of its rounded factors; nothing else is rounded, and rows do not meet."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sft.errors import ModelError
from sft.model.float8 import E4M3, Float8Linear, freeze_in_float8, to_float8
from sft.train import run
from tests.builders import LLAMA, save_tiny, sentencepiece_like, tiny_model
from tests.runs import tiny_recipe

CPU = torch.device("cpu")


def layer(bias: bool = False) -> Float8Linear:
    torch.manual_seed(0)
    return Float8Linear(nn.Linear(64, 32, bias=bias, dtype=torch.bfloat16), CPU)


def rows(count: int) -> torch.Tensor:
    """Rows of very different sizes, outliers in them."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(count, 64, generator=generator) * torch.logspace(-3, 2, count)[:, None]
    drawn[:, 5] *= 40
    return drawn.to(torch.bfloat16).requires_grad_()


def dequantised(matrix: torch.Tensor) -> torch.Tensor:
    values, scale = to_float8(matrix)
    return values.double() * scale.double()


def test_rounding_is_that_of_three_bits_and_keeps_the_largest() -> None:
    exact = rows(50).detach().float()
    rounded = dequantised(exact)
    away = (rounded - exact.double()).abs()
    # half a step of e4m3: 2^-4 of a normal number, 2^-10 of a scale below the smallest one
    scale = exact.abs().amax(-1, keepdim=True).double() / 448
    assert bool((away <= torch.maximum(exact.abs().double() / 16, scale * 2**-10) * 1.0001).all())
    largest = exact.abs().argmax(-1)
    at = torch.arange(len(exact))
    torch.testing.assert_close(rounded[at, largest], exact[at, largest].double(), rtol=1e-6, atol=0)
    assert not to_float8(torch.zeros(2, 64))[0].float().any()


@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_backward_are_products_of_rounded_factors(bias: bool) -> None:
    module, x = layer(bias), rows(48)
    weight = module.plain_weight(torch.float64)
    y = module(x[None])[0]
    assert y.dtype == torch.bfloat16
    want = dequantised(x.detach()) @ weight.t() + (0 if module.bias is None else module.bias.double())
    torch.testing.assert_close(y.double(), want, rtol=2**-7, atol=float(want.abs().max()) * 2**-9)
    upstream = torch.randn(48, 32, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    (got,) = torch.autograd.grad(y, x, upstream)
    scaled = upstream.float() * module.weight_scale.t()
    wanted = dequantised(scaled) @ module.weight.view(E4M3).double()
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=float(wanted.abs().max()) * 2**-9)


def test_a_row_comes_out_the_same_whatever_is_beside_it() -> None:
    module, x = layer(), rows(48).detach()
    whole = module(x)
    assert all(torch.equal(module(x[i : i + 1])[0], whole[i]) for i in (0, 17, 47))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_is_eager_to_the_bit() -> None:
    module, x = layer(), rows(48)
    upstream = torch.ones(48, 32, dtype=torch.bfloat16)
    plain = module(x)
    compiled = torch.compile(module, backend="aot_eager", dynamic=True)(x)
    assert torch.equal(plain, compiled)
    first, second = (torch.autograd.grad(y, x, upstream)[0] for y in (plain, compiled))
    assert torch.equal(first, second)
    torch.compiler.reset()


def test_a_weight_is_one_byte_and_four_more_per_row() -> None:
    model = tiny_model(304, LLAMA).to(torch.bfloat16)
    shapes = {n: m.weight.shape for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"}
    before = {n: m.weight.detach().clone() for n, m in model.named_modules() if n in shapes}
    assert freeze_in_float8(model, CPU) == len(shapes) == 14
    for name, shape in shapes.items():
        module = model.get_submodule(name)
        assert isinstance(module, Float8Linear)
        assert module.weight.shape == shape
        assert module.weight.nbytes + module.weight_scale.nbytes == math.prod(shape) + 4 * shape[0]
        away = (module.plain_weight(torch.float32) - before[name].float()).norm() / before[name].float().norm()
        assert away < 0.03
    assert type(model.get_output_embeddings()) is nn.Linear
    assert not any(p.requires_grad for m in model.modules() if isinstance(m, Float8Linear) for p in m.parameters())


def test_sides_that_the_kernels_cannot_take_stay_as_they_are() -> None:
    model = tiny_model(304, LLAMA | {"intermediate_size": 40})
    assert freeze_in_float8(model, CPU) == 8  # the attention's; gate, up and down have a side of 40
    with pytest.raises(ModelError, match=r"model\.quantization: float8 found no linear layer in LlamaForCausalLM; set none"):
        freeze_in_float8(tiny_model(304, LLAMA | {"hidden_size": 24, "intermediate_size": 40}), CPU)


def test_adapters_learn_on_a_float8_base_from_rows_to_a_merged_model(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    changes = {"model__quantization": "float8", "model__dtype": "bfloat16", "output__merge": True}
    about = run(tiny_recipe(tmp_path / "run", base, lora={"rank": 4, "alpha": 8}, data__holdout=4, **changes))
    assert about["isolation"]["leak"] == 0
    assert about["holdout"]["after"] < about["holdout"]["before"] - 0.5
    record = json.loads((tmp_path / "run" / "merged" / "vicugna.json").read_text())
    assert record["merged_from"] == "float8"
    assert record["difference"]["relative"] < 3e-2
