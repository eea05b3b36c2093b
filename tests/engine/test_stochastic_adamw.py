"""Updates that bfloat16 would lose arrive on average; in float32 the steps are torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, and not in the stubs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from sft.engine import stochastic_adamw
from sft.engine.stochastic_adamw import StochasticAdamW, rounded
from sft.errors import ModelError

OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def noise_for(exact: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32)


def test_float32_steps_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(7, 5)
    theirs = copy.deepcopy(ours)
    steps = [StochasticAdamW(ours.parameters(), **OPTIONS), torch.optim.AdamW(theirs.parameters(), **OPTIONS)]  # type: ignore[arg-type]  # mixed values
    for _ in range(20):
        inputs = torch.randn(4, 7)
        for model, optimizer in zip((ours, theirs), steps, strict=True):
            model(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [1.0, -1.0, 3.14159, 1e-20, -7e30, 0.0, 1.00390625])
def test_rounding_is_right_on_average_and_never_further_than_the_two_neighbours(value: float) -> None:
    torch.manual_seed(1)
    exact = torch.full((200_000,), value) * 1.0017
    made = rounded(exact, noise_for(exact))
    below = (exact.view(torch.int32) & -65536).view(torch.float32)
    above = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert bool(((made.float() == below) | (made.float() == above)).all())
    gap = (above[0].double() - below[0].double()).abs().item()
    assert abs(made.double().mean().item() - exact[0].item()) <= 0.005 * gap  # 4.5 times the deviation of the mean


def test_what_bfloat16_holds_and_what_is_not_finite_stays() -> None:
    same = torch.tensor([0.0, 1.0, -2.5, 65280.0, float("inf"), -float("inf")])
    for _ in range(20):
        assert rounded(same, noise_for(same)).float().tolist() == same.tolist()
    assert bool(rounded(torch.tensor([float("nan")]), torch.tensor([65535], dtype=torch.int32)).isnan().all())


def test_small_updates_arrive_in_bfloat16() -> None:
    """A hundred steps of 1e-5 from 1.0: to the nearest none would be seen, since the steps of bfloat16 are 0.0078 there."""
    torch.manual_seed(2)
    weight = nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=1e-5, betas=(0.9, 0.999))
    plain = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    nearest = torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0)
    for _ in range(100):
        weight.grad, plain.grad = torch.ones_like(weight), torch.ones_like(plain)
        optimizer.step()
        nearest.step()
    assert plain.item() == 1.0
    assert weight.double().mean().item() == pytest.approx(1 - 100 * 1e-5, abs=5e-5)
    assert optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[weight]["exp_avg_sq"].double().mean().item() == pytest.approx(1 - 0.999**100, rel=0.01)


def bits_of(entries: int, seed: int = 0, steps: int = 1, parameters: int = 1) -> torch.Tensor:
    """The random numbers of a parameter's entries in a step, int32."""
    weights = [nn.Parameter(torch.ones(entries, dtype=torch.bfloat16)) for _ in range(parameters)]
    optimizer = StochasticAdamW(weights, seed=seed)
    optimizer._find_places()
    key = torch.tensor(stochastic_adamw._int32(stochastic_adamw._mixed_number(seed * 0x9E3779B1 + steps)), dtype=torch.int32)
    return stochastic_adamw._noise(entries, key, optimizer._places[weights[-1]])


def test_the_bits_of_the_rounding_are_even_and_have_nothing_to_do_with_each_other() -> None:
    count = 1 << 18
    streams = [bits_of(count), bits_of(count, seed=1), bits_of(count, steps=2), bits_of(count, parameters=2)]
    parts = [part.double() / 65535 - 0.5 for bits in streams for part in (bits & 65535, (bits >> 16) & 65535)]
    for i, part in enumerate(parts):
        for bit in range(16):  # each bit is set in half of the entries: 5 deviations
            share = ((((part + 0.5) * 65535).round().long() >> bit) & 1).double().mean().item()
            assert share == pytest.approx(0.5, abs=5 * 0.5 / count**0.5)
        assert part.mean().item() == pytest.approx(0.0, abs=5 * 12**-0.5 / count**0.5)
        assert (part[1:] * part[:-1]).mean().item() == pytest.approx(0.0, abs=5 / 12 / count**0.5)
        for other in parts[:i]:
            assert (part * other).mean().item() == pytest.approx(0.0, abs=5 / 12 / count**0.5)


def test_equal_seeds_give_equal_steps_and_states_can_be_loaded() -> None:
    def after(steps: int, state: dict[str, object] | None, weight: torch.Tensor) -> tuple[torch.Tensor, StochasticAdamW]:
        parameter = nn.Parameter(weight.clone())
        optimizer = StochasticAdamW([parameter], lr=1e-3)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            parameter.grad = parameter.detach() * 0.1
            optimizer.step()
        return parameter.detach(), optimizer

    start = torch.linspace(-3, 3, 999, dtype=torch.bfloat16)
    straight, _ = after(6, None, start)
    half, optimizer = after(3, None, start)
    again, _ = after(3, copy.deepcopy(optimizer.state_dict()), half)
    assert torch.equal(straight, again)


def test_weights_that_are_not_shared_out_by_rows_are_refused() -> None:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = nn.Parameter(distribute_tensor(torch.ones(4, 4, dtype=torch.bfloat16), mesh, [Replicate()]))
        whole.grad = whole.detach().clone()
        said = r"^train\.optimizer: adamw_stochastic takes weights whose rows are shared out among all processes, not \(Replicate\(\),\); "
        with pytest.raises(ModelError, match=said + "set adamw$"):
            StochasticAdamW([whole]).step()
    finally:
        torch.distributed.destroy_process_group()
