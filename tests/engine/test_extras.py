"""A recipe that asks for what is not installed is refused before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sft.engine.extras import refuse_missing_packages
from sft.errors import InputError
from sft.train import run
from tests.runs import tiny_recipe


def test_all_that_is_missing_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    missing = ("bitsandbytes", "wandb", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in missing else there(name, *more))
    changes: dict[str, Any] = {"train__optimizer": "adamw_8bit", "output__report_to": ("wandb", "mlflow")}
    recipe = tiny_recipe(tmp_path / "run", **changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refusal:
        run(recipe)
    assert str(refusal.value).splitlines() == [
        "train.optimizer: adamw_8bit needs bitsandbytes: pip install 'vicugna[bnb]'",
        "output.report_to: wandb needs wandb: pip install wandb",
        "output.report_to: mlflow needs mlflow: pip install mlflow",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_deepspeed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run", train__sharding="deepspeed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(InputError, match=r"train\.sharding: deepspeed needs deepspeed: pip install 'vicugna\[deepspeed\]'"):
        refuse_missing_packages(recipe)


def test_torchao_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run", model__dtype="bfloat16", train__optimizer="adamw_8bit_stochastic")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(InputError, match=r"optimizer: adamw_8bit_stochastic needs torchao: pip install 'vicugna\[torchao\]'"):
        refuse_missing_packages(recipe)


def test_what_is_not_asked_for_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    refuse_missing_packages(recipe)
