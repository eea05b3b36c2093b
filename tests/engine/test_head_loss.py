"""The loss of the head is torch's cross-entropy, and so are its gradients, however the vocabulary is cut."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sft.engine import head_loss as module
from sft.engine.head_loss import head_loss


class Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor

    def as_float32(self) -> Inputs:
        hidden, weight = (t.detach().float().requires_grad_() for t in self[:2])
        bias = None if self.bias is None else self.bias.detach().float().requires_grad_()
        return Inputs(hidden, weight, bias, self.targets)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss * 0.37, [t for t in self[:3] if t is not None and t.requires_grad]))


def plain(inputs: Inputs) -> Tensor:
    logits = F.linear(inputs.hidden, inputs.weight, inputs.bias).float()
    return F.cross_entropy(logits, inputs.targets, reduction="sum", ignore_index=-100)


def drawn(positions: int, vocabulary: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    dice = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 24, generator=dice).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, 24, generator=dice) * 0.4).to(dtype).requires_grad_()
    added = torch.randn(vocabulary, generator=dice).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(0, vocabulary, (positions,), generator=dice)
    targets[torch.rand(positions, generator=dice) < 0.2] = -100
    return Inputs(hidden, weight, added, targets)


@given(st.integers(1, 9), st.sampled_from([1, 5, 128, 129, 400]), st.booleans(), st.sampled_from([1, 600, 1 << 20]))
def test_loss_and_gradients_are_those_of_torch(positions: int, vocabulary: int, bias: bool, stretch: int) -> None:
    inputs = drawn(positions, vocabulary, bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRETCH_BYTES", stretch)
        ours = head_loss(*inputs)
        made = inputs.gradients(ours)
        with torch.no_grad():
            assert torch.equal(head_loss(*inputs), ours)
    expected = plain(inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(made, inputs.gradients(expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_stretches_cover_the_vocabulary_once_and_fit() -> None:
    for vocabulary, positions in ((152_064, 65_536), (32_000, 8192), (100, 3), (151_936, 1)):
        found = module._stretches(vocabulary, positions)
        assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
        assert found[-1][1] == vocabulary
        assert all(4 * positions * (end - start) <= module.STRETCH_BYTES + 4 * positions * 128 for start, end in found)


def test_a_frozen_head_costs_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn(6, 400, bias=True)
    asked: list[tuple[bool, ...]] = []
    real = module._gradients

    def seen(*given: object) -> tuple[Tensor | None, ...]:
        out = real(*given)  # type: ignore[arg-type]  # passed on as they came
        asked.append(tuple(gradient is not None for gradient in out))
        return out

    monkeypatch.setattr(module, "_gradients", seen)
    head_loss(inputs.hidden, inputs.weight.detach(), None, inputs.targets).backward()
    head_loss(*inputs).backward()
    with torch.no_grad():
        head_loss(*inputs)
    assert asked == [(True, False, False), (True, True, True)]


def test_bfloat16_is_as_near_to_float32_as_torch_is() -> None:
    inputs = drawn(64, 400, bias=True, dtype=torch.bfloat16)
    exact = inputs.as_float32()
    truth = plain(exact)
    of_truth = exact.gradients(truth)
    away = []
    for loss in (head_loss(*inputs), plain(inputs)):
        gradients = [float((a.float() - b).norm()) for a, b in zip(inputs.gradients(loss), of_truth, strict=True)]
        away.append([abs(loss.item() - truth.item()), *gradients])
    assert all(ours <= 1.1 * torchs + 1e-3 for ours, torchs in zip(*away, strict=True))


def test_a_large_logit_does_not_overflow() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = head_loss(hidden, weight, None, torch.tensor([1, 1]))
    assert loss.item() == 600.0
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [2.0, 0.0]
