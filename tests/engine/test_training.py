"""Steps by tokens instead of rows: the same rows in the same order however they are cut, and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft.data.dataset import prepare
from sft.data.tokenize import RowEncoder
from sft.engine.batches import PlannedBatches
from sft.engine.metrics import read_metrics
from sft.model.tokenizer import tokenizer_for
from sft.recipe import Recipe
from sft.train import run, step_plan
from tests.laws.test_resume import curve, run_until, weights
from tests.runs import tiny_recipe

BY_TOKENS: dict[str, Any] = {"train__examples_per_step": None, "train__tokens_per_step": 200, "train__tokens_per_device": 256}


def batches(recipe: Recipe, world: int = 1) -> tuple[PlannedBatches, Any]:
    tokenizer, template, _ = tokenizer_for(recipe)
    prepared = prepare(recipe, tokenizer, RowEncoder(tokenizer, template))
    plan = step_plan(recipe, prepared, world)
    padded = recipe.train.batching == "padded"
    return PlannedBatches(prepared.train, plan, tokenizer.pad_token_id if padded else None), plan


def test_a_step_holds_as_many_rows_as_fit_in_draw_order(tmp_path: Path) -> None:
    made, plan = batches(tiny_recipe(tmp_path / "run", **BY_TOKENS))
    order = np.concatenate(plan.steps)
    ends = np.cumsum([len(rows) for rows in plan.steps])
    for step, rows in enumerate(plan.steps):
        assert plan.total_tokens(step) <= 200
        if ends[step] < len(order) and step + 1 not in plan.epoch_ends:  # one more row would not have fitted
            assert plan.total_tokens(step) + int(plan.lengths[order[ends[step]]]) > 200
        assert len(rows) > 0
    assert (
        sorted(order[: len(order) // 2].tolist()) == sorted(order[len(order) // 2 :].tolist()) == list(range(len(made.store)))
    )


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("change", [{"train__tokens_per_device": 64}, {"train__batching": "padded"}], ids=["smaller", "padded"])
def test_every_cut_holds_the_same_rows_in_each_step(tmp_path: Path, change: dict[str, Any], world: int) -> None:
    _, plan = batches(tiny_recipe(tmp_path / "run", **BY_TOKENS))
    cut, other = batches(tiny_recipe(tmp_path / "other", **(BY_TOKENS | change)), world)
    assert [rows.tolist() for rows in other.steps] == [rows.tolist() for rows in plan.steps]
    each = other.accumulation * world
    for step in range(len(other.steps)):
        micro = [cut[step * each + i] for i in range(each)]
        assert {batch["step_tokens"] for batch in micro} == {plan.trained_tokens(step)}
        assert sum(len(batch["targets"]) for batch in micro) == plan.trained_tokens(step)


def test_packed_is_padded(tmp_path: Path) -> None:
    """Trained for real: the losses of all steps, and the weights behind them."""
    run(tiny_recipe(tmp_path / "flat", **BY_TOKENS))
    run(tiny_recipe(tmp_path / "padded", **(BY_TOKENS | {"train__batching": "padded"})))
    run(tiny_recipe(tmp_path / "small", **(BY_TOKENS | {"train__tokens_per_device": 64})))
    flat = weights(tmp_path / "flat")
    losses = [line["loss"] for line in read_metrics(tmp_path / "flat" / "metrics.jsonl") if "loss" in line]
    for other in ("padded", "small"):
        there = [line["loss"] for line in read_metrics(tmp_path / other / "metrics.jsonl") if "loss" in line]
        assert there == pytest.approx(losses, abs=1e-4)
        found = weights(tmp_path / other)
        assert max(float((flat[key] - found[key]).abs().max()) for key in flat) < 1e-4


RESUMED = BY_TOKENS | {"output__save_every": 1, "data__holdout": 4}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("tokens") / "straight"
    run(tiny_recipe(folder, **RESUMED))
    return folder


@pytest.mark.parametrize("step", [1, 3])
def test_resume_is_straight(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    stopped = tiny_recipe(tmp_path / "stopped", **RESUMED)
    run_until(stopped, step, monkeypatch)
    run(stopped, resume=True)
    left, right = weights(straight), weights(tmp_path / "stopped")
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert curve(straight) == curve(tmp_path / "stopped")
