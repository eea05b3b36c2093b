"""Two processes train like one: DDP through the trainer, and FSDP2 that really shards."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sft.engine.batches import PlannedBatches
from sft.engine.loss import step_loss
from sft.model.attention import register
from tests.laws import record_law
from tests.laws.conftest import Ranks
from tests.laws.ranks import case


@pytest.mark.parametrize("name", ["full", "lora"])
def test_ddp_is_one_process(ranks: Ranks, name: str) -> None:
    ranks.through(name)
    one, two = ranks.root / {"full": "one", "lora": "one_lora"}[name], ranks.root / name
    folder = "adapter" if name == "lora" else "model"
    left, right = (load_file(next((side / folder).glob("*.safetensors"))) for side in (one, two))
    assert left.keys() == right.keys()
    largest = max(float((left[k] - right[k]).abs().max()) for k in left)
    record_law(f"2 ranks DDP = 1 process, 6 steps ({folder})", largest, 1e-4)
    assert largest < 1e-4
    about = [json.loads((side / "run.json").read_text()) for side in (one, two)]
    assert about[0]["plan"]["accumulation"] == 2 * about[1]["plan"]["accumulation"]
    assert about[1]["plan"]["world"] == 2
    assert about[0]["holdout"]["after"] == pytest.approx(about[1]["holdout"]["after"], abs=1e-5)


def test_fsdp2_shards_and_is_one_process(ranks: Ranks) -> None:
    ranks.through("sharded")
    register()
    model, store, plan = case(world=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = PlannedBatches(store, plan, None)
    for step in range(len(plan.steps)):
        for micro in range(plan.accumulation):
            step_loss(model, batches[step * plan.accumulation + micro]).backward()
        optimizer.step()
        optimizer.zero_grad()
    full = torch.load(ranks.root / "sharded.pt", weights_only=True)
    own = model.state_dict()
    assert full.keys() == own.keys()
    largest = max(float((own[k] - full[k]).abs().max()) for k in own)
    record_law("2 ranks FSDP2 (DTensor) = 1 process, 6 steps", largest, 1e-4)
    assert largest < 1e-4


def test_fsdp_adds_up_in_float32_shards_and_gathers_adapters(ranks: Ranks) -> None:
    """Products in bfloat16: the gradients of a step's micro-batches add up in float32 to the bit, no rank ever holding them whole.

    An adapter on a sharded model is compared with its file whole.
    """
    ranks.through("sums")


def test_fsdp_that_does_not_shard_is_refused(ranks: Ranks) -> None:
    """Left alone, accelerate falls back to DDP on CPU without a word; a run must not be called FSDP then."""
    ranks.through("refused")
    for rank in (0, 1):
        end = json.loads((ranks.root / f"refused.{rank}.said").read_text(encoding="utf-8"))
        assert end["status"] != 0
        assert "train.sharding: fsdp, but the parameters were not sharded" in end["said"]
