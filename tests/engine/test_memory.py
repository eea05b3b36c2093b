"""A run with ``auto`` is the run with the values that were chosen; what is chosen was measured to fit; resuming keeps it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.data.packing import StepPlan
from sft.data.store import RowStore
from sft.engine import memory
from sft.engine.checkpointing import decoder_layers
from sft.engine.recompute import Recomputed
from sft.errors import InputError, ResumeError
from sft.plan_memory import checkpointed_layers, model_shape
from sft.recipe import Recipe
from sft.run.screen import memory_line
from sft.train import run
from tests.builders import LLAMA, byte_level, save_tiny
from tests.laws.test_resume import Stop, curve, run_until, weights
from tests.runs import tiny_recipe

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
AUTO: dict[str, Any] = {"train__tokens_per_device": "auto", "train__gradient_checkpointing": "auto"}
LAYERS = 2


class FakeMeter:
    """Runs what the meter of a GPU runs, and says what it was made to say: so much per layer and token, recomputed layers an eighth."""

    def __init__(self, model: torch.nn.Module, store: RowStore, budget: int) -> None:
        self.model, self.store, self.most = model, store, budget
        self.measured: list[tuple[int, int]] = []

    def budget(self) -> int:
        return self.most

    def measure(self, recipe: Recipe, plan: StepPlan, stand_ins: int) -> float:
        memory.run_fullest(recipe, plan, self.model, self.store, None)
        layers = decoder_layers(self.model)
        recomputed = [layer.forward for layer in layers if isinstance(layer.forward, Recomputed)]
        k, away = len(recomputed), [each.memory is not None for each in recomputed]
        assert k == checkpointed_layers(recipe, model_shape(memory._config(self.model)))
        assert away == [recipe.train.activation_offload is True] * k
        self.measured.append((recipe.row_tokens, k))
        return needed(recipe.row_tokens, k, layers=len(layers), offload=any(away))


def needed(tokens: int, k: int, *, layers: int = LAYERS, offload: bool = False) -> float:
    return 1_000_000 + tokens * 10_000 * (layers - k + (0 if offload else k / 8))


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> list[FakeMeter]:
    """Fake meters of 3.5 MB; the list has those that were made."""
    made: list[FakeMeter] = []

    def of(recipe: Recipe, model: torch.nn.Module, store: RowStore, pad_id: int | None, world: int) -> FakeMeter:
        made.append(FakeMeter(model, store, recipe.memory.budget_bytes or 3_500_000))
        return made[-1]

    monkeypatch.setattr(memory, "meter_for", of)
    return made


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_auto_is_the_run_with_the_chosen_values(tmp_path: Path, meters: list[FakeMeter], lora: dict[str, Any] | None) -> None:
    about = run(tiny_recipe(tmp_path / "auto", lora=lora, **AUTO))
    chosen = about["memory"]
    assert (chosen["tokens_per_device"], chosen["checkpointed_layers"]) in meters[0].measured
    assert chosen["measured_gib"] * 2**30 == pytest.approx(needed(chosen["tokens_per_device"], chosen["checkpointed_layers"]))
    assert chosen["headroom_gib"] >= 0.03 * chosen["budget_gib"]
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["memory"] == chosen
    values = {
        "train__tokens_per_device": chosen["tokens_per_device"],
        "train__gradient_checkpointing": chosen["checkpointed_layers"] or False,
    }
    explicit = run(tiny_recipe(tmp_path / "explicit", lora=lora, **values))
    assert explicit["memory"] is None
    assert len(meters) == 1  # nothing to choose, nothing to hold to
    assert curve(tmp_path / "auto") == curve(tmp_path / "explicit")
    mine, other = weights(tmp_path / "auto"), weights(tmp_path / "explicit")
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_inputs_leave_the_gpu_where_nothing_else_fits_and_change_no_bit(tmp_path: Path, meters: list[FakeMeter]) -> None:
    save_tiny(tmp_path / "base", byte_level(), LLAMA | {"num_hidden_layers": LAYERS + 2})
    recipe = tiny_recipe(tmp_path / "auto", train__gradient_checkpointing="auto", train__activation_offload="auto")
    recipe = recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"budget": "0.0015GiB"})})
    chosen = run(recipe)["memory"]
    assert (chosen["checkpointed_layers"], chosen["offload"]) == (LAYERS + 2, True)
    assert chosen["setting"] == "256 tokens per device, all 4 layers checkpointed, their inputs in main memory"
    run(tiny_recipe(tmp_path / "plain"))
    mine, other = weights(tmp_path / "auto"), weights(tmp_path / "plain")
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert meters[0].measured[-1] == (256, LAYERS + 2)


def test_a_resumed_run_keeps_what_was_chosen(tmp_path: Path, meters: list[FakeMeter], monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(tiny_recipe(tmp_path / "straight", output__save_every=1, **AUTO))
    recipe = tiny_recipe(tmp_path / "stopped", output__save_every=1, **AUTO)
    run_until(recipe, 3, monkeypatch)
    roomier = recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"budget": "1GiB"})})
    about = run(roomier, resume=True)  # more memory would be another choice
    assert meters[2].measured == [(straight["memory"]["tokens_per_device"], straight["memory"]["checkpointed_layers"])]
    assert about["memory"]["setting"] == straight["memory"]["setting"]
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    mine, other = weights(tmp_path / "stopped"), weights(tmp_path / "straight")
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_checkpoint_without_a_record_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run", output__save_every=1, **AUTO)
    run_until(recipe, 3, monkeypatch)
    path = tmp_path / "run" / "checkpoint-3" / "vicugna.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "memory"}))
    with pytest.raises(ResumeError, match=r"no record of what auto became; state train\.tokens_per_device"):
        run(recipe, resume=True)


def test_without_a_gpu_auto_measures_nothing(tmp_path: Path) -> None:
    about = run(tiny_recipe(tmp_path / "run", **AUTO))
    assert about["memory"] == {
        "setting": "4,096 tokens per device, no layer checkpointed",
        "tokens_per_device": 4096,
        "checkpointed_layers": 0,
        "offload": False,
    }
    assert memory_line(about["memory"]) == "4,096 tokens per device, no layer checkpointed (no GPU, not measured)"


def test_what_the_recipe_states_is_kept_and_refused_if_it_does_not_fit(tmp_path: Path, meters: list[FakeMeter]) -> None:
    recipe = tiny_recipe(tmp_path / "stated", train__gradient_checkpointing="auto", train__tokens_per_device=128)
    about = run(recipe)
    assert about["memory"]["tokens_per_device"] == 128
    assert {tokens for tokens, _ in meters[0].measured} == {128}
    stated = tiny_recipe(tmp_path / "stated2", train__tokens_per_device=256)
    stated = stated.model_copy(update={"memory": stated.memory.model_copy(update={"budget": "0.005GiB"})})
    with pytest.raises(
        InputError,
        match=r"even the smallest setting \(256 tokens per device, no layer checkpointed\) takes 0.0 GiB \(measured\).*Largest parts",
    ):
        run(stated)
    assert meters[1].measured == [(256, 0)]


def test_the_line_on_the_screen() -> None:
    record = {
        "setting": "8,192 tokens per device, 19 of 32 layers checkpointed",
        "measured_gib": 13.9,
        "budget_gib": 15.0,
        "headroom_gib": 1.1,
    }
    assert memory_line(record) == (
        "13.9 of 15.0 GiB (measured on the fullest micro-batch); 8,192 tokens per device, 19 of 32 layers checkpointed, headroom 1.1 GiB"
    )


def test_memory_that_runs_out_at_once_is_refused_with_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FakeMeter):
        def measure(self, recipe: Recipe, plan: StepPlan, stand_ins: int) -> float:
            return math.inf

    monkeypatch.setattr(memory, "meter_for", lambda recipe, model, store, pad_id, world: Full(model, store, 10_000))
    with pytest.raises(InputError, match=r"all 2 layers checkpointed\).*estimated; memory ran out when it was tried"):
        run(tiny_recipe(tmp_path / "run", **AUTO))


def test_measuring_leaves_no_gradient_and_the_random_state(tmp_path: Path, meters: list[FakeMeter]) -> None:
    seen: list[tuple[bool, bool]] = []
    original = FakeMeter.measure

    def watched(self: FakeMeter, recipe: Recipe, plan: StepPlan, stand_ins: int) -> float:
        before = torch.get_rng_state()
        original(self, recipe, plan, stand_ins)
        clean = all(parameter.grad is None for parameter in self.model.parameters())
        seen.append((clean, torch.equal(before, torch.get_rng_state())))
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeMeter, "measure", watched)
        with pytest.raises(Stop):
            run(tiny_recipe(tmp_path / "run", lora=LORA, **AUTO))
    assert seen == [(True, True)]


def test_a_budget_without_a_gpu_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    recipe = recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"budget": "2GiB"})})
    with pytest.raises(InputError, match=r"memory\.budget: there is no GPU whose memory could be capped; remove it"):
        run(recipe)
