"""A step that is not finite changes nothing, nor does any after it, and it is named, whether it is read at once or at the next record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft.engine.finite import Finite, takes_word
from sft.engine.optimizers import innermost
from sft.engine.stochastic_adamw import StochasticAdamW
from sft.errors import NonFiniteError
from sft.train import run
from tests.runs import tiny_recipe

NAN, INF = float("nan"), float("inf")


def optimizers() -> dict[str, tuple[nn.Linear, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    made = {}
    for name in ("fused", "stochastic", "plain"):
        layer = nn.Linear(5, 3, dtype=torch.bfloat16 if name == "stochastic" else torch.float32)
        kinds: dict[str, Any] = {
            "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
            "stochastic": lambda p: StochasticAdamW(p, lr=0.1),
            "plain": lambda p: torch.optim.AdamW(p, lr=0.1),
        }
        made[name] = layer, kinds[name](layer.parameters())
    return made


def step(layer: nn.Linear, optimizer: Any, scale: float = 1.0) -> torch.Tensor:
    """Gradients of a step, and their norm."""
    optimizer.zero_grad()
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter) * scale
    return torch.nn.utils.get_total_norm([p.grad for p in layer.parameters() if p.grad is not None])


def state_of(layer: nn.Linear, optimizer: Any) -> list[torch.Tensor]:
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    return [t.detach().clone() for t in [*layer.parameters(), *moments]]


@pytest.mark.parametrize("name", ["fused", "stochastic"])
@pytest.mark.parametrize(
    ("loss", "scale", "norm"), [(NAN, 1.0, 18**0.5), (1.0, NAN, NAN), (1.0, INF, INF), (INF, 1.0, 18**0.5)]
)
def test_what_is_not_finite_keeps_all_later_steps_from_the_weights(name: str, loss: float, scale: float, norm: float) -> None:
    layer, optimizer = optimizers()[name]
    finite = Finite(optimizer)
    assert finite.deferred
    for number in range(2):
        assert finite.note(number, torch.tensor(2.0), step(layer, optimizer)) is None
        optimizer.step()
    assert finite.first_bad() is None
    before = state_of(layer, optimizer)
    for number, (seen, by) in enumerate([(loss, scale), (1.0, 1.0), (NAN, 1.0)], start=2):
        assert finite.note(number, torch.tensor(seen), step(layer, optimizer, by)) is None
        optimizer.step()
    assert all(torch.equal(left, right) for left, right in zip(before, state_of(layer, optimizer), strict=True))
    first = finite.first_bad()
    assert first is not None
    assert first[0] == 2
    assert first[1:] == pytest.approx((loss, norm), rel=1e-2, nan_ok=True)


def test_others_are_read_before_their_step() -> None:
    layer, optimizer = optimizers()["plain"]
    assert not takes_word(optimizer)
    assert Finite(optimizer).note(4, torch.tensor(NAN), step(layer, optimizer)) == pytest.approx((4, NAN, 18**0.5), nan_ok=True)
    for others in ({"scaled": True}, {"taken": True}):
        layer, optimizer = optimizers()["fused"]
        assert Finite(optimizer, **others).note(4, 1.0, step(layer, optimizer)) is None
        assert Finite(optimizer, **others).note(4, INF, 1.0) == (4, INF, 1.0)
    assert Finite(optimizer, scaled=True).note(4, 1.0, INF) is None  # the scaler lowers its scale
    assert Finite(optimizer, taken=True).note(4, 1.0, INF) == (4, 1.0, INF)


def test_the_optimiser_inside_its_wrappers() -> None:
    from accelerate import Accelerator

    _, optimizer = optimizers()["fused"]
    assert innermost(Accelerator(cpu=True).prepare_optimizer(optimizer)) is optimizer
    assert innermost(optimizer) is optimizer


def test_clipping_while_stepping_is_clipping_before_it() -> None:
    torch.manual_seed(1)
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    theirs = copy.deepcopy(ours)
    mine, other = StochasticAdamW(ours.parameters(), lr=0.01), torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0)
    for scale in (0.01, 1.0, 100.0, 1.0):  # shorter than the bound and longer
        inputs = torch.randn(4, 7) * scale
        for layer in (ours, theirs):
            layer.zero_grad()
            layer(inputs).square().sum().backward()
        norm = mine.clip(0.5)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
        mine.step()
        other.step()
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    for layer in (ours, theirs):  # the bound holds for one step
        layer.zero_grad()
        layer(torch.randn(4, 7, generator=torch.Generator().manual_seed(2)) * 100).square().sum().backward()
    mine.step()
    other.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)


def test_the_norm_of_bfloat16_gradients_is_not_rounded() -> None:
    weights = [nn.Parameter(torch.randn(300, 41).bfloat16()) for _ in range(5)]
    for weight in weights:
        weight.grad = torch.randn(300, 41).bfloat16()
    exact = torch.stack([w.grad.double().square().sum() for w in weights if w.grad is not None]).sum().sqrt()
    assert StochasticAdamW(weights).clip(1.0).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(("log_every", "found_after"), [(1, 2), (4, 4), (100, 6)])
def test_a_run_names_the_step_at_its_next_record(
    log_every: int, found_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sft.engine.trainer as trainer
    from sft.engine.loss import step_loss as original

    recipe = tiny_recipe(
        tmp_path / "run", model__dtype="bfloat16", train__optimizer="adamw_stochastic", output__log_every=log_every,
        output__eval_every=None, output__save_every=None,
    )  # fmt: skip
    calls: list[int] = []  # two micro-batches a step

    def broken(model: Any, batch: Any, head: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(1)
        return original(model, batch, head) * (NAN if len(calls) == 3 and torch.is_grad_enabled() else 1.0)

    monkeypatch.setattr(trainer, "step_loss", broken)
    with pytest.raises(NonFiniteError, match=r"step 2: loss nan, gradient norm nan; no weight was changed by it\. Its 8 rows"):
        run(recipe)
    assert len(calls) == 2 * found_after
    assert json.loads((tmp_path / "run" / "nonfinite-step-2" / "rows.json").read_text())["step"] == 2
