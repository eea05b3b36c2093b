"""``sft eval``: the loss of a run is that of its files, merged or not, and one number per source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.data.tokenize import RowEncoder
from sft.engine.metrics import read_metrics
from sft.errors import InputError, ModelError
from sft.model.tokenizer import saved_tokenizer
from sft.recipe import Recipe
from sft.run.evaluate import evaluate_model
from sft.train import merge_run, run
from tests.builders import LLAMA, byte_level, save_tiny, sentencepiece_like
from tests.runs import tiny_recipe, write_rows

LORA: dict[str, Any] = {"rank": 4, "alpha": 8}


def two_sources(folder: Path, base: Path | None = None, **changes: Any) -> Recipe:
    """A tiny recipe over two files; both have rows among the 8 that are held out."""
    rows = write_rows(folder.parent / "rows.jsonl")
    other = write_rows(folder.parent / "other.jsonl", 16)
    other.write_text(other.read_text().replace("Say the number", "Write"), encoding="utf-8")
    sources = [{"path": str(rows), "name": "rows"}, {"path": str(other), "name": "other"}]
    return tiny_recipe(folder, base, data__sources=sources, data__holdout=8, **changes)


def merge(recipe: Recipe, out: Path) -> None:
    run_dir = Path(recipe.output.dir)
    tokenizer, template = saved_tokenizer(recipe, run_dir / "adapter")
    about = json.loads((run_dir / "run.json").read_text())
    merge_run(recipe, run_dir, tokenizer, RowEncoder(tokenizer, template), about, torch.device("cpu"), out)


CASES: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({}, 1e-5),
    "bfloat16": ({"model__dtype": "bfloat16"}, 3e-2),
    # The base is loaded unquantised for merging: the two differ by its rounding.
    "nf4": ({"model__quantization": "nf4"}, 0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_merged_and_unmerged_agree(tmp_path: Path, name: str) -> None:
    changes, bound = CASES[name]
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    recipe = two_sources(tmp_path / "run", base, lora=LORA, **changes)
    about = run(recipe)
    unmerged = evaluate_model(recipe, None)
    merge(recipe, tmp_path / "merged")
    merged = evaluate_model(recipe, tmp_path / "merged")
    assert unmerged.by_source.keys() == merged.by_source.keys() == {"rows", "other"}
    for label, (loss, tokens) in unmerged.by_source.items():
        assert merged.by_source[label][0] == pytest.approx(loss, abs=bound)
        assert merged.by_source[label][1] == tokens
    assert unmerged.tokens == merged.tokens == sum(tokens for _, tokens in unmerged.by_source.values())
    # The adapter on its quantised base is what the run itself saw at its end, in flat batches.
    assert unmerged.loss == pytest.approx(about["holdout"]["after"], abs=min(bound, 3e-2))


def test_new_tokens_come_with_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", byte_level(chatml=False))
    changes: dict[str, Any] = {"template__name": "chatml", "data__max_length": 96}
    recipe = two_sources(tmp_path / "run", base, lora=LORA, **changes)
    about = run(recipe)
    found = evaluate_model(recipe, None)
    assert found.loss == pytest.approx(about["holdout"]["after"], abs=1e-5)
    merge(recipe, tmp_path / "run" / "merged")
    assert evaluate_model(recipe, None).loss == pytest.approx(found.loss, abs=1e-5)


def test_a_full_run_is_evaluated_by_source(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path / "run")
    run(recipe)
    last = [line["eval"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval" in line][-1]
    found = evaluate_model(recipe, None).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["by_source"].keys() == last["by_source"].keys() == {"rows", "other"}
    for label, value in last["by_source"].items():
        assert found["by_source"][label]["loss"] == pytest.approx(value["loss"], abs=1e-5)
        assert found["by_source"][label]["tokens"] == value["tokens"]


def test_without_held_out_rows_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this recipe holds no rows out; set data\.holdout or data\.holdout_sources"):
        evaluate_model(tiny_recipe(tmp_path / "run"), None)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", data__holdout=4)
    foreign = save_tiny(tmp_path / "foreign", sentencepiece_like())
    with pytest.raises(
        InputError, match=r"its tokenizer has [\d,]+ entries, the recipe's [\d,]+; they differ first at .* \(id 0\)"
    ):
        evaluate_model(recipe, foreign)


def test_too_few_embedding_rows_are_refused(tmp_path: Path) -> None:
    small = save_tiny(tmp_path / "small", byte_level(300, chatml=False))
    (small / "tokenizer_config.json").unlink()  # bare weights
    with pytest.raises(InputError, match=r"small: \d+ embedding rows, but the recipe's tokenizer has \d+ entries"):
        evaluate_model(tiny_recipe(tmp_path / "run", data__holdout=4), small)


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", data__holdout=4)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"broken: cannot be loaded: "):
        evaluate_model(recipe, broken)


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", lora=LORA, data__holdout=4)
    run(recipe)
    other = save_tiny(tmp_path / "other", byte_level(), LLAMA | {"hidden_size": 64})
    section = recipe.model.model_copy(update={"name_or_path": str(other)})
    with pytest.raises(ModelError, match="this adapter does not fit its base: "):
        evaluate_model(recipe.model_copy(update={"model": section}), tmp_path / "run")
