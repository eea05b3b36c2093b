"""Optimisers that the trainer does not know: small updates arrive, and what is kept has the bytes that the table says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft.engine import optimizers
from tests.runs import tiny_recipe


@pytest.fixture(autouse=True)
def _eagerly() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def made(name: str, parameters: list[nn.Parameter], folder: Path, **changes: Any) -> Any:
    own = optimizers.own(tiny_recipe(folder, train__optimizer=name, model__dtype="bfloat16", **changes))
    assert own is not None
    kind, options = own
    return kind(parameters, **options)


def state_bytes(value: Any) -> int:
    parts = [getattr(value, name) for name in getattr(value, "tensor_attrs", ())]  # torchao's
    return sum(map(state_bytes, parts)) if parts else value.numel() * value.element_size() if torch.is_tensor(value) else 0


@pytest.mark.parametrize(("name", "each"), [("adamw_stochastic", 4.0), ("adamw_8bit_stochastic", 2 + 2 * 4 / 256)])
def test_bytes_per_parameter(name: str, each: float, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(1024, 1024, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = made(name, [weight], tmp_path)
    optimizer.step()
    kept = sum(state_bytes(value) for name, value in optimizer.state[weight].items() if name != "step")
    assert kept / weight.numel() == pytest.approx(each, rel=0.002)  # and two tables of 256 numbers


@pytest.mark.parametrize("name", ["adamw_stochastic", "adamw_8bit_stochastic"])
def test_updates_arrive_that_bfloat16_would_lose(name: str, tmp_path: Path) -> None:
    """A hundred steps of 1e-5 from 1.0; the steps of bfloat16 are 0.0078 there."""
    torch.manual_seed(2)
    weight = nn.Parameter(torch.ones(256, 512, dtype=torch.bfloat16))
    optimizer = made(name, [weight], tmp_path, train__learning_rate=1e-5)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.double().mean().item() == pytest.approx(1 - 100 * 1e-5, abs=5e-5)
    assert {1.0, 1 - 2**-8} < set(weight.float().unique().tolist())


@pytest.mark.parametrize(
    ("name", "fused", "theirs"),
    [
        ("adamw", True, "adamw_torch_fused"),
        ("adamw", False, "adamw_torch"),
        ("adamw_stochastic", True, "adamw_torch"),
        ("adamw_8bit", True, "adamw_8bit"),
        ("paged_adamw_8bit", False, "paged_adamw_8bit"),
        ("sgd", False, "sgd"),
    ],
)
def test_the_trainers_names(name: str, fused: bool, theirs: str) -> None:
    assert optimizers.trainer_name(name, fused=fused) == theirs
