"""Baichuan2's head stays as it is under full tuning, so the tuned model can go back to the old names and return unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sft.cli import app
from sft.errors import InputError, ModelError
from sft.model.families.convert import convert
from sft.model.families.legacy_layout import write_legacy_layout
from sft.recipe import Recipe
from sft.train import run
from tests.model.families.folders import whole_checkpoint
from tests.runs import tiny_recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def tuned(folder: Path, **changes: Any) -> tuple[Recipe, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A Baichuan2 after six steps of full tuning: its recipe, the weights before and after."""
    if not (folder / "base").exists():
        convert(whole_checkpoint(folder / "legacy", "baichuan2"), folder / "base", family="baichuan2")
    recipe = tiny_recipe(folder / "run", folder / "base", **changes)
    recipe = recipe.model_copy(update={"template": recipe.template.model_copy(update={"name": "baichuan2"})})
    about = run(recipe)
    said = [sentence for sentence in about["repairs"] if "output matrix is frozen" in sentence]
    assert len(said) == (changes.get("train__freeze_head", "auto") is not False)
    return recipe, weights(folder / "base"), weights(folder / "run" / "model")


def test_a_normalised_head_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    recipe, before, after = tuned(tmp_path)
    rows = before["lm_head.weight"].shape[0]
    assert torch.equal(after["lm_head.weight"][:rows], before["lm_head.weight"])
    moved = [name for name in before if name != "lm_head.weight" and not torch.equal(after[name][:rows], before[name])]
    assert len(moved) == len(before) - 1
    out = tmp_path / "old"
    done = CliRunner().invoke(app, ["export", recipe.output.dir, str(out), "--layout", "legacy"])
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.glob(".native-*"))
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("baichuan", ["BaichuanForCausalLM"])
    names = weights(out)
    assert any(name.endswith("W_pack.weight") for name in names)
    assert not any("q_proj" in name for name in names)
    assert (out / "tokenizer.json").is_file()
    # back again: the way back and the way here are each other's inverse, to the bit but for the head's rounding
    for name, value in names.items():
        if name.endswith("W_pack.weight"):
            parts = [after[name.replace("W_pack", part)] for part in ("q_proj", "k_proj", "v_proj")]
            assert torch.equal(value, torch.cat(parts))
        else:
            assert torch.equal(value, after[name])


def test_a_head_that_was_tuned_does_not_go_back(tmp_path: Path) -> None:
    recipe, before, after = tuned(tmp_path, train__freeze_head=False)
    assert not torch.equal(after["lm_head.weight"][: len(before["lm_head.weight"])], before["lm_head.weight"])
    with pytest.raises(ModelError, match=r"rows of other lengths than 1 .* train with the head frozen"):
        write_legacy_layout(Path(recipe.output.dir) / "model", tmp_path / "old")
    assert not (tmp_path / "old").exists()


def test_others_have_no_way_back(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", train__max_steps=1)
    run(recipe)
    with pytest.raises(
        ModelError, match="--layout legacy: this model was no legacy checkpoint, and only Baichuan has a way back"
    ):
        write_legacy_layout(tmp_path / "run" / "model", tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="full: not empty and not a model of ours; choose another folder"):
        write_legacy_layout(tmp_path / "run" / "model", tmp_path / "full")
    done = CliRunner().invoke(app, ["export", recipe.output.dir, str(tmp_path / "old"), "--layout", "legacy"])
    assert "only Baichuan has a way back; leave the option out" in str(done.exception)
    done = CliRunner().invoke(app, ["export", recipe.output.dir, str(tmp_path / "old"), "--layout", "old"])
    assert "--layout: 'old' is neither native nor legacy" in str(done.exception)


def test_a_head_that_is_the_embedding_cannot_be_frozen(tmp_path: Path) -> None:
    from tests.builders import LLAMA, byte_level, save_tiny

    base = save_tiny(tmp_path / "base", byte_level(), LLAMA | {"tie_word_embeddings": True})
    with pytest.raises(ModelError, match=r"train\.freeze_head: the output matrix of this model is its embedding; set false"):
        run(tiny_recipe(tmp_path / "run", base, train__freeze_head=True))
