"""Two processes train like one: DDP through the trainer, and FSDP2 that really shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft.engine.batches import PlannedBatches
from sft.engine.loss import step_loss
from sft.model.attention import register
from sft.train import run
from tests.laws import record_law
from tests.laws.ranks import case
from tests.runs import tiny_recipe

ROOT = Path(__file__).parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}

CASES = ("full", "lora", "sharded", "sums", "refused")
ADAPTERS: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"rank": 4, "alpha": 8}}
TRAINED: dict[str, Any] = {"data__holdout": 5, "train__tokens_per_device": 128}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of :mod:`tests.laws.rank_cases` read their recipes and write."""
    root = tmp_path_factory.mktemp("ranks")
    recipes = {name: tiny_recipe(root / name, lora=lora, **TRAINED) for name, lora in ADAPTERS.items()}
    recipes["sums"] = tiny_recipe(root / "sums", train__sharding="fsdp", model__compute_dtype="bfloat16")
    recipes["refused"] = tiny_recipe(root / "refused", train__sharding="fsdp")
    for name, recipe in recipes.items():
        (root / f"{name}.json").write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def faults(root: Path) -> dict[str, str]:
    """What went wrong in each case that failed. The cases behind it get a launch of their own."""
    found: dict[str, str] = {}
    left = list(CASES)
    while left:
        said = torchrun("-m", "tests.laws.rank_cases", str(root), *left)
        through = [name for name in left if all((root / f"{name}.{rank}.passed").exists() for rank in (0, 1))]
        if said is None and through == left:
            break
        failed = next((name for name in left if name not in through), left[-1])  # the last one if the end went wrong
        found[failed] = said or "one rank is not through with it, and the launch says nothing"
        left = left[left.index(failed) + 1 :]
    return found


def torchrun(*command: str) -> str | None:
    """Start two processes; the end of what they said if they failed."""
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *command]
    try:
        done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=240)
    except subprocess.TimeoutExpired as late:
        return f"not through after {late.timeout} s: {str(late.stderr)[-3000:]}"
    return done.stderr[-5000:] if done.returncode else None


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", ADAPTERS)
def test_ddp_is_one_process(root: Path, faults: dict[str, str], name: str) -> None:
    assert name not in faults, faults[name]
    one, two = root / f"{name}-one", root / name
    run(tiny_recipe(one, lora=ADAPTERS[name], **TRAINED))
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


def test_fsdp2_shards_and_is_one_process(root: Path, faults: dict[str, str]) -> None:
    assert "sharded" not in faults, faults["sharded"]
    register()
    model, store, plan = case(world=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = PlannedBatches(store, plan, None)
    for step in range(len(plan.steps)):
        for micro in range(plan.accumulation):
            step_loss(model, batches[step * plan.accumulation + micro]).backward()
        optimizer.step()
        optimizer.zero_grad()
    full = torch.load(root / "sharded.pt", weights_only=True)
    own = model.state_dict()
    assert full.keys() == own.keys()
    largest = max(float((own[k] - full[k]).abs().max()) for k in own)
    record_law("2 ranks FSDP2 (DTensor) = 1 process, 6 steps", largest, 1e-4)
    assert largest < 1e-4


def test_fsdp_adds_up_in_float32_shards_and_gathers_adapters(faults: dict[str, str]) -> None:
    """Products in bfloat16: the gradients of a step's micro-batches add up in float32 to the bit, no rank ever holding them whole.

    An adapter on a sharded model is compared with its file whole.
    """
    assert "sums" not in faults, faults["sums"]


def test_fsdp_that_does_not_shard_is_refused(root: Path, faults: dict[str, str]) -> None:
    """On CPU the trainer falls back to DDP without a word; a run must not be called FSDP then."""
    assert "refused" not in faults, faults["refused"]
    for rank in (0, 1):
        end = json.loads((root / f"refused.{rank}.said").read_text(encoding="utf-8"))
        assert end["status"] != 0
        assert "train.sharding: fsdp, but the parameters were not sharded" in end["said"]
