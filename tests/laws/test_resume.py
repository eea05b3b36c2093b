"""Stopping and resuming is the same as never stopping, bit for bit; a killed write loses nothing; another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft import files
from sft.engine import checkpoints
from sft.engine.metrics import read_metrics
from sft.engine.trainer import PlannedTrainer
from sft.errors import InputError, NonFiniteError, ResumeError
from sft.recipe import Recipe
from sft.train import run
from tests.laws import record_law
from tests.runs import tiny_recipe, write_rows

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
TIMES = ("tokens_per_second", "trained_tokens_per_second", "utilisation", "data_wait", "seconds", "memory_gib")


class Stop(Exception):
    pass


def run_until(recipe: Recipe, step: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Train and die right after the checkpoint of ``step`` is complete."""
    original = PlannedTrainer._save_checkpoint

    def stop_after(self: PlannedTrainer, model: Any, trial: Any) -> None:
        original(self, model, trial)
        if self.state.global_step == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(PlannedTrainer, "_save_checkpoint", stop_after)
        with pytest.raises(Stop):
            run(recipe, **options)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = run_dir / "model" if (run_dir / "model").is_dir() else run_dir / "adapter"
    return load_file(next(folder.glob("*.safetensors")))


def curve(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


NEVER_STOPPED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "full": (None, {"output__save_every": 1, "data__holdout": 4, "train__neftune_alpha": 5.0}),
    "lora": (LORA, {"output__save_every": 1, "data__holdout": 4, "train__neftune_alpha": 5.0}),
    "plain": (None, {"output__save_every": 1}),
    "stochastic": (
        None,
        {"output__save_every": 1, "model__dtype": "bfloat16", "train__optimizer": "adamw_stochastic", "output__drill": "on"},
    ),
    "stochastic_8bit": (
        None,
        {"output__save_every": 1, "model__dtype": "bfloat16", "train__optimizer": "adamw_8bit_stochastic"},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _eagerly() -> Iterator[None]:
    """torchao compiles its step for each shape, which takes longer than all steps here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a run that was never stopped; each is made once."""
    root = tmp_path_factory.mktemp("straight")

    @cache
    def made(kind: str) -> Path:
        lora, options = NEVER_STOPPED[kind]
        run(tiny_recipe(root / kind, lora=lora, **options))
        return root / kind

    return made


@pytest.mark.parametrize(  # 3 steps make an epoch: the middle, the end, the middle of the next
    ("kind", "step"),
    [*((kind, step) for kind in ("full", "lora") for step in (1, 2, 4, 5)), ("stochastic", 4), ("stochastic_8bit", 4)],
)
def test_resume_is_straight(
    straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    lora, options = NEVER_STOPPED[kind]
    stopped = tiny_recipe(tmp_path / "stopped", lora=lora, **options)
    run_until(stopped, step, monkeypatch)
    run(stopped, resume=True)
    left, right = weights(straight(kind)), weights(tmp_path / "stopped")
    assert left.keys() == right.keys()
    largest = max(float((left[k] - right[k]).abs().max()) for k in left)
    record_law(f"resume at step {step} = straight ({kind})", largest, 0.0)
    assert largest == 0.0
    assert curve(straight(kind)) == curve(tmp_path / "stopped")


def test_changed_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_recipe(tmp_path / "run", output__save_every=1)
    run_until(first, 2, monkeypatch)
    rate = tiny_recipe(tmp_path / "run", output__save_every=1, train__learning_rate=2e-2)
    with pytest.raises(ResumeError, match=r"train\.learning_rate was 0\.01, is 0\.02"):
        run(rate, resume=True)
    template = tiny_recipe(tmp_path / "run", output__save_every=1, template__name="alpaca")
    with pytest.raises(ResumeError, match=r"template\.name was 'alpaca_short', is 'alpaca'(.|\n)*template: another one"):
        run(template, resume=True)
    write_rows(tmp_path / "rows.jsonl", 25)
    with pytest.raises(ResumeError, match=r"data: the bytes of rows:.*rows\.jsonl changed"):
        run(first, resume=True)


def test_memory_knobs_may_change(straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_until(tiny_recipe(tmp_path / "run", output__save_every=1), 2, monkeypatch)
    run(tiny_recipe(tmp_path / "run", output__save_every=1, train__tokens_per_device=64), resume=True)
    left, right = weights(straight("plain")), weights(tmp_path / "run")
    largest = max(float((left[k] - right[k]).abs().max()) for k in left)
    record_law("resume with smaller micro-batches = straight", largest, 1e-4)
    assert largest < 1e-4


def test_recomputing_layers_from_here_on_is_the_same_run(
    straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(tiny_recipe(tmp_path / "run", output__save_every=1), 2, monkeypatch)
    run(tiny_recipe(tmp_path / "run", output__save_every=1, train__gradient_checkpointing=1), resume=True)
    left, right = weights(straight("plain")), weights(tmp_path / "run")
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_earlier_runs_are_not_overwritten(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", train__max_steps=1)
    run(recipe)
    with pytest.raises(InputError, match=r"already holds a run; go on with --resume, replace it with --overwrite"):
        run(recipe)
    run(recipe, overwrite=True)
    with pytest.raises(ResumeError, match=r"no complete checkpoint to resume from"):
        run(recipe, resume=True)


KILLED = """
import os, signal, sys
from pathlib import Path
import yaml
import sft.files as files
from sft.recipe import load_recipe
import sft.train

publish = files.publish
def die(partial, final):
    if final.name == "checkpoint-3":
        big = next(partial.glob("*.safetensors"))
        os.truncate(big, big.stat().st_size // 2)      # half written, as a kill would leave it
        os.kill(os.getpid(), signal.SIGKILL)
    publish(partial, final)
files.publish = die
recipe, _ = load_recipe(sys.argv[1])
sft.train.run(recipe)
"""


def test_kill_during_a_checkpoint_leaves_the_last_one(straight: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", output__save_every=1)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    code = subprocess.run([sys.executable, "-c", KILLED, str(file)], env=os.environ | {"PYTHONWARNINGS": "ignore"}, check=False)
    assert code.returncode == -signal.SIGKILL
    assert [p.name for p in checkpoints.complete_checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-2"]
    run(recipe, resume=True)
    left, right = weights(straight("plain")), weights(tmp_path / "run")
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert not list((tmp_path / "run").glob(f"{files.PARTIAL}*"))
    assert curve(straight("plain")) == curve(tmp_path / "run")


def test_non_finite_stops_and_names_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    import sft.engine.trainer as trainer
    from sft.engine.loss import step_loss as original

    calls: list[int] = []  # two micro-batches a step

    def broken(model: Any, batch: Any, head: Any) -> torch.Tensor:
        calls.append(1)
        return original(model, batch, head) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(trainer, "step_loss", broken)
    with pytest.raises(
        NonFiniteError, match=r"step 2: loss nan, .* no weight was changed by it\. Its 8 rows \(.*rows\.jsonl:\d+"
    ):
        run(recipe)
    dumped = json.loads((tmp_path / "run" / "nonfinite-step-2" / "rows.json").read_text())
    assert len(dumped["rows"]) == 8
    assert dumped["step"] == 2
