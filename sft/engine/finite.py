"""A step whose loss or gradient is not finite changes no weight and ends the run, and looking for it does not hold up the GPU.

To read a number from a GPU is to wait until all that was queued is done, and to queue nothing meanwhile. So the numbers are looked at there::

    step k      loss nan          bad = 1, first = (k, nan, norm)
                optimiser         reads bad: leaves weights and moments alone
    step k+1    loss 1.9          bad stays 1: the same
    ...
    record      read              stop: "step k: loss nan", with the rows of step k; the weights are those before step k

An optimiser that cannot be told so (8-bit, paged, SGD, float16's scale, shards under torch's own AdamW) has every step read before it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sft import files
from sft.data.store import RowStore
from sft.engine.stochastic_adamw import StochasticAdamW
from sft.errors import NonFiniteError


def takes_word(optimizer: Any) -> bool:
    """Whether ``found_inf`` keeps this optimiser from a step. torch's fused kernels have it for gradient scalers, and not for shards."""
    if isinstance(optimizer, StochasticAdamW):
        return True
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return isinstance(optimizer, torch.optim.AdamW) and fused and not any(isinstance(p, DTensor) for p in parameters)


class Finite:
    """Loss and gradient norm of every step so far, as far as they were not finite.

    Args:
        optimizer: without wrappers.
        scaled: a gradient scaler skips steps of its own; a norm that is not finite is its affair.
        taken: the optimiser steps in the backward pass (DeepSpeed), so there is nothing to keep it from.
    """

    def __init__(self, optimizer: Any, *, scaled: bool = False, taken: bool = False) -> None:
        self.scaled = scaled
        self.deferred = not scaled and not taken and takes_word(optimizer)
        first = optimizer.param_groups[0]["params"][0]
        self.device = (first.to_local() if isinstance(first, DTensor) else first).device
        self._bad = torch.zeros((), dtype=torch.float32, device=self.device)
        self._first = torch.zeros(3, dtype=torch.float64, device=self.device)
        if self.deferred:
            optimizer.found_inf = self._bad

    def note(self, step: int, loss: Any, norm: Any) -> tuple[int, float, float] | None:
        """Take the figures of a step before the optimiser does.

        Args:
            step: counted from 0.
            loss, norm: float or tensor of one entry.

        Returns:
            ``(step, loss, norm)`` if it must not be taken and this is known already.
        """
        if not self.deferred:
            values = torch.stack([_plain(value).float().cpu() for value in (loss, norm)]).tolist()
            fine = math.isfinite(values[0]) and (self.scaled or math.isfinite(values[1]))
            return None if fine else (step, values[0], values[1])
        loss, norm = (_plain(value).to(self.device, torch.float64, non_blocking=True) for value in (loss, norm))
        bad = ~(loss.isfinite() & norm.isfinite())
        figures = torch.stack([torch.full_like(loss, step), loss, norm])
        self._first.copy_(torch.where(bad & (self._bad == 0), figures, self._first))
        self._bad.copy_(torch.maximum(self._bad, bad.float()))
        return None

    def first_bad(self) -> tuple[int, float, float] | None:
        """``(step, loss, norm)`` of the first step that was not finite. Waits for the GPU."""
        if not self.deferred or not self._bad.item():
            return None
        step, loss, norm = self._first.tolist()
        return int(step), loss, norm


def _plain(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.full((), float(value))
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def write_rows(folder: Path, rows: RowStore, figures: dict[str, Any]) -> None:
    """Write the rows of such a step as they were trained (``rows.npz``) and their names with the figures (``rows.json``)."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", **rows.flat()._asdict())
    files.write_json(folder / "rows.json", figures | {"rows": list(rows.names)})


def refusal(step: int, loss: float, norm: float, names: Sequence[str], folder: Path, *, spoilt: bool) -> NonFiniteError:
    """What ends the run. ``spoilt``: the optimiser was not kept from the step."""
    changed = "its weights are spoilt" if spoilt else "no weight was changed by it"
    return NonFiniteError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}; {changed}. Its {len(names)} rows ({', '.join(names[:8])}"
        f"{', ...' if len(names) > 8 else ''}) are in {folder}. Lower train.learning_rate, use bfloat16 instead of float16, "
        "or look at these rows with sft preview"
    )
