"""The held-out loss is that of training: per learnt token, whatever the batches, and by source."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sft.data.collate import padded_batch
from sft.data.store import RowStore
from sft.engine.evaluate import evaluate_rows
from sft.engine.loss import sum_losses
from sft.model.attention import register
from tests.builders import LLAMA, OPT, tiny_model

VOCAB = 300


def store(count: int, labels: tuple[str, ...] = ("a", "b")) -> RowStore:
    rng = np.random.Generator(np.random.PCG64(3))
    lengths = rng.integers(4, 30, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(0, VOCAB, int(offsets[-1])).astype(np.int32)
    mask = rng.random(len(ids)) < 0.5
    mask[offsets[:-1]] = False
    source = (np.arange(count) % len(labels)).astype(np.int32)
    return RowStore.of(ids, mask, offsets, source, labels, [str(i) for i in range(count)])


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("capacity", [30, 64, 10_000])
def test_batches_do_not_change_the_loss(config: dict[str, object], capacity: int) -> None:
    register()
    rows = store(17)
    model = tiny_model(VOCAB, config)
    model.train()
    total = np.zeros(2)
    model.eval()
    for i in range(len(rows)):
        total[rows.source_of[i]] += float(sum_losses(model, padded_batch([rows.row(i)], 1, 0)))
    tokens = [sum(int(rows.row(i)[1][1:].sum()) for i in range(len(rows)) if rows.source_of[i] == s) for s in range(2)]
    model.train()
    flat, padded = tiny_model(VOCAB, config), model
    flat.set_attn_implementation("vicugna_sdpa")
    for live, pad in ((padded, 0), (flat.train(), None)):
        found = evaluate_rows(live, rows, capacity=capacity, pad_id=pad, dtype=torch.float32)
        assert found.tokens == sum(tokens)
        assert found.loss == pytest.approx(total.sum() / sum(tokens), rel=1e-5)
        for i, label in enumerate("ab"):
            assert found.by_source[label][0] == pytest.approx(total[i] / tokens[i], rel=1e-5)
            assert found.by_source[label][1] == tokens[i]
        assert live.training
        assert all(p.grad is None for p in live.parameters())


def test_ranks_share_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank takes every world-th batch; their sums are those of one process."""
    rows, model = store(17), tiny_model(VOCAB)
    parts: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: parts.append(tensor.clone()))
    whole = evaluate_rows(model, rows, capacity=64, pad_id=0, dtype=torch.float32)
    for rank in range(3):
        evaluate_rows(model, rows, capacity=64, pad_id=0, dtype=torch.float32, rank=rank, world=3)
    sums, counts = sum(parts[::2]), sum(parts[1::2])
    assert isinstance(sums, torch.Tensor)
    assert isinstance(counts, torch.Tensor)
    assert int(counts.sum()) == whole.tokens
    assert float(sums.sum() / counts.sum()) == pytest.approx(whole.loss, rel=1e-9)


def test_a_source_without_rows_is_left_out() -> None:
    found = evaluate_rows(tiny_model(VOCAB), store(3, ("a", "b", "c", "d")), capacity=64, pad_id=0, dtype=torch.float32)
    assert list(found.by_source) == ["a", "b", "c"]


def test_no_rows_have_no_loss() -> None:
    found = evaluate_rows(tiny_model(VOCAB), store(0), capacity=64, pad_id=0, dtype=torch.float32)
    assert (math.isnan(found.loss), found.tokens, found.by_source) == (True, 0, {})


def test_an_error_leaves_the_model_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(VOCAB)
    model.train()
    monkeypatch.setattr("sft.engine.evaluate.token_losses", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate_rows(model, store(3), capacity=64, pad_id=0, dtype=torch.float32)
    assert model.training
