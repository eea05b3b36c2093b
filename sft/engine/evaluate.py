"""Held-out loss per learnt token, over all rows and per source, by the same loss as training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sft.data.collate import Batch, flat_batch, padded_batch
from sft.data.store import RowStore
from sft.engine.loss import token_losses


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Result of an evaluation.

    Attributes:
        loss: nats per learnt token over all rows; NaN without rows.
        tokens: learnt tokens.
        by_source: label -> (loss, learnt tokens).
    """

    loss: float
    tokens: int
    by_source: dict[str, tuple[float, int]]

    def to_json(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "tokens": self.tokens,
            "by_source": {k: {"loss": v, "tokens": n} for k, (v, n) in self.by_source.items()},
        }


def _groups(store: RowStore, capacity: int, padded: bool) -> Iterator[npt.NDArray[np.int64]]:
    """Rows by length, in batches of at most ``capacity`` tokens (rectangles if padded)."""
    lengths = store.lengths
    current: list[int] = []
    load = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[current[0]]) if padded and current else int(lengths[row])
        if current and load + size > capacity:
            yield np.asarray(current, dtype=np.int64)
            current, load = [], 0
            size = int(lengths[row])
        current.append(row)
        load += size
    if current:
        yield np.asarray(current, dtype=np.int64)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Tensors of a batch on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _device(model: nn.Module) -> torch.device:
    """Where a model computes: under ``cpu_offload`` not where its shards lie."""
    first = next(model.parameters())
    return torch.device(first.device_mesh.device_type) if isinstance(first, DTensor) else first.device


@torch.no_grad()
def evaluate_rows(
    model: nn.Module,
    store: RowStore,
    *,
    capacity: int,
    pad_id: int | None,
    dtype: torch.dtype,
    rank: int = 0,
    world: int = 1,
) -> HeldOut:
    """Evaluate on rows; every rank gets the same result.

    Args:
        model: any wrapping; put into eval mode and back.
        store: rows with masks.
        capacity: most tokens per batch.
        pad_id: None for flat rows, else the padding id of rectangles.
        dtype: of the products (autocast where it differs from the weights).
        rank: this process.
        world: processes; each takes every ``world``-th batch.
    """
    device = _device(model)
    sums = torch.zeros(len(store.labels), dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)
    groups = list(_groups(store, capacity, pad_id is not None))
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(groups), world):
            mine = groups[begin + rank] if begin + rank < len(groups) else np.zeros(0, dtype=np.int64)
            rows = [store.row(int(r)) for r in mine]
            told = store.learnt_as
            batch = flat_batch(rows, 1, learnt_as=told) if pad_id is None else padded_batch(rows, 1, pad_id, told)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                losses = token_losses(model, to_device(batch, device)).double()
            source = np.repeat(store.source_of[mine], [int(mask[1:].sum()) for _, mask in rows])
            if len(source):
                where = torch.from_numpy(source.astype(np.int64)).to(device)
                sums.index_add_(0, where, losses)
                counts.index_add_(0, where, torch.ones_like(losses))
    finally:
        model.train(training)
    if world > 1:
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(counts)
    total = int(counts.sum())
    by_source = {label: (float(sums[i] / counts[i]), int(counts[i])) for i, label in enumerate(store.labels) if counts[i] > 0}
    return HeldOut(float(sums.sum() / counts.sum()) if total else float("nan"), total, by_source)
