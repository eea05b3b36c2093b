"""DeepSpeed's ZeRO-3 on two processes trains as one process does. Needs the extra ``deepspeed``; runs on CPUs (gloo)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft.engine.metrics import read_metrics
from sft.engine.sharding import deepspeed_config
from sft.engine.trainer import PlannedTrainer
from sft.errors import NonFiniteError
from sft.train import run
from tests.laws import record_law
from tests.laws.conftest import TRAINED
from tests.laws.launch import faults_of
from tests.runs import tiny_recipe


def test_the_configuration_says_what_the_recipe_means(tmp_path: Path) -> None:
    plain = deepspeed_config(tiny_recipe(tmp_path / "a", train__max_grad_norm=0.5), accumulation=3)
    assert plain["zero_optimization"]["stage"] == 3
    assert (plain["gradient_accumulation_steps"], plain["gradient_clipping"]) == (3, 0.5)
    assert (plain["communication_data_type"], plain["data_types"]["grad_accum_dtype"]) == ("fp32", "fp32")
    assert "torch_autocast" not in plain
    mixed = deepspeed_config(tiny_recipe(tmp_path / "b", model__compute_dtype="bfloat16"), accumulation=1)
    assert mixed["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in mixed


@pytest.mark.parametrize(("deepspeed", "words"), [(True, "its weights are spoilt"), (False, "no weight was changed by it")])
def test_a_loss_that_is_not_finite_says_what_became_of_the_weights(deepspeed: bool, words: str, tmp_path: Path) -> None:
    """DeepSpeed takes its step before anybody sees the gradient."""
    trainer = SimpleNamespace(
        is_deepspeed_enabled=deepspeed,
        plan=SimpleNamespace(steps=[[0]] * 5),
        store=SimpleNamespace(select=lambda rows: SimpleNamespace(names=["rows.jsonl:1"])),
        args=SimpleNamespace(output_dir=str(tmp_path)),
        is_world_process_zero=lambda: False,
    )
    with pytest.raises(NonFiniteError, match=rf"step 5: loss nan, gradient norm inf; {words}\. Its 1 rows \(rows\.jsonl:1\)"):
        PlannedTrainer._stop_non_finite(cast(Any, trainer), 4, float("nan"), float("inf"))


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the extra deepspeed is not installed")
def test_zero_is_one_process(tmp_path: Path) -> None:
    options = {"zero": TRAINED, "zero_bfloat16": {**TRAINED, "model__compute_dtype": "bfloat16"}}
    for name, changes in options.items():
        recipe = tiny_recipe(tmp_path / name, train__sharding="deepspeed", output__drill="on", **changes)
        recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"merge": True})})
        (tmp_path / f"{name}.json").write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    assert faults_of(tmp_path, tuple(options)) == {}
    for name, bounds in (("zero", (1e-5, 1e-6)), ("zero_bfloat16", (3e-2, 1e-2))):
        single = tmp_path / f"{name}_one"
        run(tiny_recipe(single, **options[name]))
        left, right = (load_file(side / "model" / "model.safetensors") for side in (single, tmp_path / name))
        assert left.keys() == right.keys()
        assert {tensor.dtype for tensor in right.values()} == {torch.float32}
        moved = max(float((left[k] - right[k]).abs().max()) for k in left)
        lines = zip(*(read_metrics(side / "metrics.jsonl") for side in (single, tmp_path / name)), strict=True)
        apart = max(abs(a[key] / b[key] - 1) for a, b in lines if "loss" in a for key in ("loss", "grad_norm"))
        record_law(f"2 ranks ZeRO-3 = 1 process, 6 steps ({name}): weights", moved, bounds[0])
        record_law(f"2 ranks ZeRO-3 = 1 process, 6 steps ({name}): losses and norms", apart, bounds[1])
        assert moved < bounds[0]
        assert apart < bounds[1]
    AutoModelForCausalLM.from_pretrained(tmp_path / "zero" / "merged")
