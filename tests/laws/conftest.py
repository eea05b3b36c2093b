"""The runs of several processes, made once for all tests that look at them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sft.train import run
from tests.laws.launch import faults_of
from tests.runs import tiny_recipe

Case = tuple[dict[str, Any] | None, dict[str, Any]]

LORA = {"rank": 4, "alpha": 8}
TRAINED: dict[str, Any] = {"data__holdout": 5, "train__tokens_per_device": 128}
KEPT: dict[str, Any] = {**TRAINED, "output__save_every": 2, "output__keep_checkpoints": 9}
FSDP: dict[str, Any] = {**KEPT, "train__sharding": "fsdp"}
COMPILED: dict[str, Any] = {"train__compile": "on", "output__save_every": None}
ONE: dict[str, Case] = {"one": (None, KEPT), "one_lora": (LORA, KEPT)}
TWO: dict[str, Case] = {
    "full": (None, KEPT),
    "lora": (LORA, KEPT),
    "fsdp": (None, {**FSDP, "output__drill": "on"}),
    "fsdp_lora": (LORA, {**FSDP, "output__drill": "on"}),
    "bfloat16": (None, {**FSDP, "model__dtype": "bfloat16", "train__optimizer": "adamw_stochastic"}),
    "compiled": (None, {**FSDP, **COMPILED}),
    "compiled_ddp": (None, {**KEPT, **COMPILED}),
    "sums": (None, {"train__sharding": "fsdp", "model__compute_dtype": "bfloat16"}),
    "refused": (None, {"train__sharding": "fsdp"}),
}
FOUR: dict[str, Case] = {
    "four": (None, FSDP),
    "two_to_four": (None, FSDP),
    "one_to_four": (None, FSDP),
    "lora_two_to_four": (LORA, FSDP),
}
RESUMED = {"two_to_four": "fsdp", "one_to_four": "one", "lora_two_to_four": "fsdp_lora"}


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where runs of several processes lie, by the name of their case, and what went wrong in those that failed."""

    root: Path
    faults: dict[str, str]

    def through(self, name: str) -> Path:
        """The directory of a run that did not fail; its last words otherwise."""
        assert name not in self.faults, self.faults[name]
        return self.root / name


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Every case of ONE, TWO and FOUR, run. Workers of pytest-xdist share them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, record = shared / "ranks", shared / "ranks.json"
    with FileLock(shared / "ranks.lock"):
        if not record.exists():
            root.mkdir()
            record.write_text(json.dumps(make(root)), encoding="utf-8")
    return Ranks(root, json.loads(record.read_text(encoding="utf-8")))


def make(root: Path) -> dict[str, str]:
    """Run all cases under ``root``; what went wrong, by case."""
    recipes = {name: tiny_recipe(root / name, lora=lora, **options) for name, (lora, options) in (ONE | TWO | FOUR).items()}
    for name, recipe in recipes.items():
        (root / f"{name}.json").write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    for name in ONE:
        run(recipes[name])
    faults = faults_of(root, (*TWO, "sharded", "stochastic", "odd"))
    for name, source in RESUMED.items():
        stopped_at_2(root / source, root / name)
    (root / "odd").rename(root / "odd_of_two")
    return faults | faults_of(root, (*FOUR, "odd"), processes=4, start="fork")


def stopped_at_2(finished: Path, folder: Path) -> Path:
    """A copy of a run's directory as it was when its second step was saved."""
    shutil.rmtree(folder, ignore_errors=True)
    later = shutil.ignore_patterns("checkpoint-4", "checkpoint-6", "model", "adapter")
    shutil.copytree(finished, folder, ignore=later, dirs_exist_ok=True)
    return folder
