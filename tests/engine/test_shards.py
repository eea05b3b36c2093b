"""Shards on disk, by one process: what is written comes back exactly, and what does not belong is refused.

Several processes: ``tests/laws/test_resharding.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from sft.engine import checkpoints, manifest, sharding, shards
from sft.engine.stochastic_adamw import StochasticAdamW
from sft.errors import InputError, ModelError, ResumeError, VerificationError
from sft.model import adapters
from tests.builders import LLAMA, tiny_model
from tests.runs import tiny_recipe

VOCABULARY = 200


def moved(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some steps by gradients that follow from the weights."""
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() * 0.1 + 0.01
        optimizer.step()


def equal(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, StochasticAdamW])
def test_states_come_back_exactly_and_the_run_goes_on_the_same(kind: Any, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if kind is StochasticAdamW else torch.float32
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)).to(dtype)
    optimizer = kind(model.parameters(), lr=1e-2)
    moved(model, optimizer, 3)
    shards.write(tmp_path / "weights", shards.named_weights(model))
    shards.write_optimizer(tmp_path / "optimizer", model, optimizer)
    other = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)).to(dtype)
    again = kind(other.parameters(), lr=1e-2)
    shards.read(tmp_path / "weights", shards.named_weights(other))
    shards.read_optimizer(tmp_path / "optimizer", other, again)
    assert equal(model, other)
    for (name, state), (also, back) in zip(
        shards.optimizer_states(model, optimizer), shards.optimizer_states(other, again), strict=True
    ):
        assert name == also
        assert state.keys() == back.keys()
        assert all(
            type(back[key]) is type(value) and torch.equal(torch.as_tensor(back[key]), torch.as_tensor(value))
            for key, value in state.items()
        )
    moved(model, optimizer, 2)
    moved(other, again, 2)
    assert equal(model, other)


def test_states_of_a_run_without_shards_are_spread(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    optimizer, again = torch.optim.AdamW(model.parameters()), torch.optim.AdamW(other.parameters())
    moved(model, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    shards.spread_optimizer(tmp_path / "optimizer.pt", other, again)
    for mine, back in zip(model.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[mine][key], again.state[back][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    fewer = torch.nn.Linear(4, 3, bias=False)
    with pytest.raises(ResumeError, match=r"optimizer\.pt: holds the states of 2 parameters, this run moves 1"):
        shards.spread_optimizer(tmp_path / "optimizer.pt", fewer, torch.optim.AdamW(fewer.parameters()))


def test_other_shapes_and_names_are_refused(tmp_path: Path) -> None:
    shards.write(tmp_path / "s", {"a": torch.ones(4, 3)})
    with pytest.raises(ResumeError, match=r"s: cannot be read into this model: .*[Ss]ize mismatch .* for a"):
        shards.read(tmp_path / "s", {"a": torch.zeros(5, 3)})
    with pytest.raises(ResumeError, match=r"s: cannot be read into this model: .*Missing key .*b"):
        shards.read(tmp_path / "s", {"b": torch.zeros(4, 3)})


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(VOCABULARY, {**LLAMA, "tie_word_embeddings": request.param})


def test_an_export_is_the_model_in_files_of_a_size(model: PreTrainedModel, tmp_path: Path) -> None:
    most = shards.export_weights(model, tmp_path / "out", main=True, most_bytes=20_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    largest = max(t.numel() * t.element_size() for t in model.state_dict().values())
    assert most <= max(20_000, largest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files}
    assert shards.verify_export(model, tmp_path / "out") == len(shards.named_weights(model))
    assert shards.verify_gathered(model, tmp_path / "out", main=True) == len(shards.named_weights(model))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_an_export_that_is_not_the_model_is_found_out(model: PreTrainedModel, tmp_path: Path) -> None:
    shards.export_weights(model, tmp_path, main=True)
    (path,) = tmp_path.glob("*.safetensors")
    good = load_file(path)
    name = "model.norm.weight"

    def found(**changed: torch.Tensor) -> str:
        kept = {key: value for key, value in good.items() if key != name or name not in changed}
        save_file(kept | {key: value for key, value in changed.items() if value.numel()}, path, metadata={"format": "pt"})
        said = []
        for check in (shards.verify_export, lambda m, f: shards.verify_gathered(m, f, main=True)):
            with pytest.raises(VerificationError) as caught:
                check(model, tmp_path)
            said.append(str(caught.value))
        return said[0]

    assert f"{name} differs from the model's" in found(**{name: good[name] + 1})
    assert "alien is not a tensor of the model" in found(alien=torch.ones(1))
    assert f"holds {len(good) - 1} tensors, the model {len(good)}" in found(**{name: torch.empty(0)})


def checkpoint_of(folder: Path, world: int) -> Path:
    folder.mkdir()
    for name in ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_checkpoint_tells_how_many_wrote_it(world: int, tmp_path: Path) -> None:
    assert checkpoints.world_of(checkpoint_of(tmp_path / "checkpoint-3", world)) == world


def test_another_number_of_processes_draws_anew_from_seed_step_and_rank(tmp_path: Path) -> None:
    def drawn(seed: int, step: int, rank: int) -> float:
        trainer = SimpleNamespace(
            args=SimpleNamespace(world_size=2, seed=seed, process_index=rank), state=SimpleNamespace(global_step=step)
        )
        with torch.random.fork_rng():
            sharding.Sharded._load_rng_state(cast(Any, trainer), str(folder))
            return torch.rand(()).item()

    folder = checkpoint_of(tmp_path / "checkpoint-3", 4)
    assert drawn(1, 3, 0) == drawn(1, 3, 0)
    assert len({drawn(1, 3, 0), drawn(1, 3, 1), drawn(1, 4, 0), drawn(2, 3, 0)}) == 4


def test_states_that_an_earlier_version_gathered_are_refused(tmp_path: Path) -> None:
    (tmp_path / "optimizer.bin").touch()
    trainer = SimpleNamespace(is_fsdp_enabled=True, model=None, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    with pytest.raises(ResumeError, match=r"holds neither optimizer/ nor optimizer\.pt: an earlier version wrote it"):
        sharding.Sharded._load_optimizer_and_scheduler(cast(Any, trainer), str(tmp_path))


def test_there_must_be_a_gpu_to_offload_from(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", train__sharding="fsdp", train__cpu_offload=True)
    with pytest.raises(InputError, match=r"train\.cpu_offload: there is no GPU to offload from; set it to false"):
        sharding.refuse_alone(recipe, 2, torch.device("cpu"))
    sharding.refuse_alone(recipe, 2, torch.device("cuda"))


def test_adapters_on_a_tied_model_are_not_sharded(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", lora={"rank": 2, "alpha": 4}, train__sharding="fsdp")
    assert recipe.lora is not None

    def adapted(tied: bool) -> torch.nn.Module:
        base = tiny_model(VOCABULARY, {**LLAMA, "tie_word_embeddings": tied})
        return adapters.attach(base, recipe.lora, (), seed=0)  # type: ignore[arg-type]  # it has adapters

    with pytest.raises(
        ModelError, match=r"train\.sharding: fsdp cannot shard adapters on a model whose output matrix is its embedding"
    ):
        sharding.refuse_tied_adapters(recipe, adapted(True))
    sharding.refuse_tied_adapters(recipe, adapted(False))


def test_how_a_run_is_spread_may_change_and_is_listed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    values: dict[str, Any] = {"train.seed": 1}
    same = {"recipe": values, "files": {}, "template": "t", "tokenizer": "k", "data": "d"}
    earlier = [{"step": 3, "from": {"world": 1, "sharding": "none"}, "to": {"world": 4, "sharding": "fsdp"}}]
    old = {"identity": {**same, "recipe": {**values, "train.sharding": "fsdp"}}}  # as manifests said once
    (checkpoint / "vicugna.json").write_text(
        json.dumps({**old, "plan": {"world": 4, "sharding": "fsdp"}, "resumed": earlier}), encoding="utf-8"
    )
    found = manifest.refuse_changes(checkpoint, same, {"world": 2, "sharding": "none", "steps": 9})
    now = {"step": 7, "from": {"world": 4, "sharding": "fsdp"}, "to": {"world": 2, "sharding": "none"}}
    assert found == [*earlier, now]
