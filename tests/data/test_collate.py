"""Micro-batches, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sft.data.collate import Row, flat_batch, padded_batch

A: Row = (np.asarray([11, 12, 13], dtype=np.int32), np.asarray([False, True, True]))
B: Row = (np.asarray([21, 22], dtype=np.int32), np.asarray([False, True]))
ALL: Row = (np.asarray([31, 32, 33, 34], dtype=np.int32), np.asarray([True, True, True, True]))


def plain(batch: Any) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def test_flat() -> None:
    assert plain(flat_batch([A, B], 7)) == {
        "input_ids": [[11, 12, 13, 21, 22]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "cu_seq_lens_q": [0, 3, 5],
        "cu_seq_lens_k": [0, 3, 5],
        "max_length_q": 3,
        "max_length_k": 3,
        "predict_at": [0, 1, 3],
        "targets": [12, 13, 22],
        "step_tokens": 7,
    }


def test_borders_are_padded_to_one_length_for_the_whole_run() -> None:
    batch = flat_batch([A, B], 7, documents=4)
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 5, 5]
    assert flat_batch([A, B], 7, documents=1)["cu_seq_lens_q"].tolist() == [0, 3, 5]


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    batch = flat_batch([ALL, ALL, B], 0)
    assert batch["targets"].tolist() == [32, 33, 34, 32, 33, 34, 22]
    assert batch["predict_at"].tolist() == [0, 1, 2, 4, 5, 6, 8]
    padded = padded_batch([ALL, B], 0, pad_id=0)
    assert padded["targets"].tolist() == [32, 33, 34, 22]
    assert padded["predict_at"].tolist() == [0, 1, 2, 4]


def test_a_micro_batch_without_rows_is_one_token_of_which_nothing_is_learnt() -> None:
    assert plain(flat_batch([], 7, documents=2)) == {
        "input_ids": [[0]],
        "position_ids": [[0]],
        "cu_seq_lens_q": [0, 1, 1],
        "cu_seq_lens_k": [0, 1, 1],
        "max_length_q": 1,
        "max_length_k": 1,
        "predict_at": [],
        "targets": [],
        "step_tokens": 7,
    }
    assert plain(padded_batch([], 7, pad_id=9)) == {
        "input_ids": [[0]],
        "attention_mask": [[1]],
        "predict_at": [],
        "targets": [],
        "step_tokens": 7,
    }


def test_padded() -> None:
    assert plain(padded_batch([B, A], 7, pad_id=9)) == {
        "input_ids": [[21, 22, 9], [11, 12, 13]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "predict_at": [0, 3, 4],
        "targets": [22, 12, 13],
        "step_tokens": 7,
    }


def test_types() -> None:
    for batch in (flat_batch([A, B], 7), flat_batch([], 7), padded_batch([A, B], 7, 0), padded_batch([], 7, 0)):
        tensors = {key: value.dtype for key, value in batch.items() if isinstance(value, torch.Tensor)}
        for key, dtype in tensors.items():
            assert dtype == (torch.int32 if key.startswith("cu_") else torch.int64), key


def test_rows_are_copied_not_shared() -> None:
    """Rows are views into a memory map that must not change."""
    batch = flat_batch([A], 1)
    batch["input_ids"].zero_()
    assert A[0].tolist() == [11, 12, 13]
