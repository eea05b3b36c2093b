"""OPT needs no conversion, but its decoder never builds a packed mask: flat rows are exact in our attention, and leak in another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sft.data.collate import flat_batch
from sft.model.attention import register
from tests.builders import OPT, tiny_model

LENGTHS = (41, 1, 23, 120)


@pytest.mark.parametrize(("attention", "exact"), [("vicugna_sdpa", True), ("sdpa", False)])
def test_flat_rows_of_opt_are_separate_documents(attention: str, exact: bool) -> None:
    register()
    model = tiny_model(300, OPT, scale=0.3).eval()
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 300, length).astype(np.int32) for length in LENGTHS]
    batch: dict[str, Any] = dict(flat_batch([(ids, np.ones(len(ids), np.bool_)) for ids in rows], 1, documents=6))
    for key in ("predict_at", "targets", "step_tokens"):
        batch.pop(key)
    ends = np.cumsum([0, *LENGTHS]).tolist()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        alone = [model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0] for ids in rows]
        model.set_attn_implementation(attention)
        flat = model(**batch, use_cache=False).logits[0]
    worst = max(float((flat[a:b] - wanted).abs().max()) for (a, b), wanted in zip(pairwise(ends), alone, strict=True))
    assert worst < 2e-5 if exact else worst > 1e-2, worst
