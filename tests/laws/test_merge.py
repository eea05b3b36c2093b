"""Merged = adapter on base, on the written files; saved adapter = trained adapter; and what breaks these is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import VerificationError
from sft.model import adapters, merge
from sft.model.servable import check_served_ids
from sft.recipe import Recipe
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, save_tiny, sentencepiece_like
from tests.laws import record_law
from tests.runs import tiny_recipe

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "lora": ({"rank": 4, "alpha": 8}, LLAMA, {}),
    "rslora": ({"rank": 4, "alpha": 8, "rslora": True}, LLAMA, {}),
    "dora": ({"rank": 4, "alpha": 8, "dora": True}, LLAMA, {}),
    "named targets": ({"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}, LLAMA, {}),
    "tied": ({"rank": 4, "alpha": 8}, LLAMA | {"tie_word_embeddings": True}, {}),
    "opt": ({"rank": 4, "alpha": 8}, OPT, {}),
    "bfloat16": ({"rank": 4, "alpha": 8}, LLAMA, {"model__dtype": "bfloat16"}),
    "int8 base": ({"rank": 4, "alpha": 8}, LLAMA, {"model__quantization": "int8"}),
    "nf4 base": ({"rank": 4, "alpha": 8}, LLAMA, {"model__quantization": "nf4"}),
    "new tokens": ({"rank": 4, "alpha": 8}, LLAMA, {"template__name": "chatml", "data__max_length": 96}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_is_adapter_on_base(tmp_path: Path, name: str) -> None:
    lora, config, changes = VARIANTS[name]
    tokenizer = byte_level(chatml=False) if name == "new tokens" else sentencepiece_like()
    base = save_tiny(tmp_path / "base", tokenizer, config)
    recipe = tiny_recipe(tmp_path / "run", base, lora=lora, output__merge=True, **changes)
    run(recipe)
    record = json.loads((tmp_path / "run" / "merged" / "vicugna.json").read_text())
    found, dtype = record["difference"], record["dtype"]
    record_law(f"merged = adapter on base ({name}, {dtype})", found["relative"], merge.BOUNDS[dtype])
    assert found["relative"] <= merge.BOUNDS[dtype]
    assert record["served_prompts_checked"] >= 2
    assert record["adapter_moved"] > 10 * found["relative"]


def test_every_target_moves(tmp_path: Path) -> None:
    """Chinese-Vicuna's merge lost five of seven targets; here each of the seven must differ from the base."""
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    run(tiny_recipe(tmp_path / "run", base, lora={"rank": 4, "alpha": 8}, output__merge=True))
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged").state_dict()
    assert before.keys() == after.keys()
    moved = {key.split(".")[-2] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def merged_parts(tmp_path: Path) -> tuple[Recipe, RowEncoder, Any, Path]:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    recipe = tiny_recipe(tmp_path / "run", base, lora={"rank": 4, "alpha": 8})
    run(recipe)
    adapter = tmp_path / "run" / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    return recipe, RowEncoder(tokenizer, load_template("alpaca_short")), tokenizer, adapter


ABOUT = {"name": "x", "versions": {}}


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    recipe, encoder, tokenizer, adapter = merged_parts(tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in weights.items()}, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="the adapter changes no logit of its base"):
        merge.merge_adapter(recipe, adapter, tokenizer, encoder, tmp_path / "out", ABOUT, device=torch.device("cpu"))
    assert not (tmp_path / "out").exists()


def test_a_merge_that_changes_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, encoder, tokenizer, adapter = merged_parts(tmp_path)
    from sft.model.servable import write_servable as original

    def spoilt(model: Any, *args: Any, **kwargs: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight.data *= 1.05
        original(model, *args, **kwargs)

    monkeypatch.setattr(merge, "write_servable", spoilt)
    with pytest.raises(
        VerificationError, match=r"logits differ by .* at most 1e-04 is allowed in float32\. Nothing was put in place"
    ):
        merge.merge_adapter(recipe, adapter, tokenizer, encoder, tmp_path / "out", ABOUT, device=torch.device("cpu"))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".partial*"))


def test_saved_adapter_is_compared_key_by_key(tmp_path: Path) -> None:
    _, _, _, adapter = merged_parts(tmp_path)
    path = adapter / "adapter_model.safetensors"
    live = load_file(path)
    assert adapters.verify_saved(adapter, live) == len(live) == 2 * 7 * 2  # A and B of seven targets in two layers
    name = sorted(live)[0]
    save_file({k: v for k, v in live.items() if k != name}, path)
    with pytest.raises(VerificationError, match=r"holds 27 tensors, the trained adapter has 28; missing \['base_model"):
        adapters.verify_saved(adapter, live)
    save_file({**live, name: live[name] + 1}, path)
    with pytest.raises(VerificationError, match="differs from the trained adapter"):
        adapters.verify_saved(adapter, live)
    path.unlink()
    with pytest.raises(VerificationError, match="the adapter was not written"):
        adapters.verify_saved(adapter, live)


def test_a_foreign_template_in_the_export_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    run(tiny_recipe(tmp_path / "run", base, output__merge=True))
    folder = tmp_path / "run" / "merged"
    encoder = RowEncoder(AutoTokenizer.from_pretrained(folder), load_template("alpaca_short"))
    assert check_served_ids(folder, encoder) >= 2
    other = RowEncoder(AutoTokenizer.from_pretrained(folder), load_template("alpaca_newline"))
    with pytest.raises(VerificationError, match=r"probe-1 has the ids .* in training and .* when served by transformers"):
        check_served_ids(folder, other)


def test_generation_config_holds_the_trained_stops(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", byte_level())
    run(tiny_recipe(tmp_path / "run", base, template__name="chatml", data__max_length=96, output__merge=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "merged")
    config = json.loads((tmp_path / "run" / "merged" / "generation_config.json").read_text())
    assert config["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert "generation" not in tokenizer.chat_template.replace("add_generation_prompt", "")
