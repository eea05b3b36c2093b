"""A checkpoint with a tokenizer.model has sentencepiece's own ids, or is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sft.errors import TokenizerError
from sft.model.sentencepiece_bpe import read_model
from sft.model.tokenizer import load_tokenizer
from tests.builders import CORPUS, byte_level
from tests.model.test_tokenizer import ids, section


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
