"""What two processes do together, one case after another in one launch, for importing costs more than training does here::

    torchrun --nproc-per-node=2 -m tests.laws.rank_cases FOLDER CASE...

``FOLDER/CASE.json`` is the recipe of a case that has one. A rank that is through with a case leaves ``FOLDER/CASE.RANK.passed``;
the first fault ends the launch with its traceback.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
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

RANK = int(os.environ["RANK"])


def train(folder: Path) -> None:
    """The command line, as torchrun starts it."""
    code = command("train", str(folder.with_suffix(".json")))
    assert code == 0, f"exit status {code}"


def refuse(folder: Path) -> None:
    """A run that must not start: what it says and how it ends goes into ``CASE.RANK.said``."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = command("train", str(folder.with_suffix(".json")))
    folder.with_suffix(f".{RANK}.said").write_text(json.dumps({"status": code, "said": said.getvalue()}), encoding="utf-8")


def command(*words: str) -> Any:
    """The exit status of ``python -m sft WORDS``."""
    with mock.patch.object(sys, "argv", ["sft", *words]):
        try:
            runpy.run_module("sft", run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0


def shard(whole: torch.nn.Module, layers: Sequence[torch.nn.Module], **options: Any) -> None:
    for module in (*layers, whole):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)), **options)
    assert all(isinstance(p, DTensor) for p in whole.parameters()), "not sharded"


def sharded_steps(folder: Path) -> None:
    """Six steps on shards; the whole weights go into ``CASE.pt``."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    register()
    model, store, plan = case(world=dist.get_world_size())
    shard(model, model.model.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = PlannedBatches(store, plan, None)
    each = plan.accumulation * plan.world
    for step in range(len(plan.steps)):
        for micro in range(plan.accumulation):
            loss = step_loss(model, batches[step * each + micro * plan.world + RANK]) * plan.world
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    full = {k: v.full_tensor() for k, v in model.state_dict().items()}
    if RANK == 0:
        torch.save(full, folder.with_suffix(".pt"))


def sums(folder: Path) -> None:
    """A recipe's FSDP policy: what its adapters' file holds, and how the gradients of a step add up."""
    register()
    recipe = build(Recipe, Document(json.loads(folder.with_suffix(".json").read_text(encoding="utf-8")), {}, "test.yaml"))
    plan = case(world=2)[2]
    arguments = training_arguments(recipe, plan, torch.device("cpu"))  # joins the process group
    assert arguments.process_index == RANK
    assert arguments.accelerator_config.gradient_accumulation_kwargs["sync_each_batch"] is True
    policy = arguments.fsdp_plugin_args["mixed_precision_policy"]
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    adapters_are_gathered(policy)
    gradients_add_up(policy)


def adapters_are_gathered(policy: Any) -> None:
    adapted = adapters.attach(case(world=2)[0], LoraSection(rank=3, alpha=6.0), (), seed=4)
    before = {k: v.clone() for k, v in adapters.adapter_state(adapted).items()}
    whole: Any = adapted  # a module's attributes are any
    shard(adapted, whole.get_base_model().model.layers, mp_policy=policy)
    after = adapters.adapter_state(adapted)
    assert before.keys() == after.keys()
    assert all(not isinstance(after[k], DTensor) and torch.equal(before[k], after[k]) for k in before)


def gradients_add_up(policy: Any) -> None:
    model, store, plan = case(world=2)
    shard(model, model.model.layers, mp_policy=policy)
    parameters = dict(model.named_parameters())
    batches = PlannedBatches(store, plan, None)
    assert plan.accumulation > 1
    alone: list[dict[str, torch.Tensor]] = []
    for gather in (False, True):
        model.zero_grad()
        for micro in range(plan.accumulation):
            (step_loss(model, batches[micro * 2 + RANK]) * 2).backward()
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


CASES: dict[str, Callable[[Path], None]] = {
    "full": train,
    "lora": train,
    "sharded": sharded_steps,
    "sums": sums,
    "refused": refuse,
}


def main() -> None:
    root = Path(sys.argv[1])
    for name in sys.argv[2:]:
        with mock.patch.dict(os.environ):  # the trainer's arguments leave marks there, FSDP's for one
            CASES[name](root / name)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        (root / f"{name}.{RANK}.passed").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
