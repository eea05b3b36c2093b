"""Held-out loss per learnt token, over all rows, per source and per row, by the same loss as training."""

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


@dataclass(frozen=True, slots=True, eq=False)
class RowLosses:
    """What each row of a store loses.

    Attributes:
        sums: float64 ``[rows]``, nats over the learnt tokens of a row.
        counts: int64 ``[rows]``, its learnt tokens.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


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
    """Evaluate on rows; every rank gets the same result. Arguments as of :func:`row_losses`."""
    losses = row_losses(model, store, capacity=capacity, pad_id=pad_id, dtype=dtype, rank=rank, world=world)
    return summed(store, losses)


def summed(store: RowStore, losses: RowLosses) -> HeldOut:
    """Losses of rows as one number for all of them, and one for each source."""
    size = len(store.labels)
    sums = np.bincount(store.source_of, losses.sums, size)
    counts = np.bincount(store.source_of, losses.counts, size).astype(np.int64)
    by_source = {label: (float(sums[i] / counts[i]), int(counts[i])) for i, label in enumerate(store.labels) if counts[i] > 0}
    total = int(counts.sum())
    return HeldOut(float(sums.sum() / total) if total else float("nan"), total, by_source)


@torch.no_grad()
def row_losses(
    model: nn.Module,
    store: RowStore,
    *,
    capacity: int,
    pad_id: int | None,
    dtype: torch.dtype,
    rank: int = 0,
    world: int = 1,
    progress: str | None = None,
) -> RowLosses:
    """The loss of each row; every rank gets the same result.

    Args:
        model: any wrapping; put into eval mode and back.
        store: rows with masks.
        capacity: most tokens per batch.
        pad_id: None for flat rows, else the padding id of rectangles.
        dtype: of the products (autocast where it differs from the weights).
        rank: this process.
        world: processes; each takes every ``world``-th batch.
        progress: what a progress bar is called; None shows none.
    """
    from tqdm import tqdm

    device = _device(model)
    sums = torch.zeros(len(store), dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)
    groups = list(_groups(store, capacity, pad_id is not None))
    training = model.training
    model.eval()
    try:
        for begin in tqdm(range(0, len(groups), world), desc=progress, unit=" batches", disable=progress is None, leave=False):
            mine = groups[begin + rank] if begin + rank < len(groups) else np.zeros(0, dtype=np.int64)
            rows = [store.row(int(r)) for r in mine]
            told = store.learnt_as
            batch = flat_batch(rows, 1, learnt_as=told) if pad_id is None else padded_batch(rows, 1, pad_id, told)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                losses = token_losses(model, to_device(batch, device)).double()
            row_of = np.repeat(mine, [int(mask[1:].sum()) for _, mask in rows])
            if len(row_of):
                where = torch.from_numpy(row_of).to(device)
                sums.index_add_(0, where, losses)
                counts.index_add_(0, where, torch.ones_like(losses))
    finally:
        model.train(training)
    if world > 1:
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(counts)
    return RowLosses(sums.cpu().numpy(), counts.cpu().numpy().astype(np.int64))
