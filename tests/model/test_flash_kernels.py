"""Of flash-attn's versions the newest that is installed and made for the card is called, each in its own manner, and gives causal attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sft.model import attention, flash_kernels
from sft.model.attention import block_sdpa

BORDERS = torch.tensor([0, 5, 6, 12], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    flash_kernels.kernel.cache_clear()
    attention._kernels.clear()
    yield
    flash_kernels.kernel.cache_clear()
    attention._kernels.clear()


def install(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> list[int]:
    """Put stand-ins of some versions in place, which attend by SDPA; the list has the versions that were called."""
    called: list[int] = []

    def stand_in(number: int) -> Any:
        def flash_attn_varlen_func(
            q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
            softmax_scale: float | None, causal: bool, window_size: tuple[int | None, int | None],
        ) -> Any:  # fmt: skip
            endless = (None, None) if number == 4 else (-1, -1)
            assert causal
            assert max_seqlen_q == max_seqlen_k == 6
            assert torch.equal(cu_seqlens_q, cu_seqlens_k)
            assert window_size == endless or window_size[1] == 0
            window = None if window_size == endless else (window_size[0] or 0) + 1
            called.append(number)
            row = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            out, _ = block_sdpa(
                torch.nn.Module(), *row, None, scaling=softmax_scale, sliding_window=window, cu_seq_lens_q=cu_seqlens_q
            )
            return (out.squeeze(0), None) if number == 3 else out.squeeze(0)

        return flash_attn_varlen_func

    for version in flash_kernels.VERSIONS:
        if version.number in numbers:
            module = ModuleType(version.module)
            module.flash_attn_varlen_func = stand_in(version.number)  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, version.module, module)
    monkeypatch.setattr(flash_kernels, "_is_installed", lambda version: version.number in numbers)
    return called


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_every_version_is_called_in_its_own_manner(
    number: int, window: int | None, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = install(monkeypatch, number)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    options: dict[str, Any] = {"scaling": scale, "sliding_window": window, "cu_seq_lens_q": BORDERS}
    found, _ = attention.flash(torch.nn.Module(), q, k, v, None, max_length_q=6, **options)
    wanted, _ = block_sdpa(torch.nn.Module(), q, k, v, None, **options)
    assert torch.equal(found, wanted)
    assert called == [number]


@pytest.mark.parametrize(
    ("numbers", "capability", "taken"),
    [
        ((2, 3, 4), (9, 0), 4),
        ((2, 3), (9, 0), 3),
        ((2,), (9, 0), 2),
        ((2, 3, 4), (8, 0), 2),
        ((3, 4), (8, 9), None),
        ((2, 3, 4), (10, 0), 4),
        ((2, 3), (10, 0), 2),
        ((2, 3, 4), (12, 0), 2),
        ((2, 3, 4), (7, 5), None),
        ((), (9, 0), None),
    ],
)
def test_the_newest_that_runs_on_the_card_is_taken(
    numbers: tuple[int, ...], capability: tuple[int, int], taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *numbers)
    found = flash_kernels.newest(capability)
    assert (None if found is None else found.number) == taken


def test_what_is_not_installed_is_seen_by_its_distribution() -> None:
    gone = flash_kernels.Version(9, "nothing", "no-such-distribution", (1, 0), (99, 0))
    there = flash_kernels.Version(9, "torch", "torch", (1, 0), (99, 0))
    assert not flash_kernels._is_installed(gone)
    assert flash_kernels._is_installed(there)
