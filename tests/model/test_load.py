"""What is loaded is what the recipe says: types, revision, positions, and an embedding that fits the tokenizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sft.data.template import load_template
from sft.engine.manifest import differences
from sft.errors import ModelError, RecipeError
from sft.model.load import Loaded, fit_embedding, load_config, load_model
from sft.model.tokenizer import repair_tokens, tokenizer_for
from sft.recipe import ModelSection, Recipe
from sft.train import run
from tests.builders import LLAMA, OPT, byte_level, save_tiny, sentencepiece_like, tiny_model
from tests.runs import tiny_recipe

CPU = torch.device("cpu")
TIED = LLAMA | {"tie_word_embeddings": True}


def grown_tokenizer() -> Any:
    """A tokenizer with three entries more than its model has rows: ChatML's two and a pad token."""
    tokenizer = copy.deepcopy(byte_level(chatml=False))
    repair_tokens(tokenizer, load_template("chatml"))
    return tokenizer


# -- the embedding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, TIED, OPT], ids=["untied", "tied", "opt"])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_new_rows_are_the_exact_mean_of_the_old(config: dict[str, Any], multiple: int) -> None:
    old, tokenizer = len(byte_level(chatml=False)), grown_tokenizer()
    model = tiny_model(old, config)
    before = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    repairs, new = fit_embedding(model, tokenizer, multiple)
    assert new == (old, old + 1, old + 2)
    rows = -(-(old + 3) // multiple) * multiple
    assert repairs[0] == f"embedding grown from {old} to {rows} rows for 3 new tokens (mean of the old rows)"
    after = [m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    for was, now in zip(before, after, strict=True):
        assert now.shape[0] == rows == model.config.vocab_size
        assert torch.equal(now[:old], was)
        assert torch.equal(now[old:], was.mean(dim=0).expand(rows - old, -1))
    tied = config.get("tie_word_embeddings", config["model_type"] == "opt")
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied
    assert fit_embedding(model, tokenizer, multiple) == ([], ())


def test_a_bfloat16_mean_is_taken_in_float32() -> None:
    old, tokenizer = len(byte_level(chatml=False)), grown_tokenizer()
    model = tiny_model(old).to(torch.bfloat16)
    mean = model.get_input_embeddings().weight.detach().float().mean(dim=0).bfloat16()
    fit_embedding(model, tokenizer, 8)
    assert torch.equal(model.get_input_embeddings().weight[old], mean)


def test_ids_of_the_configuration_follow_the_tokenizer() -> None:
    tokenizer = copy.deepcopy(sentencepiece_like())
    repair_tokens(tokenizer, load_template("alpaca_short"))
    model = tiny_model(len(tokenizer))
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = -1, 32000, 0
    repairs, new = fit_embedding(model, tokenizer, 8)
    assert new == ()
    assert repairs == [
        "config.bos_token_id was 32000: set to the tokenizer's 1",
        "config.eos_token_id was 0: set to the tokenizer's 2",
        "config.pad_token_id was -1: set to the tokenizer's 0",
    ]
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 0)


def test_several_stops_of_a_checkpoint_stay() -> None:
    tokenizer = sentencepiece_like()
    model = tiny_model(len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = 1, [2, 7]
    fit_embedding(model, tokenizer, 8)
    assert model.config.eos_token_id == [2, 7]


def test_spare_rows_are_left_alone() -> None:
    """A checkpoint with more rows than tokens (padded vocabularies) keeps every row."""
    tokenizer = sentencepiece_like()
    model = tiny_model(len(tokenizer) + 100)
    before = model.get_input_embeddings().weight.detach().clone()
    assert fit_embedding(model, tokenizer, 8)[1] == ()
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = sentencepiece_like()
    with pytest.raises(
        ModelError, match=rf"the tokenizer has {len(tokenizer)} entries, the model's embedding only 300 rows, .* do not belong"
    ):
        fit_embedding(tiny_model(300), tokenizer, 8)


def test_added_words_that_are_not_special_are_refused() -> None:
    """A vocabulary extension is no handful of markers: its rows cannot be made up from a mean."""
    tokenizer = copy.deepcopy(sentencepiece_like())
    size = len(tokenizer)
    tokenizer.add_tokens(["春天", "花儿"])
    with pytest.raises(ModelError, match="these are not just added special tokens"):
        fit_embedding(tiny_model(size), tokenizer, 8)


def test_a_quantised_base_takes_tokens(tmp_path: Path) -> None:
    """bitsandbytes leaves embedding and head as they are."""
    base = save_tiny(tmp_path / "base", byte_level(chatml=False))
    changes = {"template__name": "chatml", "data__max_length": 96, "model__quantization": "nf4"}
    recipe = tiny_recipe(tmp_path / "run", base, lora={"rank": 2, "alpha": 4}, **changes)
    tokenizer, _, _ = tokenizer_for(recipe)
    loaded = load_model(recipe, tokenizer, CPU)
    rows = len(byte_level(chatml=False))
    assert loaded.new_rows == (rows, rows + 1, rows + 2)
    weight = loaded.model.get_output_embeddings().weight
    assert torch.allclose(weight[rows:], weight[:rows].mean(dim=0).expand(len(weight) - rows, -1), atol=1e-6)


def test_a_quantised_head_takes_no_tokens() -> None:
    model, tokenizer = tiny_model(len(byte_level()) - 2), byte_level()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(model.lm_head.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ModelError, match=r"2 tokens must be added, which a quantised embedding or head cannot take; choose another template"
    ):
        fit_embedding(model, tokenizer, 8)


# -- types, revision ------------------------------------------------------------------------------------------------


def loaded(recipe: Recipe) -> Loaded:
    tokenizer, _, _ = tokenizer_for(recipe)
    return load_model(recipe, tokenizer, CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_load_in_the_type_of_the_recipe(tmp_path: Path, dtype: str) -> None:
    """transformers 5 loads in the type of the file unless told: the other type is written here."""
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    other = {"float32": torch.bfloat16, "bfloat16": torch.float32}[dtype]
    AutoModelForCausalLM.from_pretrained(base).to(other).save_pretrained(base)
    found = loaded(tiny_recipe(tmp_path / "run", base, model__dtype=dtype))
    assert {p.dtype for p in found.model.parameters()} == {getattr(torch, dtype)}
    assert (found.attention, found.commit, found.model.config.use_cache) == ("vicugna_sdpa", None, False)


def test_the_revision_reaches_every_loader_and_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    recipe = tiny_recipe(tmp_path / "run", base, model__revision="v1.0", train__max_steps=1)
    asked: list[tuple[str, Any]] = []
    for loader in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        original = loader.from_pretrained

        def spy(name: Any, *args: Any, _original: Any = original, _who: str = loader.__name__, **options: Any) -> Any:
            asked.append((_who, options.get("revision")))
            out = _original(name, *args, **options)
            if _who == "AutoConfig":
                out._commit_hash = "0123abcd"  # what the Hub resolves a branch to
            return out

        monkeypatch.setattr(loader, "from_pretrained", spy)
    about = run(recipe)
    assert {who for who, revision in asked if revision == "v1.0"} == {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"}
    saved = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert saved["recipe"]["model.revision"] == "v1.0"
    assert saved["recipe"]["model.commit"] == about["identity"]["recipe"]["model.commit"] == "0123abcd"
    moved = copy.deepcopy(saved)
    moved["recipe"]["model.commit"] = "4567"
    assert differences(saved, moved) == ["recipe: model.commit was '0123abcd', is '4567'"]


def test_equal_seeds_build_equal_models(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    scratch = ModelSection.model_validate({"scratch": {"config": dict(LLAMA), "vocab_size": 300}})
    recipe = recipe.model_copy(update={"model": scratch})
    first, second = loaded(recipe).model.state_dict(), loaded(recipe).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 4})})
    third = loaded(other).model.state_dict()
    assert not torch.equal(first["model.embed_tokens.weight"], third["model.embed_tokens.weight"])


# -- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_positions_are_in_the_saved_configuration(tmp_path: Path, kind: str) -> None:
    """The folder alone, through AutoModel, gives the logits of the loaded model: no serving flag is needed."""
    base = save_tiny(tmp_path / "base", sentencepiece_like(), LLAMA | {"max_position_embeddings": 32})
    recipe = tiny_recipe(tmp_path / "run", base, model__rope_scaling={"type": kind, "factor": 4.0})
    model = loaded(recipe).model.eval()
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["max_position_embeddings"] == 128
    assert (saved["rope_parameters"]["rope_type"], saved["rope_parameters"]["factor"]) == (kind, 4.0)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="sdpa").eval()
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa").eval()
    model.set_attn_implementation("sdpa")
    ids = torch.arange(100)[None] % len(sentencepiece_like())
    with torch.no_grad():
        ours, theirs, unscaled = (m(input_ids=ids, use_cache=False).logits for m in (model, again, plain))
    assert torch.equal(ours, theirs)
    assert float((ours - unscaled).abs().max()) > 1e-2


def test_linear_scaling_divides_every_position(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    scaled = loaded(tiny_recipe(tmp_path / "run", base, model__rope_scaling={"type": "linear", "factor": 8.0})).model
    plain = AutoModelForCausalLM.from_pretrained(base)
    at = torch.arange(0, 320, 8)[None]
    x = torch.zeros(1, 1)
    stretched = scaled.model.rotary_emb(x, at)
    original = plain.model.rotary_emb(x, at // 8)
    for left, right in zip(stretched, original, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (OPT, {"model__rope_scaling": {"factor": 2.0}}, r"model\.rope_scaling: opt has no plain RoPE to scale; remove it"),
        (
            LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            {"model__rope_scaling": {"factor": 2.0}},
            r"the base model already scales its positions \(linear\); remove it",
        ),
        (
            LLAMA | {"max_position_embeddings": 48},
            {},
            r"data\.max_length = 64, but the model knows 48 positions; lower it, or set model\.rope_scaling\.factor to at least 1\.33",
        ),
    ],
    ids=["no rope", "scaled already", "too long"],
)
def test_positions_that_cannot_be_are_refused(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like(), config)
    with pytest.raises(ModelError, match=said):
        loaded(tiny_recipe(tmp_path / "run", base, **changes))


def test_scaling_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    """Dynamic NTK changes the frequencies of every row with the longest one: packed would not be padded."""
    with pytest.raises(RecipeError, match=r"model\.rope_scaling\.type: must be 'linear' or 'yarn', got \"dynamic\""):
        tiny_recipe(tmp_path / "run", model__rope_scaling={"type": "dynamic", "factor": 2.0})


# -- what cannot be loaded ------------------------------------------------------------------------------------------


def test_a_model_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}', encoding="utf-8")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"cannot be loaded by transformers itself \(remote code is never run\)"):
        load_config(ModelSection(name_or_path=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fields", [{"model_type": "no_such"}, {"model_type": "llama", "hidden_size": "wide"}])
def test_a_faulty_scratch_model_is_refused(fields: dict[str, Any]) -> None:
    section = ModelSection.model_validate({"scratch": {"config": fields, "vocab_size": 300}})
    with pytest.raises(ModelError, match=r"model\.scratch\.config: "):
        load_config(section)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    (base / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"model\.name_or_path: '.*base' cannot be loaded \(weights are read as safetensors only\)"
    ):
        loaded(tiny_recipe(tmp_path / "run", base))


def test_weights_never_come_from_another_revision() -> None:
    """transformers would fetch a bot's pull request in place of a repository without safetensors, unless this is set."""
    from transformers.utils import is_env_variable_true

    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", sentencepiece_like())
    weights = AutoModelForCausalLM.from_pretrained(base).state_dict()
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(
        ModelError,
        match=r"model\.name_or_path: '.*base' cannot be loaded \(weights are read as safetensors only\): .*write it once as safetensors",
    ):
        loaded(tiny_recipe(tmp_path / "run", base))


def test_quantisation_without_bitsandbytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    recipe = tiny_recipe(tmp_path / "run", lora={"rank": 2, "alpha": 4}, model__quantization="int8")
    with pytest.raises(ModelError, match=r"model\.quantization: int8 needs bitsandbytes: pip install 'vicugna\[bnb\]'"):
        loaded(recipe)
