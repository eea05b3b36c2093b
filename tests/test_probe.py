"""``sft plan --probe``: real steps, timed; the plan is the run's, and nothing stays behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import sft.train
from sft.cli import app
from sft.engine.trainer import PlannedTrainer
from sft.errors import InputError
from sft.probe import probe_tokens_per_second
from sft.recipe import Recipe
from tests.runs import tiny_recipe


def written(recipe: Recipe, path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_a_probe_takes_steps_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: dict[str, Any] | None
) -> None:
    recipe = tiny_recipe(tmp_path / "run", lora=lora, data__holdout=4, output__save_every=1, output__merge=True)
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"sample_prompts": ("Hi",), "drill": "on"})})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    saved: list[str] = []
    monkeypatch.setattr(PlannedTrainer, "_save", lambda self, *_, **__: saved.append("weights"))
    rate = probe_tokens_per_second(recipe)
    assert 1 < rate < 1e9
    assert saved == []
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list((tmp_path / "run").iterdir()) == []
    assert "held-out" not in capsys.readouterr().out


def test_the_rate_is_tokens_over_seconds_without_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [(100.0, 5.0), (1000.0, 1.0), (10.0, 3.0)]  # the first pays for the warm-up

    def fake(recipe: Recipe, *, probe: bool) -> None:
        assert (probe, recipe.train.max_steps, recipe.output.save_every) == (True, 6, None)
        Path(recipe.output.dir).mkdir()
        text = "".join(json.dumps({"loss": 1.0, "tokens_per_second": rate, "seconds": s}) + "\n" for rate, s in lines)
        (Path(recipe.output.dir) / "metrics.jsonl").write_text(text, encoding="utf-8")

    monkeypatch.setattr(sft.train, "run", fake)
    assert probe_tokens_per_second(tiny_recipe(tmp_path / "run", output__save_every=2)) == pytest.approx(1030 / 4)


def test_a_plan_is_priced_with_the_probed_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.probe.probe_tokens_per_second", lambda recipe: 50.0)
    recipe = written(tiny_recipe(tmp_path / "run"), tmp_path / "tiny.yaml")
    for gpus, source in ((1, "probed"), (4, "probed, 4 times one GPU")):
        out = tmp_path / "plan.json"
        arguments = ["plan", str(recipe), "--probe", "--json", str(out), "--set", f"plan.gpus={gpus}"]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        plan = json.loads(out.read_text())
        assert (plan["time"]["tokens_per_second"], plan["time"]["rate_from"]) == (50.0 * gpus, source)
        assert plan["time"]["hours"] == pytest.approx(plan["data"]["run_tokens"] / (50.0 * gpus) / 3600)


def test_the_verb_probes_for_real(tmp_path: Path) -> None:
    recipe = written(tiny_recipe(tmp_path / "run"), tmp_path / "tiny.yaml")
    done = CliRunner().invoke(app, ["plan", str(recipe), "--probe", "--json", str(tmp_path / "p")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "p").read_text())["time"]["tokens_per_second"] > 1
    assert "report.html" not in done.output


def test_a_sharded_recipe_is_not_probed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--probe times one process, .* give plan\.tokens_per_second instead"):
        probe_tokens_per_second(tiny_recipe(tmp_path / "run", train__sharding="fsdp"))
