"""Rows become the tensors of one micro-batch.

Flat (the default): documents one behind the other, no padding, no attention mask::

    rows            [a0 a1 a2]  [b0 b1]
    input_ids       a0 a1 a2 b0 b1            int64 [1, N]
    position_ids     0  1  2  0  1            int64 [1, N]   restart: this is what keeps documents apart
    cu_seq_lens      0        3     5 5 5     int32 [D + 1]  padded with N, so that its length never changes
    predict_at       positions whose next token is learnt    int64 [M]
    targets          those next tokens                       int64 [M]

A document's first token is never a target: nothing of its own document stands before it.

Padded: a rectangle ``[B, T]`` with an attention mask, for models and backends that need one; ``predict_at`` counts in the flattened
rectangle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Batch(TypedDict, total=False):
    """One micro-batch. Keys that the model takes, then ``predict_at``, ``targets``, ``step_tokens`` for the loss.

    ``step_tokens`` is the number of learnt tokens of the whole optimiser step, over all its micro-batches and ranks.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int
    predict_at: Tensor
    targets: Tensor
    step_tokens: int


Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]

# A micro-batch without rows still runs, so that every rank takes part in every collective: one token, nothing learnt.
_EMPTY: Row = (np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.bool_))


def flat_batch(
    rows: Sequence[Row],
    step_tokens: int,
    documents: int | None = None,
    *,
    multiple: int = 1,
    longest: int = 0,
    learnt_as: Mapping[int, int] | None = None,
) -> Batch:
    """Lay rows out as one flat row.

    Args:
        rows: ``(ids int32 [T], mask bool [T])`` each.
        step_tokens: learnt tokens of the whole step.
        documents: pad ``cu_seq_lens`` to this many documents, the one that ``multiple`` adds counted; None does not pad.
        multiple: a last document of zeros, of which nothing is learnt, makes N a multiple of this.
        longest: told to the model as the longest document, if none is longer: a number that never changes compiles once.
        learnt_as: targets of these ids become those.
    """
    rows = rows or [_EMPTY]
    if blank := -sum(len(ids) for ids, _ in rows) % multiple:
        rows = [*rows, (np.zeros(blank, dtype=np.int32), np.zeros(blank, dtype=np.bool_))]
    lengths = [len(ids) for ids, _ in rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    ids = np.concatenate([row[0] for row in rows]).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in lengths])
    cu = np.full(1 + max(documents or 0, len(rows)), total, dtype=np.int32)
    cu[0] = 0
    cu[1 : 1 + len(rows)] = ends
    predict_at, targets = _targets(rows, [int(e) - n for e, n in zip(ends, lengths, strict=True)], learnt_as)
    cu_tensor = torch.from_numpy(cu)
    longest = max(longest, *lengths)
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        cu_seq_lens_q=cu_tensor,
        cu_seq_lens_k=cu_tensor,
        max_length_q=longest,
        max_length_k=longest,
        predict_at=predict_at,
        targets=targets,
        step_tokens=step_tokens,
    )


def padded_batch(rows: Sequence[Row], step_tokens: int, pad_id: int, learnt_as: Mapping[int, int] | None = None) -> Batch:
    """Lay rows out as a right-padded rectangle. Arguments as of :func:`flat_batch`."""
    rows = rows or [_EMPTY]
    width = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, (row, _) in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    predict_at, targets = _targets(rows, [i * width for i in range(len(rows))], learnt_as)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        predict_at=predict_at,
        targets=targets,
        step_tokens=step_tokens,
    )


def _targets(rows: Sequence[Row], begins: Sequence[int], learnt_as: Mapping[int, int] | None) -> tuple[Tensor, Tensor]:
    at: list[npt.NDArray[np.int64]] = []
    wanted: list[npt.NDArray[np.int64]] = []
    for (ids, mask), begin in zip(rows, begins, strict=True):
        learnt = np.flatnonzero(mask[1:])
        at.append(learnt + begin)
        wanted.append(ids[1:][learnt].astype(np.int64))
    targets = np.concatenate(wanted)
    told = targets.copy()
    for token, other in (learnt_as or {}).items():
        told[targets == token] = other
    return torch.from_numpy(np.concatenate(at)), torch.from_numpy(told)
