"""The case that one and two processes both train: shared by the test and the processes it starts."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from sft.data.packing import StepPlan, plan_steps
from sft.data.store import RowStore
from tests.builders import tiny_model

VOCABULARY = 200


def random_rows(lengths: range, *, seed: int, **plan: Any) -> tuple[RowStore, StepPlan]:
    """24 random rows with random masks, the second token of each learnt, and a plan of some steps of them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.integers(lengths.start, lengths.stop, 24)
    offsets = np.concatenate([[0], np.cumsum(drawn)]).astype(np.int64)
    ids = rng.integers(0, VOCABULARY, offsets[-1]).astype(np.int32)
    mask = rng.random(int(offsets[-1])) < 0.5
    mask[offsets[:-1]] = False
    mask[offsets[:-1] + 1] = True
    store = RowStore.of(ids, mask, offsets, np.zeros(24, np.int32), ("rows",), [str(i) for i in range(24)])
    fixed: dict[str, Any] = {"weights": [1.0], "seed": 1, "max_steps": None, "tokens_per_step": None}
    about: dict[str, Any] = {"lengths": store.lengths, "trained": store.trained, "source_of": store.source_of}
    return store, plan_steps(**about, **fixed, **plan)


def case(world: int) -> tuple[PreTrainedModel, RowStore, StepPlan]:
    """A tiny LLaMA, 24 random rows, and 6 steps of 8 rows over ``world`` ranks."""
    store, plan = random_rows(range(4, 40), seed=5, epochs=2, examples_per_step=8, tokens_per_device=64, world=world)
    model = tiny_model(VOCABULARY)
    model.set_attn_implementation("vicugna_sdpa")
    return model, store, plan
