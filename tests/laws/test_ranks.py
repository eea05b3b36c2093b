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

from sft.train import run
from tests.laws import record_law
from tests.runs import tiny_recipe

ROOT = Path(__file__).parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}

SHARDED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from sft.engine.evaluate import to_device
from sft.engine.loss import step_loss
from sft.engine.batches import PlannedBatches
from sft.model.attention import register
from tests.laws.ranks import case

dist.init_process_group("gloo")
register()
model, store, plan = case(world=dist.get_world_size())
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
sharded = sum(isinstance(p, DTensor) for p in model.parameters())
assert sharded == len(list(model.parameters())), "not sharded"
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batches = PlannedBatches(store, plan, None)
each = plan.accumulation * plan.world
for step in range(len(plan.steps)):
    for micro in range(plan.accumulation):
        loss = step_loss(model, batches[step * each + micro * plan.world + dist.get_rank()]) * plan.world
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
full = {k: v.full_tensor() for k, v in model.state_dict().items()}
if dist.get_rank() == 0:
    torch.save(full, sys.argv[1])
dist.destroy_process_group()
"""

SUMS = """
import json, sys, torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from sft.config import Document, build
from sft.engine.batches import PlannedBatches
from sft.engine.loss import step_loss
from sft.engine.trainer import training_arguments
from sft.model import adapters
from sft.model.attention import register
from sft.recipe import LoraSection, Recipe
from tests.laws.ranks import case

register()
recipe = build(Recipe, Document(json.loads(sys.argv[1]), {}, "test.yaml"))
model, store, plan = case(world=2)
arguments = training_arguments(recipe, plan, torch.device("cpu"))  # joins the process group
assert arguments.accelerator_config.gradient_accumulation_kwargs["sync_each_batch"] is True
policy, mesh, rank = arguments.fsdp_plugin_args["mixed_precision_policy"], init_device_mesh("cpu", (2,)), arguments.process_index
assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)

def shard(whole, layers):
    for module in (*layers, whole):
        fully_shard(module, mesh=mesh, mp_policy=policy)

adapted = case(world=2)[0]
section = LoraSection(rank=3, alpha=6.0)
adapted = adapters.attach(adapted, section, (), checkpointing=False, seed=4)
before = {k: v.clone() for k, v in adapters.adapter_state(adapted).items()}
shard(adapted, adapted.get_base_model().model.layers)
assert all(isinstance(p, DTensor) for p in adapted.parameters())
after = adapters.adapter_state(adapted)
assert before.keys() == after.keys()
assert all(not isinstance(after[k], DTensor) and torch.equal(before[k], after[k]) for k in before)

shard(model, model.model.layers)
parameters = dict(model.named_parameters())
batches = PlannedBatches(store, plan, None)
assert plan.accumulation > 1
alone = []
for gather in (False, True):
    model.zero_grad()
    for micro in range(plan.accumulation):
        (step_loss(model, batches[micro * 2 + rank]) * 2).backward()
        grads = {k: p.grad for k, p in parameters.items()}
        assert all(isinstance(g, DTensor) and g.dtype == torch.float32 for g in grads.values()), "whole, or rounded"
        assert all(2 * g.to_local().numel() <= g.numel() + g[0].numel() for g in grads.values())
        if gather:
            alone.append({k: g.full_tensor() for k, g in grads.items()})
            model.zero_grad()
    if not gather:
        together = {k: g.full_tensor() for k, g in grads.items()}
assert max(float(g.abs().max()) for g in together.values()) > 0
for key, found in together.items():
    wanted = alone[0][key]
    for part in alone[1:]:
        wanted = wanted + part[key]
    assert torch.equal(found, wanted), key
"""


def torchrun(*command: str, port: int) -> None:
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", *command]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_ddp_is_one_process(tmp_path: Path, lora: dict[str, int] | None) -> None:
    options: dict[str, Any] = {"data__holdout": 5, "train__tokens_per_device": 128}
    run(tiny_recipe(tmp_path / "one", lora=lora, **options))
    two = tiny_recipe(tmp_path / "two", lora=lora, **options)
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps(two.model_dump(mode="json")), encoding="utf-8")
    torchrun("-m", "sft", "train", str(file), port=free_port())
    name = "adapter" if lora else "model"
    left, right = (load_file(next((tmp_path / side / name).glob("*.safetensors"))) for side in ("one", "two"))
    assert left.keys() == right.keys()
    largest = max(float((left[k] - right[k]).abs().max()) for k in left)
    record_law(f"2 ranks DDP = 1 process, 6 steps ({name})", largest, 1e-4)
    assert largest < 1e-4
    about = [json.loads((tmp_path / side / "run.json").read_text()) for side in ("one", "two")]
    assert about[0]["plan"]["accumulation"] == 2 * about[1]["plan"]["accumulation"]
    assert about[1]["plan"]["world"] == 2
    assert about[0]["holdout"]["after"] == pytest.approx(about[1]["holdout"]["after"], abs=1e-5)


def test_fsdp2_shards_and_is_one_process(tmp_path: Path) -> None:
    from sft.engine.batches import PlannedBatches
    from sft.engine.loss import step_loss
    from sft.model.attention import register
    from tests.laws.ranks import case

    register()
    model, store, plan = case(world=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = PlannedBatches(store, plan, None)
    for step in range(len(plan.steps)):
        for micro in range(plan.accumulation):
            step_loss(model, batches[step * plan.accumulation + micro]).backward()
        optimizer.step()
        optimizer.zero_grad()
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED, encoding="utf-8")
    torchrun(str(script), str(tmp_path / "full.pt"), port=free_port())
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    own = model.state_dict()
    assert full.keys() == own.keys()
    largest = max(float((own[k] - full[k]).abs().max()) for k in own)
    record_law("2 ranks FSDP2 (DTensor) = 1 process, 6 steps", largest, 1e-4)
    assert largest < 1e-4


def test_fsdp_adds_up_in_float32_shards_and_gathers_adapters(tmp_path: Path) -> None:
    """Products in bfloat16: the gradients of a step's micro-batches add up in float32 to the bit, no rank ever holding them whole.

    An adapter on a sharded model is compared with its file whole.
    """
    recipe = tiny_recipe(tmp_path / "run", train__sharding="fsdp", model__compute_dtype="bfloat16")
    script = tmp_path / "sums.py"
    script.write_text(SUMS, encoding="utf-8")
    torchrun(str(script), json.dumps(recipe.model_dump(mode="json")), port=free_port())


def test_fsdp_that_does_not_shard_is_refused(tmp_path: Path) -> None:
    """On CPU the trainer falls back to DDP without a word; a run must not be called FSDP then."""
    recipe = tiny_recipe(tmp_path / "run", train__sharding="fsdp")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*launch, "-m", "sft", "train", str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "train.sharding: fsdp, but the parameters were not sharded" in done.stderr
