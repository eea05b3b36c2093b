"""A scale changes no bit of what is learnt; an overflow halves it, leaves the step out, is counted, and ends the run below the floor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import sft.engine.trainer as trainer
from sft.config import load
from sft.engine.loss import step_loss
from sft.engine.loss_scale import LossScale
from sft.engine.metrics import read_metrics
from sft.errors import InputError, NonFiniteError, RecipeError
from sft.recipe import LossScaleSection, Recipe
from sft.train import run
from tests.runs import tiny_recipe

QUIET: dict[str, Any] = {"output__eval_every": None, "output__merge": False}


def stepped(gradients: list[float], **section: Any) -> tuple[list[dict[str, float]], float]:
    """A weight of 0 under SGD by 1 after gradients, and the figures behind each step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scale, found = LossScale(scaler, LossScaleSection(**section)), []
    for number, gradient in enumerate(gradients, start=1):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scale.after_step(number)
        found.append(scale.figures())
    return found, weight.item()


def test_overflows_halve_and_are_left_out_and_rest_doubles() -> None:
    found, weight = stepped([1.0, float("inf"), 1.0, 1.0, 1.0, float("nan")], start=8.0, growth_interval=3)
    assert [line["loss_scale"] for line in found] == [8, 4, 4, 4, 8, 4]
    assert [line["steps_skipped"] for line in found] == [0, 1, 1, 1, 1, 2]
    assert weight == -4.0


def test_the_run_ends_below_the_floor() -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"step 4: the loss scale fell to 0\.5, below train\.loss_scale\.floor \(1\); 3 steps overflowed and changed no weight\. "
        r"Lower train\.learning_rate, or use bfloat16 or float32 \(model\.compute_dtype\)",
    ):
        stepped([1.0, *[float("inf")] * 9], start=4.0)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 under a scaler: accelerate scales on GPUs only, and there float16 only."""
    made = trainer.PlannedTrainer.create_accelerator_and_postprocess

    def create(self: Any) -> None:
        made(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu")

    def unscale(self: Accelerator, optimizer: Any = None) -> None:
        for each in self._optimizers:
            self.scaler.unscale_(each.optimizer)

    monkeypatch.setattr(trainer.PlannedTrainer, "create_accelerator_and_postprocess", create)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)


def curve(folder: Path) -> list[tuple[int, float, float]]:
    return [
        (line["step"], line["loss"], line["learning_rate"]) for line in read_metrics(folder / "metrics.jsonl") if "loss" in line
    ]


def test_a_scaled_run_is_the_run(scaled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_recipe(tmp_path / "scaled", **QUIET))
    assert [line["loss_scale"] for line in read_metrics(tmp_path / "scaled" / "metrics.jsonl") if "loss" in line][-1] == 65536.0
    monkeypatch.undo()
    run(tiny_recipe(tmp_path / "plain", **QUIET))
    assert curve(tmp_path / "scaled") == curve(tmp_path / "plain")
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("scaled", "plain"))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_step_that_overflows_teaches_nothing_and_is_seen_also_after_resuming(
    scaled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def overflow(model: Any, batch: Any, head: Any) -> torch.Tensor:
        loss = step_loss(model, batch, head)
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 3:  # two micro-batches a step
                loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(trainer, "step_loss", overflow)
    recipe = tiny_recipe(tmp_path / "run", **QUIET, output__save_every=3, train__warmup_steps=2)
    run(recipe)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["steps_skipped"] for line in lines] == [0, *[1] * (len(lines) - 1)]
    assert [line["loss_scale"] for line in lines] == [65536.0, *[32768.0] * (len(lines) - 1)]
    assert lines[1]["learning_rate"] == lines[2]["learning_rate"]  # the schedule waits
    assert "1 steps left out" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        if folder.name != "checkpoint-3":
            shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run" / "model")
    run(recipe, resume=True)
    again = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [(line["step"], line["loss"], line["loss_scale"], line["steps_skipped"]) for line in again] == [
        (line["step"], line["loss"], line["loss_scale"], line["steps_skipped"]) for line in lines
    ]


def test_a_stated_scale_is_refused_where_nothing_is_scaled(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", model__compute_dtype="float16", train__loss_scale={"start": 8.0})
    with pytest.raises(InputError, match=r"train\.loss_scale: only GPUs scale losses, and there is none; remove it"):
        run(recipe)


@pytest.mark.parametrize(
    ("model", "scale", "said"),
    [
        (
            {"compute_dtype": "bfloat16"},
            {},
            r"train\.loss_scale: only float16 products are scaled; remove it, or set model\.compute_dtype",
        ),
        ({"compute_dtype": "float16"}, {"start": 0.5}, r"train\.loss_scale\.start: must be at least floor \(1\), got 0\.5"),
        ({"compute_dtype": "float16"}, {"start": 0.5, "floor": 0.25}, None),
    ],
)
def test_what_may_be_asked(model: dict[str, Any], scale: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run").model_dump(mode="json")
    recipe["model"] |= model
    recipe["train"]["loss_scale"] = scale
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    if said is None:
        assert load(Recipe, file)[0].train.loss_scale == LossScaleSection(**scale)
    else:
        with pytest.raises(RecipeError, match=said):
            load(Recipe, file)
