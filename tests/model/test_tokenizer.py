"""Faulty tokenizers are mended as told, or refused; never used as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import TokenizerError
from sft.model.tokenizer import load_tokenizer, repair_tokens, saved_tokenizer, tokenizer_for, train_tokenizer
from sft.recipe import ModelSection
from tests.builders import CORPUS, LLAMA, byte_level, colon_crossing, save_tiny, sentencepiece_like
from tests.runs import tiny_recipe

ALPACA = load_template("alpaca_short")


def section(folder: Path) -> ModelSection:
    return ModelSection(name_or_path=str(folder))


def test_a_sound_tokenizer_is_left_alone() -> None:
    tokenizer = copy.deepcopy(colon_crossing())
    before = tokenizer.backend_tokenizer.to_str()
    assert repair_tokens(tokenizer, ALPACA) == []
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("empty", [None, ""])
def test_a_missing_eos_comes_from_the_configuration(empty: str | None) -> None:
    tokenizer = copy.deepcopy(colon_crossing())
    tokenizer.eos_token = empty
    assert repair_tokens(tokenizer, ALPACA, config_eos=1) == [
        "eos_token was missing or empty: set to '</s>' (id 1 of the model's configuration)"
    ]
    assert tokenizer.eos_token_id == 1


@pytest.mark.parametrize("config_eos", [None, 10_000_000])
def test_no_eos_at_all_is_refused(config_eos: int | None) -> None:
    tokenizer = copy.deepcopy(colon_crossing())
    tokenizer.eos_token = ""
    with pytest.raises(TokenizerError, match=r"eos_token is missing or empty, .* no answer could ever end; set eos_token"):
        repair_tokens(tokenizer, ALPACA, config_eos)


def test_other_empty_tokens_are_removed() -> None:
    tokenizer = copy.deepcopy(colon_crossing())
    tokenizer.bos_token, tokenizer.unk_token = "", ""
    assert repair_tokens(tokenizer, ALPACA) == ["bos_token was empty: removed", "unk_token was empty: removed"]
    assert (tokenizer.bos_token, tokenizer.unk_token) == (None, None)


def test_missing_padding_takes_the_unknown_token_first() -> None:
    tokenizer = copy.deepcopy(sentencepiece_like())
    assert tokenizer.pad_token is None
    assert repair_tokens(tokenizer, ALPACA) == ["pad_token was missing: set to '<unk>', which is in the vocabulary"]
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<unk>")


def test_padding_equal_to_eos_is_replaced_by_a_reserved_token() -> None:
    tokenizer = copy.deepcopy(colon_crossing())
    tokenizer.pad_token = "</s>"
    assert repair_tokens(tokenizer, ALPACA) == [
        "pad_token was the same as eos_token: set to '<pad>', which is in the vocabulary"
    ]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 1)


def test_padding_is_added_where_nothing_is_spare() -> None:
    tokenizer = copy.deepcopy(byte_level(chatml=False))
    size = len(tokenizer)
    assert repair_tokens(tokenizer, ALPACA) == ["pad_token was the same as eos_token: '<pad>' was added to the vocabulary"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (size, 0, size + 1)


def test_bos_is_never_padding() -> None:
    tokenizer = copy.deepcopy(sentencepiece_like())
    tokenizer.unk_token = "<s>"
    repair_tokens(tokenizer, ALPACA)
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_the_templates_tokens_are_added_whole() -> None:
    tokenizer, chatml = copy.deepcopy(byte_level(chatml=False)), load_template("chatml")
    size = len(tokenizer)
    done = repair_tokens(tokenizer, chatml)
    assert done[0] == "the template's tokens <|im_start|> <|im_end|> were added to the vocabulary"
    assert tokenizer.encode("<|im_start|>x<|im_end|>", add_special_tokens=False)[::2] == [size, size + 1]
    assert repair_tokens(tokenizer, chatml) == []  # once is enough


def test_the_templates_tokens_become_special_if_they_are_words() -> None:
    tokenizer, chatml = copy.deepcopy(byte_level(chatml=False)), load_template("chatml")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    assert "<|im_start|> <|im_end|> are now special tokens, so that they stay whole" in repair_tokens(tokenizer, chatml)
    assert all(tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids(t)].special for t in chatml.tokens)


@pytest.mark.parametrize("name", ["no such folder", "a folder without one"])
def test_no_tokenizer_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "x"
    if name.startswith("a folder"):
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"model\.name_or_path: no tokenizer can be loaded from '.*x'"):
        load_tokenizer(section(folder))


def test_a_tokenizer_without_a_rust_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    class Slow:
        pass

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(TokenizerError, match=r"Slow has no tokenizer\.json form; convert it first"):
        load_tokenizer(section(tmp_path))


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    byte_level().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n", encoding="utf-8")
    said = ""  # releases of transformers differ in whether they fall back to a plain class or refuse; none may run the file
    try:
        load_tokenizer(section(tmp_path))
    except TokenizerError as refused:
        said = str(refused)
    assert not said or "no tokenizer can be loaded" in said
    assert not (tmp_path / "ran").exists()


# -- from scratch, and from a run -----------------------------------------------------------------------------------


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def test_a_trained_tokenizer_is_a_function_of_its_texts() -> None:
    first, second = (train_tokenizer(CORPUS, 500, ["<|im_end|>"]) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert [first.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>", "<|im_end|>")] == [0, 1, 2, 3]
    assert len(first) <= 500
    text = "Unseen: ♞ 𝔘 \x00\r\n\t é 龘"
    assert ids(first, text)[0] == 0
    assert first.decode(ids(first, text)[1:]) == text


def test_a_recipe_without_a_checkpoint_trains_one(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    scratch = {"scratch": {"config": {**LLAMA}, "vocab_size": 300}}
    recipe = recipe.model_copy(update={"model": ModelSection.model_validate(scratch)})
    tokenizer, template, repairs = tokenizer_for(recipe)
    assert (len(tokenizer), template.name, repairs) == (297, "alpaca_short", [])


def test_a_recipe_repairs_by_the_models_configuration(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", colon_crossing())
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": ""}), encoding="utf-8")
    tokenizer, _, repairs = tokenizer_for(tiny_recipe(tmp_path / "run", base))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    assert repairs[0] == "eos_token was missing or empty: set to '</s>' (id 1 of the model's configuration)"


def test_a_run_without_a_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TokenizerError, match="its tokenizer cannot be loaded"):
        saved_tokenizer(tiny_recipe(tmp_path / "run"), tmp_path / "nothing")


def test_a_saved_tokenizer_encodes_as_before(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    tokenizer, template, _ = tokenizer_for(recipe)
    tokenizer.save_pretrained(tmp_path / "saved")
    again, same = saved_tokenizer(recipe, tmp_path / "saved")
    assert RowEncoder(again, same, "all").stops() == RowEncoder(tokenizer, template, "all").stops()
    assert [ids(again, text) for text in CORPUS] == [ids(tokenizer, text) for text in CORPUS]
