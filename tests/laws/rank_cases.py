"""What two processes do together, one case after another in one launch, for importing costs more than training does here::

    torchrun --nproc-per-node=2 -m tests.laws.rank_cases FOLDER CASE...

``FOLDER/CASE.json`` is the recipe of a case that has one. A rank that is through with a case leaves ``FOLDER/CASE.RANK.passed``;
the first fault ends the launch with its traceback.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import Trainer

from sft.config import Document, build
from sft.engine import regional, shards
from sft.engine.batches import PlannedBatches
from sft.engine.loss import step_loss
from sft.engine.sharding import Sharded
from sft.engine.stochastic_adamw import StochasticAdamW
from sft.engine.trainer import training_arguments
from sft.errors import ResumeError
from sft.model import adapters
from sft.model.attention import register
from sft.recipe import LoraSection, Recipe
from tests.laws.ranks import case


def rank() -> int:
    """This process among those of the launch."""
    return int(os.environ["RANK"])


def train(folder: Path) -> None:
    """The command line, as torchrun starts it."""
    code = command("train", str(folder.with_suffix(".json")))
    assert code == 0, f"exit status {code}"


def refuse(folder: Path) -> None:
    """A run that accelerate does not shard must not start: what it says and how it ends goes into ``CASE.RANK.said``."""
    left_alone = mock.patch.object(Sharded, "create_accelerator_and_postprocess", Trainer.create_accelerator_and_postprocess)
    with contextlib.redirect_stderr(io.StringIO()) as said, left_alone:
        code = command("train", str(folder.with_suffix(".json")))
    folder.with_suffix(f".{rank()}.said").write_text(json.dumps({"status": code, "said": said.getvalue()}), encoding="utf-8")


def go_on(folder: Path) -> None:
    """The command line, with ``--resume``."""
    code = command("train", str(folder.with_suffix(".json")), "--resume")
    assert code == 0, f"exit status {code}"


def compiled(folder: Path) -> None:
    """The command line with layers compiled, though only into graphs; the graphs of each micro-batch go into ``CASE.RANK.graphs``."""
    graphs: list[int] = []

    def counted(*arguments: Any) -> torch.Tensor:
        loss = step_loss(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return loss

    counters.clear()
    torch.compiler.reset()
    with (
        mock.patch.object(regional, "compile_layers", functools.partial(regional.compile_layers, backend="eager")),
        mock.patch("sft.engine.trainer.step_loss", counted),
    ):
        train(folder)
    folder.with_suffix(f".{rank()}.graphs").write_text(json.dumps(graphs), encoding="utf-8")


def stochastic_steps(folder: Path) -> None:
    """Steps of AdamW with stochastic rounding on shards, and on the whole tensors, by the same gradients: equal to the bit."""
    mesh, shapes = init_device_mesh("cpu", (2,)), [(5, 7), (1, 3), (13,), (8, 4)]
    torch.manual_seed(3)
    single = [torch.nn.Parameter(torch.randn(shape, dtype=torch.bfloat16)) for shape in shapes]
    spread = [torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in single]
    optimizers = [StochasticAdamW(weights, lr=1e-3, weight_decay=0.1, seed=5) for weights in (single, spread)]
    for _ in range(4):
        for one, many in zip(single, spread, strict=True):
            one.grad = torch.randn(one.shape, dtype=torch.bfloat16)
            many.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    for one, many in zip(single, spread, strict=True):
        assert torch.equal(one.detach(), shards.whole(many))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizers[0].state[one][key], shards.whole(optimizers[1].state[many][key]))


def odd_shards(folder: Path) -> None:
    """Tensors that do not divide among the ranks, or are fewer than they: written, read back, and exported in several files."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = {"even": (8, 3), "odd": (5, 7), "one": (1, 3), "flat": (13,)}
    torch.manual_seed(1)
    full = {name: torch.randn(shape) for name, shape in shapes.items()}
    live = {name: distribute_tensor(t, mesh, [Shard(0)]) for name, t in full.items()} | {"scalar": torch.tensor([7])}
    shards.write(folder, live, file_bytes=64)
    assert len(list(folder.glob("shard-00001-*.safetensors"))) > 1
    again = {name: torch.zeros_like(t) for name, t in live.items()}
    shards.read(folder, again)
    for name, tensor in full.items():
        assert torch.equal(shards.whole(again[name]), tensor), name
    assert again["scalar"].item() == 7
    with pytest.raises(ResumeError, match=r"cannot be read into this model: .*[Ss]ize mismatch .* for even"):
        shards.read(folder, {"even": torch.zeros(9, 3)})
    with pytest.raises(ResumeError, match=r"cannot be read into this model: .*Missing key .*absent"):
        shards.read(folder, {"absent": torch.zeros(2)})
    dist.barrier()
    if rank() == 0:
        for file in folder.glob("shard-00001-*"):
            file.unlink()
    dist.barrier()
    with pytest.raises(ResumeError, match=r"pieces of even are missing; a file was lost"):
        shards.read(folder, {"even": torch.zeros(8, 3)})


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
    register()
    model, store, plan = case(world=dist.get_world_size())
    shard(model, model.model.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = PlannedBatches(store, plan, None)
    each = plan.accumulation * plan.world
    for step in range(len(plan.steps)):
        for micro in range(plan.accumulation):
            loss = step_loss(model, batches[step * each + micro * plan.world + rank()]) * plan.world
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    full = {k: v.full_tensor() for k, v in model.state_dict().items()}
    if rank() == 0:
        torch.save(full, folder.with_suffix(".pt"))


def sums(folder: Path) -> None:
    """A recipe's FSDP policy: what its adapters' file holds, and how the gradients of a step add up."""
    register()
    recipe = build(Recipe, Document(json.loads(folder.with_suffix(".json").read_text(encoding="utf-8")), {}, "test.yaml"))
    plan = case(world=2)[2]
    arguments = training_arguments(recipe, plan, torch.device("cpu"))  # joins the process group
    assert arguments.process_index == rank()
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
            (step_loss(model, batches[micro * 2 + rank()]) * 2).backward()
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
    "stochastic": stochastic_steps,
    "odd": odd_shards,
    **dict.fromkeys(("fsdp", "fsdp_lora", "bfloat16", "four", "zero", "zero_bfloat16"), train),
    **dict.fromkeys(("compiled", "compiled_ddp"), compiled),
    **dict.fromkeys(("two_to_four", "one_to_four", "lora_two_to_four"), go_on),
}


def main() -> None:
    """``FOLDER CASE...`` as one of the processes that torchrun started, or ``--fork N FOLDER CASE...`` to become N of them here."""
    if sys.argv[1] == "--fork":
        fork(int(sys.argv[2]))
        del sys.argv[1:3]
    root = Path(sys.argv[1])
    for name in sys.argv[2:]:
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        with mock.patch.dict(os.environ):  # the trainer's arguments leave marks there, FSDP's for one
            CASES[name](root / name)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        (root / f"{name}.{rank()}.passed").touch()
    dist.destroy_process_group()


def fork(processes: int) -> None:
    """Go on as each of so many processes, which share what is imported; the one that came in waits and ends with the worst of their ends."""
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes)}
            return
        children.append(child)
    worst = 0
    for _ in children:
        ended, status = os.wait()
        children.remove(ended)
        if status and not worst:
            worst = 1
            for other in children:  # they would wait for the one that is gone
                os.kill(other, signal.SIGTERM)
    sys.exit(worst)


if __name__ == "__main__":
    main()
