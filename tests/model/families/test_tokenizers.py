"""Tokenizers of legacy checkpoints have the ids of the library that their models were trained with, here and after reloading."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft.errors import TokenizerError
from sft.model.families import tokenizers
from sft.model.families.legacy import Legacy
from tests.builders import CORPUS
from tests.model.test_sentencepiece_bpe import sentencepiece_model

LOOKALIKES = ["<reserved_106>", "<|user|>", "[gMASK]", "sop", "<eom>", "<|Human|>:", "sophisticated", "[MASK]", "<eoh"]
WORDS = [
    "the",
    "weather",
    "请写",
    "春天",
    "你好",
    "def f(x):",
    "return x",
    "🎉",
    "👩‍🚀",
    "1234567",
    "3.14",
    "café",
    "Ein Test",
    *LOOKALIKES,
    "<h1>",  # a piece that users defined, in the file of Baichuan2
]
BLANKS = [" ", "  ", "    ", "\n", "\n\n", "\t", "\t\t", "，", "。", ": ", ""]


def texts(count: int = 1600) -> list[str]:
    """Words of many kinds with many kinds of blanks between, before and behind them."""
    draw = random.Random(7)
    found = dict.fromkeys([*CORPUS, *WORDS, *BLANKS])  # each text once
    while len(found) < count:
        parts = [draw.choice(WORDS if i % 2 else BLANKS) for i in range(draw.randint(1, 9))]
        found["".join(parts)] = None
    return list(found)


def legacy(folder: Path, **config: Any) -> Legacy:
    return Legacy(folder, config, (), None)


def both(made: PreTrainedTokenizerBase, folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """A tokenizer and what is left of it when it is saved and loaded by anybody."""
    made.save_pretrained(folder)
    return made, AutoTokenizer.from_pretrained(folder)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text in which no token is spelt: special ones are read as words, as our rows have them."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


BUILDERS: dict[str, tuple[Callable[[Legacy], PreTrainedTokenizerBase], dict[str, Any]]] = {
    "baichuan": (tokenizers.baichuan, {"add_dummy_prefix": True}),
    "baichuan2": (
        tokenizers.baichuan,
        {"add_dummy_prefix": False, "split_digits": True, "user_defined_symbols": ["\n", "\t", "<h1>"]},
    ),
    "chatglm2": (tokenizers.chatglm2, {"add_dummy_prefix": True}),
    "chatglm3": (tokenizers.chatglm3, {"add_dummy_prefix": True}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_ids_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    build, options = BUILDERS[name]
    folder = sentencepiece_model(tmp_path / "legacy", **options)
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for tokenizer in both(build(legacy(folder, padded_vocab_size=2000)), tmp_path / "saved"):
        wrong = [text for text in texts() if plain_ids(tokenizer, text) != reference.encode(text)]
        assert wrong == []
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


@pytest.mark.parametrize(
    ("name", "specials"), [("chatglm2", tokenizers.CHATGLM2_SPECIALS), ("chatglm3", tokenizers.CHATGLM3_SPECIALS)]
)
def test_the_tokens_of_chatglm_stand_behind_its_pieces_and_two_begin_every_text(
    name: str, specials: tuple[str, ...], tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = sentencepiece_model(tmp_path / "legacy")
    count = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    for tokenizer in both(BUILDERS[name][0](legacy(folder, padded_vocab_size=2000)), tmp_path / "saved"):
        assert tokenizer.convert_tokens_to_ids(list(specials)) == list(range(count, count + len(specials)))
        ids = tokenizer("你好")["input_ids"]
        assert ids[:2] == [count + 1, count + 3]  # 64790 and 64792 of 64789 pieces
        assert tokenizer.padding_side == "left"
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "你好"


def moss_folder(folder: Path) -> Path:
    """Files as they lie in a MOSS checkpoint; the vocabulary is trained here."""
    folder.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())["model"]
    vocabulary = spec["vocab"] | {"<|endoftext|>": len(spec["vocab"])}
    added = [" " * run for run in range(31, 1, -1)] + ["\t" * run for run in range(9, 1, -1)]
    added += ["<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>"]
    table = {token: len(vocabulary) + i for i, token in enumerate(added)}
    merges = [" ".join(pair) for pair in spec["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(table))
    return folder


class ByteBpe:
    """GPT-2's tokenizer, restated: words by its rule, then the best merge until there is none; runs of blanks first of all."""

    RULE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, folder: Path) -> None:
        self.vocabulary = json.loads((folder / "vocab.json").read_text())
        self.added = json.loads((folder / "added_tokens.json").read_text())
        lines = (folder / "merges.txt").read_text().splitlines()[1:]
        self.ranks = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
        blanks = sorted((token for token in self.added if not token.strip()), key=len, reverse=True)
        self.runs = re.compile("(" + "|".join(map(re.escape, blanks)) + ")")

    def word(self, text: str) -> list[int]:
        parts = [self.letters[byte] for byte in text.encode()]
        while len(parts) > 1:
            pairs = [(self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(parts))]
            rank, at = min(pairs)
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.vocabulary[part] for part in parts]

    def __call__(self, text: str) -> list[int]:
        found = []
        for piece in self.runs.split(text):
            found += (
                [self.added[piece]]
                if self.runs.fullmatch(piece)
                else [i for word in self.RULE.findall(piece) for i in self.word(word)]
            )
        return found


def test_moss_has_the_ids_of_byte_bpe_and_loses_no_blank(tmp_path: Path) -> None:
    folder = moss_folder(tmp_path / "legacy")
    reference = ByteBpe(folder)
    for tokenizer in both(tokenizers.moss(legacy(folder)), tmp_path / "saved"):
        wrong = [text for text in texts() if plain_ids(tokenizer, text) != reference(text)]
        assert wrong == []
        assert all(tokenizer.decode(plain_ids(tokenizer, text)) == text for text in texts())
        last = len(reference.vocabulary) + len(reference.added)
        assert tokenizer.convert_tokens_to_ids(["<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>"]) == list(range(last - 5, last))
        assert tokenizer.eos_token == "<eom>"


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_not_theirs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.model here; fetch the whole checkpoint"):
        tokenizers.baichuan(legacy(tmp_path))
    folder = sentencepiece_model(tmp_path / "unigram", model_type="unigram")
    with pytest.raises(TokenizerError, match=r"it is no BPE; only a BPE with LLaMA's settings can be built"):
        tokenizers.baichuan(legacy(folder))
    folder = sentencepiece_model(tmp_path / "small")
    with pytest.raises(TokenizerError, match=r"\d+ pieces and 5 special tokens, but the model has 600 rows"):
        tokenizers.chatglm2(legacy(folder, padded_vocab_size=600))
    folder = sentencepiece_model(tmp_path / "taken", user_defined_symbols=["[gMASK]"])
    with pytest.raises(TokenizerError, match="are pieces of it already; this is another family's file"):
        tokenizers.chatglm2(legacy(folder, padded_vocab_size=2000))


def test_pieces_of_users_behind_a_prefix_space_cannot_be_built_and_are_refused(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "legacy", add_dummy_prefix=True, user_defined_symbols=["<h1>"])
    message = r"no exact tokenizer can be built of it: .* gives \[.*\], sentencepiece \[.*\] \(\d+ texts differ\)"
    for build in (tokenizers.baichuan, tokenizers.chatglm2):
        with pytest.raises(TokenizerError, match=message):
            build(legacy(folder, padded_vocab_size=2000))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bos_piece": "<bos>"}, "<s> has the id None, and 1 is"),
        ({"bos_id": -1, "eos_id": 1}, "<s> has the id None, and 1 is"),
        ({"bos_id": 1, "pad_id": 2, "eos_id": 3}, "</s> has the id 3, and 2 is"),
        ({"bos_id": 0, "eos_id": 1, "unk_id": 2}, "<unk> has the id 2, and 0 is"),
    ],
)
@pytest.mark.parametrize("name", BUILDERS)
def test_special_pieces_elsewhere_are_refused(name: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "legacy", **options)
    with pytest.raises(TokenizerError, match=re.escape(said) + " what the model was trained with; fetch it again"):
        BUILDERS[name][0](legacy(folder, padded_vocab_size=2000))


def test_files_that_lost_pieces_are_refused(tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "legacy")
    with pytest.raises(TokenizerError, match=r"<reserved_106> has the id None, and 195 is what the model was trained with"):
        tokenizers.baichuan(legacy(folder, vocab_size=125_696))
    for build in (tokenizers.chatglm2, tokenizers.chatglm3):
        with pytest.raises(
            TokenizerError, match=r"\d+ pieces, and a model of 65024 rows was trained with 64789: every special"
        ):
            build(legacy(folder, padded_vocab_size=65_024))


def test_markers_of_baichuan_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sentencepiece_model(tmp_path / "legacy")
    from sft.model.sentencepiece_bpe import read_model

    count = len(read_model(folder / "tokenizer.model").ids)
    monkeypatch.setitem(tokenizers.BAICHUAN_MARKERS, count, ("<reserved_102>", "<reserved_103>"))
    with pytest.raises(TokenizerError, match=r"<reserved_102> has the id None, and 195 is what the model was trained with"):
        tokenizers.baichuan(legacy(folder))


def test_faults_in_moss_files_are_named(tmp_path: Path) -> None:
    folder = moss_folder(tmp_path / "legacy")
    table = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({k: v for k, v in table.items() if k != "<eom>"}))
    with pytest.raises(TokenizerError, match=r"'<eot>' would get the id \d+, and added_tokens\.json says \d+; fetch it again"):
        tokenizers.moss(legacy(folder))
    (folder / "added_tokens.json").write_text(json.dumps({k: v for k, v in table.items() if not k.startswith("<eo")}))
    with pytest.raises(TokenizerError, match=r"no <eoh>, <eom>, <eot>, <eoc>, <eor> in vocab\.json or added_tokens\.json"):
        tokenizers.moss(legacy(folder))
    (folder / "added_tokens.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="a table of tokens and ids was expected; fetch it again"):
        tokenizers.moss(legacy(folder))
    (folder / "added_tokens.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"added_tokens\.json: no JSON: "):
        tokenizers.moss(legacy(folder))
    (folder / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    (folder / "added_tokens.json").write_text(json.dumps(table))
    with pytest.raises(TokenizerError, match=r"vocab\.json and merges\.txt do not belong together: "):
        tokenizers.moss(legacy(folder))
