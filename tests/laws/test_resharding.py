"""Two and four processes that shard train as one does, through the command line; a run goes on with any number of them.

All of it in float32 on CPUs (gloo). The runs are of 6 steps with a checkpoint after every second one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft.engine.metrics import read_metrics
from sft.errors import InputError
from sft.train import run
from tests.laws import record_law
from tests.laws.conftest import KEPT, LORA, Ranks, stopped_at_2
from tests.runs import tiny_recipe


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    (folder,) = (run_dir / name for name in ("model", "adapter") if (run_dir / name).is_dir())
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


def losses(run_dir: Path) -> list[float]:
    return [line[key] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line for key in ("loss", "grad_norm")]


def single(ranks: Ranks, name: str) -> Path:
    """The run of one process that a case must equal."""
    return ranks.root / ("one_lora" if "lora" in name else "one")


def same(name: str, single: Path, other: Path) -> None:
    left, right = weights(single), weights(other)
    assert left.keys() == right.keys()
    moved = max(float((left[k] - right[k]).abs().max()) for k in left)
    apart = max(abs(a / b - 1) for a, b in zip(losses(single), losses(other), strict=True))
    record_law(f"{name}: weights", moved, 1e-5)
    record_law(f"{name}: losses and gradient norms, relative", apart, 1e-6)
    assert moved < 1e-5
    assert apart < 1e-6


@pytest.mark.parametrize("name", ["fsdp", "fsdp_lora", "compiled", "compiled_ddp", "four"])
def test_shards_are_one_process(ranks: Ranks, name: str) -> None:
    ranks.through(name)
    same(f"{name} = one process, 6 steps", single(ranks, name), ranks.root / name)
    about = json.loads((ranks.root / name / "run.json").read_text())
    assert about["plan"]["sharding"] == ("none" if name == "compiled_ddp" else "fsdp")


@pytest.mark.parametrize("name", ["compiled", "compiled_ddp"])
def test_layers_are_compiled_in_the_first_micro_batch_only(ranks: Ranks, name: str) -> None:
    ranks.through(name)
    for rank in (0, 1):
        graphs = json.loads((ranks.root / f"{name}.{rank}.graphs").read_text())
        assert len(graphs) > 3
        assert graphs[0] > 0
        assert set(graphs) == {graphs[0]}


@pytest.mark.parametrize("name", ["two_to_four", "one_to_four", "lora_two_to_four"])
def test_more_processes_go_on(ranks: Ranks, name: str) -> None:
    ranks.through(name)
    same(f"{name}, from step 2 = one process", single(ranks, name), ranks.root / name)
    (resumed,) = json.loads((ranks.root / name / "run.json").read_text())["resumed"]
    before = {"world": 1, "sharding": "none"} if name == "one_to_four" else {"world": 2, "sharding": "fsdp"}
    assert resumed == {"step": 2, "from": before, "to": {"world": 4, "sharding": "fsdp"}}


@pytest.mark.parametrize("name", ["four", "fsdp_lora", "full", "lora"])
def test_one_process_goes_on(ranks: Ranks, name: str, tmp_path: Path) -> None:
    ranks.through(name)
    alone = stopped_at_2(ranks.root / name, tmp_path / "alone")
    recipe = tiny_recipe(ranks.root / name, lora=LORA if "lora" in name else None, **KEPT)
    run(recipe.model_copy(update={"output": recipe.output.model_copy(update={"dir": str(alone)})}), resume=True)
    same(f"{name} to one process, from step 2 = one process", single(ranks, name), alone)


def test_a_checkpoint_holds_each_entry_once_and_exactly(ranks: Ranks) -> None:
    """The shards of four, put together by hand, are the states of one process but for the order of sums; no pickled index."""
    ranks.through("four")
    checkpoint = ranks.root / "four" / "checkpoint-2"
    assert not list(checkpoint.glob("**/.metadata"))
    assert not list(checkpoint.glob("*.safetensors"))
    single = torch.load(ranks.root / "one" / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    for folder, parts in (("weights", 1), ("optimizer", 3)):
        files = sorted((checkpoint / folder).glob("*.safetensors"))
        assert len(files) == 4
        entries = 0
        for path in files:
            with safe_open(path, framework="pt") as shard:
                entries += sum(shard.get_tensor(key).numel() for key in shard.keys())  # noqa: SIM118 (not a dict)
        whole = sum(tensor.numel() for tensor in weights(ranks.root / "one").values())
        scalars = 0 if folder == "weights" else len(single)  # a count of steps for each parameter
        assert entries == whole * max(1, parts - 1) + scalars


def test_the_export_is_an_ordinary_model(ranks: Ranks) -> None:
    ranks.through("four")
    model = AutoModelForCausalLM.from_pretrained(ranks.root / "four" / "model")
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.dtype == torch.float32
    exported = weights(ranks.root / "four")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in model.state_dict().items())


def test_stochastic_rounding_does_not_depend_on_shards(ranks: Ranks) -> None:
    ranks.through("stochastic")
    ranks.through("bfloat16")
    assert {tensor.dtype for tensor in weights(ranks.root / "bfloat16").values()} == {torch.bfloat16}


def test_shards_need_not_be_even(ranks: Ranks) -> None:
    ranks.through("odd")


def test_one_process_cannot_shard(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"train\.sharding: fsdp needs several processes and this is one; .*torchrun .*train\.sharding: none"
    ):
        run(tiny_recipe(tmp_path / "run", train__sharding="fsdp"))
