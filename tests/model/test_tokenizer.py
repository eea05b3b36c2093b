"""Faulty tokenizers are mended as told, or refused; never used as they are."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sft.data.template import load_template
from sft.data.tokenize import RowEncoder
from sft.errors import TokenizerError
from sft.model.sentencepiece_bpe import read_model
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


# -- tokenizer.model alone ------------------------------------------------------------------------------------------


def sentencepiece_model(folder: Path, **options: Any) -> Path:
    """A checkpoint folder with a sentencepiece model trained here, and no tokenizer.json: LLaMA as it came in 2023."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir()
    buffer = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=buffer,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **{
            "model_type": "bpe",
            "vocab_size": 620,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    (folder / "tokenizer.model").write_bytes(buffer.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}), encoding="utf-8")
    return folder


TEXTS = [*CORPUS, "    if x:\n\t\treturn  1\n", "  ", "x", " leading", "trailing   ", "a\n\n\nb", "▁ literal"]


def spaces_behind_all_scores(folder: Path) -> None:
    """Give runs of 2 to 16 spaces low ids, in LLaMA's order, and one score below all others, as its vocabulary has them."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    file = folder / "tokenizer.model"
    spec = ModelProto.FromString(file.read_bytes())
    runs = ["▁" * length for length in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11, 15)]
    kept = [piece for piece in spec.pieces if piece.piece not in runs]
    first = next(i for i, piece in enumerate(kept) if piece.type == 1)
    new = [ModelProto.SentencePiece(piece=run, score=-1e9, type=1) for run in runs]
    del spec.pieces[:]
    spec.pieces.extend([*kept[:first], *new, *kept[first:]])
    file.write_bytes(spec.SerializeToString())


def wrong(folder: Path, loaded: PreTrainedTokenizerBase) -> list[str]:
    """Texts whose ids are not sentencepiece's."""
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [text for text in TEXTS if loaded(text, add_special_tokens=False)["input_ids"] != reference.encode(text)]


def said(mended: list[str]) -> bool:
    pattern = r"the tokenizer that transformers made of tokenizer\.model reads \d+ of \d+ texts otherwise than sentencepiece: built again, "
    return len(mended) == 1 and re.match(pattern, mended[0]) is not None


@pytest.mark.parametrize("runs_of_spaces", ["none", "trained", "as LLaMA"])
def test_a_sentencepiece_model_alone_gives_its_own_ids(tmp_path: Path, runs_of_spaces: str) -> None:
    folder = sentencepiece_model(tmp_path / "sp", allow_whitespace_only_pieces=runs_of_spaces != "none")
    if runs_of_spaces == "as LLaMA":
        spaces_behind_all_scores(folder)
    from transformers import AutoTokenizer

    tokenizer, mended = load_tokenizer(section(folder))
    theirs = wrong(folder, AutoTokenizer.from_pretrained(folder))
    assert wrong(folder, tokenizer) == []
    assert not theirs or said(mended)
    assert ids(tokenizer, "x")[0] == 1, "BOS is written as before"
    # What was mended must hold in the exported tokenizer.json too.
    tokenizer.save_pretrained(tmp_path / "saved")
    saved, again = load_tokenizer(section(tmp_path / "saved"))
    assert (wrong(folder, saved), again) == ([], [])
    assert [saved.decode(ids(saved, text), skip_special_tokens=True) for text in CORPUS] == CORPUS


def test_merges_are_ranked_by_scores_and_not_by_ids(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "sp")
    spaces_behind_all_scores(folder)
    tokenizer, mended = load_tokenizer(section(folder))
    names = tokenizer.convert_ids_to_tokens(tokenizer("    x", add_special_tokens=False)["input_ids"])
    assert said(mended)
    assert names == ["▁" * 4, "▁x"]  # the score of ▁x is better than that of any run, low as the run's id is


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_right_tokenizer_json_is_not_spoilt_by_a_class(tmp_path: Path, legacy: bool | None) -> None:
    """transformers' LLaMA class writes its own treatment of spaces over that of the file."""
    folder = sentencepiece_model(tmp_path / "sp", allow_whitespace_only_pieces=True)
    spaces_behind_all_scores(folder)
    model = read_model(folder / "tokenizer.model")
    model.backend().save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | ({} if legacy is None else {"legacy": legacy})
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer, _ = load_tokenizer(section(folder))
    apart = model.reference.encode("b c")
    both = [*model.reference.encode("a"), 2]
    found = tokenizer("a</s>b c", add_special_tokens=False)["input_ids"]
    if legacy is False:  # then only the beginning of the whole text gets a prefix
        assert tokenizer.decode(found) == "a</s>b c"
        assert tokenizer.convert_ids_to_tokens(found)[2][0] == "b"
    else:
        assert wrong(folder, tokenizer) == []
        assert found == [*both, *apart]


def test_a_tokenizer_json_with_merges_by_ids_is_built_again(tmp_path: Path) -> None:
    """As transformers 5 saves it when it has read the model."""
    from transformers import AutoTokenizer

    folder = sentencepiece_model(tmp_path / "sp")
    spaces_behind_all_scores(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert wrong(folder, AutoTokenizer.from_pretrained(folder)) != []
    tokenizer, mended = load_tokenizer(section(folder))
    assert (wrong(folder, tokenizer), said(mended)) == ([], True)


def test_further_tokens_of_the_checkpoint_stay(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "sp")
    spaces_behind_all_scores(folder)
    size = len(read_model(folder / "tokenizer.model").ids)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(size): {"content": "<|end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|end|>"}), encoding="utf-8")
    tokenizer, mended = load_tokenizer(section(folder))
    assert said(mended)
    assert (tokenizer.pad_token_id, len(tokenizer)) == (size, size + 1)
    assert size in tokenizer("a<|end|>b", add_special_tokens=False)["input_ids"]


def test_a_model_that_no_bpe_can_be_is_refused(tmp_path: Path) -> None:
    """Pieces of a unigram model are read as merges."""
    folder = sentencepiece_model(tmp_path / "sp", model_type="unigram", vocab_size=500)
    with pytest.raises(
        TokenizerError,
        match=r"rebuilds this tokenizer wrongly: .* gives \[.*\], sentencepiece \[.*it is no BPE\); put the tokenizer\.json",
    ):
        load_tokenizer(section(folder))


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 500}, "it is no BPE"),
        ({"normalization_rule_name": "nfkc"}, "it changes characters before it looks for pieces"),
        ({"remove_extra_whitespaces": True}, "it removes spaces"),
        ({"treat_whitespace_as_suffix": True}, "its spaces stand behind words"),
    ],
)
def test_models_that_cannot_be_built_are_named(tmp_path: Path, option: dict[str, Any], reason: str) -> None:
    model = read_model(sentencepiece_model(tmp_path / "sp", **option) / "tokenizer.model")
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model: {reason}; only a BPE with LLaMA's settings can be built"):
        model.backend()


def test_the_checkpoints_own_tokenizer_json_with_other_pieces_is_believed(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "sp", model_type="unigram", vocab_size=500)
    byte_level().save_pretrained(folder)
    tokenizer, mended = load_tokenizer(section(folder))
    assert (tokenizer.get_vocab(), mended) == (byte_level().get_vocab(), [])


def test_an_unchecked_sentencepiece_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    folder = sentencepiece_model(tmp_path / "sp")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: loaded)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"can be checked only with its library; pip install sentencepiece protobuf"):
        load_tokenizer(section(folder))


def test_an_old_protobuf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    class Old:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Detected incompatible Protobuf Gencode/Runtime versions")

    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", Old())
    with pytest.raises(TokenizerError, match=r"sentencepiece cannot be used \(Detected .*\); pip install -U protobuf"):
        read_model(tmp_path / "tokenizer.model")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: this is no sentencepiece model \(.*\); fetch it again"):
        read_model(file)


def test_what_tokenizer_model_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def missing(*_: Any, **__: Any) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.\nInstall it.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(
        TokenizerError, match=r"`tiktoken` is required .*; a checkpoint with only .* pip install sentencepiece protobuf"
    ):
        load_tokenizer(section(tmp_path))


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
