"""Products in float8 are those of torchao's training, forward and backward; weights and their names stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft.engine import regional
from sft.engine.float8_casts import cast_both
from sft.engine.float8_training import E4M3, E5M2, Float8TrainedLinear, convert, scale_for
from sft.errors import ModelError
from sft.train import run
from tests.builders import LLAMA, tiny_model
from tests.runs import tiny_recipe


def parts() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(64, 48, bias=False, dtype=torch.bfloat16)
    return module, torch.randn(32, 64).to(torch.bfloat16).requires_grad_(), torch.randn(32, 48).to(torch.bfloat16)


def all_three(module: Any, x: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    y = module(x)
    return [y, *torch.autograd.grad(y, (x, *module.parameters()), upstream)]


def rounded(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    scale = scale_for(matrix, dtype)
    return cast_both(matrix, scale, dtype, True)[0].double() * scale.double()


def test_three_products_of_rounded_factors() -> None:
    module, x, upstream = parts()
    module.__class__ = Float8TrainedLinear
    found = all_three(module, x, upstream)
    x8, w8, g8 = rounded(x.detach(), E4M3), rounded(module.weight.detach(), E4M3), rounded(upstream, E5M2)
    for got, want in zip(found, (x8 @ w8.t(), g8 @ w8, g8.t() @ x8), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=float(want.abs().max()) * 1e-6)


def test_the_numbers_are_torchaos() -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    module, x, upstream = parts()
    other = nn.Sequential(nn.Linear(64, 48, bias=False, dtype=torch.bfloat16))
    other.load_state_dict({"0.weight": module.weight.detach()})
    theirs = all_three(convert_to_float8_training(other, config=Float8LinearConfig(emulate=True)), x, upstream)
    module.__class__ = Float8TrainedLinear
    for mine, their in zip(all_three(module, x, upstream), theirs, strict=True):
        assert ((mine.double() - their.double()).norm() / their.double().norm()).item() < 1e-4


def test_an_activation_is_kept_in_one_byte() -> None:
    module, x, _ = parts()
    module.__class__ = Float8TrainedLinear
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert sum(t.nbytes for t in kept if t.data_ptr() != module.weight.data_ptr()) == x.numel() + 4 + 4


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_cast_turned_is_the_cast_and_nothing_overflows(dtype: torch.dtype) -> None:
    matrix = torch.randn(40, 24) * 1e6
    straight, turned = cast_both(matrix, torch.tensor(1.0), dtype, True)
    assert torch.equal(straight.float().t(), turned.float())
    assert bool(turned.float().isfinite().all())
    assert cast_both(matrix, torch.tensor(1.0), dtype, False)[0].numel() == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_is_eager_to_the_bit() -> None:
    module, x, upstream = parts()
    module.__class__ = Float8TrainedLinear
    plain = all_three(module, x, upstream)
    compiled = all_three(torch.compile(module, backend="aot_eager", dynamic=True), x, upstream)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))
    torch.compiler.reset()


def test_all_layers_but_the_head_under_their_names() -> None:
    model = tiny_model(304, LLAMA)
    names = [name for name, _ in model.named_parameters()]
    assert convert(model) == 14
    assert [name for name, _ in model.named_parameters()] == names
    assert type(model.get_output_embeddings()) is nn.Linear
    with pytest.raises(ModelError, match=r"train\.float8 found no linear layer in LlamaForCausalLM; set it to false"):
        convert(tiny_model(304, LLAMA | {"hidden_size": 24, "intermediate_size": 40}))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_run_learns_in_float8_as_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_layers = regional.compile_layers
    monkeypatch.setattr(regional, "compile_layers", lambda model: compile_layers(model, "aot_eager"))
    after = []
    for name, float8 in (("plain", False), ("float8", True)):
        changes: dict[str, Any] = {"model__compute_dtype": "bfloat16", "train__compile": "on", "data__holdout": 4}
        about = run(tiny_recipe(tmp_path / name, train__float8=float8, output__merge=True, **changes))
        assert about["holdout"]["after"] < about["holdout"]["before"] - 0.5
        after.append(about["holdout"]["after"])
    assert after[0] != after[1]
    assert after[0] == pytest.approx(after[1], abs=0.1)
    torch.compiler.reset()
