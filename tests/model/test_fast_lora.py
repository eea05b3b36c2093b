"""The fast forward of LoRA layers is peft's: same numbers, same gradients, same names, and peft where it is not plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from sft.engine import regional
from sft.model.fast_lora import _Fast, speed_up
from sft.model.float8 import freeze_in_float8
from tests.builders import LLAMA, OPT, tiny_model

IDS = torch.arange(24)[None]


def adapted(config: dict[str, Any] = LLAMA, fast: bool = True, base: torch.dtype = torch.float32, **options: Any) -> Any:
    plain = tiny_model(304, config).to(base)
    torch.manual_seed(1)
    model = get_peft_model(plain, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        if "lora_" in name:
            parameter.data = parameter.data.float()
    if fast:
        assert speed_up(model) == sum(hasattr(m, "lora_A") for m in model.modules())
    return model.train()


def outcome(model: Any, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(input_ids=IDS, use_cache=False).logits
    logits.float().square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [LLAMA, OPT, LLAMA | {"num_key_value_heads": 4}], ids=["llama", "opt", "mha"])
@pytest.mark.parametrize("rslora", [False, True])
def test_numbers_and_gradients_are_those_of_peft(config: dict[str, Any], rslora: bool, checkpointing: bool) -> None:
    slow, fast = (adapted(config, fast, use_rslora=rslora) for fast in (False, True))
    if checkpointing:
        fast.gradient_checkpointing_enable({"use_reentrant": False})
    want, got = outcome(slow), outcome(fast)
    assert len(want) == len(got) > 20
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * float(b.abs().max()))
    assert slow.state_dict().keys() == fast.state_dict().keys()


@pytest.mark.parametrize("float8", [False, True])
def test_under_autocast_it_is_as_near_to_float32_as_peft_is(float8: bool) -> None:
    exact = outcome(adapted(fast=False, base=torch.bfloat16).float())
    far = []
    for fast in (False, True):
        model = adapted(fast=fast, base=torch.bfloat16)
        if float8:
            freeze_in_float8(model.get_base_model(), torch.device("cpu"))
        found = outcome(model, torch.bfloat16)
        pairs = zip(found, exact, strict=True)
        far.append(sum(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs) / len(exact))
    assert 0 < far[1] < 1.1 * far[0] < 0.2


def test_projections_of_one_input_are_made_once() -> None:
    fast = adapted()
    sizes = sorted({len(m.vicugna_group.members) for m in fast.modules() if isinstance(m, _Fast)})
    assert sizes == [1, 2, 3]  # o and down; gate and up; q, k and v
    outcome(fast)
    assert all(m.vicugna_group.given is None for m in fast.modules() if isinstance(m, _Fast))


def test_disabled_merged_and_other_kinds_are_peft_s() -> None:
    fast = adapted().eval()
    with torch.no_grad():
        whole = fast(input_ids=IDS, use_cache=False).logits
        with fast.disable_adapter():
            alone = fast(input_ids=IDS, use_cache=False).logits
        plain = tiny_model(304, LLAMA).eval()(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(alone, plain, rtol=0, atol=0)
        merged = fast.merge_and_unload()(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)
    for options in ({"lora_dropout": 0.1}, {"use_dora": True}):
        assert speed_up(adapted(fast=False, **options)) == 0


def test_a_half_type_outside_autocast_is_peft_s() -> None:
    slow, fast = (adapted(fast=fast, base=torch.bfloat16).eval() for fast in (False, True))
    with torch.no_grad():
        assert torch.equal(slow(input_ids=IDS).logits, fast(input_ids=IDS).logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_once_and_the_same() -> None:
    want = outcome(adapted())
    model = adapted()
    torch.compiler.reset()
    regional.compile_layers(model, "aot_eager")
    got = outcome(model)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * float(b.abs().max()))
    model.zero_grad()
    outcome(model)
    assert counters["stats"]["unique_graphs"] == graphs
    torch.compiler.reset()
