"""flash-attn's varlen kernel behind one signature, whichever of its versions is installed and made for the card.

=======  ==========================  =======================  ===========================================================
version  module                      distribution             cards
=======  ==========================  =======================  ===========================================================
2        ``flash_attn``              ``flash-attn``           Ampere and newer
3        ``flash_attn_interface``    ``flash-attn-3``         Hopper
4        ``flash_attn.cute``         ``flash-attn-4``         Hopper and Blackwell
=======  ==========================  =======================  ===========================================================

All take queries of more heads than keys, so nothing is copied for grouped heads. They differ in what they return (3 may add the log-sum-exp)
and in how they say that a window has no end (-1, 4: None). FlashAttention: Dao et al. 2022, 2023; Shah et al. 2024.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from torch import Tensor

from sft.model.capability import Capability


@dataclass(frozen=True, slots=True)
class Version:
    """A version of flash-attn: the module of its kernel, the distribution that brings it, the cards from ``least`` to below ``end``."""

    number: int
    module: str
    distribution: str
    least: Capability
    end: Capability


VERSIONS: Final = (
    Version(4, "flash_attn.cute", "flash-attn-4", (9, 0), (11, 0)),
    Version(3, "flash_attn_interface", "flash-attn-3", (9, 0), (10, 0)),
    Version(2, "flash_attn", "flash-attn", (8, 0), (99, 0)),
)
"""The newest first."""


def _is_installed(version: Version) -> bool:
    try:
        importlib.metadata.version(version.distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def newest(capability: Capability) -> Version | None:
    """The newest version that is installed and runs on a card; None if there is none.

    Distributions are asked, not modules: the package of version 2 has the folder of version 4 in it.
    """
    return next((v for v in VERSIONS if v.least <= capability < v.end and _is_installed(v)), None)


@lru_cache
def kernel(capability: Capability) -> Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None, int | None], Tensor]:
    """``call(q, k, v, borders, longest, scale, window)`` of the newest version for a card.

    Queries ``[N, H, D]``, keys and values ``[N, Hkv, D]``, borders int32 ``[documents + 1]``, window in
    tokens or None; out ``[N, H, D]``. Causal.
    """
    version = newest(capability)
    assert version is not None  # the attention was chosen by it
    attend: Any = importlib.import_module(version.module).flash_attn_varlen_func
    open_end = None if version.number == 4 else -1

    def call(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, scale: float | None, window: int | None) -> Tensor:
        back, ahead = (open_end, open_end) if window is None else (window - 1, 0)
        out = attend(
            q,
            k,
            v,
            cu_seqlens_q=borders,
            cu_seqlens_k=borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=True,
            window_size=(back, ahead),
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    return call
