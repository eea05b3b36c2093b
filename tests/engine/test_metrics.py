"""metrics.jsonl has each step once, survives a kill, and counts FLOP as its formula says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.engine.metrics import FlopModel, MetricsFile, matmul_rate, peak_memory, read_metrics
from sft.model import adapters
from sft.recipe import LoraSection
from sft.train import run
from tests.builders import LLAMA, OPT, tiny_model
from tests.laws.ranks import case
from tests.runs import tiny_recipe


def test_lines_behind_a_checkpoint_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = MetricsFile(path, None)
    for step in range(1, 6):
        record.write({"step": step, "loss": float(step)})
    again = MetricsFile(path, 3)
    again.write({"step": 4, "loss": 0.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 0.0)]
    MetricsFile(path, None)
    assert read_metrics(path) == []


def test_only_the_last_line_may_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste', encoding="utf-8")
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(json.JSONDecodeError):
        read_metrics(path)


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl", 3).write({"step": 4})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4}]


@pytest.mark.parametrize("frozen", [False, True])
def test_flop_are_the_formula_by_hand(frozen: bool) -> None:
    model, _, plan = case(1)
    shape = FlopModel.of(model, model.config, trainable_base=not frozen)
    body = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert (shape.body, shape.head, shape.layers, shape.width, shape.factor) == (body, 200 * 32, 2, 32, 4 if frozen else 6)
    rows = plan.steps[0]
    tokens, learnt = int(plan.lengths[rows].sum()), int(plan.trained[rows].sum())
    squares = int((plan.lengths[rows].astype(int) ** 2).sum())
    assert shape.step(plan, 0) == shape.factor * (body * tokens + 200 * 32 * learnt) + 6 * 2 * 32 * squares


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_adapters_are_not_counted_as_body(config: dict[str, Any]) -> None:
    plain = tiny_model(300, config)
    before = FlopModel.of(plain, plain.config, trainable_base=False)
    section = LoraSection.model_validate({"rank": 4, "alpha": 8.0})
    adapted = adapters.attach(plain, section, (), seed=0)
    assert FlopModel.of(adapted, adapted.config, trainable_base=False) == before


def test_every_step_is_recorded_with_every_figure(tmp_path: Path) -> None:
    about = run(tiny_recipe(tmp_path / "run", output__eval_every=2, data__holdout=4))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, about["plan"]["steps"] + 1))
    figures = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "trained_tokens_per_second", "utilisation"}
    figures |= {"data_wait", "seconds", "memory_gib", "epoch", "step"}
    for line in steps:
        assert figures <= line.keys()
        assert line["trained_tokens_per_second"] < line["tokens_per_second"]
        assert 0 <= line["data_wait"] <= 1
        assert 0 < line["utilisation"] < 1
    assert [line["step"] for line in lines if "eval" in line] == [0, 2, 4, about["plan"]["steps"]]
    assert steps[-1]["epoch"] == 2.0


def test_limits_are_measured_on_this_machine() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8
    before = peak_memory(torch.device("cpu"))
    assert 0 < before <= peak_memory(torch.device("cpu")) < 2**20
